"""Priors N(mean, P^-1) with a diagonal precision P: a number, a number for each layer, or one for each entry.

P is kept as it was given: a tensor without axes, a mapping {name: such a tensor}, or a tree of tensors like F's vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.checks import finiteness
from fisher.pmat.contract.damping import Amounts
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.posterior.parts import cut, part
from linmaps import checks, trees
from linmaps.checks import values
from linmaps.numerics.dtypes import working_dtype
from linmaps.trees.mappings import is_mapping
from linmaps.trees.printed import cell

POSITIVE = "without a prior there is no evidence"


def like(F: PMat) -> Tensor:
    """An empty tensor in the dtype that numbers of F are computed in, on its device."""
    return torch.empty(0, dtype=working_dtype(F.dtype), device=F.device)


def number(value: Any, F: PMat) -> Tensor:
    """A number as a tensor without axes, beside F's."""
    own = like(F)
    return torch.as_tensor(value, dtype=own.dtype, device=own.device)


def precision(F: PMat, prior: Any, params: Any = None, name: str = "prior_precision") -> Any:
    """P, checked: tensors in the dtype to compute in.  A tree like all params is cut to F's leaves.

    TypeError or ValueError for what is no number >= 0, mapping {layer: number} or tree.

    >>> import fisher
    >>> F = fisher.PMatDiag({"w": torch.ones(2)}, trees.Layout.of({"w": torch.ones(2)}))
    >>> precision(F, 2), precision(F, {"w": torch.tensor([1.0, 3.0])})
    (tensor(2.), {'w': tensor([1., 3.])})
    """
    if params is not None and (is_mapping(prior) or isinstance(prior, (list, tuple))):
        prior = cut(F, prior, params)
    found = F._damping(prior, name)
    if not isinstance(found, Amounts):
        return number(found, F)
    if found.named is not None:
        return {key: number(r, F) for key, r in found.named.items()}
    return trees.map(lambda t: t.clone(), found.tree(like(F)))


def check_positive(P: Any, name: str = "prior_precision", cure: str = POSITIVE) -> None:
    """Raise a ValueError unless all of P is positive."""
    for path, t in zip(trees.paths(P), trees.leaves(P)):
        where = f"{name}: {trees.path_str(path)}" if path else name
        if t.ndim == 0:
            checks.number(t, where, low=0, above=True, cure=cure)
            continue
        seen = values(t)
        if seen is not None and not bool((seen > 0).all()):
            raise ValueError(f"{where}: got 0.0, expected finite numbers > 0; {cure}")


def leafwise(F: PMat, P: Any) -> list[Tensor]:
    """P for each leaf of F's vectors, without axes or in its shape."""
    found = F._damping(P)
    if not isinstance(found, Amounts):
        return [number(found, F)] * len(F.layout.shapes)
    return found.tensors(like(F))


def logdet(F: PMat, P: Any) -> Tensor:
    """log det P over F's space."""
    parts = [t.log().sum() * (n if t.ndim == 0 else 1) for t, n in zip(leafwise(F, P), F.layout.sizes)]
    return sum(parts[1:], parts[0])


def quadratic(F: PMat, P: Any, v: Any) -> Tensor:
    """v' P v for a vector v of F's space."""
    pairs = zip(leafwise(F, P), trees.leaves(v))
    parts = [(r * t.to(r.dtype) ** 2).sum() for r, t in pairs]
    return sum(parts[1:], parts[0])


def mean_of(F: PMat, mean: Any, params: Any) -> Any:
    """The mean of the prior as a vector of F's space; None for zero, a number for all entries.

    TypeError or ValueError for what is neither.
    """
    if mean is None:
        return None
    if isinstance(mean, (int, float)) or (isinstance(mean, Tensor) and mean.ndim == 0 and F.layout.shapes != ((),)):
        checks.number(mean, "prior_mean", cure="or a tree like params")
        return trees.map(lambda t: torch.full_like(t, 1.0) * mean, part(F, params))
    own = F.check_vector(part(F, mean, "prior_mean"), "prior_mean")
    finiteness.finite(own, "prior_mean", "a number or a tree like params of them")
    return trees.map(lambda t: t, own)


def shown(P: Any) -> str:
    """P for a line of print: a number, or of which kind several are."""
    if isinstance(P, Tensor):
        return cell(P)
    return "by layer" if all(getattr(t, "ndim", 1) == 0 for t in trees.leaves(P)) else "by entry"
