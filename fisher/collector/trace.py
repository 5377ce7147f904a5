"""The first pass: what f does with each leaf, and which calls lead from one layer to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.axes import batch_axes
from fisher.collector.blocks.uses import Rows, Use
from fisher.collector.calls.chains import NORM, Chain, step
from fisher.collector.rules.forms import Channels, Convolution, Elementwise, Form, Lookup
from fisher.collector.rules.match import Derived, Match, leaves_of
from fisher.collector.watching.known import tensors, version
from fisher.collector.watching.watch import Watcher
from linmaps import trees


class Tracer:
    """One plain forward under a Watcher: the uses, the calls without a rule, and what leads from layer to layer."""

    def __init__(self, batch: int, made: frozenset[int] = frozenset(), free: bool = True) -> None:
        self.batch, self.made, self.free = batch, made, free
        self.uses: list[dict[str, Any]] = []
        self.opaque: dict[Any, str] = {}
        self.opaque_made: dict[Any, str] = {}  # what is made of these leaves
        self.parts: dict[Any, int] = {}
        self.dtypes: frozenset[torch.dtype] = frozenset()
        self.numbers: dict[int, int] = {}
        self.origin: dict[int, tuple[int, tuple[Any, ...], tuple[int, ...]]] = {}
        self.consumers: dict[int, int] = {}
        self.inputs: list[tuple[int, Tensor, int]] = []
        self.alive: list[Any] = []

    def run(self, f: Any, params: Any, x: Any) -> Tensor:
        opaque = lambda path, name, made: (self.opaque_made if made else self.opaque).setdefault(path, name)
        watcher = Watcher(params, self._match, opaque, self._plain, x=x, holds=self._holds, free=self.free)
        with watcher:
            y = f(params, x)
        self.parts, self.dtypes = watcher.parts, frozenset(watcher.dtypes)
        alone = {p for u in self.uses if u["free"] for p in (u["weight"], u["bias"]) if p is not None} - watcher.worked
        self.alone = frozenset(p for p in alone if p not in self.opaque)
        self.opaque = {p: n for p, n in self.opaque_made.items() if p not in alone} | self.opaque
        doors.one_tensor(y)
        if y.ndim == 0 or y.shape[0] != self.batch:
            raise ValueError(
                f"f(params, x): output has shape {tuple(y.shape)}, expected [{self.batch}, ...] as x; "
                "return one row per example, not a mean loss; the examples are in front of x, a single one is x[None]"
            )
        self._consume(y)
        for k, t, before in self.inputs:
            self.uses[k]["mutated"] = version(t) != before
        return y

    def _holds(self, number: int, match: Match, z: Tensor) -> bool:
        return number not in self.made and bool(batch_axes(tuple(match.form.outputs(z).shape), self.batch))

    def _match(self, match: Match, run: Callable[[], Tensor]) -> Tensor:
        touched = match.inputs if match.inputs is not None else match.added_to
        origin = self.origin.get(id(touched))
        before = version(match.inputs) if match.inputs is not None else 0
        z = run()
        if touched is not None:
            self._consume(touched)
            self.alive.append(touched)  # its id counts
        k = len(self.uses)
        paths = [self._numbered(v.path) if v is not None else None for v in (match.weight, match.bias)]
        joins = None
        if match.added_to is not None and origin is not None and not origin[1]:
            joins = origin[0] if self._takes_bias(origin[0], match.added_to.shape[-1]) else None
        if match.in_place and match.weight is not None:
            self.consumers.pop(id(z), 0)  # what was in x is gone
        elif match.in_place:
            alone = self.consumers.pop(id(z), 0) == 1
            if joins is None or not alone or self.uses[joins]["bias"] is not None:
                for path in leaves_of(paths[1]):
                    self.opaque.setdefault(path, "an in-place addition")
                return z
        shared = tuple(match.form.outputs(z).shape)
        if not match.free and not batch_axes(shared, self.batch):
            for path in (p for weight in paths for p in leaves_of(weight)):
                self.opaque.setdefault(path, f"{match.kind} without a batch axis: output {tuple(z.shape)}")
        self.uses.append(
            {
                "kind": match.kind,
                "weight": paths[0],
                "bias": paths[1],
                "form": match.form,
                "rows": [v.rows if v is not None else None for v in (match.weight, match.bias)],
                "shape": tuple(z.shape),
                "dtype": z.dtype,
                "shared": shared,
                "joins": joins,
                "touched": id(touched),
                "in_place": match.in_place and match.weight is None,
                "source": origin,
                "mutated": False,
                "constant": match.constant,
                "free": match.free,
            }
        )
        if match.inputs is not None:
            self.inputs.append((k, match.inputs, before))
        if not match.free:
            self._remember(z, (k, (), ()))
        return z

    def _numbered(self, path: Any) -> Any:
        """A derived weight by its place among those that are met, which another run finds again."""
        if not isinstance(path, Derived):
            return path
        return dataclasses.replace(path, number=self.numbers.setdefault(path.number, len(self.numbers)))

    def _takes_bias(self, use: int, size: int) -> bool:
        """Whether a bias along the last axis of this use's output is one number per output."""
        form = self.uses[use]["form"]
        return type(form) is Form or (
            isinstance(form, Elementwise) and form.shape[-1:] == (size,) == (math.prod(form.shape),)
        )

    def _plain(self, func: Any, args: Any, kwargs: Any, out: Any, statistics: tuple[Any, ...] = ()) -> None:
        known = [t for t in tensors(args, kwargs) if id(t) in self.origin]
        if not known or not (out is None or any(isinstance(t, Tensor) for t in trees.leaves(out))):
            return  # a getter of a shape or a dtype
        k, steps, ids = self.origin[id(known[0])]
        rows = self.uses[k]["shape"] if type(self.uses[k]["form"]) in (Form, Lookup) else ()
        alone = len(known) == 1 and args and known[0] is args[0]
        here = step(func, args, kwargs, self._map_axes(k), rows) if alone and not statistics else None
        here = (NORM, statistics, ()) if alone and statistics else here
        largest = isinstance(out, torch.return_types.max)  # of values and indices: these are no numbers of units
        result = out[0] if largest else out
        replayable = here is not None and isinstance(result, Tensor)
        if out is not known[0] or not replayable:
            for t in known:
                self._consume(t)
        if replayable:
            self._remember(result, (k, (*steps, here), (*ids, id(known[0]))))

    def _map_axes(self, k: int) -> int:
        """How many axes a map of each unit has behind this use, 0 where there is none: one number for all keeps maps."""
        use = self.uses[k]
        if isinstance(use["form"], (Convolution, Channels)):
            return len(use["shape"])
        alone = isinstance(use["form"], Elementwise) and math.prod(use["form"].shape) == 1
        return self._map_axes(use["source"][0]) if alone and use["source"] is not None else 0

    def _consume(self, t: Tensor) -> None:
        self.consumers[id(t)] = self.consumers.get(id(t), 0) + 1

    def _remember(self, t: Tensor, origin: tuple[int, tuple[Any, ...], tuple[int, ...]]) -> None:
        self.origin[id(t)] = origin
        self.alive.append(t)

    def resolved(self) -> tuple[Use, ...]:
        """Join each bias to the layer whose output it is added to, where that output goes nowhere else."""
        raw = self.uses
        number: dict[int, int] = {}
        joined: dict[int, Any] = {}
        parts: dict[int, Rows | None] = {}
        for k, u in enumerate(raw):
            j = u["joins"]
            free = j is not None and raw[j]["bias"] is None and raw[j]["weight"] is not None and j not in joined
            if u["kind"] == "bias" and free and (u["in_place"] or self.consumers.get(u["touched"]) == 1):
                joined[j], parts[j] = u["bias"], u["rows"][1]
                number[k] = number[j]
            else:
                number[k] = len(set(number.values()))
        uses = []
        for k, u in enumerate(raw):
            if u["kind"] == "bias" and u["joins"] is not None and number[k] == number[u["joins"]]:
                continue
            source = None
            if u["source"] is not None and u["kind"] != "bias":
                start, steps, ids = u["source"]
                if all(self.consumers.get(i, 0) == 1 for i in {*ids, u["touched"]}):
                    source = (number[start], Chain(steps))
            uses.append(
                Use(
                    kind=u["kind"],
                    weight=u["weight"],
                    bias=joined.get(k, u["bias"]),
                    form=u["form"],
                    part=u["rows"][0],
                    bias_part=parts.get(k, u["rows"][1]),
                    joined=k in joined,
                    shape=u["shape"],
                    shared=u["shared"],
                    batch=self.batch,
                    dtype=u["dtype"],
                    axis=(*batch_axes(u["shared"], self.batch), 0)[0],
                    mutated=u["mutated"],
                    source=source,
                    constant=u["constant"],
                    free=u["free"],
                )
            )
        return tuple(uses)
