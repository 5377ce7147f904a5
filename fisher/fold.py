"""Means over all examples seen, and over time, of trees of tensors and matrices.  N examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.base import PMat, Regul
from linmaps import trees
from linmaps.checks import number
from linmaps.precision import full_precision, full_precision_methods

Dtypes = tuple[torch.dtype, ...]


@trees.record(static=("dtype", "dtypes"))
class Mean:
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

    def add(self, tree: Any, n: float | Tensor) -> Mean:
        """With n more examples, over which the mean is `tree` (a tree of floating tensors and PMats); it is copied.

        An nn.Parameter is taken detached.  Raises TypeError for other leaves and another n, ValueError for n < 0 or not
        finite, and for a tree of another structure, shape or dtype.
        """
        number(n, "n", low=0, cure="the number of examples over which the tree is a mean")
        nodes, treedef = _nodes(tree)
        for path, t in zip(trees.paths(treedef.unflatten(range(len(nodes)))), nodes):
            if not isinstance(t, PMat) and not _inexact(t):
                got = t.dtype if isinstance(t, Tensor) else type(t).__name__
                where = trees.path_str(path)
                raise TypeError(f"{where}: got {got}, expected a floating tensor; use .to(torch.float64)")
        if not isinstance(n, Tensor) and n == 0:
            return self
        device = next((t.device for t in trees.leaves(tree)), None)
        count = torch.as_tensor(n, dtype=torch.float64, device=device)
        wide = [_wide(t, self.dtype) for t in nodes]
        own = [t if isinstance(t, PMat) else t.clone() for t in wide] if self.mean is None else wide
        return self.merge(Mean(treedef.unflatten(own), count, self.dtype, tuple(map(_dtypes, nodes))))

    def merge(self, other: Mean) -> Mean:
        """The mean over the examples of both: m + n' / (n + n') (m' - m).  Associative up to rounding."""
        if self.dtype != other.dtype:
            raise ValueError(f"merge: got Mean(dtype={other.dtype}), expected Mean(dtype={self.dtype}); use one dtype")
        if self.mean is None or other.mean is None:
            return other if self.mean is None else self
        _check_alike(other.mean, self.mean, "Mean: the new tree")
        if self.dtypes != other.dtypes:
            raise ValueError(
                f"Mean: the new tree has dtypes {_names(other.dtypes)}, expected {_names(self.dtypes)}; convert it first"
            )
        count = self.count + other.count
        share = other.count / torch.where(count > 0, count, 1.0)
        return Mean(_between(self.mean, other.mean, share), count, self.dtype, self.dtypes)

    def value(self) -> Any:
        """The mean, in the tree's own dtypes.  Raises ValueError if no example was seen."""
        if self.mean is None:
            raise ValueError("Mean: has seen no example, expected at least one; add(tree, n) first")
        nodes, treedef = _nodes(self.mean)
        return treedef.unflatten([_cast(t, dtypes) for t, dtypes in zip(nodes, self.dtypes)])


@full_precision()
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
    _check_alike(new, old, "ema: the new tree")
    return _between(_wide(new), _wide(old), decay)


def _between(a: Any, b: Any, share: Regul) -> Any:
    """a + share (b - a); matrices that are not linear in their numbers as matrices."""
    nodes, treedef = _nodes(a)
    return treedef.unflatten([_node_between(s, t, share) for s, t in zip(nodes, _nodes(b)[0])])


def _node_between(a: Any, b: Any, share: Regul) -> Any:
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


def _check_alike(new: Any, old: Any, name: str) -> None:
    """Raise unless structure, settings and shapes agree; of matrices that are summed as matrices `+` says so."""
    (news, ours), (olds, theirs) = _nodes(new), _nodes(old)
    if ours == theirs:
        apart = [_summed(s, t) for s, t in zip(olds, news)]
        new, old = (ours.unflatten([() if a else t for a, t in zip(apart, nodes)]) for nodes in (news, olds))
    trees.check_like(new, old, name)
    if trees.flatten(new)[1] != trees.flatten(old)[1]:
        raise ValueError(
            f"{name}: is {type(new).__name__} with other settings, expected those of the first; make all matrices with one "
            "LayerCollection: fim(..., layers=layers)"
        )


def _names(dtypes: tuple[Dtypes, ...]) -> list[str]:
    return sorted({str(d) for node in dtypes for d in node})


full_precision_methods(Mean)
