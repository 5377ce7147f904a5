"""Two gloo processes against one: a split decomposition, the sums of KFAC, the bytes that are sent.

Each process has one thread, so that one process with one thread is what two are held against; on as many cores as processes
the bound of the split is the sum of n^3 over the most that one rank has.  Times are those of the first rank.
"""

import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fisher
from fisher.distributed.buffers import Plan
from fisher.distributed.splitting import balanced
from linmaps import trees
from tests.bench.bench_kfac import mlp, mlp_params

WIDTHS, EXAMPLES, ROUNDS, WORLD = [784, 512, 512, 512, 10], 512, 3, 2


def timed(fn):
    """Median (seconds until all ranks are ready, the most that a processor worked) over rounds that ranks start together."""
    fn()
    clock, work = [], []
    for _ in range(ROUNDS):
        dist.barrier()
        start, before = time.perf_counter(), time.process_time()
        fn()
        own = torch.tensor(time.process_time() - before, dtype=torch.float64)
        dist.all_reduce(own, dist.ReduceOp.MAX)
        clock.append(time.perf_counter() - start)
        work.append(float(own))
    return statistics.median(clock), statistics.median(work)


def at_rank(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    reduce, group = fisher.distributed.all_reduce(), dist.group.WORLD
    g = torch.Generator().manual_seed(0)
    params, x = mlp_params(WIDTHS, g), torch.randn(EXAMPLES, WIDTHS[0], generator=g)
    layers = fisher.LayerCollection.from_function(mlp, params, x[:8])
    shard, sent = x[rank::WORLD], []

    def counted(sums, count):
        sent.append(sum(b.numel() * b.element_size() for b in Plan.of(sums).flat(sums)))
        return reduce(sums, count)

    made = lambda x, reduce: fisher.fim(mlp, params, x, layers=layers, reduce=reduce, check_finite=False)
    F = made(shard, counted)
    dense = sum(m.numel() * m.element_size() for m in trees.leaves(F.factors))
    alone = lambda fn: timed(fn if rank == 0 else lambda: None)  # the other waits
    rows = {
        "eigendecomposition, one process": alone(F.eigendecomposition),
        "eigendecomposition, two": timed(lambda: F.eigendecomposition(group=group)),
        "KFAC of all examples, one process": alone(lambda: made(x, None)),
        "KFAC of a half each, reduced, two": timed(lambda: made(shard, reduce)),
    }
    if rank == 0:
        costs = [float(len(A) ** 3 + len(G) ** 3) for A, G in F.factors.values()]
        at = balanced(costs, WORLD)
        bound = max(sum(c for c, r in zip(costs, at) if r == k) for k in range(WORLD)) / sum(costs)
        print(f"MLP {'-'.join(map(str, WIDTHS))}, {EXAMPLES} examples, {WORLD} processes of one thread, float32")
        times = list(rows.values())
        for (name, (t, work)), (base, own) in zip(rows.items(), [times[0], times[0], times[2], times[2]]):
            print(
                f"  {name:<44s} {1e3 * t:10.1f} ms   {t / base:8.3g} x one process; of a processor's work {work / own:.3g} x"
            )
        print(f"  {'bound of the split by n^3':<44s} {'':>13s}   {bound:8.3g} x one process")
        print(f"  {'bytes sent by a rank':<44s} {sent[0] / 1e6:10.2f} MB   {sent[0] / dense:8.3g} x dense factors")
    dist.destroy_process_group()


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(at_rank, (folder,), WORLD, start_method="spawn")


if __name__ == "__main__":
    main()
