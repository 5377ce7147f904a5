"""Watching a function run: a mode that sees each torch call and knows which of its tensors are parameter leaves.

Only public API: `torch.overrides.TorchFunctionMode`.  Nothing is hooked and no module is needed.

A tensor is *data* if x enters it, else a *node* of the tape if a leaf does, else a constant.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fisher.collector.calls.batching import SPELLED, sound
from fisher.collector.calls.chains import call_name
from fisher.collector.calls.plain import Unknown
from fisher.collector.calls.views import JOINS, SIZED_BY, chosen, packed, put_back, sized
from fisher.collector.rules.lookup import token
from fisher.collector.rules.match import Derived, bind
from fisher.collector.watching.following import Way
from fisher.collector.watching.known import opened, tensors, tensors_of
from fisher.collector.watching.made import Maker
from linmaps import trees
from linmaps.base import Use, product

DUAL = "torch._make_dual"  # how forward mode inside f begins


class Watcher(Maker):
    """Watch a function run: `on_match(match, run)` makes the output of a call that a rule explains.

    on_opaque(path, name, made): a leaf, or what is made of it, enters a call without a rule.
    on_plain(func, args, kwargs, out): a call without leaves; with the paths of its leaves a batch norm whose statistics alone are
    some.
    holds(number, match, z): whether the output of a product of a leaf with constants holds examples (a state to begin with).
    free: linear layers that no data enter are uses of their own.
    only: `Unknown` for any other call.
    recorder: writes down the way that f takes, if `Follower` can go along it; gone at the end if not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.only is not None and func not in self.only:
            self.refused = True
            raise Unknown
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        entered = [t for t in given if self._enters(t)]
        out = self._called(func, given, args, kwargs, entered)
        if entered and not (func in SIZED_BY and self.tape.node(args[0]) is not None):
            results = [t for t in tensors_of(out) if self.tape.node(t) is None]
            self.data.update(results)
            self.dtypes.update(t.dtype for t in results if t.is_floating_point())
            self._choose(func, args, entered, results)
            if call_name(func) == DUAL or any(t in self.inside for t in entered):
                self.inside.known.update(results)
        return out

    def _choose(self, func: Any, args: Any, entered: list[Tensor], results: list[Tensor]) -> None:
        """Follow what is there for some of the examples alone, as many as data say: it has no batch axis."""
        some = [t for t in entered if t in self.some] if self.some.refs else []
        if chosen(func, args) or (some and not (put_back(func) and args[0] not in self.some)):
            self.some.update(results)
            self.recorder = None

    def _enters(self, t: Tensor) -> bool:
        """Whether a tensor holds examples, as far as can be known."""
        if t in self.data:
            return True
        if id(t) in self.tape.number or t in self.quiet:
            return False
        leaves = self.inside.meet(t)
        for path in leaves or ():
            self.on_opaque(path, "a transform inside f", False)
        return leaves is not None

    def _called(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, entered: list[Tensor]) -> Any:
        number = self.tape.number
        touched = [t for t in given if id(t) in number]
        if touched and func in SIZED_BY:  # of a second tensor it takes the dtype, the device or the shape
            touched = [t for t in touched if t is args[0]]
        if not touched:
            out = sound(func, args, kwargs)
            self._fix(func, args, out)
            statistics = self._statistics(func, args, kwargs)
            self.on_plain(func, args, kwargs, out, *([statistics] if statistics else []))
            if self.recorder is not None:
                self.recorder.without_leaves(func)
            if not entered and any(t in self.quiet for t in given):
                self.quiet.update(tensors_of(out))
            return out
        self.events += 1
        recorder, self.recorder = self.recorder, None  # until a rule explains the call
        if any(t in self.inside for t in given):
            self._opaque(touched, "a transform inside f")
            return sound(func, args, kwargs)
        if self.some.refs and any(t in self.some for t in entered):
            self._opaque(touched, f"{call_name(func)} for some of the examples")
            return sound(func, args, kwargs)
        if func in SIZED_BY:
            return self._sized(func, args, kwargs)
        if not entered:
            return self._of_leaves(func, given, args, kwargs, touched)
        if func is product:
            return self._map(*args)
        if func in JOINS:
            put = {id(t): self._put(t, func) for t in touched}
            args = (type(args[0])(put.get(id(t), t) for t in args[0]), *args[1:])
            out = func(*args, **kwargs)
            self.on_plain(func, args, kwargs, out)
            return out
        match = self._match(func, args, kwargs)
        if match is not None:
            out = self._matched(match, touched, call_name(func), lambda: sound(func, args, kwargs))
            self.recorder = recorder.of_leaves(match, func, args, kwargs, out) if recorder is not None else None
            return out
        if statistics := self._statistics(func, args, kwargs):
            out = sound(func, args, kwargs)
            self._opaque(touched, call_name(func))
            self.on_plain(func, args, kwargs, out, statistics)
            return out
        if func in SPELLED:
            with self:
                spelled = SPELLED[func](*args, **kwargs)
            if spelled is not None:
                return spelled
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional":
            return self._composite(func, args, kwargs, touched)
        out = sound(func, args, kwargs)
        if call_name(func) and any(isinstance(t, Tensor) for t in trees.leaves(out)):
            self._opaque(touched, call_name(func))  # a call without a name is closed: the check finds it
        return out

    def way(self) -> Way:
        """The way that f took; an empty one if `Follower` cannot go along it."""
        return self.recorder.way if self.recorder is not None and not self.inside.seen else ()

    # --- calls that data enter ---------------------------------------------------------------------------------------

    def _composite(self, func: FunctionType, args: Any, kwargs: Any, touched: list[Tensor]) -> Any:
        for t, n in packed(func, args, kwargs):
            seen = self.views.get(id(t))
            if seen is not None and not isinstance(seen.path, Derived):
                self.parts[seen.path] = n
        before = self.events
        with self:
            out = opened(func)(*args, **kwargs)
        if self.events == before:  # a composite whose inner calls cannot be seen
            self._opaque(touched, call_name(func))
        return out

    def _statistics(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
        """The paths of running mean and variance of a batch norm in eval mode that has no other leaves."""
        if func is not F.batch_norm:
            return ()
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        _, mean, var, w, b, training = bind(
            names, args[:6], {k: v for k, v in kwargs.items() if k in names}, (None,) * 6
        )
        paths = tuple(self.leaf(t) or self.fixed.get(id(t)) for t in (mean, var))
        return () if training or w is not None or b is not None or None in paths else paths

    def _map(self, use: Use, params: Any, x: Tensor) -> Tensor:
        """A map's product with data: a use of its matrix, whatever way it is computed."""
        match = self._map_match(use, params, x)
        if match is not None:
            lent = [params[k] for k in use.lends if k != use.bias]
            touched = [t for t in trees.leaves(params) if self.tape.node(t) is not None]
            touched = [t for t in touched if not any(t is s for s in lent)]
            return self._matched(match, touched, use.name, lambda: use.run(params, x))
        with self:
            return use.run(params, x)

    def _put(self, t: Tensor, func: Any) -> Tensor:
        """A leaf that is put beside data, as a use of its own."""
        seen = self.view(t)
        match = token(t, seen) if seen is not None else None
        match = match.with_factors() if match is not None else None
        if match is None:
            self._opaque([t], call_name(func))
            return t
        return self.on_match(match, lambda: t)

    def _sized(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A node in the dtype, on the device or in the shape of something else."""
        out = func(*args, **kwargs)
        plain, rest = sized(func, out)
        self.tape.record(plain, (args[0], *rest), {}, out)
        self._follow(func, args, kwargs, out, [args[0]])
        return out
