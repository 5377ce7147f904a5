"""What comes of the output of a layer, torch call by torch call, until another layer meets it: for messages."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from fisher.collector.calls.chains import step
from fisher.collector.watching.known import tensors
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path


@dataclasses.dataclass
class Call:
    """A call behind the layer before: its name, the leaves that enter it, and the calls whose results do.

    joins: another tensor enters it too; foreign: one that does not come of the layer before.  read: it is read as a function of
    each unit by itself.  fixed: it lays out the entries of each example in a row of a length that is a number.
    """

    name: str
    leaves: list[Path]
    parents: list[int]
    joins: bool = False
    foreign: bool = False
    read: bool = False
    fixed: bool = False


class Between(TorchFunctionMode):
    """Follows what comes of the weights of `before` until a weight of `after` meets it; the first call is `before` itself."""

    def __init__(self, before: list[Tensor], after: list[Tensor], leaves: dict[int, Path], is_map: bool) -> None:
        super().__init__()
        self.is_map = is_map  # whether `before` is a convolution
        self.elsewhere: list[str] = []
        self.alive: list[Any] = [*before, *after]  # an id is a name only while its object lives
        self.weights = {id(t): side for side, leaves_ in (("before", before), ("after", after)) for t in leaves_}
        self.made: dict[int, int] = {}  # by which call a tensor was made
        self.calls: list[Call] = []
        self.leaves = leaves
        self.met: dict[Path, str] = {}
        self.end: int | None = None
        self.shape: tuple[int, ...] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        parents = list(dict.fromkeys(self.made[id(t)] for t in given if id(t) in self.made))
        sides = {self.weights[id(t)] for t in given if id(t) in self.weights}
        shape = given[0].shape if given else ()
        out = func(*args, **kwargs)
        results = [t for t in trees.leaves(out) if isinstance(t, Tensor)]
        self.alive.extend(results)
        entered = [self.leaves[id(t)] for t in given if id(t) in self.leaves]
        if sides and len(given) == 1:  # a view of a weight
            self.weights |= {id(t): next(iter(sides)) for t in results}
            self.leaves |= {id(t): entered[0] for t in results if entered}
        elif parents and self.end is None and "after" not in sides:
            self.met |= {path: call_name(func) for path in entered if path not in self.met}
        elif len(entered) == 1 == len(given):  # a view of a leaf
            self.leaves |= {id(t): entered[0] for t in results}
        if (parents or "before" in sides) and results and not (sides and len(given) == 1):
            call = Call(call_name(func), entered, parents)
            own = sum(id(t) in self.made or id(t) in self.leaves for t in given)
            call.foreign = own < len(given)
            call.joins = len(parents) > 1 or call.foreign
            if "before" in sides:
                self.shape = self.shape or tuple(results[0].shape)
            elif len(given) == 1 and given[0] is args[0]:
                space, rows = (len(self.shape), ()) if self.is_map else (0, self.shape)
                call.read = step(func, args, kwargs, space, rows) is not None
                call.fixed = _fixed(call.name, shape, args, results)
            self.calls.append(call)
            self.made |= {id(t): len(self.calls) - 1 for t in results}
            if "after" in sides and parents and self.end is None:
                self.end = len(self.calls) - 1
        return out

    @property
    def way(self) -> list[Call]:
        """The calls between the two layers, in their order."""
        return [self.calls[k] for k in sorted(self._passed()) if self.calls[k].parents]

    @property
    def found(self) -> list[str]:
        """Their names, each once."""
        return list(dict.fromkeys(call.name for call in self.way))

    def returned(self, y: Any) -> None:
        """Note in `elsewhere` the calls beside these that read the output of `before`, or what is made of it on the way."""
        passed = self._passed()
        beside = [
            call
            for k, call in enumerate(self.calls)
            if k != self.end and k not in passed and passed & set(call.parents)
        ]
        words = [f"{c.name} of {path_str(c.leaves[0])}" if c.leaves else c.name for c in beside]
        self.elsewhere = words + (["what f returns"] if self.made.get(id(y)) in passed else [])

    def _passed(self) -> set[int]:
        found: set[int] = set()
        todo = [] if self.end is None else list(self.calls[self.end].parents)
        while todo:
            k = todo.pop()
            if k not in found:
                found.add(k)
                todo += self.calls[k].parents
        return found


def _fixed(name: str, shape: tuple[int, ...], args: Any, results: list[Tensor]) -> bool:
    sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    flat = len(shape) > 2 and len(results) == 1 and results[0].ndim == 2 and results[0].shape[0] == shape[0]
    return name in ("view", "reshape") and flat and len(sizes) == 2 and sizes[1] != -1


def call_name(func: Any) -> str:
    name = (resolve_name(func) or "").removesuffix(".__get__").rpartition(".")[2]
    own = getattr(func, "__name__", "")
    return (own if name in ("", "fn") else name).strip("_") or "a call"
