"""Watching a function run: a mode that sees each torch call and knows which of its tensors are parameter leaves.

Only public API: `torch.overrides.TorchFunctionMode`.  Nothing is hooked and no module is needed.

A tensor is *data* if x enters it, else a *node* of the tape if a leaf does, else a constant.  A node that is a leaf in another
guise has a view of it; any other is a derived weight once data meet it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.batching import SPELLED, sound
from fisher.collector.calls.chains import call_name
from fisher.collector.calls.followed import followed
from fisher.collector.calls.known import Inside, Known, opened, tensors, version, whole
from fisher.collector.calls.tape import Tape
from fisher.collector.calls.views import JOINS, SIZED_BY, packed, repeats, sized, writes
from fisher.collector.rules import RULES, Match, View
from fisher.collector.rules.lookup import constant_rows, token
from fisher.collector.rules.match import Derived, leaves_of
from linmaps import trees
from linmaps.base import Use, matrix, product

Run = Callable[[], Tensor]


class Watcher(TorchFunctionMode):
    """Watch a function run: `on_match(match, run)` makes the output of a call that a rule explains.

    on_opaque(path, name): a leaf enters a call without a rule.  on_plain(func, args, kwargs, out): a call without leaves.
    holds(number, match, z): whether the output of a product of a leaf with constants holds examples (a state to begin with).
    """

    def __init__(
        self,
        params: Any,
        on_match: Callable[[Match, Run], Tensor],
        on_opaque: Callable[[Any, str], object] = lambda *_: None,
        on_plain: Callable[..., None] = lambda *_: None,
        *,
        x: Any,
        holds: Callable[[int, Match, Tensor], bool],
    ) -> None:
        super().__init__()
        leaves = dict(zip(trees.paths(params), trees.leaves(params)))
        self.data = Known(t for t in trees.leaves(x) if isinstance(t, Tensor))
        self.quiet = Known()  # made of leaves, without a gradient
        self.inside, self.tape = Inside(leaves, x), Tape(leaves)
        self.leaves = {id(t) for t in leaves.values()}
        self.views = {id(t): View(path, leaf=tuple(t.shape)) for path, t in leaves.items()}
        self.on_match, self.on_opaque, self.on_plain = on_match, on_opaque, on_plain
        self.holds, self.constants = holds, 0
        self.events = 0
        self.parts: dict[Any, int] = {}  # leaves that hold several weights, one below the other

    def view(self, t: Any) -> View | None:
        """The leaf, or the derived weight, that a tensor is."""
        return self.views.get(id(t)) or self.derived(t)

    def derived(self, t: Any) -> View | None:
        """The same without looking through what the leaf, or the weight, went through."""
        n = self.tape.node(t)
        if n is None:
            return None
        source, shape = self.tape.source[n], self.tape.shapes[n]
        if isinstance(source, tuple):
            return View(source, leaf=shape)
        if n not in self.tape.weights:
            self.tape.weights.append(n)
        number = self.tape.weights.index(n)
        return View(Derived(number, tuple(self.tape.paths([t])), shape, self.tape.title(n)), leaf=shape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        entered = [t for t in given if self._enters(t)]
        out = self._called(func, given, args, kwargs, entered)
        if entered and not (func in SIZED_BY and self.tape.node(args[0]) is not None):
            results = [t for t in trees.leaves(out) if isinstance(t, Tensor) and self.tape.node(t) is None]
            self.data.update(results)
            if any(t in self.inside for t in entered):
                self.inside.known.update(results)
        return out

    def _enters(self, t: Tensor) -> bool:
        """Whether a tensor holds examples, as far as can be known."""
        if t in self.data:
            return True
        if self.tape.node(t) is not None or t in self.quiet:
            return False
        leaves = self.inside.meet(t)
        for path in leaves or ():
            self.on_opaque(path, "a transform inside f")
        return leaves is not None

    def _called(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, entered: list[Tensor]) -> Any:
        touched = [t for t in given if self.tape.node(t) is not None]
        if touched and func in SIZED_BY:  # of a second tensor it takes the dtype, the device or the shape
            touched = [t for t in touched if t is args[0]]
        if not touched:
            out = sound(func, args, kwargs)
            self.on_plain(func, args, kwargs, out)
            return out
        self.events += 1
        if any(t in self.inside for t in given):
            self._opaque(touched, "a transform inside f")
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
            return self._matched(match, touched, call_name(func), lambda: sound(func, args, kwargs))
        if func in SPELLED:
            with self:
                spelled = SPELLED[func](*args, **kwargs)
            if spelled is not None:
                return spelled
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional":
            return self._composite(func, args, kwargs, touched)
        out = func(*args, **kwargs)
        if call_name(func) and any(isinstance(t, Tensor) for t in trees.leaves(out)):
            self._opaque(touched, call_name(func))  # a call without a name is closed: the check finds it
        return out

    # --- calls that data enter ---------------------------------------------------------------------------------------

    def _match(self, func: Any, args: Any, kwargs: Any) -> Match | None:
        """What a rule says of the call: of leaves in other guises, else of what they are as weights of their own."""
        for view in (self.view, self.derived) if func in RULES else ():
            match = RULES[func](args, kwargs, view)
            match = match.with_factors() if match is not None else None
            if match is not None and all(v is None or v.index is None for v in (match.weight, match.bias)):
                return match
        return None

    def _matched(self, match: Match, touched: list[Tensor], name: str, run: Run) -> Tensor:
        covered = {p for v in (match.weight, match.bias) if v is not None for p in leaves_of(v.path)}
        for path in self.tape.paths(touched):
            if path not in covered:
                self.on_opaque(path, name)
        return self.on_match(match, run)

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

    def _map(self, use: Use, params: Any, x: Tensor) -> Tensor:
        """A map's product with data: a use of its matrix, whatever way it is computed."""
        own = {k: t for k, t in params.items() if k not in use.lends}
        made = [t for t in trees.leaves(own) if self.tape.node(t) is not None]
        if made and all(t.is_floating_point() for t in (x, *trees.leaves(own))):
            W = made[0].new_empty(()).expand(use.shape)
            self.tape.record(matrix, (use, params), {}, W, lends=[params[k] for k in use.lends])
            rest = (params[use.bias], *use.rest[1:]) if use.bias else use.rest
            match = self._match(use.call, (x, W, *rest), {})
            if match is not None:
                match = dataclasses.replace(match, kind=use.name)
                return self._matched(match, made, use.name, lambda: use.run(params, x))
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

    def _opaque(self, touched: list[Tensor], name: str) -> None:
        for path in self.tape.paths(touched):
            self.on_opaque(path, name)

    # --- calls of leaves and constants alone -------------------------------------------------------------------------

    def _of_leaves(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, touched: list[Tensor]) -> Any:
        found = self._of_examples(func, given, args, kwargs, touched)
        if found is not None:
            return found
        table = constant_rows(func, args, kwargs, self.view)
        before = [version(t) for t in given]
        kept = args[0].clone() if writes(func) and args and args[0] is given[0] else None
        out = sound(func, args, kwargs)
        written = [t for t, n in zip(given, before) if version(t) != n]
        if not written:
            self.tape.record(func, args, kwargs, out)
            self.quiet.update(t for t in trees.leaves(out) if isinstance(t, Tensor) and self.tape.node(t) is None)
            if table is not None:  # of positions: where the examples are shows when it is added
                self._alias(out, table)
            else:
                self._follow(func, args, kwargs, out, touched)
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

    def _of_examples(self, func: Any, given: list[Tensor], args: Any, kwargs: Any, touched: list[Tensor]) -> Any:
        """What a rule makes of a product with constants whose output holds examples; None if it does not."""
        match = self._match(func, args, kwargs) if len(touched) < len(given) else None
        entering = (match.inputs if match.inputs is not None else match.added_to) if match is not None else None
        if match is None or entering is None or self.tape.node(entering) is not None:
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
        for t, view in (followed(func, args, kwargs, out, v) or ()) if v is not None else ():
            self._alias(t, view)

    def _alias(self, t: Tensor, view: View) -> None:
        self.views[id(t)] = view
        self.tape.alive.append(t)
