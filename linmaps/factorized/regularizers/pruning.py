"""Pruning: a factorized tensor with only some values of its bonds, and smaller ranks.  Masks [r_b] or indices by bond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import Params, require
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.regularizers.bond_vectors import bonds, by_bond
from linmaps.factorized.spec import Factorized


@door
@typed
def prune_ranks(spec: Factorized, params: Params, keep: Any) -> tuple[Factorized, dict[str, Tensor]]:
    """The spec and params with only some values of the bonds: W as with zeros at the others, and smaller ranks.

    keep: as a mask of `tensor_dropout`, of bools [r_b], or of indices, where a dict may hold lists of ints; -1 is the last
    value.  Bonds left out stay.  Ranks that are not feasible by themselves are taken as they are (compat=True).  The new
    shapes depend on what is kept, so keep must have concrete values, though params may be mapped: inside vmap or compile
    use `tensor_dropout` with zeros and ones, which gives the same W.

    ValueError for a bond left empty, an index named twice, or no concrete values; IndexError for others; TypeError for floats.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((4, 4), factorization="cp", rank=3)
    >>> small, leaves = prune_ranks(spec, spec.init(torch.Generator()), {"r": torch.tensor([1.0, 0.0, 2.0]) != 0})
    >>> small.ranks, leaves["weights"].shape
    (2, torch.Size([2]))
    """
    spec._check(params)
    device, sizes = Factorized._like(params).device, bonds(spec)
    given, title = by_bond(spec, keep, "keep"), f"{spec._title}: keep"
    kept = {bond: _indices(k, sizes[bond], f"{title}.{bond}", device) for bond, k in given.items()}
    ranks, leaves = spec._kind.keep({k: t for k, t in params.items() if k != "bias"}, spec.ranks, kept)
    small = spec if ranks == spec.ranks else spec._of_layers(spec.n_layers, ranks)
    return small, {k: t if k == "bias" else leaves[k] for k, t in params.items()}


def _indices(kept: Any, r: int, name: str, device: torch.device) -> Tensor:
    """Distinct indices in 0..r-1, at least one, from a mask [r] or from ints."""
    kinds = f"a bool mask [{r}] or ints; of weights use weights != 0"
    if isinstance(kept, Sequence) and not isinstance(kept, str):
        kept = torch.tensor(kept) if len(kept) else torch.zeros(0, dtype=torch.long)
    require(isinstance(kept, Tensor), TypeError, f"{name} is {type(kept).__name__}, expected {kinds}")
    mask, fine = kept.dtype == torch.bool, not (kept.is_floating_point() or kept.is_complex())
    require(fine, TypeError, f"{name} is of {kept.dtype}, expected {kinds}")
    got = f"{name} has shape {tuple(kept.shape)}, expected {f'({r},)' if mask else 'one axis'}"
    require(kept.ndim == 1 and (not mask or len(kept) == r), ValueError, f"{got}; see bonds(spec)")
    try:
        found = (kept.nonzero()[:, 0] if mask else kept).tolist()
    except RuntimeError as error:
        cure = "since shapes depend on them; inside vmap use tensor_dropout with a mask of zeros and ones"
        raise ValueError(f"{name} has no concrete values, expected them, {cure}") from error
    index, beyond = [i % r for i in found], [i for i in found if not -r <= i < r]
    require(not beyond, IndexError, f"{name} has {beyond}, expected {-r} to {r - 1}; the rank is {r}")
    require(len(index) > 0, ValueError, f"{name} keeps none of {r}, expected one at least; keep one, and scale W by 0")
    require(len({*index}) == len(index), ValueError, f"{name} is {found}, expected each once; use torch.unique")
    return torch.tensor(index, device=device)
