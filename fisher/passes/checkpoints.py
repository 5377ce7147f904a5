"""A pass that goes on where it was cut off: its sums in a file, written anew every so many batches.

A call has stages (fim of PMatEKFAC: the bases, then the moments in them); each is a pass over the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import debug_unwrap

from linmaps import trees
from linmaps.checks import size
from linmaps.trees.files.digests import digest
from linmaps.trees.files.numbers import check_storable

T = TypeVar("T")
Item = TypeVar("Item", bound=tuple[Any, ...])
Path = str | os.PathLike[str]
SHOWN = 4096  # numbers of f's output on the first batch, by which f is known again


class Checkpoint:
    """What one call has done so far; without a path nothing is kept.

    every: after how many batches the file is written.  call: the arguments by name, compared with those of the file.
    output: (x, ...) -> f's output.  generator: which draws in the pass, and goes on from where it was.
    """

    def __init__(
        self,
        path: Path | None = None,
        every: int = 1,
        call: Mapping[str, Any] | None = None,
        output: Callable[..., Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.path = None if path is None else os.fspath(path)
        self.every, self.output, self.generator = every, output, generator
        self._call: dict[str, str] = {}
        self._results: list[Any] = []  # of the stages that are complete
        self._asked = 0
        self._left: dict[str, Any] | None = None  # the stage that was cut off
        self.first: tuple[int, Tensor] | None = None  # batch: its bits, and f's output
        if path is None:
            return
        size(every, "every", 1, cure="a number of batches")
        drawn = None if generator is None else generator.get_state()
        self._call = {name: digest(value) for name, value in {**(call or {}), "generator": drawn}.items()}
        if os.path.exists(path):
            self._resume(trees.load(path))

    def _resume(self, saved: Any) -> None:
        if not isinstance(saved, dict) or saved.get("kind") != "checkpoint":
            raise ValueError(
                f"{self.path}: got a file that is no checkpoint, expected one, or no file; give another path"
            )
        names = sorted(set(saved["call"]) | set(self._call))
        other = [name for name in names if saved["call"].get(name) != self._call.get(name)]
        if other:
            raise ValueError(
                f"{self.path}: is the checkpoint of a call with other {', '.join(other)}, expected the same arguments; give "
                "those to go on, or another path (or remove the file) to start anew"
            )
        self._results, self.first, self._left = saved["results"], saved["first"], saved["stage"]
        if self.generator is not None and saved["generator"] is not None:
            self.generator.set_state(saved["generator"])

    def once(self, make: Callable[[], T]) -> T:
        """The result of a stage, made unless it was complete when the call was cut off."""
        if self.path is None:
            return make()
        number, self._asked = self._asked, self._asked + 1
        if number == len(self._results):
            self._results.append(make())
            self.write(None)
        found: T = self._results[number]
        return found

    def stage(self) -> Stage:
        """The pass at hand."""
        left, self._left = self._left, None
        return Stage(self, left or {})

    def write(self, stage: dict[str, Any] | None) -> None:
        """Write the file: beside, and renamed."""
        state = None if self.generator is None else self.generator.get_state()
        saved = {"kind": "checkpoint", "call": self._call, "results": self._results, "first": self.first}
        trees.save({**saved, "generator": state, "stage": stage}, self.path)  # type: ignore[arg-type]

    def end(self) -> None:
        """Remove the file: the pass is complete."""
        if self.path is not None and os.path.exists(self.path):
            os.unlink(self.path)


class Stage:
    """One pass over the data: which of its batches were done before, and the sums of those."""

    def __init__(self, kept: Checkpoint, left: dict[str, Any]) -> None:
        self.kept, self.before = kept, left.get("batches", 0)
        self.sums: Any = left.get("sums")
        self._data, self._number = left.get("data"), -1
        self._seen: Any = 0

    @property
    def done(self) -> bool:
        """Whether the batch at hand was done before."""
        return 0 < self.before > self._number

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches `(x, ...)`, counted; ValueError where those that were done before are others now."""
        if self.kept.path is None:
            yield from batches
            return
        for item in batches:
            self._number += 1
            self._seen = self._seen * 31 + _bits(item)
            if self._number == 0 and self.kept.output is not None:
                self._same_start(int(self._seen), self.kept.output(*item))
            if self._number == self.before - 1 and int(self._seen) != self._data:
                raise self._other(f"the first {self.before} batches are others than before")
            yield item
        if self._number < self.before - 1:
            raise self._other(f"got {self._number + 1} batches, of which {self.before} were done before")

    def keep(self, sums: Any) -> None:
        """The sums after this batch."""
        if self.kept.path is None or (self._number + 1) % self.kept.every:
            return
        if any(isinstance(t, Tensor) and t.requires_grad for t in trees.leaves(sums)):
            raise ValueError(
                "params: got tensors that require a gradient with checkpoint=, expected detached ones: a file keeps no graph"
            )
        self.kept.write({"batches": self._number + 1, "sums": sums, "data": int(self._seen)})

    def _other(self, what: str) -> ValueError:
        return ValueError(
            f"data: {what}, expected those that {self.kept.path} was written with, in the same order; shuffle by a generator of "
            "the same seed, or give another path (or remove the file) to start anew"
        )

    def _same_start(self, bits: int, y: Tensor) -> None:
        """f is known by its output on the first batch, up to the rounding of another machine."""
        y = debug_unwrap(y, recurse=True).detach().flatten()[:SHOWN].cpu()
        before, self.kept.first = self.kept.first, (bits, y)
        if before is None:
            return
        if before[0] != bits:
            raise self._other("the first batch is another than before")
        first, wide = before[1], torch.promote_types(y.dtype, torch.float32)
        near = torch.finfo(y.dtype).eps ** 0.5 * float(first.to(wide).abs().max()) if first.numel() else 0.0
        if first.shape != y.shape or not torch.allclose(y.to(wide), first.to(wide), 0.0, near, equal_nan=True):
            raise ValueError(
                f"f: gives another output on the first batch than when {self.kept.path} was written, expected the same function; "
                "give that one, or another path (or remove the file) to start anew"
            )


def _bits(item: Any) -> Any:
    """A sum over the bits of all tensors of a batch, on their device, in which each example counts by its place."""
    total: Any = 0
    for t in trees.leaves(item):
        if isinstance(t, Tensor):
            bits = t.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
            rows = bits.reshape(len(t) if t.ndim and t.numel() else 1, -1).sum(1, dtype=torch.int64)
            total = total + t.numel() + rows @ torch.arange(1, len(rows) + 1, device=rows.device)
    return total


def opened(
    path: Path | None,
    every: int,
    f: Callable[..., Tensor],
    params: Any,
    generator: torch.Generator | None = None,
    **call: Any,
) -> Checkpoint:
    """The checkpoint of a call: of f at params with these arguments.

    >>> opened(None, 1, lambda p, x: x, ()).once(lambda: 3)
    3
    """
    if path is None:
        return Checkpoint(generator=generator)
    shapes = {}
    for place, t in zip(trees.paths(params), trees.leaves(params)):
        check_storable(t, f"params: {trees.path_str(place)}")
        shapes[trees.path_str(place)] = tuple(t.shape)

    def output(x: Any, *_: Any) -> Tensor:
        with torch.no_grad():
            return f(params, x)

    call = {"params (names and shapes)": shapes, "params": params, **call}
    return Checkpoint(path, every, call, output, generator)
