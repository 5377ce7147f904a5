"""Bonds of a factorized tensor, and the vectors that may be given on them.

A bond is an index that is summed over between leaves.  A vector f_b [r_b] on each bond b multiplies the terms of that sum:
W(f) is linear in each f_b, and W(1) = W: weights * f_r in cp, U_k diag(f_k) in tucker, A_1 diag(f_1) A_2 diag(f_2) ... in
trains.  All of several layers share them; as the first mode of tucker and tt they add a bond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import Params, require
from linmaps.checks.annotations import typed
from linmaps.factorized.spec import Factorized

FLOATS = "floats; use weights.to(torch.float32)"
BOOLS = "bools, which say what is kept, or floats, the factors; use mask.bool() or mask.to(torch.float32)"
OnBonds = Tensor | Mapping[str, Tensor] | Sequence[Tensor]


@typed
def bonds(spec: Factorized) -> dict[str, int]:
    """Name and rank of each bond: "r" of lowrank and cp, "r0".. of the modes of tucker, "r1".. between cores; none of dense.

    >>> import linmaps
    >>> bonds(linmaps.Factorized((4, 4), (4, 4), factorization="tt", rank=3))
    {'r1': 3, 'r2': 3, 'r3': 3}
    """
    return spec._kind.bonds(spec.ranks)


def by_bond(spec: Factorized, given: Any, what: str) -> dict[str, Any]:
    """What is given by bond, in the order of the bonds, or for the only one, as a dict."""
    sizes, title = bonds(spec), f"{spec._title}: {what}"
    cure = f"a dict with entries for some of the bonds {sizes}, or {len(sizes)} in this order"
    if isinstance(given, Tensor):
        require(len(sizes) == 1, ValueError, f"{title} is a single tensor, expected {cure}; it is for one bond")
        given = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        require(len(given) == len(sizes), ValueError, f"{title} has {len(given)} entries, expected {cure}")
        given = dict(zip(sizes, given))
    require(isinstance(given, Mapping), TypeError, f"{title} is {type(given).__name__}, expected {cure}")
    unknown = [bond for bond in given if bond not in sizes]
    require(not unknown, ValueError, f"{title} has bonds {unknown}, expected some of {sizes}; see bonds(spec)")
    return dict(given)


def factors(spec: Factorized, params: Params, given: OnBonds, what: str, *, bools: bool) -> dict[str, Tensor]:
    """Tensors [r_b] by bond: floats, complex numbers for complex params, and bools where these are allowed."""
    found, sizes = by_bond(spec, given, what), bonds(spec)
    complex_too = all(t.is_complex() for k, t in params.items() if k != "bias")
    for bond, m in found.items():
        name, r = f"{spec._title}: {what}.{bond}", sizes[bond]
        got = f"{name} is {type(m).__name__}, expected a tensor [{r}]"
        require(isinstance(m, Tensor), TypeError, f"{got}; use torch.tensor(...)")
        cure = "map over the first axis with torch.func.vmap" if tuple(m.shape[1:]) == (r,) else "see bonds(spec)"
        require(tuple(m.shape) == (r,), ValueError, f"{name} has shape {tuple(m.shape)}, expected ({r},); {cure}")
        fine = m.is_floating_point() or m.is_complex() or (bools and m.dtype == torch.bool)
        require(fine, TypeError, f"{name} is of {m.dtype}, expected {BOOLS if bools else FLOATS}")
        got = f"{name} is of {m.dtype}, expected real numbers for real params"
        require(complex_too or not m.is_complex(), TypeError, f"{got}; use {what}.real")
    return found
