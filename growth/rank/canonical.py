"""The number of terms of a CP tensor: weights `[R]`, factors U_k `[s_k, R]`; T the tensor."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank.directions import beside, column_size, rounding
from linmaps.checks import Params
from linmaps.factorized.kinds.base import listed, named
from linmaps.factorized.tensors.cp import cp_als, reconstruct_cp
from linmaps.factorized.tensors.multilinear import khatri_rao
from linmaps.numerics.linalg import damped, solve
from linmaps.numerics.numeric import frobenius, norm_or, positive_root

SWEEPS = 8
RIDGE = 1e-8


def largest(sizes: tuple[int, ...]) -> int:
    """The mode whose new entries are zero: the one with most entries, so that a step of them says most."""
    return max(range(len(sizes)), key=lambda k: sizes[k])


def terms(T: Tensor, k: int) -> tuple[Tensor, list[Tensor]]:
    """Weights `[k]` and unit factors of k rank-one terms of T, one after the other from what those before leave.

    Each by SWEEPS power iterations over the modes, from the singular vectors of the unfoldings.
    """
    found = []
    for _ in range(k):
        weight, factors = cp_als(T, 1, n_sweeps=SWEEPS)
        T = T - reconstruct_cp(weight, factors)
        found.append((weight, factors))
    return torch.cat([w for w, _ in found]), [torch.cat(columns, 1) for columns in zip(*(f for _, f in found))]


def grow(leaves: Params, more: tuple[int, ...], draw: Draw, T: Tensor | None) -> dict[str, Tensor]:
    """New terms with unit factors, generic or the leading rank-one terms of the gradient, and zero in the largest mode."""
    (k,), weights, factors = more, leaves["weights"], listed(leaves, "U")
    unit = lambda Z: Z / torch.linalg.vector_norm(Z, dim=0)
    new = [unit(draw(len(U), k)) for U in factors]
    if T is not None:
        sizes, found = terms(T, k)
        alive = sizes.detach().abs() > 64 * rounding(T.reshape(len(T), -1)) * frobenius(T).detach()
        new = [torch.where(alive, U, Z) for U, Z in zip(found, new)]
    zero = largest(tuple(len(U) for U in factors))
    grown = [
        beside(U, torch.zeros_like(P) if j == zero else column_size(U) * P)
        for j, (U, P) in enumerate(zip(factors, new))
    ]
    return {"weights": beside(weights, column_size(weights[None]).expand(k))} | named("U", grown)


def reduce(leaves: Params, ranks: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """The largest terms, fitted to W by sweeps of alternating least squares in factor form, and the relative distance.

    With V_k the factors kept, in their order, V_k carrying the weights,

        V_k <- V_k + (U_k diag(w) B - V_k C) (C + mu I)^-1,   B = * U_j' V_j,   C = * V_j' V_j  (all j but k),

    which no longer moves where the terms left out are zero.  The distance is that of the matrices.
    """
    (r,), weights, factors = ranks, leaves["weights"], listed(leaves, "U")
    norms = [torch.linalg.vector_norm(U, dim=0) for U in factors]
    sizes = functools.reduce(operator.mul, norms, weights.abs())
    kept = sizes.detach().sort(descending=True, stable=True).indices[:r].sort().values
    w, V = weights[kept], [U[:, kept] for U in factors]
    for _ in range(SWEEPS):
        for k, U in enumerate(factors):
            others = [j for j in range(len(factors)) if j != k]
            B = functools.reduce(operator.mul, [factors[j].mT @ V[j].conj() for j in others], torch.ones_like(w[None]))
            C = functools.reduce(operator.mul, [V[j].mT @ V[j].conj() for j in others], torch.ones_like(w[None]))
            old = V[k] * w
            gap = (U * weights) @ B.expand(len(weights), r) - old @ C.expand(r, r)
            C = C.expand(r, r)
            mean = C.diagonal().real.mean()
            C = damped(C, max(RIDGE, 64 * r * torch.finfo(mean.dtype).eps) * torch.where(mean > 0, mean, 1.0))
            V[k] = old + solve(C.mT, gap.mT).mT
            w = torch.ones_like(w)
    half = (len(factors) + 1) // 2
    matrix = lambda w, Us: (khatri_rao(Us[:half]) * w) @ khatri_rao([*Us[half:], torch.ones_like(w[None])]).mT
    W = matrix(weights, factors)
    error = frobenius(W - matrix(w, V)) / norm_or(W)
    return _balanced(w, V), error


def _balanced(w: Tensor, V: list[Tensor]) -> dict[str, Tensor]:
    """The same terms with the size of each shared evenly among its factors and its weight."""
    norms = [positive_root((U * U.conj()).real.sum(0)) for U in V]
    total = functools.reduce(operator.mul, norms, w.abs())
    share = torch.where(total > 0, total, 1.0) ** (1 / (len(V) + 1))
    unit = [torch.where(total > 0, share / torch.where(n > 0, n, 1.0), 1.0) for n in norms]
    return {"weights": torch.where(total > 0, w.sgn() * share, w)} | named("U", [U * c for U, c in zip(V, unit)])
