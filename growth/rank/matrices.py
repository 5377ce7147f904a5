"""Rank of a matrix W = U V: U `[in, R]`, V `[(L,) R, out]`.  The columns of several layers V_l are side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank.directions import away, beside, column_size, leading, span, with_zeros
from linmaps.checks import Params
from linmaps.numerics.numeric import frobenius, norm_or
from linmaps.numerics.singular import svd


def side_by_side(V: Tensor) -> Tensor:
    """`[n, L m]` of `[L, n, m]`; a matrix stays."""
    return V if V.ndim == 2 else V.transpose(0, 1).reshape(V.shape[1], V.shape[0] * V.shape[2])


def residual(G: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(I - P) G (I - Q): what no change of U or V alone can express of G, for the spans of U and of the rows of V."""
    return away(away(G, span(left)).mH, span(right.mH)).mH


def grow(
    leaves: Params, more: tuple[int, ...], draw: Draw, G: Tensor | None, roots: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """[U, P] and [V; 0]: P the leading left singular vectors of the residual gradient, or generic, away from U.

    roots: lower triangular (K, H) of a metric K K' (x) H H', in which the singular vectors are taken then: with
    G -> K^-1 G H^-T, U -> K'U and V -> V H, and P = K^-T times them.
    """
    (k,), (U, V) = more, (leaves["U"], leaves["V"])
    M, right, left = None if G is None else side_by_side(G), V, U
    if roots is not None and G is not None:
        K, H = roots
        solve = torch.linalg.solve_triangular
        M = solve(K, side_by_side(solve(H, G.mT, upper=False).mT), upper=False)
        left, right = K.mT @ U, V @ H
    Q, Z = span(left), draw(len(U), k)
    if M is None:
        P = leading(U[:, :0], Q, Z, column_size(U))
    else:
        P = leading(residual(M, left, side_by_side(right)), Q, Z, frobenius(M))
    if roots is not None:
        P = torch.linalg.solve_triangular(roots[0].mT, P, upper=True)
        P = P / torch.linalg.vector_norm(P, dim=0)
    return {"U": beside(U, column_size(U) * P), "V": with_zeros(V, k, -2)}


def reduce(leaves: Params, ranks: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """The best matrix of a lower rank (Eckart and Young 1936), at size R, and its relative distance.

    With Q an orthonormal basis of U and u, s singular vectors and values of Q'U V: U = Q u sqrt(s), V = sqrt(s)^-1 u'Q'U V.
    """
    (r,), U, V = ranks, leaves["U"], leaves["V"]
    Q = svd(U)[0]
    M = (Q.mH @ U) @ side_by_side(V)
    u, s, _ = svd(M)
    kept = torch.where(s[:r] > 0, s[:r], 1.0)
    share, u = kept.sqrt(), u[:, :r]
    new = (u.mH @ M) / share[:, None]
    if V.ndim == 3:
        new = new.reshape(r, V.shape[0], V.shape[2]).transpose(0, 1)
    return {"U": (Q @ u) * share, "V": new}, frobenius(s[r:]) / norm_or(s)
