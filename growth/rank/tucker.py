"""Ranks of a Tucker tensor: core `[r_1..r_N]`, factors U_k `[s_k, r_k]`; T the tensor, Q_k an orthonormal basis of U_k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank.directions import away, beside, column_size, leading, span, with_zeros
from linmaps.checks import Params
from linmaps.factorized.kinds.base import listed, named
from linmaps.factorized.tensors.multilinear import times, unfolded
from linmaps.factorized.tensors.tucker import reconstruct_tucker, tucker_hosvd
from linmaps.numerics.numeric import frobenius, norm_or
from linmaps.numerics.singular import svd

SWEEPS = 2


def projected(T: Tensor, bases: Sequence[Tensor], but: int | None = None) -> Tensor:
    """Each mode, but one, in the coordinates of a basis."""
    for k, Q in enumerate(bases):
        T = T if k == but else times(T, Q.mH, k)
    return T


def residual(T: Tensor, core: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """T without its projection onto the tangent space: what no change of the core or of one factor can express.

    The projection is Q (x) .. (x) Q for the core and, for U_k, (I - Q_k Q_k') times the rows of the core's unfolding; these
    parts are orthogonal to each other (Koch and Lubich 2010).  core: in the coordinates of the bases.
    """
    left = T - reconstruct_tucker(projected(T, bases), bases)
    for k, Q in enumerate(bases):
        M = projected(T, bases, but=k)
        rows = span(unfolded(core, k).mH)
        part = away(unfolded(M, k), Q) @ rows @ rows.mH
        shape = [M.shape[k], *M.shape[:k], *M.shape[k + 1 :]]
        part = part.reshape(shape).movedim(0, k)
        for j, other in enumerate(bases):
            part = part if j == k else times(part, other, j)
        left = left - part
    return left


def grow(leaves: Params, more: tuple[int, ...], draw: Draw, T: Tensor | None) -> dict[str, Tensor]:
    """[U_k, P_k] and a core with zeros: P_k away from U_k, generic or of the residual gradient N.

    Then P_k are the leading left singular vectors of the unfoldings of N, improved by sweeps of higher-order orthogonal
    iteration, in which the other modes of N are in the coordinates of [Q_j, P_j].
    """
    core, factors = leaves["core"], listed(leaves, "U")
    bases = [span(U) for U in factors]
    noise = [draw(len(U), k) for U, k in zip(factors, more)]
    if T is None:
        new = [leading(U[:, :0], Q, Z, column_size(U)) for U, Q, Z in zip(factors, bases, noise)]
    else:
        inner = core
        for k, (U, Q) in enumerate(zip(factors, bases)):
            inner = times(inner, Q.mH @ U, k)
        N, size = residual(T, inner, bases), frobenius(T)
        new = [leading(away(unfolded(N, k), Q), Q, Z, size) for k, (Q, Z) in enumerate(zip(bases, noise))]
        for k in [k for _ in range(SWEEPS) for k in range(len(bases)) if more[k]]:
            both = [torch.cat([Q, P], 1) for Q, P in zip(bases, new)]
            M = unfolded(projected(N, both, but=k), k)
            new[k] = leading(away(M, bases[k]), bases[k], noise[k], size)
    for k, n in enumerate(more):
        core = with_zeros(core, n, k)
    return {"core": core} | named("U", [beside(U, column_size(U) * P) for U, P in zip(factors, new)])


def reduce(leaves: Params, ranks: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """The higher-order singular value decomposition, with sweeps, of the core in orthonormal bases, and its distance."""
    core, factors = leaves["core"], listed(leaves, "U")
    bases = [svd(U)[0] for U in factors]
    for k, (U, Q) in enumerate(zip(factors, bases)):
        core = times(core, Q.mH @ U, k)
    small, inner = tucker_hosvd(core, ranks, n_sweeps=SWEEPS)
    error = frobenius(core - reconstruct_tucker(small, inner)) / norm_or(core)
    return {"core": small} | named("U", [Q @ F for Q, F in zip(bases, inner)]), error
