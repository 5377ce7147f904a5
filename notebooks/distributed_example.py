"""Fisher matrices and K-FAC on several processes, checked against one.

    torchrun --nproc-per-node 2 notebooks/distributed_example.py
    python notebooks/distributed_example.py                          # one process: the same numbers

Every rank has its own part of the digits that scikit-learn ships; all that is asked of it is `reduce=`.
"""

import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from sklearn.datasets import load_digits
from torch.func import grad

import fisher
from fisher import PMatEKFAC, PMatKFAC
from linmaps import trees

WIDTHS, STEPS, BATCH = (64, 128, 64, 10), 6, 256


def net(params, x):
    for name in ("1", "2", "3"):
        x = nnf.linear(torch.tanh(x) if name > "1" else x, params[name]["weight"], params[name]["bias"])
    return x


def start(dtype):
    generator = torch.Generator().manual_seed(0)  # the same at all ranks
    draw = lambda o, i: torch.randn(o, i, generator=generator, dtype=dtype) / i**0.5
    pairs = enumerate(zip(WIDTHS, WIDTHS[1:]), 1)
    return {str(n): {"weight": draw(o, i), "bias": torch.zeros(o, dtype=dtype)} for n, (i, o) in pairs}


def bytes_of(sums):
    """What this tree takes in memory: of symmetric matrices, a collective sends the triangles alone."""
    return sum(t.numel() * t.element_size() for t in trees.leaves(sums))


def difference(a, b):
    """The largest, relative to the size of each tensor."""
    pairs = zip(trees.leaves(a), trees.leaves(b), strict=True)
    return max(float((s - t).abs().max() / t.abs().max().clamp_min(1e-12)) for s, t in pairs)


def train(params, x, t, reduce, layers):
    """K-FAC on batches of all ranks: this rank has the examples of x, t; the gradient is the mean over all."""
    optimizer = fisher.recipes.kfac(net, estimator="exact", layers=layers, bases_every=2, reduce=reduce)
    loss = lambda p, x, t: nnf.cross_entropy(net(p, x), t)
    state = None
    for x_, t_ in zip(x.chunk(STEPS), t.chunk(STEPS)):
        gradient, n = grad(loss)(params, x_, t_), len(x_)
        if reduce is not None:  # what DDP does on its own
            sums, count = reduce(trees.scale(float(n), gradient), n)
            gradient = trees.scale(1 / count, sums)
        state = optimizer.init(params, (x_, t_)) if state is None else state
        updates, state = optimizer.update(gradient, state, params, batch=(x_, t_))
        params = trees.add(params, updates)
    return params


def main():
    torch.set_num_threads(1)
    if "RANK" not in os.environ:  # without torchrun: a group of one
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group("gloo")
    run()
    dist.destroy_process_group()


def run():
    """What each rank does, in the process group of all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    say = print if rank == 0 else lambda *_: None

    digits = load_digits()
    n = BATCH * STEPS
    x = torch.tensor(digits.data[:n] / 16, dtype=torch.float64)
    t = torch.tensor(digits.target[:n])
    params = start(x.dtype)
    layers = fisher.LayerCollection.from_function(net, params, x[:8])  # the same at all ranks
    own = (x[rank::world], t[rank::world])

    sent = []
    sums_of_all = fisher.distributed.all_reduce()

    def reduce(sums, count):
        """all_reduce, and how many bytes it is given."""
        sent.append(bytes_of(sums))
        return sums_of_all(sums, count)

    reduce.group = sums_of_all.group  # over whose ranks decompositions are split
    seconds = {}

    def timed(name, fn):
        dist.barrier()
        before = time.perf_counter()
        made = fn()
        seconds[name] = time.perf_counter() - before
        return made

    say(f"{world} process(es), {len(own[0])} of {n} digits here, {trees.ravel(params)[0].numel():,} parameters")
    F = timed("KFAC", lambda: fisher.fim(net, params, own, PMatKFAC, layers=layers, reduce=reduce))
    E = timed("split decomposition", lambda: F.eigendecomposition(group=dist.group.WORLD))
    C = timed("EKFAC", lambda: fisher.fim(net, params, own, PMatEKFAC, layers=layers, reduce=reduce))
    trained = timed(f"{STEPS} steps", lambda: train(params, *own, reduce, layers))

    each = [None] * world
    dist.all_gather_object(each, (rank, seconds, sum(sent)))
    for r, times, total in each:
        say(f"rank {r}: {total / 1e6:.1f} MB of sums;", ", ".join(f"{k} {1e3 * s:.0f} ms" for k, s in times.items()))

    if rank == 0:  # the same by one process
        gradient = grad(lambda p: nnf.cross_entropy(net(p, x), t))(params)
        alone = fisher.fim(net, params, (x, t), PMatKFAC, layers=layers)
        corrected = fisher.fim(net, params, (x, t), PMatEKFAC, layers=layers)
        order = torch.cat(
            [torch.arange(n)[r::world].tensor_split(STEPS)[k] for k in range(STEPS) for r in range(world)]
        )
        lone = train(params, x[order], t[order], None, layers)
        differences = {
            "KFAC": difference(F, alone),
            "split decomposition, solve": difference(E.solve(gradient, 0.1), alone.solve(gradient, 0.1)),
            "EKFAC, solve": difference(C.solve(gradient, 0.1), corrected.solve(gradient, 0.1)),
            "params after K-FAC": difference(trained, lone),
        }
        for name, value in differences.items():
            say(f"{name}: differs from one process by {value:.1e}")
        if max(differences.values()) > 1e-9:
            raise SystemExit("the processes do not agree with one")
        loss = lambda p: float(nnf.cross_entropy(net(p, x), t))
        say(f"loss {loss(params):.3f} -> {loss(trained):.3f}; all results equal those of one process")
    dist.barrier()


if __name__ == "__main__":
    main()
