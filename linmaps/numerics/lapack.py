"""Decompositions of torch.linalg, which raise or end the process where an entry is not finite: here NaN comes out.

Cholesky and QR decompositions do neither, and are called where they are used; `qr` is for those who need R to be NaN.
m [..., n, k].  Each matrix of a batch, and each member under `torch.func.vmap`, is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps.numerics.numeric import is_plain


def _finite(fn: Callable[[Tensor], Any], m: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """fn(m), a tuple of tensors with so many axes besides those of the batch; NaN where m has an entry that is not finite."""
    if is_plain(m):
        total = m.sum().item()
        if total - total == 0 or bool(m.isfinite().all()):
            found = fn(m)
            return found if isinstance(found, tuple) else (found,)
    blame = (m * 0).sum((-2, -1), keepdim=True)  # 0, or NaN: it takes the derivative too
    fine = blame == 0
    found = fn(torch.where(fine, m, 0.0))
    found = found if isinstance(found, tuple) else (found,)
    masks = {1: (fine.squeeze(-1), blame.squeeze(-1)), 2: (fine, blame)}
    return tuple(torch.where(masks[n][0], t, _as(masks[n][1], t)) for t, n in zip(found, axes))


def _as(blame: Tensor, t: Tensor) -> Tensor:
    return blame.real if blame.is_complex() and not t.is_complex() else blame.to(t.dtype)


def eig(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[..., n]` and eigenvectors `[..., n, n]`.

    >>> import torch
    >>> eig(torch.full((1, 1), torch.nan))[0].isnan()
    tensor([True])
    """
    values, vectors = _finite(torch.linalg.eig, m, (1, 2))
    return values, vectors


def eigvals(m: Tensor) -> Tensor:
    """Eigenvalues `[..., n]`."""
    return _finite(torch.linalg.eigvals, m, (1,))[0]


def eigh(m: Tensor, *, finite: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[..., n]` ascending and eigenvectors `[..., n, n]` of Hermitian matrices; finite: whether all entries are
    known to be."""
    if finite:
        values, vectors = torch.linalg.eigh(m)
        return values, vectors
    values, vectors = _finite(torch.linalg.eigh, m, (1, 2))
    return values, vectors


def eigvalsh(m: Tensor) -> Tensor:
    """Eigenvalues `[..., n]` ascending of Hermitian matrices."""
    return _finite(torch.linalg.eigvalsh, m, (1,))[0]


def svd(m: Tensor, *, full_matrices: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, Vh with `m = U diag(s) Vh`, s descending."""
    U, s, Vh = _finite(lambda a: torch.linalg.svd(a, full_matrices=full_matrices), m, (2, 1, 2))
    return U, s, Vh


def svdvals(m: Tensor) -> Tensor:
    """Singular values `[..., min(n, k)]`, descending."""
    return _finite(torch.linalg.svdvals, m, (1,))[0]


def pinv(m: Tensor) -> Tensor:
    """The pseudo-inverse `[..., k, n]`."""
    return _finite(torch.linalg.pinv, m, (2,))[0]


def qr(m: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """Q and R with `m = Q R`; R of torch.linalg.qr may be finite where m is not."""
    Q, R = _finite(lambda t: torch.linalg.qr(t, mode=mode), m, (2, 2))
    return Q, R
