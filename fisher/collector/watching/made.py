"""What f makes of leaves and constants alone, call by call, and which leaf, or which weight made of leaves, a tensor is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.batching import sound
from fisher.collector.calls.chains import call_name
from fisher.collector.calls.views import ADDS, DETACH, repeats, writes
from fisher.collector.rules import RULES, Match, View
from fisher.collector.rules.forms import Form
from fisher.collector.rules.lookup import constant_rows, gathered
from fisher.collector.rules.match import Derived, bind, leaves_of
from fisher.collector.watching.followed import views_of
from fisher.collector.watching.following import Recorder
from fisher.collector.watching.known import Inside, Known, version, whole
from fisher.collector.watching.tape import Tape
from linmaps import trees
from linmaps.base import Use, matrix, product

Run = Callable[[], Tensor]


@functools.lru_cache(64)
def _views(paths: tuple[Any, ...], shapes: tuple[tuple[int, ...], ...]) -> tuple[View, ...]:
    """Leaves as they are."""
    return tuple(View(path, leaf=shape) for path, shape in zip(paths, shapes))


class Maker(TorchFunctionMode):
    """The calls that no data enter, on a tape; what rules say of those that they do enter.

    A node of the tape that is a leaf in another guise has a view of it; any other is a weight of its own.
    """

    def __init__(
        self,
        params: Any,
        on_match: Callable[[Match, Run], Tensor],
        on_opaque: Callable[[Any, str, bool], object] = lambda *_: None,
        on_plain: Callable[..., None] = lambda *_: None,
        *,
        x: Any,
        holds: Callable[[int, Match, Tensor], bool],
        free: bool = True,
        only: frozenset[Any] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        leaves = dict(zip(trees.paths(params), trees.leaves(params)))
        self.data = Known([t for t in trees.leaves(x) if isinstance(t, Tensor)])
        self.spread = Known()  # leaves, or weights, that are repeated for each example
        self.some = Known()  # data of some examples
        self.quiet = Known()  # made of leaves, without a gradient
        self.fixed: dict[int, Any] = {}  # of leaves without their gradient the path
        self.inside, self.tape = Inside(leaves, x), Tape(leaves)
        self.leaves = {id(t) for t in leaves.values()}
        views = _views(tuple(leaves), tuple(tuple(t.shape) for t in leaves.values()))
        self.views = dict(zip(map(id, leaves.values()), views))
        self.on_match, self.on_opaque, self.on_plain = on_match, on_opaque, on_plain
        self.holds, self.constants, self.free = holds, 0, free
        self.only, self.refused = only, False
        self.recorder = recorder
        self.worked: set[Any] = set()  # leaves that make weights other than by such layers
        self.dtypes: set[torch.dtype] = set()  # that data are computed in
        self.events = 0
        self.parts: dict[Any, int] = {}  # leaves that hold several weights, one below the other

    def view(self, t: Any) -> View | None:
        """The leaf, or the derived weight, that a tensor is."""
        return self.views.get(id(t)) or self.derived(t)

    def derived(self, t: Any) -> View | None:
        """The same without looking through what the leaf, or the weight, went through."""
        n = self.tape.node(t)
        if n is None or t in self.spread:
            return None
        source, shape = self.tape.source[n], self.tape.shapes[n]
        if isinstance(source, tuple):
            return View(source, leaf=shape)
        return View(Derived(n, tuple(self.tape.paths([t])), shape, self.tape.title(n)), leaf=shape)

    def leaf_view(self, path: Any) -> View:
        return View(path, leaf=self.tape.shapes[self.tape.source.index(path)])

    def leaf(self, t: Any) -> Any:
        """The path of the leaf that a tensor is in some guise; None for what is made of leaves."""
        seen = self.views.get(id(t))
        return None if seen is None or isinstance(seen.path, Derived) else seen.path

    def _fix(self, func: Any, args: Any, out: Any) -> None:
        """Follow a leaf, as running statistics are, through what takes its gradient away."""
        path = (self.leaf(args[0]) or self.fixed.get(id(args[0]))) if func in DETACH else None
        if path is not None:
            self.fixed[id(out)] = path
            self.tape.alive.append(out)

    def _opaque(self, touched: list[Tensor], name: str) -> None:
        for t in touched:
            for path in self.tape.paths([t]):
                self.on_opaque(path, name, self.leaf(t) is None)

    def _match(self, func: Any, args: Any, kwargs: Any) -> Match | None:
        """What a rule says of the call: of leaves in other guises, else of what they are as weights of their own."""
        for view in (self.view, self.derived) if func in RULES else ():
            match = RULES[func](args, kwargs, view)
            match = match.with_factors() if match is not None else None
            if match is not None and all(v is None or v.index is None for v in (match.weight, match.bias)):
                table = func in ADDS and match.bias is not None and isinstance(match.bias.path, Derived)
                return (self._gathered(args) if table else None) or match
        return None

    def _map_match(self, use: Use, params: Any, x: Tensor) -> Match | None:
        """What a rule says of a map's product: of its matrix, which need not be formed."""
        own = {k: t for k, t in params.items() if k not in use.lends}
        made = [t for t in trees.leaves(own) if self.tape.node(t) is not None]
        if not made or not all(t.is_floating_point() for t in (x, *trees.leaves(own))):
            return None
        W = made[0].new_empty(()).expand(use.shape)
        self.tape.record(matrix, (use, params), {}, W, lends=[params[k] for k in use.lends])
        rest = (params[use.bias], *use.rest[1:]) if use.bias else use.rest
        match = self._match(use.call, (x, W, *rest), {})
        return None if match is None else dataclasses.replace(match, kind=use.name)

    def _gathered(self, args: Any) -> Match | None:
        """Entries of a table in an order of their own, added to data."""
        for t, z in (args[:2], args[1::-1]):
            n = self.tape.node(t)
            if n is not None and isinstance(z, Tensor) and self.tape.node(z) is None:
                found = self.tape.addresses(n)
                return gathered(z, found[1], self.leaf_view(found[0])) if found is not None else None
        return None

    def _matched(self, match: Match, touched: list[Tensor], name: str, run: Run) -> Tensor:
        covered = {p for v in (match.weight, match.bias) if v is not None for p in leaves_of(v.path)}
        if any(v is not None and isinstance(v.path, Derived) for v in (match.weight, match.bias)):
            self.worked |= {p for t in touched if (p := self.leaf(t)) is not None}
        for path in self.tape.paths(touched):
            if path not in covered:
                self.on_opaque(path, name, path not in {self.leaf(t) for t in touched})
        return self.on_match(match, run)

    def _of_leaves(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, touched: list[Tensor]) -> Any:
        found = self._of_examples(func, given, args, kwargs, touched)
        if found is not None:
            return found
        table = constant_rows(func, args, kwargs, self.view)
        before = [version(t) for t in given]
        kept = args[0].clone() if writes(func) and args and args[0] is given[0] else None
        out = sound(func, args, kwargs)
        if any(out is t for t in given) and not writes(func):
            out = out.view_as(out)  # an object of its own, as it is under every transform
        written = [t for t, n in zip(given, before) if version(t) != n]
        free = self._free(func, args, kwargs, out) if self.free and not written else None
        if free is not None:
            out = self.on_match(free, lambda z=out: z)  # type: ignore[misc]
        if not written:
            lends = [args[1][k] for k in args[0].lends] if func is matrix else []
            self.tape.record(func, args, kwargs, out, lends=lends)
            results = [t for t in trees.leaves(out) if isinstance(t, Tensor) and self.tape.node(t) is None]
            self.quiet.update(results)
            self._fix(func, args, out)
            if any(t.is_complex() for t in results):
                self._opaque(touched, f"{call_name(func)}, in complex numbers")
            if repeats(func) or (touched[0] is args[0] and args[0] in self.spread):
                self.spread.update(t for t in trees.leaves(out) if isinstance(t, Tensor))
            if table is not None:  # of positions: where the examples are shows when it is added
                self._alias(out, table)
            else:
                self._follow(func, args, kwargs, out, touched)
            if not self._viewed(out):
                entering = touched if free is None else [free.inputs]
                self.worked |= {p for t in entering if (p := self.leaf(t)) is not None}
        elif kept is not None and len(written) == 1 and whole(args[0]) and id(args[0]) not in self.leaves:
            start = args[0] if self.tape.node(args[0]) is not None else kept
            self.views.pop(id(args[0]), None)
            self.tape.record(func, (start, *args[1:]), kwargs, args[0], in_place=True)
        else:
            self._opaque([*touched, *written], call_name(func))
            for t in written:
                self.tape.forget(t)
                self.views.pop(id(t), None)
        return out

    def _free(self, func: Any, args: Any, kwargs: Any, out: Any) -> Match | None:
        """A linear layer, as a use of its own: its gradients by example are those of a tap at its output."""
        if func is not F.linear:
            return None
        x, w, b = bind(("input", "weight", "bias"), args, kwargs, (None, None, None))
        view = lambda t: None if t is x else self.views.get(id(t))
        match = RULES[F.linear]((x[None] if x.ndim == 1 else x, w, b), {}, view)
        match = match.with_factors() if match is not None else None
        plain = (
            match is not None and match.weight is not None and type(match.form) is Form and not match.form.transposed
        )
        return dataclasses.replace(match, inputs=x, free=True) if match is not None and plain else None

    def _viewed(self, out: Any) -> bool:
        """Whether all that a call gave is a leaf in another guise."""
        return all(id(t) in self.views or self.tape.node(t) is None for t in trees.leaves(out) if isinstance(t, Tensor))

    def _of_examples(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, touched: list[Tensor]) -> Any:
        """What a rule makes of a product with constants, or with what is repeated by example, if its output holds examples."""
        held = [t for t in given if self.tape.node(t) is None or t in self.spread]
        match = (self._map_match(*args) if func is product else self._match(func, args, kwargs)) if held else None
        entering = (match.inputs if match.inputs is not None else match.added_to) if match is not None else None
        if match is None or not any(entering is t for t in held):
            return None
        number, self.constants = self.constants, self.constants + 1
        z = sound(func, args, kwargs)
        if not self.holds(number, match, z):
            return None
        out = self._matched(dataclasses.replace(match, constant=number), touched, call_name(func), lambda: z)
        self.data.update([out])
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any, touched: list[Tensor]) -> None:
        """The views of what is a leaf in another guise, or a derived weight repeated for each example."""
        if len(touched) != 1 or not any(isinstance(t, Tensor) for t in trees.leaves(out)):
            return
        v = self.views.get(id(touched[0])) or (self.derived(touched[0]) if repeats(func) else None)
        for t, view in (views_of(func, args, kwargs, out, v) or ()) if v is not None else ():
            self._alias(t, view)

    def _alias(self, t: Tensor, view: View) -> None:
        self.views[id(t)] = view
        self.tape.alive.append(t)
