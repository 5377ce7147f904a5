"""Carry state over a change of widths: old entries keep place and value, new ones are zero, those of pruned units go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.function_space.fmat import FMatDense
from fisher.pmat import PMat
from growth.carry.layouts import carried_layers, carried_statistics
from growth.carry.matrices import carried_matrix
from growth.carry.orders import Order, Orders
from growth.checks.doors import door
from growth.moments.first_order import Statistics
from growth.reading.pairs import Pair
from growth.surgery.moves import Move, Moves, growing, shrinking
from growth.surgery.pruning import Units
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

FILLS = ("zero", "mean")
SCALES = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum", "step_size")  # what steps are divided by
FLAT = ("d", "prev_flat_grad", "old_dirs", "old_stps")  # of L-BFGS: all parameters as one vector


@door()
def grow_like(state: Any, params: Any, grown: Any, *, fill: str = "zero", order: Order = None) -> Any:
    """`state` with every leaf that belongs to a grown leaf of params padded with zeros to its new shape.

    A leaf of the state belongs to a leaf of params of its shape

    1. whose path ends its own: moments, averages and other trees shaped like params, anywhere in the state;
    2. by number, in lists and in a `torch.optim` state dict: by the names that this keeps (of an optimizer made of
       `named_parameters()`), by `order`, or by whichever of the order of insertion and the leaf order of optree has the
       shapes of all entries; where both have and disagree, nothing is guessed;
    3. or, failing these, by its shape alone, if that says what the new shape is.

    Records are known for what they are.  Of `Statistics` the entries of new units are zero, as if these had been silent so
    far; merged with a later pass they tend to the truth.  Of a matrix (PMat) over params the old block is kept and the
    rows and columns of new parameters are zero: PMatDense, BlockDiag, Diag, QuasiDiag, KFAC (zeros in A and G), EKFAC and
    Eigen (zero eigenvalues on new axes of the basis), LowRank, Range, Mixed, Sum of these; a multiple of the identity
    stays one.  LayerCollections get the new sizes.  Matrices over functions (FMatDense) do not change.

    Anything else (step counters, scalars, leaves of other shapes) is copied.  So the next optimizer step moves
    the old entries as it would have without growth where the new units are zero on one side.  Stacked ensembles of plain
    trees work alike, records by `torch.func.vmap`.

    Step counters are kept too, so Adam's bias correction takes the zero moments of new entries for settled ones: their
    first steps are (1 - beta1) / sqrt(1 - beta2) times the learning rate at most, 3.2 for (.9, .999), falling to 1 within
    1 / (1 - beta2) steps.  fill="mean": in a `torch.optim` state dict, what steps are divided by (second moments, norms)
    starts at the mean of the old entries of its leaf, so that new entries move about as much as old ones.

    order: of the parameters in lists and in the optimizer: "insertion", "leaves" (of `trees.leaves(params)`), or their
    paths, one for each, as for an optimizer of some of the leaves.

    Raises ValueError where params and grown have other leaves, where a leaf of grown is smaller, (naming the leaf)
    where a shape or a number fits several leaves that grew differently, for another fill or order, and for matrices
    that hold functions (PMatImplicit, PMatPullback) or are of other params: compute them anew.

    >>> import torch
    >>> params, grown = {"w": torch.ones(2, 1), "b": torch.ones(2)}, {"w": torch.ones(3, 1), "b": torch.ones(3)}
    >>> grow_like({"step": 4, "m": {"w": torch.ones(2, 1), "b": torch.ones(2)}}, params, grown)
    {'step': 4, 'm': {'w': tensor([[1.],
        [1.],
        [0.]]), 'b': tensor([1., 1., 0.])}}
    """
    return Carrier(growing(params, grown), fill, order).walk(state, ())


@door()
def prune_like(state: Any, params: Any, pair: Pair, units: Units, *, order: Order = None) -> Any:
    """`state` without the entries of hidden units of a pair, as `prune(params, pair, units)` is params without them.

    What of the state belongs to which leaf of params is found as in `grow_like` (order: as there), and of records the same is
    said: rows and columns of the units go (of KFAC those of A and G; EKFAC and Eigen raise, since a part of a basis is none:
    `F.to_torch()`, or a KFAC, can be cut).  Step counters are kept.

    Raises ValueError as `grow_like` and `prune`.

    >>> import torch
    >>> params = {"a.weight": torch.ones(2, 1), "b.weight": torch.ones(1, 2)}
    >>> m = {"a.weight": torch.tensor([[1.0], [2.0]]), "b.weight": torch.tensor([[3.0, 4.0]])}
    >>> prune_like({"step": 4, "m": m}, params, Pair("a", "b"), [0])
    {'step': 4, 'm': {'a.weight': tensor([[2.]]), 'b.weight': tensor([[4.]])}}
    """
    return Carrier(shrinking(params, pair, units), order=order).walk(state, ())


class Carrier:
    """One walk through a state: each leaf of it is moved as the leaf of params that it belongs to."""

    def __init__(self, moves: Moves, fill: str = "zero", order: Order = None) -> None:
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
            return type(node)((k, self.walk(v, (*path, k))) for k, v in node.items())
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
        parts = path_str(path).split(".") if path else []
        for n in range(len(parts) + 1):  # the longest end first
            found = self.by_name.get(".".join(parts[n:]))
            if found is not None and found.old == shape:
                return found(t)
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
        return {k: self.moment(k, v, move) for k, v in entry.items()}

    def moment(self, key: str, value: Any, move: Move) -> Any:
        if not isinstance(value, Tensor) or tuple(value.shape) != move.old:
            return _copied(value)
        return move.filled(value) if self.fill == "mean" and key in SCALES else move(value)


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
