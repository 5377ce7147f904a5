"""What notebook 07 starts in processes of their own: a pass that is killed, and what two processes send, hold and compute.

python notebooks/processes.py pass FILE [KILLED_AT]
torchrun --nproc-per-node 2 notebooks/processes.py measured
"""

import json
import os
import signal
import sys
import time
import zlib
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import profile

import fisher
from linmaps import trees

BATCHES, WIDTHS, EXAMPLES = 12, (256, 512, 512, 10), 2048
CHUNKS, FEW = (9, 3, 1), 16  # columns at once; examples beside which factors are large
LIMIT = 400  # rows of a factor beyond which its diagonal is kept


def net(params: dict, x: Tensor) -> Tensor:
    """An MLP of tanh, a dict of weight and bias for each layer."""
    for name in sorted(params):
        x = nn.functional.linear(torch.tanh(x) if name > "1" else x, params[name]["weight"], params[name]["bias"])
    return x


def start(widths: tuple[int, ...]) -> dict:
    """Its parameters, the same in every process."""
    g = torch.Generator().manual_seed(0)
    pairs = enumerate(zip(widths, widths[1:]), 1)
    return {str(n): {"weight": torch.randn(o, i, generator=g) / i**0.5, "bias": torch.zeros(o)} for n, (i, o) in pairs}


def passed(path: str, killed_at: int | None = None) -> None:
    """One pass over twelve batches, whose sums are in a file after every third."""

    def loader():
        g = torch.Generator().manual_seed(1)
        for n in range(BATCHES):
            if n == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)  # as a scheduler, or too little memory, would
            print(f"batch {n}", flush=True)
            yield torch.randn(64, 32, generator=g)

    params = start((32, 64, 64, 10))
    layers = fisher.LayerCollection.from_function(net, params, torch.ones(4, 32))
    F = fisher.fim(net, params, loader(), fisher.PMatKFAC, layers=layers, checkpoint=path, every=3)
    bits = b"".join(t.numpy().tobytes() for t in trees.leaves(F))
    print(f"done: {F}\nbits {zlib.crc32(bits):08x}, file left: {os.path.exists(path)}")


class Collectives:
    """Counts the bytes that collectives are given, by their names, and those that this process has written to its peers."""

    def __init__(self) -> None:
        self.given, self.before = Counter(), written()
        self.own = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_gather")}

    def __enter__(self) -> "Collectives":
        for name in self.own:
            setattr(dist, name, self.counting(name))
        return self

    def counting(self, name: str):
        def called(*args, **kwargs):
            t = args[1] if name == "all_gather" else args[0]
            self.given[name] += t.numel() * t.element_size()
            return self.own[name](*args, **kwargs)

        return called

    def __exit__(self, *_) -> None:
        for name, own in self.own.items():
            setattr(dist, name, own)
        self.wire = None if self.before is None else written() - self.before


def written() -> int | None:
    """The bytes that this process has written to files and sockets, where the system counts them (Linux)."""
    path = Path("/proc/self/io")
    return int(path.read_text().split("wchar:")[1].split()[0]) if path.exists() else None


def peak(make) -> int:
    """The most bytes of tensors that were held at one time, beside those from before."""
    with profile(profile_memory=True) as seen:
        make()
    held = most = 0
    changes = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measured() -> None:
    """What each rank sends, holds and computes for a KFAC matrix of half of the examples, as JSON."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, world = dist.get_rank(), dist.get_world_size()
    params, g = start(WIDTHS), torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, WIDTHS[0], generator=g)
    layers = fisher.LayerCollection.from_function(net, params, x[:8])
    reduce, group = fisher.distributed.all_reduce(), dist.group.WORLD

    shard, few = x[rank::world], x[:FEW]

    def made(reduce=None, x=shard, **options):
        return fisher.fim(net, params, x, layers=layers, reduce=reduce, check_finite=False, **options)

    found = {"rank": rank, "peak": {chunk: peak(lambda n=chunk: made(chunk_size=n)) for chunk in CHUNKS}}
    found["peak, reduced"] = peak(lambda: made(reduce, few))
    with Collectives() as sums:
        F = made(reduce)
    with Collectives() as limited:
        cut = made(reduce, largest_factor=LIMIT)
    with Collectives() as cut_bases:
        cut.eigendecomposition(group=group)
    dist.barrier()
    before = time.process_time()
    with Collectives() as bases:
        split = F.eigendecomposition(group=group)
    found["split, s"] = time.process_time() - before
    before = time.process_time()
    alone = F.eigendecomposition()
    found["alone, s"] = time.process_time() - before
    pairs = zip(trees.leaves(split), trees.leaves(alone), strict=True)
    found["same"] = all(torch.equal(a, b) for a, b in pairs)
    counts = {"sums": sums, "sums, limited": limited, "bases": bases, "bases, limited": cut_bases}
    for name, counted in counts.items():
        found[name] = {**counted.given, "wire": counted.wire}
    everyone = [None] * world
    dist.all_gather_object(everyone, found)
    if rank == 0:
        print(json.dumps(everyone))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "pass":
        passed(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        measured()
