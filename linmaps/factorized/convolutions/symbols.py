"""The operator norm of a convolution, from above, at all sizes of x: by its symbol.

K [out, in, *k], r = min(out, in), P = prod(k); frequencies w in [0, 2 pi)^n.  On x of any size, with zeros around it, with a
stride, or around a circle, the convolution is a restriction of the one on Z^n to some inputs and outputs, or that one on
periodic x: its norm is at most sup_w |K^(w)|_2 of the symbol K^(w) = sum_j K[:, :, j] exp(-i w'j), and is that in the limit
of large x.  A dilation d makes K^(d w) of it, with the same supremum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmaps.checks import Shape
from linmaps.numerics import lapack
from linmaps.numerics.dtypes import precise

POINTS = {1: 32, 2: 8, 3: 5}  # of the grid along each of n axes, for each degree of the symbol: of 64 channels at most
FEW = {1: 16, 2: 5, 3: 4}  # and of more
CHANNELS, SQUARINGS = 64, (6, 5)


def grid(kernel_size: Shape, channels: int) -> Shape:
    """Numbers of frequencies along each axis: a multiple of k - 1, one where k = 1.

    >>> grid((3, 5), 16), grid((3, 1), 512)
    ((16, 32), (10, 1))
    """
    per_degree = (POINTS if channels <= CHANNELS else FEW)[len(kernel_size)]
    return tuple(per_degree * (k - 1) if k > 1 else 1 for k in kernel_size)


def norm_above(K: Tensor) -> Tensor:
    r"""A number that the operator norm of the convolution with K does not exceed, at any size of x; a scalar in K's dtype.

        B(K) = (1 + rounding) prod_a 1 / cos(pi (k_a - 1) / (2 N_a)) max over a grid of N_1 x .. x N_n of |K^(w)|_S

    where |A|_S = tr((A A*)^m)^(1/(2 m)) >= |A|_2 is a Schatten norm, at most r^(1/(2 m)) times too large, with m = 128, of more
    than 64 channels 64.

    From the grid to all frequencies: let M = sup_w |K^(w)|_2 = Re(c u* K^(w0) v) with unit vectors u, v and |c| = 1.  Along
    axis a, f(s) = Re(c' u* K^(w0 + 2 (s - s0) e_a) v exp(i (k_a - 1) s)), |c'| = 1, is a real trigonometric polynomial in s of
    degree k_a - 1, with |f| <= M and f(s0) = M for some c' and s0.  So f(s) >= M cos((k_a - 1)(s - s0)) for
    |s - s0| <= pi / (k_a - 1) (M. Riesz 1914; Bernstein's inequality is its infinitesimal form).  The nearest point of the
    grid has |w - w0| = 2 |s - s0| <= pi / N_a, and there the symbol is at least cos(pi (k_a - 1) / (2 N_a)) M in norm: one axis
    after the other gives the product.  (Pfister and Bresler 2018 bound real polynomials so; the symbol, which starts at 0,
    has half their degree.)

    Rounding: norms are computed in float64 where the device has it.  Relative to sup |K^|_2, with e the epsilon of that dtype
    and q = max(out, in): sums of the symbol err by e (2 sum(k) + 6) sqrt(2 P r) at most; with |A|_F^2 <= r |A|_2^2 the product
    of A by its adjoint by e r q / 2, and the products and sums of the squarings, each by e r^2 of its largest eigenvalue at
    most, by e r^2 / 2 in all; entries rounded to a dtype of epsilon e' change the norm by e' sqrt(P r).

    On a CPU the frequency is found by the largest eigenvalues of A A*, in half the time of the squarings: where |K^(w)|_2 is
    largest but for rounding, e r^2 / 2 at most, |K^(w)|_S is no less.

    The derivative is that at one of the frequencies where the maximum lies: it costs one matrix.  Where all entries are below
    tiny / eps, B is their largest modulus times out in P.

    >>> import torch
    >>> norm_above(torch.ones(1, 1, 3))  # |1 + e^iw + e^2iw| <= 3
    tensor(3.0036)
    """
    _, safe, B = _relative(K, K.dtype)
    return B * safe


def scaled_to(K: Tensor, bound: float, dtype: torch.dtype) -> Tensor:
    """K where B(K) <= bound, else K bound / B(K), so that B is at most the bound of what is left of it in dtype.

    >>> import torch
    >>> scaled_to(torch.full((1, 1, 1), 3e38), 2.0, torch.float32)
    tensor([[[2.0000]]])
    """
    unit, safe, B = _relative(K, dtype)
    above = ~(bound / safe >= B)  # true of NaN too
    return torch.where(above, unit * (bound / torch.where(above, B, 1.0)), K)


def _relative(K: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """K / s, a constant s > 0, and B(K / s): the size of K neither over- nor underflows."""
    out, c, *k = K.shape
    P, r, q = math.prod(k), min(out, c), max(out, c)
    largest, info = K.detach().abs().amax(), torch.finfo(K.dtype)
    none = largest < info.tiny / info.eps
    safe = torch.where(none, 1.0, largest)
    unit, high = K / safe, precise(K.dtype, K.device, q)
    A = torch.where(none, 1.0, unit).to(high).movedim((0, 1), (-2, -1))
    A = A if out <= c else A.mT  # [*k, r, q]
    sizes = grid(tuple(k), r)
    symbols = _on_grid(A.detach(), sizes)
    place = (_largest(symbols) if A.device.type == "cpu" else _schatten(symbols)).reshape(-1).argmax()
    factor = math.prod(1 / math.cos(math.pi * (s - 1) / (2 * n)) for s, n in zip(k, sizes))
    e, own = torch.finfo(high).eps, torch.finfo(dtype).eps
    rounding = e * ((2 * sum(k) + 6) * math.sqrt(2 * P * r) + r * q + 2 * r * r + 16) + own * (math.sqrt(P * r) + 4)
    B = (_schatten(_at(A, place, sizes)) * (factor * (1 + rounding))).to(K.dtype)
    return unit, safe, torch.where(none, largest * (out * c * P), B)


def _half(sizes: Shape) -> Shape:
    """The grid without the frequencies -w beside w, whose symbols are conjugate: half of the last axis."""
    return (*sizes[:-1], sizes[-1] // 2 + 1)


def _phases(k: int, n: int, at: Tensor, like: Tensor) -> Tensor:
    """exp(-2 pi i at j / n) for j < k, [*at, k]; n the points of a full circle."""
    turns = (at[..., None] * torch.arange(k, device=like.device)) % n
    angle = turns.to(like.dtype) * (-2 * math.pi / n)
    return torch.complex(angle.cos(), angle.sin())


def _on_grid(A: Tensor, sizes: Shape) -> Tensor:
    """The symbol of A [*k, r, q] on half a grid, [*N, r, q]."""
    out = A.to(A.dtype.to_complex())
    for axis, (n, points) in enumerate(zip(sizes, _half(sizes))):
        phases = _phases(A.shape[axis], n, torch.arange(points, device=A.device), A)
        out = torch.tensordot(phases, out, ([1], [axis])).movedim(0, axis)
    return out


def _at(A: Tensor, place: Tensor, sizes: Shape) -> Tensor:
    """The symbol at one place of half the grid, counted row by row, [r, q]."""
    out, points = A.to(A.dtype.to_complex()), _half(sizes)
    for axis in reversed(range(len(points))):
        phases = _phases(A.shape[axis], sizes[axis], place % points[axis], A)
        place = place // points[axis]
        out = (out * phases.reshape(-1, *[1] * (out.ndim - axis - 1))).sum(axis)
    return out


def _largest(A: Tensor) -> Tensor:
    """The squares of the largest singular values of A [..., r, q]."""
    return lapack.eigvalsh(A @ A.mH)[..., -1]


def _schatten(A: Tensor) -> Tensor:
    """tr((A A*)^(2^(s + 1)))^(1/2^(s + 2)), s squarings, of A [..., r, q]: not below the largest singular value.

    H is scaled to Frobenius norm 1 before each product: H_(i+1) = (H_i / |H_i|)^2, log |H_0| + log |H_1| / 2 + ..
    """
    squarings = SQUARINGS[A.shape[-2] > CHANNELS]
    H = A @ A.mH
    logs = torch.zeros(H.shape[:-2], dtype=H.real.dtype, device=H.device)
    for i in range(squarings + 1):
        squared = H.real.square().sum((-2, -1)) + H.imag.square().sum((-2, -1))
        zero = squared == 0  # of a symbol with zeros
        size = torch.where(zero, 1.0, squared).sqrt()
        logs = logs + torch.where(zero, -torch.inf, size.log()) / 2**i
        if i < squarings:
            H = H / size[..., None, None]
            H = H @ H
    return (logs / 2).exp()
