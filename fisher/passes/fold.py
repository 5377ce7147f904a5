"""Means over all examples seen, and over time, of trees of tensors and matrices.  N examples."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Generic, TypeVar, cast, overload

import torch
from torch import Tensor

from fisher.pmat import (
    PMatEigen,
    PMatEKFAC,
    PMatImplicit,
    PMatLowRank,
    PMatMixed,
    PMatPullback,
    PMatRange,
    PMatSum,
)
from fisher.pmat.contract.damping import Scalar
from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.checks import number
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision, full_precision_methods
from linmaps.trees.files.saved import load_one
from linmaps.trees.printed import cell, on_a_line
from linmaps.trees.tree import Tree

Other = TypeVar("Other")
# the mean of these may be a matrix of another representation
Summed = PMatEigen | PMatEKFAC | PMatImplicit | PMatLowRank | PMatMixed | PMatPullback | PMatRange | PMatSum

Dtypes = tuple[torch.dtype, ...]


@trees.record(static=("dtype", "dtypes"))
class Mean(Generic[Tree]):
    """The mean of a tree over the examples seen so far, and how many they are: `Mean()` has seen none.

    A pytree of tensors, without state outside: saved in the middle of a pass and loaded, it goes on as if nothing had
    happened; parts of the data may be folded apart and merged.  dtype: of the running mean, at least
    (`Mean(dtype=torch.float64)` for float32 trees), float32 for half precision in any case; `value()` is in the tree's own.

    Matrices that are linear in their numbers (`F.linear`) are averaged number by number, as `fim` does over batches.  Of
    others (eigenbases, rows, functions kept with their data) the mean is that of the matrices, n F + n' F' over n + n': the
    rows of PMatLowRank side by side, for the rest a PMatSum of one more term for each batch, or a dense matrix (blocks) once
    that stores less.  To keep Kronecker eigenbases, average PMatKFAC and take `.eigendecomposition().update_diag(...)`.

    >>> import torch
    >>> mean = Mean().add({"a": torch.tensor(1.0)}, 1).add({"a": torch.tensor(4.0)}, 2)
    >>> mean.value(), mean.count
    ({'a': tensor(3.)}, tensor(3., dtype=torch.float64))
    """

    mean: Any = None
    count: Tensor = dataclasses.field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    dtype: torch.dtype | None = None
    dtypes: tuple[Dtypes, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"Mean: got dtype={self.dtype!r}, expected a floating dtype such as torch.float64, or None")

    def __repr__(self) -> str:
        if self.mean is None:
            return "Mean(no example yet)"
        kinds = self.mean if isinstance(self.mean, PMat) else f"{len(trees.leaves(self.mean))} tensors"
        return on_a_line(self, [kinds, f"{cell(self.count)} examples"])

    @overload
    def add(self, tree: Summed, n: float | Tensor) -> Mean[PMat]: ...
    @overload
    def add(self, tree: Other, n: float | Tensor) -> Mean[Other]: ...
    @typed
    def add(self, tree: Any, n: float | Tensor) -> Mean[Any]:
        """With n more examples, over which the mean is `tree` (a tree of floating tensors and PMats); it is copied.

        An nn.Parameter is taken detached.  Raises TypeError for other leaves and another n, ValueError for n < 0 or not
        finite, and for a tree of another structure, shape or dtype.
        """
        number(n, "n", low=0, cure="the number of examples over which the tree is a mean")
        nodes, treedef = _averaged(tree, "Mean: the new tree")
        _beside(n, "n", nodes)
        if not isinstance(n, Tensor) and n == 0:
            return self
        count = torch.as_tensor(n, dtype=torch.float64, device=trees.leaves(nodes)[0].device)
        wide = [_wide(t, self.dtype) for t in nodes]
        own = [t if isinstance(t, PMat) else t.clone() for t in wide] if self.mean is None else wide
        return self.merge(Mean(treedef.unflatten(own), count, self.dtype, tuple(map(_dtypes, nodes))))

    @typed
    def merge(self, other: Mean[Tree]) -> Mean[Tree]:
        """The mean over the examples of both: m + n' / (n + n') (m' - m).  Associative up to rounding."""
        if not isinstance(other, Mean):
            raise TypeError(f"merge: got {type(other).__name__}, expected a Mean; of a tree use add(tree, n)")
        if self.dtype != other.dtype:
            raise ValueError(f"merge: got Mean(dtype={other.dtype}), expected Mean(dtype={self.dtype}); use one dtype")
        if self.mean is None or other.mean is None:
            return other if self.mean is None else self
        number(other.count, "merge: count", low=0)
        new = _aligned(other.mean, self.mean, "Mean: the new tree")
        if self.dtypes != other.dtypes:
            raise ValueError(
                f"Mean: the new tree has dtypes {_names(other.dtypes)}, expected {_names(self.dtypes)}; convert it first"
            )
        old, treedef = _nodes(self.mean)
        _placed(new, old, "Mean: the new tree")
        _beside(other.count, "merge: count", new)
        count = self.count + other.count
        share = other.count / torch.where(count > 0, count, 1.0)
        return Mean(treedef.unflatten(_between(old, new, share)), count, self.dtype, self.dtypes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, as `linmaps.trees.save` does: beside, and renamed."""
        trees.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Mean[Any]:
        """The mean that `save` wrote, which goes on where it was.  Raises ValueError as `linmaps.trees.load` does."""
        return load_one(Mean, path, device)

    def value(self) -> Tree:
        """The mean, in the tree's own dtypes.  Raises ValueError if no example was seen."""
        if self.mean is None:
            raise ValueError("Mean: has seen no example, expected at least one; add(tree, n) first")
        nodes, treedef = _nodes(self.mean)
        return cast(Tree, treedef.unflatten([_cast(t, dtypes) for t, dtypes in zip(nodes, self.dtypes)]))


@overload
def ema(old: Summed, new: PMat, decay: float | Tensor) -> PMat: ...
@overload
def ema(old: Tree, new: Tree, decay: float | Tensor) -> Tree: ...
@full_precision()
@typed
def ema(old: Any, new: Any, decay: float | Tensor) -> Any:
    """Exponential moving average of trees or PMats: decay old + (1 - decay) new, in float32 at least.

    Half precision is widened, since it would not move: keep the result as it is, and cast what you read from it.  Matrices
    as in `Mean`: a PMatLowRank grows by the rows of new, a matrix in an eigenbasis by a term, until the dense matrix is smaller.
    decay: in [0, 1], a number or a scalar tensor.  Raises ValueError for other numbers and for trees that do not match.

    >>> import torch
    >>> ema({"a": torch.tensor(1.0)}, {"a": torch.tensor(3.0)}, 0.75)
    {'a': tensor(1.5000)}
    """
    number(decay, "decay", low=0, high=1)
    (olds, treedef), _ = _averaged(_wide(old), "ema: the old tree"), _averaged(new, "ema: the new tree")
    news = _aligned(_wide(new), treedef.unflatten(olds), "ema: the new tree")
    _placed(news, olds, "ema: the new tree")
    _beside(decay, "decay", olds)
    return treedef.unflatten(_between(news, olds, decay))


def _between(a: list[Any], b: list[Any], share: Scalar) -> list[Any]:
    """a + share (b - a); matrices that are not linear in their numbers as matrices."""
    return [_node_between(s, t, share) for s, t in zip(a, b)]


def _node_between(a: Any, b: Any, share: Scalar) -> Any:
    weight = lambda t: share.to(t.dtype) if isinstance(share, Tensor) else share
    if _summed(a, b):
        return (a.scaled(1 - weight(a)) + b.scaled(weight(b)))._compact()
    return trees.map(lambda s, t: s + weight(s) * (t - s), a, b)


def _summed(old: Any, new: Any) -> bool:
    return isinstance(old, PMat) and isinstance(new, PMat) and not (old.linear and new.linear)


def _nodes(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure where a matrix is a leaf."""
    return trees.flatten(tree, lambda t: isinstance(t, PMat))


def _inexact(t: Any) -> bool:
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())


def _wide(tree: Any, dtype: torch.dtype | None = None) -> Any:
    """A tree in this dtype and in float32 at least; an nn.Parameter detached."""

    def one(t: Any) -> Any:
        if not _inexact(t):
            return t
        t = t.detach() if isinstance(t, torch.nn.Parameter) else t
        return t.to(torch.promote_types(t.dtype, dtype or torch.float32))

    return trees.map(one, tree)


def _dtypes(node: Any) -> Dtypes:
    """The dtypes of a node's leaves, once where they are the same: a matrix may get others."""
    found = tuple(t.dtype for t in trees.leaves(node) if _inexact(t))
    return found[:1] if len(set(found)) == 1 else found


def _cast(node: Any, dtypes: Dtypes) -> Any:
    flat, treedef = trees.flatten(node)
    each = dtypes if len(dtypes) == len(flat) else dtypes[:1] * len(flat)
    return treedef.unflatten([t.to(dtype) if _inexact(t) else t for t, dtype in zip(flat, each)])


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place of a node, and what shape it must have: of a matrix none."""

    number: int
    shape: tuple[int, ...]


def _slots(nodes: list[Any], treedef: Any) -> Any:
    return treedef.unflatten([_Slot(n, () if isinstance(t, PMat) else tuple(t.shape)) for n, t in enumerate(nodes)])


def _averaged(tree: Any, name: str) -> tuple[list[Any], Any]:
    """The nodes of a tree and its structure; TypeError unless there are some, all matrices or dense floating tensors."""
    nodes, treedef = _nodes(tree)
    if not trees.leaves(nodes):
        raise TypeError(
            f"{name}: got {type(tree).__name__} without a tensor, expected a tree of floating tensors or PMats"
        )
    for path, t in zip(trees.paths(treedef.unflatten(range(len(nodes)))), nodes):
        if isinstance(t, PMat) or (_inexact(t) and t.layout == torch.strided):
            continue
        got = (
            f"{t.dtype}{' in a sparse layout' * (t.layout != torch.strided)}"
            if isinstance(t, Tensor)
            else type(t).__name__
        )
        where = trees.path_str(path) or name
        raise TypeError(
            f"{where}: got {got}, expected a floating tensor; use .to(torch.float64) or .to_dense(), or leave it out"
        )
    return nodes, treedef


def _aligned(new: Any, old: Any, name: str) -> list[Any]:
    """The nodes of new in the order of old's; ValueError unless structure, settings and shapes agree."""
    (news, ours), (olds, theirs) = _nodes(new), _nodes(old)
    slots, conformed = trees.flatten(trees.check_like(_slots(news, ours), _slots(olds, theirs), name))
    if conformed != theirs:
        raise _other_settings(new, name)
    found = [news[slot.number] for slot in slots]
    for path, s, t in zip(trees.paths(theirs.unflatten(range(len(olds)))), olds, found):
        where = f"{name}: {trees.path_str(path)}" if path else name
        if isinstance(s, PMat) or isinstance(t, PMat):
            _same_matrix(t, s, where)
    return found


def _same_matrix(new: Any, old: Any, where: str) -> None:
    """Raise unless two matrices may be averaged; where they are summed as matrices `+` says so."""
    if not (isinstance(old, PMat) and isinstance(new, PMat)):
        raise ValueError(f"{where}: got {type(new).__name__}, expected {type(old).__name__}, as before")
    if _summed(old, new):
        return
    trees.check_like(new, old, where)
    if trees.flatten(new)[1] != trees.flatten(old)[1]:
        raise _other_settings(new, where)


def _other_settings(new: Any, where: str) -> ValueError:
    return ValueError(
        f"{where}: is {type(new).__name__} with other settings, expected those of the first; make all matrices with one "
        "LayerCollection: fim(..., layers=layers)"
    )


def _placed(news: list[Any], olds: list[Any], name: str) -> None:
    """TypeError unless dtypes and devices agree."""
    for new, old in zip(news, olds):
        got, expected = map(_place, (new, old))
        if got != expected:
            raise TypeError(f"{name}: got {got}, expected {expected}, as before; convert it with .to(...)")


def _place(node: Any) -> str:
    devices = sorted({str(t.device) for t in trees.leaves(node)})
    return f"{', '.join(map(str, _dtypes(node)))} on {', '.join(devices)}"


def _beside(value: Any, name: str, nodes: list[Any]) -> None:
    """A scalar tensor must be on the device of the tree, or on the CPU."""
    like = trees.leaves(nodes)[0].device
    if isinstance(value, Tensor) and value.device != like and (value.device.type != "cpu" or like.type == "meta"):
        raise TypeError(f"{name}: got a tensor on {value.device}, expected one on {like}; move it with .to(...)")


def _names(dtypes: tuple[Dtypes, ...]) -> list[str]:
    return sorted({str(d) for node in dtypes for d in node})


full_precision_methods(Mean)
