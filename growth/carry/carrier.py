"""One walk through a state: what of it belongs to which leaf of params, in trees, lists, records, states of torch.optim."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.function_space.fmat import FMatDense
from fisher.pmat import PMat
from growth.carry.factors import factored, reduced, squared
from growth.carry.first_order import carried_statistics
from growth.carry.layouts import carried_layers
from growth.carry.matrices import carried_matrix
from growth.carry.orders import Order, Orders
from growth.moments.first_order import Statistics
from growth.surgery.moves import Move, Moves
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

Fill = Literal["zero", "mean"]
FILLS = get_args(Fill)
SCALES = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum", "step_size")  # what steps are divided by
STEP = "step"
FLAT = ("d", "prev_flat_grad", "old_dirs", "old_stps")  # of L-BFGS: all parameters as one vector


class Carrier:
    """One walk through a state: each leaf of it is moved as the leaf of params that it belongs to."""

    def __init__(self, moves: Moves, fill: Fill = "zero", order: Order = None) -> None:
        if fill not in FILLS:
            raise ValueError(f"fill: got {fill!r}, expected one of {list(FILLS)}")
        self.moves, self.fill = moves, fill
        self.by_name = {path_str(p): m for p, m in moves.leaves.items()}
        self.orders = Orders(moves, order)

    def walk(self, node: Any, path: Path) -> Any:
        if isinstance(node, Tensor):
            return self.leaf(node, path)
        if isinstance(node, LayerCollection):
            return carried_layers(node, self.moves)
        if isinstance(node, PMat):
            return carried_matrix(node, self.moves)
        if isinstance(node, Statistics):
            return carried_statistics(node, self.moves)
        if isinstance(node, FMatDense):
            return trees.map(Tensor.clone, node)
        if isinstance(node, dict):
            if {"state", "param_groups"} <= node.keys() and isinstance(node["state"], dict):
                return type(node)((k, self.optimizer(node) if k == "state" else v) for k, v in node.items())
            own = self.at(path)
            made = {} if own is None else factored(node, own, self.fill)
            return type(node)((k, made[k] if k in made else self.walk(v, (*path, k))) for k, v in node.items())
        level = trees.one_level(node)
        if level is None:
            return node
        keys, children, rebuild = level
        numbered = self.numbered(children) if isinstance(node, (list, tuple)) else None
        if numbered is not None:
            return rebuild([move(t) for t, move in zip(node, numbered)])
        return rebuild([self.walk(c, (*path, k)) for k, c in zip(keys, children)])

    def leaf(self, t: Tensor, path: Path) -> Tensor:
        shape = tuple(t.shape)
        own = self.at(path)
        if own is None:  # of a leaf's own state, which lies below its path
            own = next((m for n in range(len(path) - 1, 0, -1) if (m := self.at(path[:n])) is not None), None)
        if own is not None and own.old == shape and path[-1] != STEP:
            return own(t)
        if own is not None and (t.numel() == 1 or own.still):
            return t.clone()
        if own is not None:
            matrix = squared(t, own, _axis(path), f"state: {path_str(path)}")
            if matrix is not None:
                return matrix
            if reduced(shape, own.old):
                raise self.unknown(path_str(path), t, own)
        fitting = {p: m for p, m in self.by_name.items() if m.old == shape}
        first = next(iter(fitting.values()), None)
        if first is None:
            return t.clone()
        if any(not m.same(first) for m in fitting.values()):
            targets = sorted({m.new for m in fitting.values()})
            raise ValueError(
                f"state: {path_str(path)} has shape {shape}, which fits {list(fitting)}, resized to {targets}; "
                "expected one way to resize it: keep such state in trees with the structure of params"
            )
        return first(t)

    def at(self, path: Path) -> Move | None:
        """The move of the leaf of params whose path ends this one."""
        parts = path_str(path).split(".") if path else []
        found = (self.by_name.get(".".join(parts[n:])) for n in range(len(parts)))  # the longest end first
        return next((m for m in found if m is not None), None)

    def unknown(self, what: str, t: Tensor, move: Move) -> ValueError:
        name = next((n for n, m in self.by_name.items() if m is move), "a parameter")
        return ValueError(
            f"state: {what} of {name} {move.old}, which becomes {move.new}, has shape {tuple(t.shape)}, expected that of the "
            "parameter, Adafactor's factors, a matrix of an axis, or a number: start such state anew"
        )

    def numbered(self, children: Sequence[Any]) -> list[Move] | None:
        """How a list with one tensor per leaf of params moves."""
        if len(children) != len(self.by_name) or not all(isinstance(c, Tensor) for c in children):
            return None
        shapes = [{tuple(c.shape)} for c in children]
        return self.orders.found(shapes, None) if self.orders.fit(shapes) else None

    def optimizer(self, node: dict[str, Any]) -> dict[Any, Any]:
        entries, groups = node["state"], node["param_groups"]
        numbers = [i for group in groups for i in group["params"]] or list(entries)
        names = [n for group in groups for n in group.get("param_names") or ()]
        if any(lbfgs(e) for e in entries.values()):
            order = self.orders.whole(names or None)
        else:
            shapes = [{tuple(t.shape) for t in _tensors(entries.get(i))} - {()} for i in numbers]
            order = self.orders.found(shapes, names if len(names) == len(numbers) else None)
        moves = dict(zip(numbers, order))
        if not entries.keys() <= moves.keys():
            raise ValueError(f"state: entries {sorted(entries)}, expected numbers of param_groups {numbers}")
        return {i: self.entry(e, moves[i], order) for i, e in entries.items()}

    def entry(self, entry: dict[str, Any], move: Move, order: Sequence[Move]) -> dict[str, Any]:
        """An optimizer's state of one parameter; order: how all of its parameters move."""
        if lbfgs(entry):
            return {k: trees.map(lambda t: _flat(t, order), v) if k in FLAT else _copied(v) for k, v in entry.items()}
        made = factored(entry, move, self.fill)
        return {k: made[k] if k in made else self.moment((k,), v, move) for k, v in entry.items()}

    def moment(self, path: Path, value: Any, move: Move) -> Any:
        """What the state of one parameter has under a path."""
        if not isinstance(value, Tensor):
            level = trees.one_level(value)
            if level is None:
                return value
            keys, children, rebuild = level
            return rebuild([self.moment((*path, k), c, move) for k, c in zip(keys, children)])
        if tuple(value.shape) == move.old and path[-1] != STEP:
            return move.filled(value) if self.fill == "mean" and path[0] in SCALES else move(value)
        if value.numel() == 1 or move.still:
            return value.clone()
        matrix = squared(value, move, _axis(path), f"state: {path_str(path)}")
        if matrix is None:
            raise self.unknown(path_str(path), value, move)
        return matrix


def _axis(path: Path) -> int | None:
    """The axis that a matrix of state is numbered by: the last of its keys, or what this ends in."""
    number = re.search(r"(\d+)$", str(path[-1]))
    return int(number[0]) if number else None


def lbfgs(entry: Any) -> bool:
    """Whether an optimizer's entry is that of `torch.optim.LBFGS`, which keeps all parameters as one vector."""
    return isinstance(entry, dict) and "prev_flat_grad" in entry


def _tensors(entry: Any) -> list[Tensor]:
    return [t for t in trees.leaves(entry) if isinstance(t, Tensor)]


def _flat(t: Any, order: Sequence[Move]) -> Any:
    """The vector of all parameters, one behind the other."""
    if not isinstance(t, Tensor) or t.ndim == 0:
        return _copied(t)
    parts = zip(t.split([m.numel for m in order]), order)
    return torch.cat([m(part.reshape(m.old)).flatten() for part, m in parts])


def _copied(value: Any) -> Any:
    return trees.map(lambda t: t.clone() if isinstance(t, Tensor) else t, value)
