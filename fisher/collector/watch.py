"""Watching a function run: a mode that sees each torch call and knows which of its tensors are parameter leaves.

Only public API: `torch.overrides.TorchFunctionMode`.  Nothing is hooked and no module is needed.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.batching import SPELLED, sound
from fisher.collector.calls.chains import call_name
from fisher.collector.calls.views import (
    JOINS,
    SIZED_BY,
    carries_no_gradient,
    guise,
    is_transpose,
    multiple,
    packed,
    picks,
    slices,
)
from fisher.collector.rules import RULES, Match, View
from fisher.collector.rules.lookup import constant_rows, token
from linmaps import trees


class Watcher(TorchFunctionMode):
    """Watch a function run: `on_match(match, run)` makes the output of a call that a rule explains.

    on_opaque(path, name): a leaf enters a call without a rule.  on_plain(func, args, kwargs, out): a call without leaves.
    """

    def __init__(
        self,
        params: Any,
        on_match: Callable[[Match, Callable[[], Tensor]], Tensor],
        on_opaque: Callable[[Any, str], object],
        on_plain: Callable[..., None] | None = None,
        x: Any = (),
    ) -> None:
        super().__init__()
        self.data = Known(t for t in trees.leaves(x) if isinstance(t, Tensor))
        self.alive: list[Any] = list(trees.leaves(params))  # an id is a name only while its object lives
        self.views = {id(t): View(path, leaf=tuple(t.shape)) for path, t in zip(trees.paths(params), self.alive)}
        self.shapes = {path: tuple(t.shape) for path, t in zip(trees.paths(params), self.alive)}
        self.on_match, self.on_opaque, self.on_plain = on_match, on_opaque, on_plain
        self.events = 0
        self.parts: dict[Any, int] = {}  # leaves that hold several weights, one below the other

    def view(self, t: Any) -> View | None:
        return self.views.get(id(t))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        out = self._called(func, given, args, kwargs)
        if any(t in self.data for t in given):
            self.data.update(t for t in trees.leaves(out) if isinstance(t, Tensor))
        return out

    def _called(self, func: Any, given: list[Tensor], args: Any, kwargs: Any) -> Any:
        hits = [self.views[id(t)] for t in given if id(t) in self.views]
        if not hits:
            out = sound(func, args, kwargs)
            if self.on_plain is not None:
                self.on_plain(func, args, kwargs, out)
            return out
        self.events += 1
        if func in JOINS and any(id(t) not in self.views for t in given):
            put = {id(t): self._put(t, self.views[id(t)], func) for t in given if id(t) in self.views}
            args = (type(args[0])(put.get(id(t), t) for t in args[0]), *args[1:])
            out = func(*args, **kwargs)
            if self.on_plain is not None:
                self.on_plain(func, args, kwargs, out)
            return out
        table = constant_rows(func, args, kwargs, self.view) if not any(t in self.data for t in given) else None
        if table is not None:  # a table of positions: where the examples are shows when it is added
            out = func(*args, **kwargs)
            self._alias(out, table)
            return out
        match = RULES[func](args, kwargs, self.view) if func in RULES else None
        match = match.with_factors() if match is not None else None
        if match is not None and any(v is not None and v.index is not None for v in (match.weight, match.bias)):
            match = None
        if match is not None:
            covered = {v.path for v in (match.weight, match.bias) if v is not None}
            for v in hits:
                if v.path not in covered:
                    self.on_opaque(v.path, call_name(func))
            return self.on_match(match, lambda: sound(func, args, kwargs))
        if func in SPELLED:
            with self:
                spelled = SPELLED[func](*args, **kwargs)
            if spelled is not None:
                return spelled
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional":
            for t, n in packed(func, args, kwargs):
                if id(t) in self.views:
                    self.parts[self.views[id(t)].path] = n
            before = self.events
            with self:
                out = opened(func)(*args, **kwargs)
            if self.events == before:  # a composite whose inner calls cannot be seen
                self._follow(func, args, kwargs, hits, out)
            return out
        out = func(*args, **kwargs)
        if call_name(func) and not carries_no_gradient(func):  # a call without a name is closed: the check finds it
            self._follow(func, args, kwargs, hits, out)
        return out

    def _put(self, t: Tensor, v: View, func: Any) -> Tensor:
        """A leaf that is put beside data, as a use of its own."""
        match = token(t, v)
        match = match.with_factors() if match is not None else None
        if match is None:
            self.on_opaque(v.path, call_name(func))
            return t
        return self.on_match(match, lambda: t)

    def _follow(self, func: Any, args: Any, kwargs: Any, hits: list[View], out: Any) -> None:
        results = [t for t in trees.leaves(out) if isinstance(t, Tensor)]
        if not results or all(id(t) in self.views for t in results):
            return  # a getter (.shape, .dtype), or the leaf itself
        if func in SIZED_BY:
            if id(args[0]) not in self.views:
                return
            hits = [self.views[id(args[0])]]
        v = hits[0]
        if v.index is not None:  # rows of a table: some of them, or another shape
            cut = slices(func, args, kwargs, out) if len(hits) == 1 and v.shape is None else None
            for part, start in cut or ():
                self._alias(part, dataclasses.replace(v, index=v.index[start : start + part.shape[0]]))
            if cut is not None:
                return
            shape = guise(func, args, kwargs, out) if len(hits) == 1 else None
            if shape is None:
                self.on_opaque(v.path, call_name(func))
            else:
                self._alias(out, dataclasses.replace(v, shape=shape))
            return
        if is_transpose(func, args, kwargs) and v.shape is None:
            self._alias(out, dataclasses.replace(v, transposed=not v.transposed))
            return
        cut = slices(func, args, kwargs, out) if len(hits) == 1 and not v.transposed and v.shape is None else None
        if cut is not None:
            first = (v.rows or (0, 0))[0]
            for part, start in cut:
                whole = part.shape == args[0].shape
                rows = (first + start, first + start + part.shape[0])
                self._alias(part, v if whole else dataclasses.replace(v, rows=rows))
            return
        taken = picks(func, args, kwargs, out) if len(hits) == 1 and not v.transposed and v.shape is None else None
        if taken is not None:
            first = (v.rows or (0, 0))[0]
            for part, k in taken:
                rows = (first + k, first + k + 1)
                self._alias(part, dataclasses.replace(v, rows=rows, shape=tuple(part.shape)))
            return
        shape = guise(func, args, kwargs, out) if len(hits) == 1 else None
        if shape is not None and shape == tuple(args[0].shape):
            self._alias(out, v)
            return
        if shape is not None and not v.transposed:
            own = self.shapes[v.path] if v.rows is None else (v.rows[1] - v.rows[0], *self.shapes[v.path][1:])
            self._alias(out, dataclasses.replace(v, shape=None if shape == own else shape))
            return
        factor = multiple(func, args, kwargs) if len(hits) == 1 else None
        if factor is not None:
            self._alias(out, dataclasses.replace(v, factor=v.factor * factor))
            return
        for v in hits:
            self.on_opaque(v.path, call_name(func))

    def _alias(self, t: Tensor, view: View) -> None:
        self.views[id(t)] = view
        self.alive.append(t)


class Known:
    """A set of tensors, by identity, that keeps none of them alive."""

    def __init__(self, found: Iterable[Tensor]) -> None:
        self.refs: dict[int, Any] = {}
        self.update(found)

    def update(self, found: Iterable[Tensor]) -> None:
        for t in found:
            self.refs[id(t)] = weakref.ref(t, partial(self.refs.pop, id(t)))  # called with itself, the default

    def __contains__(self, t: Any) -> bool:
        ref = self.refs.get(id(t))
        return ref is not None and ref() is t


def tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (tuple, list)):
            found.extend(t for t in trees.leaves(a) if isinstance(t, Tensor))
    return found


@cache
def opened(func: FunctionType) -> FunctionType:
    """A composite of torch.nn.functional that runs its body under the mode: the same code, with private globals in
    which the question for an override is answered "no".  Without it an attention layer is one opaque call."""
    no = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    copy = FunctionType(func.__code__, {**func.__globals__, **no}, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any, **__: Any) -> bool:
    return False


def distinct(params: Any) -> Any:
    """params with an object of its own for each leaf: the same tensor at two places is two leaves."""
    flat, treedef = trees.flatten(params)
    seen: set[int] = set()
    apart = [t.view_as(t) if id(t) in seen or seen.add(id(t)) else t for t in flat]  # type: ignore[func-returns-value]
    return treedef.unflatten(apart) if len(seen) < len(flat) else params
