"""Functions of a symmetric matrix through its spectrum, whose derivatives are right where eigenvalues repeat.

n the size of one matrix m; a 1-d m `[n]` is the diagonal of a diagonal matrix.  All compute in the dtype of m: the blocks
that call them see to it that this is precise enough.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fisher.pmat.decompositions.precise import singly
from linmaps.numerics.eigen import constant_eigh, cutoff, denoised, eigh, plain_eigh
from linmaps.numerics.linalg import Number, damped, inv
from linmaps.numerics.numeric import differentiated

Taylor = tuple[Tensor, Tensor, Tensor]  # h, h', h'' of a function at the eigenvalues


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """m = U (diag(values) + N) U': N is zero as a number, and carries the derivatives inside repeated eigenvalues.

    values `[n]` with zero for what float64 leaves on a null direction; U, N `[n, n]`, or `[n]` (ones, zeros) for a
    diagonal matrix; N `[n]` where no derivative is asked for.  N commutes with diag(values), so that
    h(m) = U (h(values) + h'(values) N + h''(values) N^2 / 2) U' to the second order.
    """

    values: Tensor
    U: Tensor
    N: Tensor


def spectrum(m: Tensor) -> Spectrum:
    """The spectrum of a symmetric m `[n, n]`, or of a diagonal one `[n]`.

    >>> import torch
    >>> spectrum(torch.diag(torch.tensor([2.0, 1.0]))).values
    tensor([1., 2.])
    """
    if m.ndim == 1:
        return Spectrum(m, torch.ones_like(m), torch.zeros_like(m))
    values, U = eigh(m)
    values = values.detach()
    if len(m) == 0 or not differentiated(m):
        return Spectrum(denoised(values), U, torch.zeros_like(values))
    eps = torch.finfo(m.dtype).eps
    close = (values[None, :] - values[:, None]).abs() <= 64 * len(m) * eps * values.abs().amax()
    N = torch.where(close, U.mT @ m @ U, 0.0)
    return Spectrum(denoised(values), U, N - N.detach())


def real(p: float, name: str = "pow") -> float:
    """p, a real number; TypeError for anything else."""
    if not isinstance(p, int | float):
        raise TypeError(f"{name}: got an exponent of type {type(p).__name__}, expected a real number")
    return int(p) if p == int(p) else float(p)


def raised(x: Tensor, p: float) -> Tensor:
    """x^p entry by entry, with derivative 0 at 0 where the true one is infinite.

    >>> import torch
    >>> raised(torch.tensor([0.0, 4.0]), 0.5)
    tensor([0., 2.])
    """
    return _raised(x, p, 0.0 if p > 0 else torch.inf)


def _raised(x: Tensor, p: float, at_zero: float) -> Tensor:
    if p >= 0 and p == int(p):
        return x ** int(p)
    nonzero = x != 0
    return torch.where(nonzero, torch.where(nonzero, x, 1.0) ** p, at_zero)


def power(x: Tensor, p: float) -> Taylor:
    """x^p with its two derivatives (0 where infinite)."""
    return raised(x, p), p * _raised(x, p - 1, 0.0), p * (p - 1) * _raised(x, p - 2, 0.0)


def clipped(values: Tensor, noise: float) -> Tensor:
    """Eigenvalues with zero for negative ones of up to `noise` times the largest.

    >>> import torch
    >>> clipped(torch.tensor([1.0, -1e-9, 1e-9]), 1e-6)
    tensor([1.0000e+00, 0.0000e+00, 1.0000e-09])
    """
    if values.numel() == 0:
        return values
    return torch.where((values < 0) & (values >= -noise * values.abs().amax()), 0.0, values)


def shifted(values: Tensor, regul: Number, p: float, noise: float) -> Tensor:
    """values + regul, of which the p-th power is taken: eigenvalues that rounding made negative do not spoil a root."""
    shift = values + regul
    if isinstance(p, int):
        return shift
    return torch.where(shift > 0, shift, clipped(values, noise) + regul)


def taken(m: Tensor, regul: Number) -> tuple[Tensor, Number]:
    """(m, regul) with a diagonal regul, in the shape of the view, added to m: what is left to add is a number."""
    if not isinstance(regul, Tensor) or not regul.ndim:
        return m, regul
    return damped(m, regul.reshape(regul.numel())), m.new_zeros(())


def matrix_power(m: Tensor, p: float, regul: Number = 0.0, noise: float = 0.0) -> Tensor:
    """(m + regul I)^p of a symmetric `[n, n]`, or of a diagonal `[n]`; NaN for a negative eigenvalue and no integer p.

    noise: up to which size, relative to the largest, a negative eigenvalue counts as zero.

    >>> import torch
    >>> matrix_power(torch.diag(torch.tensor([4.0, 9.0])), 0.5)
    tensor([[2., 0.],
            [0., 3.]])
    """
    p = real(p)
    if m.ndim == 1:
        return raised(shifted(m, regul, p, noise), p)
    m, regul = taken(m, regul)
    if isinstance(p, int) and p >= 0:
        return torch.linalg.matrix_power(damped(m, regul), p)
    if isinstance(p, int):  # of the transpose: a product with the inverse needs X M = I more than M X = I
        return torch.linalg.matrix_power(inv(damped(m, regul).mT).mT, -p)
    values, U = constant_eigh(m)
    x = shifted(unregulated(values, regul), regul.detach() if isinstance(regul, Tensor) else regul, p, noise)
    E = U.mT @ damped(m, regul) @ U
    return U @ _perturbed_power(x, E - E.detach(), p) @ U.mT


def entrywise_power(t: Tensor, p: float, regul: Number) -> Tensor:
    """(t + regul)^p entry by entry, of eigenvalues; those that rounding made negative count as zero in a root."""
    p = real(p)
    return singly(lambda t, regul, noise: raised(shifted(t, regul, p, noise), p))(t, regul, cutoff(t.numel(), t.dtype))


def unregulated(values: Tensor, regul: Number) -> Tensor:
    """Constant eigenvalues to which regul is added: without any, null directions are told from rounding."""
    return values if isinstance(regul, Tensor) or regul else denoised(values)


def _perturbed_power(x: Tensor, E: Tensor, p: float) -> Tensor:
    """(diag(x) + E)^p to the second order in a symmetric E, x >= 0: no factor grows where eigenvalues meet.

    By divided differences h[..] of x^p: entry ij is h[i] (i = j), plus h[i,j] E_ij, plus the sum over k of h[i,k,j] E_ik E_kj
    with h[i,k,j] = (h[i,k] - h[k,j]) / (x_i - x_j), or the mean of h[i,k,i] and h[j,k,j] where x_i and x_j are close.
    0 stands for the infinite derivatives at x = 0, where E of constant rank does not need them.
    """
    zero = x == 0
    safe = torch.where(zero, 1.0, x)
    ratio = (x[None, :] - x[:, None]) / safe[:, None]  # of column j against row i
    ratio = torch.where(zero[:, None], torch.where(zero, 0.0, 1.0), ratio)
    first = torch.where(zero[:, None], raised(x, p - 1)[None, :], safe[:, None] ** (p - 1) * _slope(ratio, p))
    first = torch.where(zero[:, None] & zero, 0.0, first)
    same = torch.where(zero[:, None], raised(x, p - 2)[None, :], safe[:, None] ** (p - 2) * _bend(ratio, p))
    same = torch.where(zero[:, None] & zero, 0.0, same)
    LE, SE = (first * E) @ E, (same * E) @ E
    close = ratio.abs() < 1e-5
    gap = torch.where(close, 1.0, x[:, None] - x[None, :])
    second = torch.where(close, (SE + SE.mT) / 2, (LE - LE.mT) / gap)
    return torch.diag(raised(x, p)) + first * E + second


def _slope(r: Tensor, p: float) -> Tensor:
    """((1 + r)^p - 1) / r for r >= -1."""
    small = r == 0
    r = torch.where(small, 1.0, r)
    return torch.where(small, p, torch.expm1(p * torch.log1p(r)) / r)


def _bend(r: Tensor, p: float) -> Tensor:
    """(((1 + r)^p - 1) / r - p) / r, by the binomial series for small r."""
    small = r.abs() < 0.02
    series, term = torch.zeros_like(r), p
    for k in range(2, 10):
        term = term * (p - k + 1) / k
        series = series + term * torch.where(small, r, 0.0) ** (k - 2)
    r = torch.where(small, 1.0, r)
    return torch.where(small, series, (_slope(r, p) - p) / r)


def pseudo(values: Tensor, rtol: float, atol: Number = 0.0) -> Tensor:
    """1 / values, and 0 for those up to rtol times the largest, or up to atol.

    >>> import torch
    >>> pseudo(torch.tensor([2.0, 0.0]), 0.0)
    tensor([0.5000, 0.0000])
    """
    if values.numel() == 0:
        return values
    kept = (values.abs() > rtol * values.abs().amax()) & (values.abs() > atol)
    return torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)


def spectrum_values(m: Tensor) -> Tensor:
    """Eigenvalues of a symmetric `[n, n]`, or of a diagonal `[n]`, with zero for what float64 leaves on a null direction.

    >>> import torch
    >>> spectrum_values(torch.diag(torch.tensor([2.0, 1.0])))
    tensor([1., 2.])
    """
    return m if m.ndim == 1 else denoised(eigh(m)[0])


def extremes(values: Tensor, largest: bool) -> Tensor:
    """The largest or the smallest absolute value; of no values 0."""
    if values.numel() == 0:
        return values.new_zeros(())
    return values.abs().amax() if largest else values.abs().amin()


def log_abs(x: Tensor) -> Tensor:
    """Sum of log |x|, a scalar."""
    return x.abs().log().sum()


def logdet(m: Tensor, regul: Number) -> Tensor:
    """log |det(m + regul I)| of a symmetric m `[n, n]`, right to the second derivative.

    With X = (m0 + regul0 I)^-1 at the numbers and D = m + regul I - (m0 + regul0 I), zero as a number:
    log det = log det0 + tr(X D) - tr(X D X D) / 2 + ...

    >>> import torch
    >>> logdet(torch.zeros(2, 2), 1.0)
    tensor(0.)
    """
    m, regul = taken(m, regul)
    values, U = plain_eigh(m.detach())
    values = unregulated(values, regul) + (regul.detach() if isinstance(regul, Tensor) else regul)
    change = damped(m, regul)
    Y = (U / values) @ (U.mT @ (change - change.detach()))
    return log_abs(values) + Y.diagonal().sum() - (Y * Y.mT).sum() / 2
