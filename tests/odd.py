"""Odd calls: valid calls of public names in which one argument, or one leaf of it, is made wrong, and what comes of them.

`python -m tests.odd` runs all of them in a subprocess (which may die, run out of memory or hang) and prints the table of
outcomes: package x kind of oddity x outcome, then the calls that are bad.  A call is bad if it

* ends in an exception that is no ValueError, TypeError or IndexError which our own code raises with what was expected ("raw",
  "mute"),
* is accepted though the kind of oddity has no meaning there, or gives NaN without NaN, or another dtype ("ran"),
* kills the interpreter, hangs, or takes memory before it refuses ("crash", "slow", "huge").

Exceptions raised inside a function of the user ("theirs", `user_*` below) are the user's own.
"""

from __future__ import annotations

import collections
import dataclasses
import dis
import fnmatch
import functools
import importlib
import inspect
import json
import math
import os
import pathlib
import resource
import select
import signal
import subprocess
import sys
import tempfile
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
OURS = tuple(str(ROOT / package) + os.sep for package in ("linmaps", "fisher", "growth"))
PARTS = ("linmaps", "fisher", "growth")
SLOW, GRACE, MEMORY, GROWN = 4.0, 120.0, 1 << 31, 300 << 10  # of the processor, of the clock, bytes, kilobytes


@dataclasses.dataclass(frozen=True)
class Call:
    """A valid call `fn(**args)` of a public name or method; skip: arguments left as they are."""

    name: str
    fn: Callable[..., Any]
    args: dict[str, Any]
    skip: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        parts = self.name.split(".")
        return ".".join(parts[:2]) if parts[1] in ("trees", "factorized", "recipes") else parts[0]


@dataclasses.dataclass(frozen=True)
class Odd:
    """One odd call: `make()` gives the arguments."""

    call: Call
    argument: str
    kind: str
    make: Callable[[], dict[str, Any]]

    @property
    def id(self) -> str:
        return f"{self.call.name}({self.argument}: {self.kind})"


# --- what is made of a value ---------------------------------------------------------------------------------------


class Foreign:
    """An object of a class that nobody knows."""

    def __repr__(self) -> str:
        return "Foreign()"


HUGE, BEYOND = 10**9, 2**70
Mutants = Iterator[tuple[str, Any]]


def mutants(value: Any) -> Mutants:
    """(kind, what is put in place of the value)."""
    if isinstance(value, Tensor):
        yield from of_tensor(value)
    elif isinstance(value, bool):
        return  # a flag is read by its truth, as Python does
    elif isinstance(value, int):
        yield from {
            "none": None, "text": "2", "fraction": 2.5, "bool": True, "nan": math.nan, "negative": -7, "zero": 0,
            "huge": HUGE, "beyond": BEYOND, "vector": torch.ones(2),
        }.items()  # fmt: skip
    elif isinstance(value, float):
        yield from {
            "none": None, "text": "x", "bool": True, "nan": math.nan, "inf": math.inf, "negative": -1.5,
            "complex": 1j, "vector": torch.tensor([0.1, 0.2]), "meta": torch.ones((), device="meta"),
            "nan tensor": torch.tensor(math.nan), "negative tensor": torch.tensor(-1.5),
        }.items()  # fmt: skip
    elif isinstance(value, str):
        yield from {"none": None, "nonsense": "nonsense", "number": 3, "no text": ""}.items()
    elif isinstance(value, torch.dtype):
        yield from {"text": "float32", "integer": torch.int64, "complex": torch.complex64, "number": 3}.items()
    elif isinstance(value, torch.Generator):
        yield from {"text": "seed", "number": 3}.items()
    elif isinstance(value, type):
        yield from {"none": None, "text": "dense", "foreign": int, "number": 3}.items()
    elif callable(value) and isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        yield from {"none": None, "text": "f", "number": 3}.items()
    elif isinstance(value, (dict, list, tuple)) and not hasattr(value, "_fields"):
        yield from of_container(value)
    else:
        yield from {"none": None, "text": "text", "number": 3.5, "tensor": torch.ones(2), "foreign": Foreign()}.items()
        if dataclasses.is_dataclass(value):
            yield "empty dict", {}
            yield from of_record(value)


def of_tensor(t: Tensor) -> Mutants:
    yield from {"none": None, "text": "x", "list": t.tolist()}.items()
    if not t.is_floating_point():
        yield "negative", t.long() - 1000
        yield "huge", t.long() + 10**6
        yield "fraction", t.float() + 0.5
    else:
        yield from {"integer": t.long(), "bool": t > 0, "complex": t.to(torch.complex64), "half": t.bfloat16()}.items()
        yield "double", t.double()
        if t.numel():
            yield "nan", planted(t, math.nan)
            yield "inf", planted(t, math.inf)
    if t.ndim:
        if t.shape[-1] > 1:
            yield "cut", t[..., :-1]
            yield "one", t[..., :1]
        yield "wide", torch.cat([t, t[..., :1]], -1)
        yield "empty", t[:0]
        if t.is_floating_point():
            yield "sparse", t.to_sparse()
        yield "scalar", t.flatten()[0] if t.numel() else t.sum()
    elif t.is_floating_point():
        yield "negative", -t.abs() - 1
    yield "extra", t[None]
    yield "meta", t.to("meta")


def planted(t: Tensor, value: float) -> Tensor:
    flat = t.clone().flatten()
    flat[0] = value
    return flat.reshape(t.shape)


def of_container(value: Any) -> Mutants:
    """A tree or a sequence: as a whole, then its first and last element or leaf."""
    yield from {"none": None, "text": "text", "number": 3, "tensor": torch.ones(2), "foreign": Foreign()}.items()
    yield "nothing", type(value)()
    if isinstance(value, dict):
        keys = list(value)
        if keys:
            yield "missing", {k: value[k] for k in keys[1:]}
        yield "unexpected", value | {"unexpected": torch.ones(1)}
        yield "other", {"other": torch.ones(2, 2)}
        entries: list[Any] = keys
    else:
        if len(value):
            yield "missing", value[1:]
            yield "unexpected", type(value)([*value, value[-1]])
        entries = list(range(len(value)))
    for place in dict.fromkeys(entries[:1] + entries[-1:]):
        for kind, mutant in mutants(value[place]):
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[place] = mutant
            yield f"{kind} in {place}", changed if isinstance(value, dict) else type(value)(changed)


def of_record(value: Any) -> Mutants:
    """The first and last tensor of a record."""
    leaves, treedef = optree.tree_flatten(value)
    if leaves == [value] or not all(isinstance(t, Tensor) for t in leaves):
        return
    for place in sorted({0, len(leaves) - 1} & set(range(len(leaves)))):
        for kind, mutant in of_tensor(leaves[place]):
            if kind in ("none", "double", "nan", "cut", "meta", "complex"):
                yield (
                    f"{kind} in leaf {place}",
                    optree.tree_unflatten(treedef, [mutant if i == place else t for i, t in enumerate(leaves)]),
                )


def odd_calls(call: Call) -> Iterator[Odd]:
    """Every argument of a call made wrong in every way, and neighbours swapped."""
    try:
        defaults = {n: p.default for n, p in inspect.signature(call.fn).parameters.items()}
    except (TypeError, ValueError):
        defaults = {}
    for name, value in call.args.items():
        if name in call.skip:
            continue
        for kind, mutant in mutants(value):
            default = defaults.get(name, inspect.Parameter.empty)
            if not (mutant is None and default is None):
                yield Odd(call, name, kind, lambda name=name, mutant=mutant: call.args | {name: mutant})
    names = [n for n in call.args if n not in call.skip]
    for a, b in zip(names, names[1:]):
        if not alike(call.args[a], call.args[b]):
            swap = {a: call.args[b], b: call.args[a]}
            yield Odd(call, f"{a}, {b}", "swapped", lambda swap=swap: call.args | swap)


def alike(a: Any, b: Any) -> bool:
    """Whether one may stand for the other."""
    if type(a) is not type(b):
        return False
    (s, one), (t, other) = optree.tree_flatten(a), optree.tree_flatten(b)
    shape = lambda u: tuple(u.shape) if isinstance(u, Tensor) else type(u)
    return one == other and [shape(u) for u in s] == [shape(u) for u in t]


# --- what comes of it ----------------------------------------------------------------------------------------------


def ours(error: BaseException) -> str:
    """refused, mute, theirs or raw: who raised."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lasti))
        trace = trace.tb_next
    code, last = frames[-1]
    raised = dis.opname[code.co_code[last]] == "RAISE_VARARGS"
    if code.co_filename.startswith(OURS) and raised and isinstance(error, (ValueError, TypeError, IndexError)):
        text = str(error)
        return "refused" if any(word in text for word in ("expected", "got", "has ", "use ", "give ")) else "mute"
    users = [i for i, (c, _) in enumerate(frames) if c.co_name.startswith("user_")]
    return "theirs" if users else "raw"


def tensors(tree: Any) -> list[Tensor]:
    return [t for t in optree.tree_leaves(tree) if isinstance(t, Tensor)]


def finite(tree: Any) -> bool:
    inexact = [t for t in tensors(tree) if (t.is_floating_point() or t.is_complex()) and t.device.type != "meta"]
    return all(bool(t.to_dense().isfinite().all()) for t in inexact)


def dtypes(tree: Any) -> list[torch.dtype]:
    return [t.dtype for t in tensors(tree)]


BROKEN_TENSORS = ("nan", "inf", "nan tensor", "huge")  # NaN in, NaN out
HARMLESS = ("extra", "empty", "meta", "sparse", "nothing", "list")  # judged by what comes out alone
DTYPES = ("double", "half", "integer", "bool", "complex", "fraction")


def judged(odd: Odd, valid: Any, result: Any) -> str:
    """ "" if a call that was accepted is sane, else what is wrong with it."""
    kind = odd.kind.split(" in ")[0]
    of_tensors = tensors(odd.make().get(odd.argument)) != [] or kind in HARMLESS
    if kind in ("nan", "inf") and of_tensors:
        return ""
    if finite(valid) and not finite(result) and kind not in BROKEN_TENSORS:
        return "NaN or infinity"
    if kind in HARMLESS:
        return ""
    if kind in DTYPES and of_tensors:
        now, then = {str(d) for d in dtypes(result)}, {str(d) for d in dtypes(valid)}
        return "" if now <= then else f"dtype {sorted(now - then)}"
    return "accepted"


class Slow(BaseException):
    """Time is up."""


def run(odd: Odd, valid: Any) -> tuple[str, str]:
    """(outcome, words)."""

    def stop(*_: Any) -> None:
        raise Slow

    args = odd.make()
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = odd.call.fn(**args)
        signal.setitimer(signal.ITIMER_PROF, 0)
        wrong = judged(odd, valid, result)
        outcome = ("ran", wrong)
    except Slow:
        return "slow", f"more than {SLOW} s"
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "huge", words
        outcome = (ours(error), words)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > GROWN:
        return "huge", f"took memory: {outcome}"
    return outcome


# --- the table -----------------------------------------------------------------------------------------------------


@functools.cache
def calls() -> list[Call]:
    return [call for part in PARTS for call in importlib.import_module(f"tests.{part}.odd").calls()]


def justified(odd: Odd) -> str:
    """The reason why this outcome is right, or ""."""
    for part in PARTS:
        for pattern, reason in importlib.import_module(f"tests.{part}.odd").JUSTIFIED.items():
            if fnmatch.fnmatchcase(odd.id, pattern):
                return reason
    return ""


def chosen(every: int, only: str = "*") -> list[Odd]:
    """Every n-th odd call, the same ones each time."""
    found = [o for c in calls() if fnmatch.fnmatch(c.name, only) for o in odd_calls(c)]
    return [o for o in found if zlib.crc32(o.id.encode()) % every == 0]


def worker(every: int, only: str, start: int, out: str) -> None:
    """Runs the odd calls from `start` on; says which one begins and what came of it."""
    todo = chosen(every, only)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    results: dict[str, Any] = {}
    with open(out, "a") as file:
        for i, odd in enumerate(todo):
            if i < start:
                continue
            print(json.dumps([i]), file=file, flush=True)
            if odd.call.name not in results:
                results = {odd.call.name: odd.call.fn(**odd.call.args)}
            outcome, words = run(odd, results[odd.call.name])
            print(json.dumps([i, outcome, words]), file=file, flush=True)


def outcomes(every: int = 1, only: str = "*") -> list[tuple[Odd, str, str]]:
    """What comes of the odd calls, in a subprocess that is started again where it dies."""
    todo = chosen(every, only)
    found: dict[int, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out, start = os.path.join(folder, "outcomes"), 0
        while start < len(todo):
            code = f"from tests.odd import worker; worker({every}, {only!r}, {start}, {out!r})"
            with open(os.path.join(folder, "stderr"), "w") as stderr:
                process = subprocess.Popen(
                    [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stderr=stderr, stdout=subprocess.DEVNULL
                )
                last = (0, math.inf)  # nothing is late before the first call
                while process.poll() is None:
                    select.select([], [], [], 0.2)
                    size = os.path.getsize(out) if os.path.exists(out) else 0
                    now = os.times().elapsed
                    last = last if size == last[0] else (size, now)
                    if now - last[1] > GRACE:
                        process.kill()
            lines = (
                [json.loads(line) for line in pathlib.Path(out).read_text().splitlines()] if os.path.exists(out) else []
            )
            found |= {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}
            if process.returncode == 0:
                break
            if not lines or len(lines[-1]) == 3:
                raise RuntimeError(pathlib.Path(folder, "stderr").read_text()[-2000:])
            words = f"the interpreter ended with {process.returncode}"
            error = pathlib.Path(folder, "stderr").read_text()
            if process.returncode == 1:
                raise RuntimeError(f"{todo[lines[-1][0]].id}: the valid call failed\n{error[-3000:]}")
            found[lines[-1][0]] = ("crash", words)
            start = lines[-1][0] + 1
    return [(todo[i], *found[i]) for i in sorted(found)]


MUST_REFUSE = ("double", "half", "complex", "meta")


def bad(odd: Odd, outcome: str, words: str) -> bool:
    """Whether this outcome is a fault that no row justifies."""
    if outcome == "refused":
        return False
    if outcome == "theirs":
        wrong = odd.kind.split(" in ")[0] in MUST_REFUSE
    else:
        wrong = outcome != "ran" or words != ""
    return wrong and not (outcome in ("ran", "theirs") and justified(odd))


def table(found: list[tuple[Odd, str, str]]) -> str:
    """Counts by package x kind of oddity x outcome, then the bad calls."""
    columns = ("refused", "theirs", "ran", "accepted", "raw", "mute", "huge", "slow", "crash")
    name = lambda outcome, words: "accepted" if outcome == "ran" and words else outcome
    lines = []

    def row(title: str, counts: collections.Counter[str], faults: int) -> None:
        cells = "".join(f"{counts[c] or '.':>9}" for c in columns)
        lines.append(f"{title:<42}{cells}{sum(counts.values()):>9}{faults or '.':>9}")

    lines.append(f"{'package, kind of oddity':<42}" + "".join(f"{c:>9}" for c in (*columns, "all", "bad")))
    packages = list(dict.fromkeys(o.call.package for o, *_ in found))
    for package in packages:
        mine = [r for r in found if r[0].call.package == package]
        kinds = sorted({r[0].kind.split(" in ")[0] for r in mine})
        for kind in kinds:
            rows = [r for r in mine if r[0].kind.split(" in ")[0] == kind]
            row(f"{package}: {kind}", collections.Counter(name(o, w) for _, o, w in rows), sum(bad(*r) for r in rows))
        row(f"{package}: all", collections.Counter(name(o, w) for _, o, w in mine), sum(bad(*r) for r in mine))
    row("all", collections.Counter(name(o, w) for _, o, w in found), sum(bad(*r) for r in found))
    lines += ["", "bad:"] + [f"{o.id}: {name(outcome, w)}: {w}" for o, outcome, w in found if bad(o, outcome, w)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(outcomes(int(sys.argv[2]) if len(sys.argv) > 2 else 1, sys.argv[1] if len(sys.argv) > 1 else "*")))
