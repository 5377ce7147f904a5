"""Starts processes on the loopback, runs the table at each, and reads what each wrote."""

import contextlib
import datetime
import importlib.util
import io
import os
import pathlib
import time
import traceback
import zlib

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 480  # that all of it may take
DIES = 2.0  # the time-out of the group of which a rank stays away


def bits(tree):
    """A number of the bits of all leaves."""
    from linmaps import trees

    found = 0
    for t in trees.leaves(tree):
        t = t.to_local() if hasattr(t, "to_local") else t
        found = zlib.crc32(t.detach().contiguous().cpu().numpy().tobytes(), found)
    return found


def error(got, want):
    """The largest difference, relative to the largest entry of each leaf."""
    from linmaps import trees

    a, b = trees.leaves(got), trees.leaves(want)
    assert [t.shape for t in a] == [t.shape for t in b]
    return max(
        (float((s - t).abs().amax() / max(1.0, float(t.abs().amax()))) for s, t in zip(a, b) if t.numel()), default=0.0
    )


def at_rank(rank, world, folder):
    """What each process does: the table, the refusals, and at last a rank that stays away."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), world)
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    import fisher
    from tests.fisher.distributed import refusals, table

    place = table.Place(rank, world, fisher.distributed.all_reduce())
    found, start = {}, time.perf_counter()
    for name, check in {**table.checks(world), **refusals.CHECKS}.items():
        before = time.perf_counter()
        try:
            bitwise, (got, want) = check(place)
            found[name] = (bits(bitwise), error(got, want()) if rank == 0 else 0.0, "")
        except Exception:
            found[name] = (0, 0.0, traceback.format_exc()[-1500:])
        found[name] += (time.perf_counter() - before,)
    found["seconds"] = time.perf_counter() - start
    found["bar"] = shown(place)
    found["example"] = the_example() if world == 2 else ""
    found["away"] = stays_away(rank, world) if world > 2 else None
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def shown(place):
    """What a pass with a bar writes on standard error."""
    import fisher
    from tests.fisher.distributed.nets import LAYERS, P, X, f

    with contextlib.redirect_stderr(io.StringIO()) as out:
        fisher.fim(f, P, [X, X], fisher.PMatDiag, layers=LAYERS[f], progress=True, reduce=place.reduce)
    return out.getvalue()


def the_example():
    """What the script that torchrun starts prints here."""
    path = pathlib.Path(__file__).parents[3] / "notebooks" / "distributed_example.py"
    spec = importlib.util.spec_from_file_location("distributed_example", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        script.run()
    return out.getvalue()


def stays_away(rank, world):
    """(seconds, error) at a rank that waits for one that does not come."""
    import fisher
    from tests.fisher.distributed.nets import LAYERS, P, X, f

    group = dist.new_group(timeout=datetime.timedelta(seconds=DIES))
    start = time.perf_counter()
    if rank < world - 1:
        try:
            fisher.fim(f, P, X, layers=LAYERS[f], reduce=fisher.distributed.all_reduce(group))
        except RuntimeError as error:
            return time.perf_counter() - start, f"{type(error).__name__}: {error}"[:300]
        return time.perf_counter() - start, ""
    time.sleep(2 * DIES)
    return 0.0, "away"


def run(world, folder):
    """What each rank found; raises where one fails or the time is over."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        context = mp.start_processes(at_rank, (world, str(folder)), world, join=False, start_method="spawn")
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    end = time.monotonic() + SECONDS
    while not context.join(timeout=5):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{world} processes took more than {SECONDS} s")
    return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]
