"""F + D for a low-rank F and a positive diagonal D: D^1/2 (H + I) D^1/2 with H = D^-1/2 F D^-1/2 of low rank again."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.contract.damping import Amounts, flat, uniform
from linmaps import trees
from linmaps.checks import values
from linmaps.trees.tree import Tree


def one_number(regul: Any, like: Tensor, method: str, cure: str) -> Any:
    """The number that a diagonal is a multiple of the identity by; ValueError where its entries differ."""
    if not isinstance(regul, Amounts):
        return regul
    found = uniform(flat(regul, like))
    if found is None:
        raise ValueError(f"regul: got several numbers, expected one for {method} of this representation; {cure}")
    return found


def scaled_by(F: Any, regul: Amounts, dtype: torch.dtype) -> tuple[Any, Any]:
    """(H, D^-1/2), of numbers in `dtype`; ValueError for a D with zeros, where F + D may have no inverse."""
    like = trees.leaves(F.rows)[0].to(dtype)
    D = regul.tree(like)
    low = [values(t.amin()) for t in trees.leaves(D) if t.numel()]
    if any(seen is not None and not bool((seen > 0).all()) for seen in low):
        raise ValueError(
            "regul: got 0 for some parameters, expected positive numbers for a matrix of low rank; use "
            "PMatDense(F.to_torch(), F.layout)"
        )
    roots = trees.map(lambda t: t.to(dtype).rsqrt(), D)
    rows = trees.map(lambda r, s: r.to(dtype) * s, F.rows, roots)
    weights = None if F.weights is None else F.weights.to(dtype)
    return dataclasses.replace(F, rows=rows, weights=weights), roots


def multiplied(roots: Any, v: Tree) -> Tree:
    """D^-1/2 v."""
    made: Tree = trees.map(lambda s, t: s * t, roots, v)
    return made


def log_determinant(regul: Amounts, dtype: torch.dtype, like: Tensor) -> Tensor:
    """log det D."""
    parts = [t.to(dtype).log().sum() for t in regul.tensors(like)]
    return sum(parts[1:], parts[0])
