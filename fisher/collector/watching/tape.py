"""The tape: what f computes from leaves alone, step by step, played again for other values of the leaves.

A node is a leaf, or a tensor that a torch call made of nodes and of constants.  The same call of the same arguments is one
node, so that a weight that is computed anew at each time step is one weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fisher.collector.calls.batching import sound
from fisher.collector.calls.views import carries_no_gradient
from linmaps import trees
from linmaps.base import Use
from linmaps.trees.keys import Path


@dataclasses.dataclass(frozen=True)
class Node:
    """The place of a tensor in the arguments of a step."""

    number: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One call; in_place: it writes into a copy of its first argument, which is the result."""

    func: Any
    args: Any
    kwargs: Any
    in_place: bool

    def run(self, value: Callable[[Node], Tensor]) -> list[Any]:
        args = replaced(self.args, lambda a: value(a) if isinstance(a, Node) else a)
        kwargs = replaced(self.kwargs, lambda a: value(a) if isinstance(a, Node) else a)
        if self.in_place:
            target = args[0].clone()
            self.func(target, *args[1:], **kwargs)
            return [target]
        return trees.leaves(sound(self.func, args, kwargs))


@dataclasses.dataclass(frozen=True)
class Made:
    """One of the results of a step."""

    step: int
    result: int


class Tape:
    """Steps in the order in which f makes them, and the nodes by the identity of their tensors."""

    def __init__(self, leaves: Mapping[Path, Tensor]) -> None:
        self.number = {id(t): n for n, t in enumerate(leaves.values())}
        self.source: list[Path | Made] = list(leaves)  # of each node
        self.shapes: list[tuple[int, ...]] = [tuple(t.shape) for t in leaves.values()]
        self.reach: list[frozenset[Path]] = [frozenset([path]) for path in leaves]
        self.steps: list[Step] = []
        self.known: dict[Any, int] = {}
        self.alive: list[Any] = list(leaves.values())  # an id is a name only while its object lives

    def node(self, t: Any) -> int | None:
        return self.number.get(id(t))

    def paths(self, tensors: Iterable[Any]) -> list[Path]:
        """The leaves that these tensors are made of."""
        found: dict[Path, None] = {}
        for t in tensors:
            if (n := self.node(t)) is not None:
                found |= dict.fromkeys(sorted(self.reach[n], key=self.source.index))
        return list(found)

    def forget(self, t: Any) -> None:
        self.number.pop(id(t), None)

    def record(self, func: Any, args: Any, kwargs: Any, out: Any, *, in_place: bool = False, lends: Any = ()) -> None:
        """The results of a call are nodes from here on; in_place: args[0] is, args being those before the call.

        lends: tensors among the arguments that are constants, whatever they are.
        """
        if carries_no_gradient(func) or not torch.is_grad_enabled():
            return
        if not in_place and _copies(func, args, out) and id(args[0]) in self.number:
            self.alive.append(out)
            self.number[id(out)] = self.number[id(args[0])]
            return
        lent = {id(t) for t in lends}
        place = lambda a: Node(self.number[id(a)]) if id(a) in self.number and id(a) not in lent else a
        args, kwargs = replaced(args, place), replaced(kwargs, place)
        key = (func, in_place, _key(args), _key(kwargs))
        if key not in self.known:
            self.known[key] = len(self.steps)
            self.steps.append(Step(func, args, kwargs, in_place))
        step = self.known[key]
        reach = frozenset().union(*(self.reach[n] for n in _nodes((args, kwargs))))
        for k, t in enumerate([out] if in_place else trees.leaves(out)):
            if isinstance(t, Tensor) and t.is_floating_point() and reach and (in_place or id(t) not in self.number):
                self._place(t, Made(step, k), reach)

    def _place(self, t: Tensor, source: Made, reach: frozenset[Path]) -> None:
        self.alive.append(t)
        if source not in self.known:
            self.known[source] = len(self.source)
            self.source.append(source)
            self.shapes.append(tuple(t.shape))
            self.reach.append(reach)
        self.number[id(t)] = self.known[source]

    def title(self, n: int) -> str:
        """What made a node: a map's name, or that of a torch call, past those that only arrange its entries."""
        name = ""
        while not isinstance(self.source[n], tuple):
            step = self.steps[self.source[n].step]  # type: ignore[union-attr]
            uses = [a for a in step.args if isinstance(a, Use)]
            name = uses[0].name if uses else getattr(step.func, "__name__", "").strip("_")
            inner = list(dict.fromkeys(_nodes((step.args, step.kwargs))))
            if uses or name not in _ARRANGES or len(inner) != 1:
                break
            (n,) = inner
        return name or "weight"

    def addresses(self, n: int) -> tuple[Path, Tensor] | None:
        """Of a node whose entries are entries of one leaf: the leaf, and their numbers in it; None of any other."""
        todo, name = [n], lambda step: getattr(step.func, "__name__", "").strip("_")
        while todo:
            source = self.source[todo.pop()]
            if isinstance(source, tuple):
                continue
            step = self.steps[source.step]
            inner = _nodes((step.args, step.kwargs))
            if step.in_place or len(inner) != 1 or name(step) not in _ARRANGES | _GATHERS:
                return None
            todo += inner
        (path,) = self.reach[n]
        k = self.source.index(path)
        places = torch.arange(self.alive[k].numel(), dtype=torch.float64, device=self.alive[k].device)
        found = self.play([n], {path: places.reshape(self.shapes[k])}, lambda step: name(step) in _COPIES)
        return path, found[0].long()

    def play(
        self, wanted: Iterable[int], leaves: Mapping[Path, Tensor], skipped: Callable[[Step], bool] = lambda _: False
    ) -> list[Tensor]:
        """These nodes for these leaves; skipped: steps whose result is their first argument."""
        wanted = list(wanted)
        needed, todo = set(), [self.source[n] for n in wanted]
        while todo:
            source = todo.pop()
            if not isinstance(source, tuple) and source.step not in needed:
                needed.add(source.step)
                step = self.steps[source.step]
                todo.extend(self.source[n] for n in _nodes((step.args, step.kwargs)))
        results: dict[int, list[Any]] = {}

        def value(node: Node) -> Tensor:
            source = self.source[node.number]
            return leaves[source] if isinstance(source, tuple) else results[source.step][source.result]

        for k in sorted(needed):
            step = self.steps[k]
            results[k] = [value(step.args[0])] if skipped(step) else step.run(value)
        return [value(Node(n)) for n in wanted]


def replaced(a: Any, fn: Callable[[Any], Any]) -> Any:
    """A structure of arguments with fn of all that is no container in place of it."""
    if type(a) in (tuple, list):
        return type(a)(replaced(b, fn) for b in a)
    if isinstance(a, Mapping):
        return {k: replaced(b, fn) for k, b in a.items()}
    return fn(a)


def _nodes(a: Any) -> list[int]:
    found: list[int] = []
    replaced(a, lambda b: found.append(b.number) if isinstance(b, Node) else None)
    return found


def _key(a: Any) -> Any:
    """What tells two structures of arguments apart: equal numbers and nodes, the same constants."""
    if isinstance(a, (tuple, list)):
        return type(a), tuple(map(_key, a))
    if isinstance(a, Mapping):
        return dict, tuple((k, _key(b)) for k, b in a.items())
    if isinstance(a, slice):
        return slice, _key((a.start, a.stop, a.step))
    if isinstance(a, (Node, Use, int, float, bool, str, type(None), torch.dtype, torch.device, type(...))):
        return type(a), a
    return type(a), id(a)


def _copies(func: Any, args: Any, out: Any) -> bool:
    """Whether a call gives its first argument once more, in memory of its own or not."""
    if not isinstance(out, Tensor) or not args or not isinstance(args[0], Tensor) or args[0] is out:
        return False
    same = (out.dtype, out.shape) == (args[0].dtype, args[0].shape)
    return same and getattr(func, "__name__", "") in _COPIES | _RESHAPES


_GATHERS = {"roll", "flip", "repeat", "tile", "expand_as", "broadcast_to", "take", "gather", "embedding", "ravel"}
_RESHAPES = {
    "view",
    "view_as",
    "reshape",
    "reshape_as",
    "flatten",
    "unflatten",
    "ravel",
    "squeeze",
    "unsqueeze",
    "expand",
}
_COPIES = {"to", "contiguous", "clone", "type_as", "float", "double", "half", "bfloat16", "positive"}
_ARRANGES = set(
    """
    T mT t transpose permute swapaxes movedim view reshape flatten unflatten contiguous clone to squeeze unsqueeze expand
    getitem get split chunk narrow select unbind index_select float double half bfloat16 type view_as reshape_as
""".split()  # noqa: SIM905
)
