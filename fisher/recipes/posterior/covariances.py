"""Covariances of outputs: J (F + regul)^-1 J' of the rows of the Jacobian in the space of a matrix.

B examples, C outputs of one example, d parameters of F's space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fisher.checks.axes import OUTPUT, alike, together
from fisher.collector.collection import LayerCollection
from fisher.function_space.jacobians import jacobian
from fisher.function_space.pfmap import PFMapDense
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.posterior import bases, parts
from fisher.recipes.posterior.layerwise import of_layers
from linmaps import trees


def moments(
    M: PMat,
    regul: Any,
    F: PMat,
    f: Callable[..., Tensor],
    params: Any,
    batch: Sequence[Any],
    *,
    joint: bool,
    layers: LayerCollection | None,
    watch: bool,
) -> tuple[Tensor, Tensor]:
    """`(y, C)`: f's outputs, and J_b (M + regul)^-1 J_b' `[B, C, C]` of all examples of several batches, or of all pairs of rows
    `[B C, B C]`.

    M: F, or F in its eigenbasis.  watch: raise where a variance is negative beyond rounding.
    """
    known = F.known_layers if layers is None else layers
    if by_layers(M, known) and (alike(batch) or not joint):
        x = [together(batch)] if joint else batch
        found = [of_layers(M, regul, f, params, part, known, joint, n == 0) for n, part in enumerate(x)]
        y, spreads = together([y for y, _ in found], OUTPUT), [C.to(F.dtype) for _, C in found]
        return y, spreads[0].flatten(2).flatten(0, 1) if joint else torch.cat(spreads)
    y = together([f(params, part) for part in batch], OUTPUT)
    J = [rows(F, f, params, x, layers, n == 0) for n, x in enumerate(batch)]
    J = [stacked(J)] if joint else J
    return y, torch.cat([spread(M, regul, one, joint, watch) for one in J])


def by_layers(M: PMat, layers: Any) -> TypeGuard[Layerwise]:
    """Whether M is a direct sum over these layers, all of its space."""
    return isinstance(M, Layerwise) and isinstance(layers, LayerCollection) and M.layers == layers


def rows(
    F: PMat, f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection | None, check: bool
) -> PFMapDense:
    """J at a batch with respect to the leaves that F's vectors have: by F's layers where it knows them."""
    known = F.known_layers if layers is None else layers
    if isinstance(known, LayerCollection) and known.space == F.layout:
        return jacobian(f, params, (x,), layers=known, check=check)
    own = parts.part(F, params)
    return jacobian(parts.on_part(F, f, params), own, (x,), layers=layers, check=check)


def stacked(J: Sequence[PFMapDense]) -> PFMapDense:
    """The Jacobians of several batches as one."""
    return PFMapDense(trees.map(lambda *ts: torch.cat(ts), *(one.jacobian for one in J)), J[0].layout)


def spread(M: PMat, regul: Any, J: PFMapDense, joint: bool, check: bool) -> Tensor:
    """J_b (M + regul)^-1 J_b' `[B, C, C]`, or of all pairs of rows `[B C, B C]`.

    check: raise where a variance is negative beyond rounding.
    """
    outer = trees.leaves(J.jacobian)[0].dtype
    J = dataclasses.replace(J, jacobian=bases.cast(J.jacobian, M.dtype))
    left, solved = J.to_torch(), M.solve(J, regul).to_torch()
    if joint:
        found = left.flatten(0, 1) @ solved.flatten(0, 1).mT
    else:
        found = torch.einsum("bcn,bkn->bck", left, solved)
    if check:  # rounding of the sum is of the size of its terms
        least = -100 * torch.finfo(left.dtype).eps * (left * solved).abs().sum(-1)
        own = found.diagonal().reshape(least.shape) if joint else found.diagonal(dim1=1, dim2=2)
        bases.definite(own >= least, "predict")
    return found.to(outer)
