"""Unitary matrices as products of reflections and phases: W = H_0 ... H_{n-2} diag(exp(i angle)), n rows and columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.orthogonal import householder


def materialized(t: Tensor) -> Tensor:
    """t itself; its derivatives in either mode are no lazy conjugates, whose imaginary part `vmap` cannot take."""
    return 0.5 * t + 0.5 * t  # exact; of a sum torch makes numbers, where a product stays a view


def reflectors(V: Tensor) -> Tensor:
    """Complex reflectors [n - 1, n], v_i = e_i + V[i], from real parameters V [n - 1, n, 2] of real and imaginary parts."""
    return householder.offset(materialized(torch.complex(V[..., 0], V[..., 1])))


def phases(angle: Tensor) -> Tensor:
    """exp(i angle) [n]."""
    return materialized(torch.complex(angle.cos(), angle.sin()))


def haar(generator: torch.Generator, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Parameters V [n - 1, n, 2] and angles [n] of uniform unitary matrices.

    Row i is uniform on the unit sphere of the coordinates i..n-1, turned by a phase so that its first entry is not
    negative; the angles, uniform and independent, are those phases.  The subgroup algorithm (Stewart 1980), as for
    `householder.haar`.
    """
    z = normal(generator, (n - 1, n, 2), dtype)
    u = torch.complex(z[..., 0].triu(), z[..., 1].triu())
    first = u.diagonal()
    u = u * (first.conj() / first.abs())[:, None]
    u = u / u.abs().square().sum(1, keepdim=True).sqrt()
    return torch.view_as_real(-u.conj().resolve_conj()), uniform(generator, (n,), math.pi, dtype)


def from_unitary(W: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters V [n - 1, n, 2] and angles [n] of a unitary W [n, n]: one step per reflector.

    Reflector i maps e_i to column i, times a phase that makes its entry i real and not negative, as the ones before have
    left it; the first entry of v_i is computed without cancellation.
    """
    n = len(W)
    at = torch.arange(n, device=W.device)
    rows, last = [], (at == n - 1).to(W.dtype)
    for i in range(n - 1):
        size, turn = _polar(materialized(W[i, i]))
        column = torch.where(at > i, W[:, i], 0.0) * turn.conj()
        first = _squared(column) / (1 + size)
        v = torch.where(at == i, torch.complex(first, torch.zeros_like(first)), -column)
        squared = _squared(v)
        fixed = squared < torch.finfo(W.dtype).tiny ** 0.5
        v = torch.where(fixed, last, v / torch.where(fixed, 1.0, squared).sqrt())
        W = W - 2 * v[:, None] * (v.conj() @ W)
        rows.append(2**0.5 * v.conj())
    V = torch.stack(rows) if rows else W.new_zeros(0, n)
    V = materialized(V - torch.eye(n - 1, n, dtype=W.dtype, device=W.device))
    diagonal = materialized(W.diagonal())
    return torch.stack([V.real, V.imag], -1), torch.atan2(diagonal.imag, diagonal.real)


def _squared(v: Tensor) -> Tensor:
    v = materialized(v)
    return (v.real.square() + v.imag.square()).sum()


def _polar(z: Tensor) -> tuple[Tensor, Tensor]:
    """|z| and the phase z / |z|, 1 where z = 0, with finite derivatives."""
    squared = z.real.square() + z.imag.square()
    zero = squared == 0
    size = torch.where(zero, 1.0, squared).sqrt()
    return torch.where(zero, 0.0, size), torch.where(zero, 1.0, z / size)
