"""Pseudo-inverse solves and roots of symmetric matrices of statistics: Cholesky where that is safe, else eigh.

d size of the matrix, k columns.  Which way is taken shows in the time and not, beyond rounding, in the result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from linmaps.checks import number, values
from linmaps.numerics import lapack
from linmaps.numerics.eigen import chirp, corrected, inverse_spectrum, pinv, rounding
from linmaps.numerics.linalg import damped, refined
from linmaps.numerics.numeric import differentiated
from linmaps.trees.graphs.tracing import traced

PROBES, STEPS = 4, 3


def pseudo_solve(
    a: Tensor, b: Tensor, ridge: float | Tensor = 0.0, rtol: float | None = None, *, size: Tensor | None = None
) -> Tensor:
    """(a + ridge I)⁺ b of a symmetric a `[d, d]` with no negative eigenvalue but by rounding, b `[d, k]`.

    As `linmaps.numerics.eigen.pinv`, whose threshold (rtol, size) it has, by a Cholesky factorization in float64 where that is
    ten times faster and as good: rtol is None, and the eigenvalues, inputs that are constant 0 left out, are all well
    above the threshold and span less than half of the digits of float64.  Under `vmap` one way is taken for all members;
    where a function is traced, whose graph has one way for all values, eigenvalues are.
    Derivatives are right to the second order.

    >>> import torch
    >>> pseudo_solve(torch.diag(torch.tensor([4.0, 0.0, 2.0])), torch.ones(3, 1)).T
    tensor([[0.2500, 0.0000, 0.5000]])
    """
    if a.shape[-1] == 0:
        return b
    a = _symmetric(a, ridge)
    if _plain(a, b):
        return _numbers(a, b, rtol, size)[1](None)
    factor, dead = _factored(a, rtol, size)
    return pinv(a, 0.0, rtol, size=size) @ b if factor is None else _solved(factor, a, b, dead)


def pseudo_form(
    a: Tensor, b: Tensor, ridge: float | Tensor = 0.0, rtol: float | None = None, *, size: Tensor | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(b' c `[k, k]`, Z -> c Z) with c = `pseudo_solve`(a, b, ...), not made in full where there is no need.

    >>> import torch
    >>> form, back = pseudo_form(torch.diag(torch.tensor([4.0, 0.0, 2.0])), torch.ones(3, 1))
    >>> form, back(torch.ones(1, 1)).T
    (tensor([[0.7500]]), tensor([[0.2500, 0.0000, 0.5000]]))
    """
    if a.shape[-1] and _plain(a, b):
        form, back = _numbers(_symmetric(a, ridge), b, rtol, size)
        return form(), back
    c = pseudo_solve(a, b, ridge, rtol, size=size)
    return b.mT @ c, lambda Z: c @ Z


def _numbers(
    a: Tensor, b: Tensor, rtol: float | None, size: Tensor | None
) -> tuple[Callable[[], Tensor], Callable[[Tensor | None], Tensor]]:
    """(() -> b' a⁺ b, Z -> a⁺ b Z; None for I), without derivatives; inputs that are constant 0 are left out first."""
    dead = values(a.diagonal() == 0)
    limit = rounding(a[0]) if rtol is None else rtol
    if dead is None or not bool(dead.any()):
        return _alive(a, b, rtol, limit, size)
    at = (~dead).nonzero().flatten()
    if not len(at):
        return lambda: b.new_zeros(b.shape[1], b.shape[1]), lambda Z: torch.zeros_like(b if Z is None else b @ Z)
    form, back = _alive(a.index_select(0, at).index_select(1, at), b.index_select(0, at), rtol, limit, size)
    return form, lambda Z: (lambda own: own.new_zeros(len(a), own.shape[1]).index_copy(0, at, own))(back(Z))


def _alive(
    a: Tensor, b: Tensor, rtol: float | None, limit: float, size: Tensor | None
) -> tuple[Callable[[], Tensor], Callable[[Tensor | None], Tensor]]:
    """`_numbers` where no input is constant 0, of an a whose eigenvalues up to `limit` times the largest are cut."""
    times = lambda t, Z: t if Z is None else _few(t, Z.to(t.dtype))
    factor = None if rtol is not None or values(a) is None else _factor(a, size, limit)
    if factor is None:
        w, V = inverse_spectrum(a, limit, size=size)
        turned = V.mT @ b
        return lambda: _core_form(a, w, V, turned), lambda Z: _few(V, _core(a, w, V, times(turned, Z)))
    half = torch.linalg.solve_triangular(factor, b.to(factor.dtype), upper=False)

    def form() -> Tensor:
        short = half.to(b.dtype)
        return short.mT @ short

    return form, lambda Z: torch.linalg.solve_triangular(factor.mT, times(half, Z), upper=True).to(b.dtype)


def _few(a: Tensor, x: Tensor) -> Tensor:
    """a x; of few columns x first, which takes a fifth of the time."""
    return (x.mT @ a.mT).mT if 16 * x.shape[1] <= x.shape[0] else a @ x


def _symmetric(a: Tensor, ridge: float | Tensor) -> Tensor:
    a = torch.lerp(a, a.mT, 0.5)  # in one step: fresh memory of a large matrix costs as much as its factorization
    return damped(a, ridge) if isinstance(ridge, Tensor) or ridge else a


def _plain(a: Tensor, b: Tensor) -> bool:
    """Whether numbers are all that is asked for."""
    return not traced() and not differentiated(a) and not differentiated(b)


def _core(a: Tensor, w: Tensor, V: Tensor, y: Tensor) -> Tensor:
    """G y with G = `corrected`(V'aV, w), y `[d, k]`; of few columns without G."""
    if 3 * y.shape[1] > y.shape[0]:
        return corrected(V.mT @ (a @ V), w) @ y
    u, cut = w[:, None] * y, (w == 0)[:, None]
    turned = _few(V.mT, _few(a, _few(V, torch.cat([u, w[:, None] * u, torch.where(cut, y, 0.0)], 1))))
    one, two, null = turned.tensor_split(3, 1)
    return torch.where(cut, two, 2 * u - w[:, None] * (one - w[:, None] * null))


def _core_form(a: Tensor, w: Tensor, V: Tensor, y: Tensor) -> Tensor:
    """y' G_KK y, y `[d, k]`, K the rows that w keeps: a quarter of the work of `_core`.

    Of G the rows cut add y_C' (G_CK y_K) and its transpose, of second order where a has a gap at the threshold; without a gap
    they are a tenth of what rounding of the eigenvectors beside the threshold does to the form anyway.
    """
    u = w[:, None] * y
    x = V @ u
    plain = y.mT @ u
    return plain + plain.mT - x.mT @ (a @ x)


def _factored(a: Tensor, rtol: float | None, size: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The Cholesky factor of a with 1 for inputs that are constant 0, and where those are (None: nowhere); None where unsafe."""
    if rtol is not None or values(a) is None:
        return None, None
    m, diagonal = a.detach(), a.detach().diagonal()
    dead = diagonal == 0
    some = bool(values(dead).any())  # type: ignore[union-attr]
    if some:
        m = torch.where(dead[:, None] | dead, torch.diag(torch.where(dead, diagonal.amax(), 0.0)), m)
    return _factor(m, size, rounding(a[0])), dead if some else None


def _factor(m: Tensor, size: Tensor | None, cut: float) -> Tensor | None:
    """The Cholesky factor of m, or None where an eigenvalue of m may be close to the threshold, `cut` times the largest.

    None of them is above the least pivot, nor the largest below an entry of the diagonal; what is not known by that, a few
    steps of iteration with m and its inverse tell.
    """
    factor, info = torch.linalg.cholesky_ex(m.to(torch.float64))
    if bool(values(info).any()):  # type: ignore[union-attr]
        return None
    limit = max(4 * cut, torch.finfo(torch.float64).eps ** 0.5)
    largest = m.diagonal().amax() if size is None else size.detach()
    if not bool(values(factor.diagonal().amin() ** 2 > limit * largest).all()):  # type: ignore[union-attr]
        return None
    y = chirp(len(m), PROBES, factor)
    x = y.to(m.dtype)
    norm = torch.linalg.matrix_norm
    for _ in range(STEPS):
        x, y = _few(m, x / norm(x)), _backsolved(factor, y / norm(y))
        safe = 1 / norm(y) > limit * (norm(x) if size is None else size.detach())
        if not bool(values(safe).all()):  # type: ignore[union-attr]
            return None
    return factor


def _backsolved(factor: Tensor, b: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(factor, b.to(factor.dtype), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def _solved(factor: Tensor, a: Tensor, b: Tensor, dead: Tensor | None) -> Tensor:
    """a⁺ b with a = [D, C'; C, C D⁻¹ C'], D on the inputs alive, C = 0 but in derivatives: see `linmaps.numerics.eigen.pinv`."""
    back = lambda u: _backsolved(factor, u).to(b.dtype)
    if dead is None:
        return refined(back, lambda u: a @ u, b, b.detach())
    alive = ~dead[:, None]
    kept = torch.where(alive, b, 0.0)
    D = torch.where(alive & alive.mT, a, torch.diag(dead.to(a.dtype)))
    C = torch.where(dead[:, None] & alive.mT, a, 0.0)
    solve = lambda u: torch.where(alive, refined(back, lambda v: D @ v, u, u.detach()), 0.0)
    shrunk = lambda u: u - solve(C.mT @ (C @ solve(u)))  # H = (I + F'F)⁻¹, F = C D⁻¹
    w = shrunk(solve(shrunk(kept + solve(C.mT @ b))))
    return w + C @ solve(w)


def pseudo_root(a: Tensor) -> Tensor:
    """R `[d, d]` with R R' = a⁺ of a symmetric a without negative eigenvalues; which one depends on rounding, R R' does not.

    By the formula of `linmaps.numerics.eigen.pinv`, with D^{-1/2} from the series of (I + X)^{-1/2}, X = 0 but in derivatives;
    so R R' has the derivatives of a⁺, to the second order, while the rank does not change.

    >>> import torch
    >>> R = pseudo_root(torch.diag(torch.tensor([4.0, 0.0])))
    >>> R @ R.T
    tensor([[0.2500, 0.0000],
            [0.0000, 0.0000]])
    """
    if a.shape[-1] == 0:
        return a
    a = (a + a.mT) / 2
    values, v = (t.detach() for t in lapack.eigh(a.detach()))
    kept = values > rounding(values) * values.amax()
    start = torch.where(kept, torch.where(kept, values, 1.0) ** -0.5, 0.0)
    b = v.mT @ a @ v
    eye = torch.diag(kept.to(a.dtype))
    x = start[:, None] * torch.where(kept[:, None] & kept, b, 0.0) * start - eye
    root = start[:, None] * (eye - x / 2 + 0.375 * x @ x)
    f = torch.where(~kept[:, None] & kept, b, 0.0) @ (root @ root.mT)
    left = eye + f
    return v @ (left - left @ (f.mT @ f)) @ root


def check_solver(ridge: float | Tensor, rtol: float | None) -> None:
    """Raise unless `ridge` is a number >= 0 (or a scalar tensor) and `rtol` a number in [0, 1) or None."""
    number(ridge, "ridge", low=0, cure="it is added to the diagonal")
    if rtol is not None:
        number(rtol, "rtol", low=0, high=1, below=True, tensor=False, cure="None is the dtype's accuracy")
