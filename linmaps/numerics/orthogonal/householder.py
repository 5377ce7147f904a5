"""Products of Householder reflections as matrix products and triangular solves, without a loop over reflections.

V [k, n] holds reflectors as rows, H_i = I - 2 v_i' v_i / |v_i|^2, Q = H_0 H_1 ... H_{k-1} [n, n], of which r columns
are wanted; V may be complex, and ' is the adjoint.  With A the upper triangle of V V', its diagonal halved,

    Q = I - V' A^-1 V

(compact WY form: Schreiber and Van Loan 1989; in this "UT" form: Likhosherstov et al., arXiv:2004.08675).  Rows need no
normalisation: substitution does not see the scale of rows, and for unit rows the entries of A^-1 are 2 z_i' H z_j, at
most 4 in size, so the solve is stable for any V.  Many reflectors are taken in panels, one such form for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linmaps.numerics.draws import normal
from linmaps.numerics.linalg import negative_determinant
from linmaps.numerics.numeric import magnitudes, unit
from linmaps.numerics.ranges import within

Panel = tuple[Tensor, Tensor, Tensor]


def default_reflectors(n: int, r: int) -> int:
    """The fewest reflectors that reach every [n, r] frame: r, or n - 1 (and a fixed sign) when the frame is square."""
    return min(r, n - 1)


def frame(V: Tensor, r: int, *, det: int | None = None) -> Tensor:
    """The first r columns [n, r] of Q; `det` 1 or -1 fixes the determinant when r = n by the sign of the last column.

    >>> import torch
    >>> frame(torch.tensor([[3.0, 4.0]]), 2)
    tensor([[ 0.2800, -0.9600],
            [-0.9600, -0.2800]])
    """
    n = V.shape[1]
    *panels, (last, A, sign) = _panels(V)
    # the solve from the right on a transposed operand needs no copy to column-major, which halves its time
    columns = last if r == n else last[:, :r]
    Y = torch.linalg.solve_triangular(A, columns.mH, upper=False, left=False)
    Q = _reflected_back(torch.eye(r, n, dtype=V.dtype, device=V.device) - Y @ last, panels).mH
    return Q if det is None else _turned(Q, det * sign * _determinant(panels))


def times_frame(x: Tensor, V: Tensor, r: int, *, det: int | None = None) -> Tensor:
    """`x @ frame(V, r, det=det)` for x [..., n], without the frame: `x - ((x V') A^-1) V` by panels, cut to r columns."""
    panels = _panels(V)
    for P, A, _ in panels:
        x = x - x @ P.mH @ _inverse(A) @ P
    y = x if r == V.shape[1] else x[..., :r]
    return y if det is None else _turned(y, det * _determinant(panels))


def times_frame_t(x: Tensor, V: Tensor, r: int, *, det: int | None = None) -> Tensor:
    """`x @ frame(V, r, det=det).mH` for x [..., r], without the frame; the result is [..., n]."""
    panels = _panels(V)
    x = x if det is None else _turned(x, det * _determinant(panels))
    x = _padded(x, V.shape[1])
    for P, A, _ in reversed(panels):
        x = x - x @ P.mH @ _inverse(A).mH @ P
    return x


def rows_times_frame_t(rows: Tensor, V: Tensor, r: int, *, det: int | None = None) -> Tensor:
    """The same for about as many rows [m, r] as there are reflectors, faster where V varies with them under vmap."""
    panels = _panels(V)
    rows = rows if det is None else _turned(rows, det * _determinant(panels))
    return _reflected_back(_padded(rows, V.shape[1]), panels)


def _padded(x: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, n - x.shape[-1])) if n > x.shape[-1] else x


def _reflected_back(rows: Tensor, panels: Sequence[Panel]) -> Tensor:
    """`rows Q'` for rows [m, n], Q the product of the panels."""
    for P, A, _ in reversed(panels):
        Y = torch.linalg.solve_triangular(A, rows @ P.mH, upper=False, left=False)
        rows = torch.addmm(rows, Y, P, alpha=-1)
    return rows


def _determinant(panels: Sequence[Panel]) -> Any:
    return math.prod([sign for _, _, sign in panels])  # a list, as torch.compile knows no generator here


def _width(k: int) -> int:
    return max(128, -(-k // 4))


def _panels(V: Tensor) -> list[Panel]:
    """V in at most four panels P of rows, each to be applied as one product of reflections, with A and its determinant.

    The products with the whole rows are what costs; with more panels than one, the reflections among themselves cost less.
    A row whose squares have lost their digits has no direction: with 1 on the diagonal of A it reflects nothing.
    """
    panels, info, V = [], torch.finfo(V.dtype), _tamed(V)
    for P in (V,) if len(V) <= _width(len(V)) else V.split(_width(len(V))):
        G = P @ P.mH
        d = G.diagonal().real
        lost = d.detach() < info.tiny / info.eps
        A = torch.diagonal_scatter(G, torch.where(lost, 1.0, d / 2).to(G.dtype))
        panels.append((P, A, 1 - 2 * ((len(P) - lost.sum()) % 2)))
    return panels


def _tamed(V: Tensor) -> Tensor:
    """V with rows scaled down whose squares might overflow, which leaves their reflections, and derivatives, as they are."""
    if V.dtype.is_floating_point and within(V, torch.finfo(V.dtype).max ** 0.25):
        return V
    return V / unit(magnitudes(V.detach()).amax(1, keepdim=True))


def _turned(x: Tensor, sign: Any) -> Tensor:
    """x [..., r] with its last entries times a sign."""
    at = torch.arange(x.shape[-1], device=x.device)
    return x * torch.where(at == x.shape[-1] - 1, sign, 1).to(x.dtype)


def costs(n: int, k: int, r: int) -> tuple[float, float, float]:
    """Multiplications beyond the V V': of `frame`, of `times_frame` once, and of `times_frame` per row of x."""
    b = min(k, _width(k))
    return r * ((2 * k - b) * n + k * b), k * b**2 / 2, 2 * n * k + k * b


def offset(free: Tensor) -> Tensor:
    """Reflectors `v_i = e_i + free_i` from free parameters [k, n], so that zero parameters are no special point.

    >>> import torch
    >>> offset(torch.zeros(1, 2))
    tensor([[1., 0.]])
    """
    return free + torch.eye(*free.shape, dtype=free.dtype, device=free.device)


def haar(generator: torch.Generator, n: int, k: int, dtype: torch.dtype) -> Tensor:
    """Parameters [k, n] for which the first k columns of `frame(offset(...))` are Haar (uniform); k = n too, given det.

    Row i is uniform on the unit sphere of the coordinates i..n-1.  Its reflector e_i - u_i maps e_i to u_i = -row_i, so
    Q is built by the subgroup algorithm (Stewart 1980).  The zeros left of the diagonal are a start, not a constraint.
    """
    return haar_of(normal(generator, (k, n), dtype))


def haar_of(x: Tensor) -> Tensor:
    """The same of independent standard normal numbers x [k, n]."""
    n = x.shape[1]
    # the sphere of one coordinate is a mere sign; n - 1 rows are Haar already, and stay so times any further reflection
    return torch.nn.functional.normalize(torch.cat([x[: n - 1].triu(), x[n - 1 :]]), dim=1)


def haar_frame(generator: torch.Generator, n: int, r: int, dtype: torch.dtype) -> Tensor:
    """Uniform orthonormal columns [n, r]."""
    return frame(offset(haar(generator, n, default_reflectors(n, r), dtype)), r, det=1 if n == r else None)


def from_frame(W: Tensor, k: int) -> Tensor:
    """Parameters [k, n] with `frame(offset(...), r) = W` for orthonormal columns W [n, r] and k >= min(r, n - 1).

    Of a square W the last column is found up to its sign, which `det` decides.  One step per reflector; reflector i maps
    e_i to what the ones before have made of column i, its first entry being computed without cancellation.  Those beyond
    the frame turn the last coordinate, which no column has any more.
    """
    n, r = W.shape
    at = torch.arange(n, device=W.device)
    rows, last = [], (at == n - 1).to(W.dtype)
    for i in range(k):
        if i >= min(r, n - 1):
            rows.append(last)
            continue
        u, rest = W[i, i], torch.where(at > i, W[:, i], 0.0)
        first = torch.where(u > 0, rest.square().sum() / (1 + u), 1 - u)
        v = torch.where(at == i, first, -rest)
        size = v.square().sum()
        fixed = size < torch.finfo(W.dtype).tiny ** 0.5
        v = torch.where(fixed, last, v / torch.where(fixed, 1.0, size).sqrt())
        W = W - 2 * v[:, None] * (v @ W)
        rows.append(2**0.5 * v)
    V = torch.stack(rows) if rows else W.new_zeros(0, n)
    return V - torch.eye(k, n, dtype=W.dtype, device=W.device)


def flip_last(Q: Tensor, wrong: Tensor) -> Tensor:
    """Q [n, r] with the sign of its last column changed where the bool scalar `wrong` says so."""
    last = torch.arange(Q.shape[1], device=Q.device) == Q.shape[1] - 1
    return torch.where(last & wrong, -Q, Q)


def wrong_component(W: Tensor, det: int | None) -> Tensor:
    """Whether the determinant of a square W has another sign than `det`: a bool scalar, so that no gradient passes."""
    if det is None:
        return torch.zeros((), dtype=torch.bool, device=W.device)
    return negative_determinant(W) != (det < 0)


def _inverse(A: Tensor) -> Tensor:
    """A^-1 [k, k].  A solve with x in the right side would copy A for every member when x alone is mapped by vmap."""
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    return torch.linalg.solve_triangular(A, eye, upper=True, left=False)
