# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many processes, long passes, compiled functions, and a plan past one machine
#
# What is left when a Fisher matrix works on one small batch: data spread over processes, a pass that takes a night and
# is killed in it, a function that is called a thousand times, and a network for which one must know beforehand what
# fits.  Run it as a script (`python notebooks/07_many_processes.py`) or read it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **Two processes are one.**  KFAC, EKFAC, a decomposition split between the two and six steps of K-FAC, each rank with
# >   its half of the digits, differ from one process by 2.0e-14 at most.  A rank gives to the sums 0.50 of the bytes of
# >   dense factors.
# > * **A killed pass goes on.**  Killed after 8 of 12 batches, it goes on from the 6 that its file holds, and ends with
# >   the bits of a pass that was not cut off.  The file is read without pickle, its header by anyone.
# > * **Compiled, a small network's KFAC takes 0.259 ms in place of 3.07 ms**, and that of an ensemble of 8 in one call
# >   0.953 ms in place of 4.56 ms, after 31 s of compiling; the numbers agree to the last digit or so.
# > * **Formulas say it beforehand.**  What ranks send is 0.50 and 1.36 of dense factors, 0.03 and 0.42 with a limit, as
# >   the formulas have it; memory is 1.20 to 1.34 times what they count.
# > * **7 billion parameters on 8 GPUs of 80 GB: not as it is.**  28.12 GB of factors and 50.71 GB of bases at every
# >   rank end at 107.5 GB.  Four blocks at a time fit (40.3 GB).  With factors split over the ranks, which is not done
# >   today, all would (49.6 GB).

# %%
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.func import vmap

import figures
import figures_processes
import fisher
import processes
from fisher.distributed.splitting import balanced
from linmaps import trees

torch.set_num_threads(1)
HERE, START = Path(processes.__file__).parent, sum(os.times()[:4])
folder = tempfile.TemporaryDirectory()


def run(*command: object, seconds: float = 150) -> tuple[int, str]:
    """Python on a script beside this one: (how it ended, what it printed); what takes longer is ended."""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, *map(str, command)], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.terminate()  # torchrun ends its processes
        printed, errors = child.communicate(timeout=30)
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(errors[-2000:])
    return child.returncode, printed.strip()


def torchrun(script: str, *arguments: str, ranks: int = 2) -> str:
    """What `torchrun --nproc-per-node RANKS SCRIPT` prints, on this machine alone."""
    options = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
    return run(*options, HERE / script, *arguments)[1]


# %% [markdown]
# ## 1. One data set, two processes
#
# *What must be changed for data that are spread over processes?*  One argument.  Each process (a **rank**) calls
# `fisher.fim` with its own part of the data; `reduce` adds the sums of all ranks before the mean is taken, and every
# rank ends with the matrix of all data:
#
# ```python
# dist.init_process_group("gloo")                  # "nccl" on GPUs; torchrun says the rest
# reduce = fisher.distributed.all_reduce()
# F = fisher.fim(net, params, shard, PMatKFAC, layers=layers, reduce=reduce)
# E = F.eigendecomposition(group=dist.group.WORLD)   # each rank decomposes some of the layers
# optimizer = fisher.recipes.kfac(net, layers=layers, reduce=reduce)
# ```
#
# `layers` are made once, of a batch that all ranks have.  A process of a notebook cannot be split in two, so the cell
# starts the script `distributed_example.py` as a shell would:
# `torchrun --nproc-per-node 2 notebooks/distributed_example.py`.

# %%
print(torchrun("distributed_example.py"))

# %% [markdown]
# Rank 0 has computed the same from all data by itself.  What is left is the order in which numbers are added.  The
# gradient of a K-FAC step must be that of all ranks, as `DistributedDataParallel` makes it; the curvature is added by
# `reduce`.

# %% [markdown]
# ## 2. A pass that is killed, and goes on
#
# *A pass over a large data set takes hours, and the machine is taken away.  Is it lost?*  With `checkpoint=path` the sums
# are written to a file after each `every` batches.  The same call, made again, takes the sums from the file, lets the
# batches pass that are done, and goes on.  The child below makes one matrix of twelve batches, and is killed
# (`kill -9`: it can do nothing about it) before the ninth.

# %%
kept = Path(folder.name) / "pass.safetensors"
ended, printed = run(HERE / "processes.py", "pass", kept, 8)
print(f"ended by signal {-ended}, after: {', '.join(printed.splitlines())}")
print(f"the file is there: {kept.exists()}, {kept.stat().st_size / 1e3:.0f} kB")

# %% [markdown]
# The file is one of `safetensors`, as `linmaps.trees.save` writes it: numbers under dotted names, and a header in JSON
# that says what they are.  There is no pickle in it: who loads it runs no code of the file.

# %%


def header(path: Path) -> None:
    """What any reader of safetensors finds."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    print(f"kind: {about['kind']}, written by {about['written_by']}, format {about['format_version']}")
    told = textwrap.shorten(", ".join(f"{n} {s}" for n, s in sizes.items()), 280, placeholder=" ...")
    print(textwrap.fill(told, 105, initial_indent="numbers: ", subsequent_indent="         "))
    print(textwrap.fill(about["layout"][:360] + " ...", 105, initial_indent="layout: ", subsequent_indent="        "))


header(kept)
stage = trees.load(kept)["stage"]
print(f"\nof {processes.BATCHES} batches {stage['batches']} are in the sums")

# %% [markdown]
# Now the same call again, and the same call in a process that nobody kills.

# %%
ended, resumed = run(HERE / "processes.py", "pass", kept)
with redirect_stdout(io.StringIO()) as out:
    processes.passed(str(Path(folder.name) / "other.safetensors"))
whole = out.getvalue().strip()
print("\n".join(resumed.splitlines()[-2:]))
print("not cut off:", whole.splitlines()[-1])
print(f"the same bits: {resumed.splitlines()[-1] == whole.splitlines()[-1]}")

# %% [markdown]
# The batches that were done are asked for again, for the loader has no memory, but nothing is computed of them.  They are
# compared with those of before, as are params, layers and options: a call with others is refused, by name.  `save` and
# `load` take anything that the library makes:

# %%
params, x = processes.start((20, 32, 3)), torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
layers = fisher.LayerCollection.from_function(processes.net, params, x)


def factors(params, x):
    return fisher.fim(processes.net, params, x, fisher.PMatKFAC, layers=layers)


F = factors(params, x)
trees.save({"F": F, "params": params}, Path(folder.name) / "state.safetensors")
again = trees.load(Path(folder.name) / "state.safetensors")
header(Path(folder.name) / "state.safetensors")
print(f"\n{again['F']}: the same bits {all(map(torch.equal, trees.leaves(again['F']), trees.leaves(F)))}")

# %% [markdown]
# ## 3. Compiled
#
# *The network is small, and the matrix is made at every step: where does the time go?*  Into Python, which calls some
# hundred operations on small tensors.  `trees.compiled(f)` runs the function once without numbers, records the operations as a
# graph, and lets torch compile it.  The result is called like `f`, and `vmap` of it is a graph of its own: an ensemble
# of eight networks in one call.  Compiling takes far longer than a call, so it is for what is called often, with the
# same shapes.

# %%
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder.name) / "inductor")  # compiled here and now, not found
members = trees.stack([trees.map(lambda t, k=k: t * (1 + k / 8), params) for k in range(8)])


def fastest(calls: dict, rounds: int = 60) -> dict[str, float]:
    """Seconds of the processor of the fastest of many calls of each, in turns."""
    seconds = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            before = time.process_time()
            call()
            seconds[kind].append(time.process_time() - before)
    return {kind: min(found) for kind, found in seconds.items()}


def processor() -> float:
    """Seconds of the processor so far, those of processes that were started and have ended too."""
    return sum(os.times()[:4])


compiling = processor()
try:
    backend = "inductor"
    quick = trees.compiled(factors, params, x, backend=backend)
except RuntimeError:  # inductor writes C++
    backend = "aot_eager"
    quick = trees.compiled(factors, params, x, backend=backend)
    print("There is no C++ compiler here: aot_eager, which saves Python's time and joins no loops.")
ensemble = {kind: vmap(of, in_dims=(0, None)) for kind, of in (("as it is", factors), ("compiled", quick))}
calls = {
    "one network": {"as it is": lambda: factors(params, x), "compiled": lambda: quick(params, x)},
    "eight, vmap": {kind: lambda of=of: of(members, x) for kind, of in ensemble.items()},
}
print(f"KFAC of an MLP 20-32-3, 64 examples, backend {backend}")
for name, ways in calls.items():
    made = {kind: trees.leaves(call()) for kind, call in ways.items()}
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(made["as it is"], made["compiled"]))
    spent = fastest(ways)
    slow, fast = spent["as it is"], spent["compiled"]
    print(
        f"{name}: {1e3 * slow:6.2f} ms as it is, {1e3 * fast:6.3f} ms compiled, {slow / fast:3.0f} times faster; "
        f"apart by {apart:.0e}"
    )
for graph in quick.graphs:
    took = graph.trace_seconds + graph.compile_seconds
    print(f"{graph.what}: {graph.operations} operations, {took:.0f} s on the clock to trace and compile")
print(f"all of it took {processor() - compiling:.0f} s of the processor")

# %% [markdown]
# The gain is that of a small network, and shrinks as the products grow: an autoencoder of 784 inputs has 1.2 times
# (`tests/bench/README.md`).  What a graph cannot hold is refused with the line: a choice by the value of a tensor, a random
# number (`noise=` is an argument), a change in place.

# %% [markdown]
# ## 4. The plan: what is kept, sent, and computed
#
# *Will it fit, and what will it cost, before it is started?*  Of a layer with I inputs (the bias's one among them) and O
# outputs, N ranks, B examples of S positions and C columns:
#
# | what | numbers | who has it |
# |---|---|---|
# | factors A, G | I² + O² | every rank |
# | sent for the sums, as triangles | I (I + 1)/2 + O (O + 1)/2 | each rank gives them once a pass |
# | on the wire, by a ring | 2 (N - 1)/N of that | each rank |
# | eigenbases, and eigenvalues | I² + O², and I O | made at one rank, sent to all: on every rank |
# | decomposition | about 9 (I³ + O³) operations (symmetric QR) | one rank for each layer |
# | columns (output-gradients) | C B S O, and 2 B S O for the forward | each rank for its examples |
# | gradient | I O | as your data parallelism has it |
#
# A factor of more than `largest_factor` rows is kept as its diagonal: I in place of I² and of the triangle, with nothing to
# decompose.  The A of a table (an embedding) is diagonal by itself.  A scale (of a norm) has no factors: its block is
# n², or n where that is more than `largest_block`.  As code:

# %%


@dataclass(frozen=True)
class Layer:
    """Layers of one size: rows of A and of G, how many, and whether it is a product, a table or a scale."""

    inputs: int
    outputs: int
    count: int = 1
    kind: str = "product"


@dataclass(frozen=True)
class Cost:
    """Numbers, and operations, of one or of all layers."""

    params: int = 0
    kept: int = 0  # factors
    sent: int = 0  # of their triangles
    bases: int = 0  # eigenvectors and eigenvalues
    cubes: int = 0  # I^3 + O^3 of what is decomposed
    outputs: int = 0  # O of what columns are held for

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


def cost(layer: Layer, largest_factor: int = 8192, largest_block: int = 4096) -> Cost:
    """Of one layer."""
    I, O = layer.inputs, layer.outputs
    if layer.kind == "scale":
        whole = largest_block >= O
        return Cost(O, O**2 if whole else O, O * (O + 1) // 2 if whole else O, outputs=O)
    sides = [(I, largest_factor >= I and layer.kind == "product"), (O, largest_factor >= O)]
    kept = sum(n**2 if whole else n for n, whole in sides)
    sent = sum(n * (n + 1) // 2 if whole else n for n, whole in sides)
    return Cost(I * O, kept, sent, kept + I * O, sum(n**3 for n, whole in sides if whole), O)


def total(layers: list[Layer], **limits: int) -> Cost:
    return sum((cost(layer, **limits) for layer in layers for _ in range(layer.count)), Cost())


# %% [markdown]
# *Are the formulas right?*  Two processes make the matrix of an MLP 256-512-512-10, each of half of the examples, and count:
# what each collective is given, what the system says this process has written to the other (Linux counts it), and
# the most that tensors take at one time.  In a shell: `torchrun --nproc-per-node 2 notebooks/processes.py measured`.

# %%
ranks = json.loads(torchrun("processes.py", "measured").splitlines()[-1])
N, widths = len(ranks), processes.WIDTHS
mlp = [Layer(i + 1, o) for i, o in zip(widths, widths[1:])]
of_all, of_cut = total(mlp), total(mlp, largest_factor=processes.LIMIT)
MB = lambda numbers, width=4: f"{width * numbers / 1e6:8.3f} MB"
dense = 4 * of_all.kept
first = ranks[0]
sent = {
    "sums": (4 * of_all.sent, first["sums"]["all_reduce"]),
    f"sums, largest_factor={processes.LIMIT}": (4 * of_cut.sent, first["sums, limited"]["all_reduce"]),
    "bases and eigenvalues": (4 * of_all.bases, first["bases"]["broadcast"]),
    f"the same, largest_factor={processes.LIMIT}": (4 * of_cut.bases, first["bases, limited"]["broadcast"]),
}
print(f"{'given to collectives by a rank':36}{'formula':>12}{'measured':>12}{'of dense factors':>18}")
for name, (formula, measured) in sent.items():
    print(f"{name:36}{MB(formula / 4):>12}{MB(measured / 4):>12}{measured / dense:>18.2f}")
if first["sums"]["wire"] is not None:
    ring = [rank["sums"]["wire"] / rank["sums"]["all_reduce"] for rank in ranks]
    wire = sum(rank["bases"]["wire"] for rank in ranks)
    print(f"on the wire: sums {ring[0]:.4f} and {ring[1]:.4f} of what is given, 2 (N - 1)/N = {2 * (N - 1) / N:.4f};")
    print(f"             bases of both ranks {MB(wire / 4).strip()}, once to each other rank")

# %% [markdown]
# Bytes are what the formulas say, to the counts of examples that go along.  Now memory and work.

# %%
B = processes.EXAMPLES // N
columns = lambda C, B, outputs: (C + 2) * B * outputs
held = {}
for chunk in processes.CHUNKS:
    formula = 4 * (columns(chunk, B, of_all.outputs) + of_all.kept)
    held[f"columns, chunk_size={chunk}"] = (formula, first["peak"][str(chunk)])
both = 4 * (2 * of_all.kept + of_all.sent)
held["sums, added over ranks"] = (both, first["peak, reduced"])
print(f"{'held at one time by a rank':36}{'formula':>12}{'measured':>12}{'measured / formula':>20}")
for name, (formula, measured) in held.items():
    print(f"{name:36}{MB(formula / 4):>12}{MB(measured / 4):>12}{measured / formula:>20.2f}")
SLACK = max(measured / formula for formula, measured in held.values())
at = balanced([float(cost(layer).cubes) for layer in mlp], N)
shares = [sum(cost(layer).cubes for layer, rank in zip(mlp, at) if rank == k) / of_all.cubes for k in range(N)]
print(f"\ndecomposition: of n³ the ranks have {', '.join(f'{share:.2f}' for share in shares)};", end=" ")
print("of the seconds of one process", ", ".join(f"{rank['split, s'] / rank['alone, s']:.2f}" for rank in ranks))
rate = 9 * of_all.cubes / first["alone, s"]
print(f"by 9 n³, one core does {rate / 1e9:.1f}e9 operations a second of it; the same bits: {first['same']}")
figures.show(figures_processes.processes_measured(sent, held), "processes_measured")

# %% [markdown]
# **Left: what is sent.**  The two bars of each pair agree.  **Right: what is held.**  The formula counts what is held by
# design: gradients of the columns, what the forward keeps, factors; and for the sum over ranks the own sums, one buffer
# (of up to 2^24 numbers) and those of all.  What is on the way from one layer to the next comes on top, and the plan below
# takes it along as a factor.
#
# `chunk_size` is the lever for the one, `largest_factor` for the other.

# %% [markdown]
# ## 5. The plan of a transformer with seven billion parameters on eight GPUs
#
# *Can this library make KFAC of such a model today?*  32 blocks of width 4,096 with MLPs of 11,008, a vocabulary of
# 32,000, no biases.  First that the plan knows what is kept: the same network with two blocks of width 32, with the
# limits as far down, is run here.

# %%


def transformer(blocks: int, width: int, hidden: int, vocabulary: int) -> list[Layer]:
    """The layers of a LLaMA-like transformer."""
    return [
        Layer(width, width, 4 * blocks),  # queries, keys, values, output
        Layer(width, hidden, 2 * blocks),  # gate, up
        Layer(hidden, width, blocks),  # down
        Layer(1, width, 2 * blocks + 1, "scale"),
        Layer(vocabulary, width, 1, "table"),
        Layer(width, vocabulary),
    ]


def llama(p, tokens, heads=4):
    """Logits [B, V, S] of tokens [B, S]."""
    norm = lambda x, scale: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale
    x = nn.functional.embedding(tokens, p["embedding"])
    for b in p["blocks"]:
        h = norm(x, b["norm1"])
        q, k, v = (nn.functional.linear(h, b[name]).unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qkv")
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + nn.functional.linear(mixed, b["o"])
        h = norm(x, b["norm2"])
        gate = nn.functional.silu(nn.functional.linear(h, b["gate"]))
        x = x + nn.functional.linear(gate * nn.functional.linear(h, b["up"]), b["down"])
    return nn.functional.linear(norm(x, p["norm"]), p["head"]).movedim(-1, 1)


g = torch.Generator().manual_seed(0)
W, H, V = 32, 86, 250  # widths, over 128
drawn = lambda o, i: torch.randn(o, i, generator=g) / i**0.5
block = lambda: {
    **{name: drawn(W, W) for name in "qkvo"},
    **{"gate": drawn(H, W), "up": drawn(H, W), "down": drawn(W, H)},
    **{"norm1": torch.ones(W), "norm2": torch.ones(W)},
}
small = {"blocks": [block(), block()], "embedding": drawn(V, W), "head": drawn(V, W), "norm": torch.ones(W)}
tokens = torch.randint(V, (2, 16), generator=g)
limits = {"largest_factor": 64, "largest_block": 32}
F = fisher.fim(llama, small, tokens, estimator="mc", generator=g, **limits)
print(F)
planned = total(transformer(2, W, H, V), **limits)
print(f"planned: {planned.params:,} parameters, {planned.kept:,} numbers kept")
E_small = F.eigendecomposition()
print(f"decomposed: {sum(t.numel() for t in trees.leaves((E_small.eigenvalues, E_small.bases))):,}, ", end="")
print(f"planned {planned.bases:,}")

# %% [markdown]
# Now the large one.  Assumed, and to be replaced by what your machines do:

# %%
GPUS, MEMORY = 8, 80.0  # GB each
EIGH = 1e12  # operations a second of a decomposition in float32 on one GPU
LINK = 100e9  # bytes a second that a GPU sends
TOKENS, COLUMNS = 2048, 1  # positions of a rank at once; estimator="mc", one draw
HALF, FULL = 2, 4  # bytes: params, gradients and columns in bfloat16; factors in float32

parts = {
    "attention": Layer(4096, 4096, 4 * 32),
    "gate, up": Layer(4096, 11008, 2 * 32),
    "down": Layer(11008, 4096, 32),
    "norms": Layer(1, 4096, 65, "scale"),
    "embedding": Layer(32000, 4096, 1, "table"),
    "head": Layer(4096, 32000),
}
assert list(parts.values()) == transformer(32, 4096, 11008, 32000)
GB = lambda numbers, width=FULL: width * numbers / 1e9
names = "params, 1e9", "factors, GB", "sent, GB", "bases, GB", "n³, 1e12", "columns, GB"
print(f"{'':12}" + "".join(f"{name:>13}" for name in names) + "   diagonals")
rows = {name: total([layer]) for name, layer in parts.items()}
for name, c in (rows | {"all": total(list(parts.values()))}).items():
    numbers = (
        c.params / 1e9,
        GB(c.kept),
        GB(c.sent),
        GB(c.bases),
        c.cubes / 1e12,
        GB(columns(COLUMNS, TOKENS, c.outputs), HALF),
    )
    layer = parts.get(name)
    diagonal = [] if layer is None or layer.kind == "scale" else [(layer.inputs, "A"), (layer.outputs, "G")]
    kept = ", ".join(f"{side} [{n:,}]" for n, side in diagonal if n > 8192)
    print(f"{name:12}" + "".join(f"{n:>13.2f}" for n in numbers) + f"   {kept}")
everything = total(list(parts.values()))
lean = total(list(parts.values()), largest_block=1024)
print(f"with largest_block=1024, norms as diagonals, the factors take {GB(lean.kept):.2f} GB")
without = total(list(parts.values()), largest_factor=10**9)
print(
    f"without largest_factor the factors would take {GB(without.kept):.0f} GB and {without.cubes / 1e12:.0f}e12 for n³"
)

# %% [markdown]
# `largest_factor=8192`, the default, keeps the 11,008 outputs of gate and up, the inputs of down, and the vocabulary
# as diagonals: correlations between hidden units of an MLP, and between tokens, are not in this matrix.  A scale of
# 4,096 is just within `largest_block=4096`, so that each norm has a square block, which each solve decomposes anew at each
# rank: give `largest_block=1024`.
#
# *What is held where?*  Under FSDP2 the params are DTensors, a share at each GPU; this library gathers them leaf by leaf
# for the time of a call, so a whole copy is there.  Factors, bases and eigenvalues are plain tensors, whole at each rank.
# Three moments: the **pass** (whole params, columns, own sums and those of all), the **decomposition** (factors, bases,
# eigenvalues) and the **solve** (gradient and step whole, bases; the state of another optimizer comes on top).  On the left
# as it is; in the middle eight passes over four blocks each, `layers=layers.select([...])`, without norms and tables; on
# the right what it would be if each rank kept the factors of its layers alone.

# %%


def moments(c: Cost, ranks: int = 1) -> dict[str, dict[str, float]]:
    """GB on one GPU of what is held, where factors and bases are whole, or at one of so many ranks."""
    whole, share = GB(everything.params, HALF), GB(everything.params, HALF) / GPUS
    kept, buffer = GB(c.kept), GB(2**24)
    vectors = 2 * GB(c.params, HALF)
    held = (COLUMNS * c.outputs + 2 * everything.outputs) * TOKENS
    return {
        "pass": {
            "own share of params": share,
            "whole params": whole,
            "columns, forward": SLACK * GB(held, HALF),
            "factors": kept if ranks == 1 else kept / ranks,
            "their sums": kept + buffer if ranks == 1 else kept / ranks + 2 * buffer,
        },
        "decomposition": {
            "own share of params": share,
            "factors": kept / ranks,
            "bases, eigenvalues": GB(c.bases) / ranks,
        },
        "solve": {
            "own share of params": share,
            "gradient, step": vectors / ranks,
            "factors": kept / ranks,
            "bases, eigenvalues": GB(c.bases) / ranks,
        },
    }


four = [Layer(l.inputs, l.outputs, l.count // 8, l.kind) for l in list(parts.values())[:3]]
ways = {
    "as it is": moments(everything),
    "four blocks at a time": moments(total(four)),
    f"factors split over {GPUS} ranks": moments(everything, GPUS),
}
print(f"{'GB on one GPU':26}" + "".join(f"{moment:>16}" for moment in ways["as it is"]))
for way, own in ways.items():
    sums = [sum(parts.values()) for parts in own.values()]
    print(f"{way:26}" + "".join(f"{s:>10.1f}{'      ' if s <= MEMORY else ' > 80 '}" for s in sums))
figures.show(figures_processes.processes_plan(ways, MEMORY), "processes_plan")

# %% [markdown]
# **What does not fit, plainly.**  KFAC of all layers at once, on GPUs of 80 GB: neither the pass nor the decomposition nor
# the solve, and more GPUs do not help, for each holds all factors.  What would be needed, and is not in this library
# today:
#
# * sums that end at one rank for each layer (a reduce-scatter in place of an all-reduce), factors and bases that stay
#   there, and steps that are sent in their place;
# * eigenvalues of a Kronecker product kept as I + O numbers, not I O: 27 of the 51 GB of bases;
# * params gathered block by block in the forward, as FSDP2 does it by itself, not all before it.
#
# What can be done today: some layers at a time (the middle), attention alone, a smaller `largest_factor` for layers that
# are just below it.
#
# *And time?*  Each layer is decomposed at one rank; the ranks then send what they made to all.

# %%
jobs = [float(cost(layer).cubes) for layer in parts.values() for _ in range(layer.count)]
counts = [1, 2, 4, 8, 16, 32, 64]
most = []
for n in counts:
    at = balanced(jobs, n)
    most.append(max(sum(job for job, rank in zip(jobs, at) if rank == k) for k in range(n)))
times = {
    "decomposition": [9 * work / EIGH for work in most],
    "sums, by a ring": [2 * (n - 1) / n * FULL * everything.sent / LINK for n in counts],
    "bases, sent to all": [(n > 1) * FULL * everything.bases / LINK for n in counts],
}
eight = {name: values[counts.index(GPUS)] for name, values in times.items()}
print(f"on {GPUS} GPUS at {EIGH:.0e} operations and {LINK:.0e} bytes a second:")
for name, value in eight.items():
    print(f"  {name:20} {value:6.2f} s")
print(
    f"  gradient, by a ring  {2 * (GPUS - 1) / GPUS * HALF * everything.params / LINK:6.2f} s, which every step sends in any case"
)
print(
    f"on one GPU the decomposition takes {times['decomposition'][0]:.0f} s; one factor of 4,096 rows {9 * 4096**3 / EIGH:.2f} s"
)
figures.show(figures_processes.processes_seconds(counts[1:], {n: v[1:] for n, v in times.items()}), "processes_seconds")

# %% [markdown]
# Decompositions are what costs; they are split well, for there are hundreds of equal ones.  Sums and bases are sent in less
# than a second.  So bases are made anew every hundred steps or so (`recipes.kfac(bases_every=)`), and sums can be
# added at each.

# %%
folder.cleanup()
print(f"total: {processor() - START:.0f} s of the processor, those of the processes too")
