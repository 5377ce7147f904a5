"""A run held against one that was watched before: the same calls of the same leaves need no rule to say what they are.

A `Way` is a run of `Watcher` whose calls are plain ones, each of leaves as they are or of none.  `Follower` goes along it at a
fraction of the price; where f goes another way it gives the run up, and `Watcher` sees it anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.batching import sound
from fisher.collector.calls.plain import PLAIN, Unknown
from fisher.collector.rules.match import Match
from fisher.collector.watching.known import Known, tensors, tensors_of
from linmaps import trees


class Leaf(NamedTuple):
    """An argument that is a leaf, by its number in the flat order."""

    number: int


class Data(NamedTuple):
    """An argument that examples enter: the output of a use, or (None) another."""

    use: int | None
    ndim: int


class Call(NamedTuple):
    """A call of torch, of which use if it is one; args: where leaves are among them."""

    func: Any
    use: int | None = None
    args: tuple[Leaf | Data | Any, ...] = ()


Way = tuple[Call, ...]


class Recorder:
    """Writes down what `Watcher` sees; outputs: which use's output a tensor is, by id."""

    def __init__(self, params: Any, outputs: dict[int, int]) -> None:
        self.leaves = {id(t): number for number, t in enumerate(trees.leaves(params))}
        self.outputs = outputs
        self.calls: list[Call] = []

    @property
    def way(self) -> Way:
        """The calls; an empty way if one is none that `Follower` could meet."""
        return tuple(self.calls) if all(call.func in PLAIN for call in self.calls) else ()

    def without_leaves(self, func: Any) -> None:
        self.calls.append(Call(func))

    def of_leaves(self, match: Match, func: Any, args: Any, kwargs: Any, out: Tensor) -> Recorder | None:
        """After this call, too; None if it is more than a product of its first input, or a bias joined to one."""
        use = self.outputs.get(id(out))
        joined = match.inputs is None and use is None and id(match.added_to) in self.outputs
        single = match.feature is None and not match.in_place and not kwargs and (match.inputs is not None or joined)
        given = [a for a in args if isinstance(a, Tensor)]
        rest = [a for a in given if id(a) not in self.leaves]
        if not single or len(given) != len(tensors(args, {})) or len(given) == len(rest):
            return None
        if len(rest) != 1 or rest[0] is not (match.added_to if joined else match.inputs):
            return None
        self.calls.append(Call(func, use, tuple(map(self._argument, args))))
        return self

    def _argument(self, a: Any) -> Leaf | Data | Any:
        if not isinstance(a, Tensor):
            return list(a) if isinstance(a, list) else a  # which f may write to
        number = self.leaves.get(id(a))
        return Data(self.outputs.get(id(a)), a.ndim) if number is None else Leaf(number)


class Follower(TorchFunctionMode):
    """Go along a way: `on_use(k, x, run)` makes the output of the call of use k, whose input is x.

    Raises `Unknown` where f goes another, and at constants that require a gradient unless they are `free` to.
    """

    def __init__(
        self,
        way: Way,
        params: Any,
        x: Any,
        on_use: Callable[[int, Tensor, Callable[[], Tensor]], Tensor],
        free: bool = True,
    ) -> None:
        super().__init__()
        self.way, self.on_use, self.free, self.at, self.refused = way, on_use, free, 0, False
        self.leaves = trees.leaves(params)
        self.own = set(map(id, self.leaves))
        self.data = Known(t for t in trees.leaves(x) if isinstance(t, Tensor))
        self.outputs: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.refused or self.at == len(self.way) or func != self.way[self.at].func:
            self._refuse()
        call, kwargs, run = self.way[self.at], kwargs or {}, lambda: sound(func, args, kwargs or {})
        self.at += 1
        if call.args:
            x = self._input(call, args, kwargs)
            out = run() if call.use is None else self.on_use(call.use, x, run)
            self.data.update((out,))
            if call.use is not None:
                self.outputs[call.use] = weakref.ref(out)
            return out
        entered = False
        for t in tensors(args, kwargs):
            if t in self.data:
                entered = True
            elif id(t) in self.own or (t.requires_grad and not self.free):
                self._refuse()
        out = run()
        if entered:
            self.data.update(tensors_of(out))
        return out

    def _input(self, call: Call, args: Any, kwargs: Any) -> Any:
        """The one tensor among the arguments that is no leaf, of a call that is the one foreseen."""
        if kwargs or len(args) != len(call.args):
            self._refuse()
        x = None
        for a, want in zip(args, call.args):
            if type(want) is Leaf:
                same = a is self.leaves[want.number]
            elif type(want) is Data:
                x, same = a, isinstance(a, Tensor) and a.ndim == want.ndim and a in self.data
                same = same and (want.use is None or self.output(want.use) is a)
            else:
                same = type(a) is type(want) and a == want
            if not same:
                self._refuse()
        return x

    def output(self, use: int) -> Any:
        """The output of a use; None where it is gone, or not there yet."""
        return self.outputs[use]() if use in self.outputs else None

    def use_of(self, y: Any) -> int | None:
        """The use that a tensor is the output of."""
        return next((use for use in self.outputs if self.output(use) is y), None)

    def _refuse(self) -> None:
        self.refused = True
        raise Unknown

    def finish(self, y: Any) -> None:
        """Raise `Unknown` unless the way was gone to its end, and y comes from a call that was seen."""
        if self.refused or self.at < len(self.way) or y not in self.data:
            raise Unknown
