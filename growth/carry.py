"""Carry optimizer moments and other state over a growth step: old entries keep place and value, new ones are zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from linmaps import trees
from linmaps.trees import Path, path_str

Shape = tuple[int, ...]


def grow_like(state: Any, params: Any, grown: Any) -> Any:
    """`state` with every leaf that belongs to a grown leaf of params padded with zeros to its new shape.

    A leaf of the state belongs to a leaf of params of its shape

    1. whose path ends its own: moments, averages and other trees shaped like params, anywhere in the state;
    2. by number, in lists and in a `torch.optim` state dict: the parameters in the order of insertion, or else in the
       leaf order of optree, whichever has the shapes of all entries;
    3. or, failing these, by its shape alone, if that says what the new shape is.

    Anything else (step counters, scalars, leaves of other shapes) is copied.  So the next optimizer step moves
    the old entries as it would have without growth where the new units are zero on one side.  Stacked ensembles work
    alike.

    Raises ValueError where params and grown have other leaves, where a leaf of grown is smaller, and (naming the leaf)
    where a shape fits several leaves that grew differently.

    >>> import torch
    >>> params, grown = {"w": torch.ones(2, 1), "b": torch.ones(2)}, {"w": torch.ones(3, 1), "b": torch.ones(3)}
    >>> grow_like({"step": 4, "m": {"w": torch.ones(2, 1), "b": torch.ones(2)}}, params, grown)
    {'step': 4, 'm': {'w': tensor([[1.],
        [1.],
        [0.]]), 'b': tensor([1., 1., 0.])}}
    """
    return _Carrier(params, grown).walk(state, ())


class _Carrier:
    """Old and new shape of each leaf of params, by path and in both orders."""

    def __init__(self, params: Any, grown: Any) -> None:
        trees.check_like(grown, params, "grown", shapes=False)
        self.shapes: dict[Path, tuple[Shape, Shape]] = {}
        for path, old, new in zip(trees.paths(params), trees.leaves(params), trees.leaves(grown)):
            a, b = tuple(old.shape), tuple(new.shape)
            if len(a) != len(b) or any(m > n for m, n in zip(a, b)):
                raise ValueError(
                    f"grown: {path_str(path)} has shape {b}, expected at least {a}; give grow(params, ...)"
                )
            self.shapes[path] = a, b
        self.by_name = {path_str(p): s for p, s in self.shapes.items()}
        inserted = [self.shapes[p] for p in _inserted(params, ())]
        self.orders = [inserted, list(self.shapes.values())]

    def walk(self, node: Any, path: Path) -> Any:
        if isinstance(node, Tensor):
            return self.leaf(node, path)
        if isinstance(node, dict):
            if {"state", "param_groups"} <= node.keys() and isinstance(node["state"], dict):
                return type(node)((k, self.optimizer(v) if k == "state" else v) for k, v in node.items())
            return type(node)((k, self.walk(v, (*path, k))) for k, v in node.items())
        level = trees.one_level(node)
        if level is None:
            return node
        keys, children, rebuild = level
        numbered = self.numbered(children) if isinstance(node, (list, tuple)) else None
        if numbered is not None:
            padded: list[Any] = [_padded(t, s) for t, s in zip(node, numbered)]
            return rebuild(padded)
        return rebuild([self.walk(c, (*path, k)) for k, c in zip(keys, children)])

    def leaf(self, t: Tensor, path: Path) -> Tensor:
        shape = tuple(t.shape)
        parts = path_str(path).split(".") if path else []
        for n in range(len(parts) + 1):  # the longest end first
            found = self.by_name.get(".".join(parts[n:]))
            if found is not None and found[0] == shape:
                return _padded(t, found[1])
        targets = {new for old, new in self.shapes.values() if old == shape}
        if len(targets) > 1:
            names = [path_str(p) for p, (old, _) in self.shapes.items() if old == shape]
            raise ValueError(
                f"state: {path_str(path)} has shape {shape}, which fits {names}, grown to {sorted(targets)}; "
                "expected one new shape: keep such state in trees with the structure of params"
            )
        return _padded(t, targets.pop() if targets else shape)

    def numbered(self, children: Sequence[Any]) -> list[Shape] | None:
        """The new shapes of a list with one tensor per leaf of params."""
        if len(children) != len(self.shapes) or not all(isinstance(c, Tensor) for c in children):
            return None
        for order in self.orders:
            if all(tuple(c.shape) == old for c, (old, _) in zip(children, order)):
                return [new for _, new in order]
        return None

    def optimizer(self, entries: dict[Any, Any]) -> dict[Any, Any]:
        order = next((o for o in self.orders if all(_fits(e, o, i) for i, e in entries.items())), None)
        if order is None:
            got = {
                i: sorted({tuple(t.shape) for t in trees.leaves(e) if isinstance(t, Tensor)})
                for i, e in entries.items()
            }
            raise ValueError(
                f"state: the entries of this torch.optim state dict have shapes {got}, expected those of params in "
                f"some order: {[old for old, _ in self.orders[0]]} or {[old for old, _ in self.orders[1]]}; give the "
                "params that the optimizer was made for"
            )
        return {i: trees.map(lambda t, s=order[i]: _entry(t, s), e) for i, e in entries.items()}


def _inserted(node: Any, path: Path) -> list[Path]:
    """Paths of the leaves in the order of insertion of dicts."""
    level = trees.one_level(node)
    if level is None:
        return [] if node is None else [path]
    return [p for k, c in zip(level[0], level[1]) for p in _inserted(c, (*path, k))]


def _fits(entry: Any, order: list[tuple[Shape, Shape]], i: Any) -> bool:
    """Whether the tensors of an optimizer's entry, scalars apart, have the shape of parameter i."""
    shapes = {tuple(t.shape) for t in trees.leaves(entry) if isinstance(t, Tensor)} - {()}
    return isinstance(i, int) and i < len(order) and shapes <= {order[i][0]}


def _entry(t: Any, shapes: tuple[Shape, Shape]) -> Any:
    return _padded(t, shapes[1] if tuple(t.shape) == shapes[0] else tuple(t.shape)) if isinstance(t, Tensor) else t


def _padded(t: Tensor, shape: Shape) -> Tensor:
    """A new tensor in any case: optimizers change their state in place."""
    return (
        pad(t, [n for a, b in zip(reversed(t.shape), reversed(shape)) for n in (0, b - a)])
        if t.shape != shape
        else t.clone()
    )
