"""Packed matrices of n rows and columns: triangles stored row by row; a diagonal and the entries beside it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

KEPT_SIZE = 1024  # larger tables of places are not kept from call to call


def unpack_upper(packed: Tensor, n: int, *, diagonal: int = 0) -> Tensor:
    """The upper triangular matrix [n, n] whose entries on and above `diagonal`, row by row, are `packed`.

    >>> import torch
    >>> unpack_upper(torch.tensor([1.0, 2.0, 3.0]), 3, diagonal=1)
    tensor([[0., 1., 2.],
            [0., 0., 3.],
            [0., 0., 0.]])
    """
    rows, columns = torch.triu_indices(n, n, diagonal, device=packed.device)
    return packed.new_zeros(n * n).index_copy(0, torch.add(columns, rows, alpha=n), packed).reshape(n, n)


def pack_upper(W: Tensor, *, diagonal: int = 0) -> Tensor:
    """The entries of W [n, n] on and above `diagonal`, row by row.

    >>> import torch
    >>> pack_upper(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 2., 4.])
    """
    rows, columns = torch.triu_indices(len(W), len(W), diagonal, device=W.device)
    return W[rows, columns]


def symmetric(packed: Tensor, n: int, *, diagonal: bool = True) -> Tensor:
    """The symmetric matrix [n, n] whose upper triangle is `packed` [n (n + 1) / 2]; without diagonal, [n (n - 1) / 2].

    >>> import torch
    >>> symmetric(torch.tensor([1.0, 2.0, 3.0]), 2)
    tensor([[1., 2.],
            [2., 3.]])
    """
    if not diagonal:
        values = torch.cat([packed.new_zeros(1), packed])
        return values.index_select(0, _places(_hollow_places, n, packed.device)).reshape(n, n)
    return packed.index_select(0, _places(_symmetric_places, n, packed.device)).reshape(n, n)


def skew(packed: Tensor, n: int, *, diagonal: Tensor | None = None) -> Tensor:
    """The skew matrix [n, n] whose strict upper triangle is `packed` [n (n - 1) / 2]; plus the scalar `diagonal` times I.

    >>> import torch
    >>> skew(torch.tensor([3.0]), 2)
    tensor([[ 0.,  3.],
            [-3.,  0.]])
    """
    if diagonal is None and n > 1:  # without a copy of the triangle, which costs more than these products
        entries = packed.index_select(0, _places(_hollow_places, n, packed.device, False))
        return entries.reshape(n, n) * _places(_signs, n, packed.device, packed.dtype)
    first = packed.new_zeros(1) if diagonal is None else diagonal.reshape(1)
    values = torch.cat([first, packed, -packed])
    return values.index_select(0, _places(_skew_places, n, packed.device)).reshape(n, n)


def weave(diagonal: Tensor, off: Tensor) -> Tensor:
    """The matrix [n, n] with a given diagonal [n] and the entries off [n, n - 1] beside it, row by row.

    >>> import torch
    >>> weave(torch.zeros(3), torch.arange(1.0, 7.0).reshape(3, 2))
    tensor([[0., 1., 2.],
            [3., 0., 4.],
            [5., 6., 0.]])
    """
    n = len(diagonal)
    # row by row, n entries lie between two neighbours on the diagonal
    lines = torch.cat([diagonal[:-1, None], off.reshape(n - 1, n)], dim=1)
    return torch.cat([lines.reshape(-1), diagonal[-1:]]).reshape(n, n)


def unweave(W: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal [n] and the other entries [n, n - 1] of a matrix [n, n], row by row."""
    n = len(W)
    return W.diagonal(), W.reshape(-1)[: n * n - 1].reshape(n - 1, n + 1)[:, 1:].reshape(n, n - 1)


def _triangle(n: int, diagonal: int, device: torch.device) -> Tensor:
    """For each entry (i, j) of [n, n] the place of (min, max) in the packed triangle; nonsense on the diagonal if it lacks."""
    at = torch.arange(n, dtype=torch.int32, device=device)
    start = at * (2 * n - 1 - at) // 2 - diagonal * (at + 1)  # of row i, were its first column 0
    whole = start[:, None] + at
    return torch.where(at[:, None] <= at, whole, whole.mT)


def _symmetric_places(n: int, device: torch.device) -> Tensor:
    return _triangle(n, 0, device).reshape(-1)


def _hollow_places(n: int, device: torch.device, led: bool = True) -> Tensor:
    """The places beside the diagonal, and 0 on it; led: behind one more number, which is at 0."""
    at = torch.arange(n, device=device)
    return torch.where(at[:, None] == at, 0, int(led) + _triangle(n, 1, device)).reshape(-1)


def _signs(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 above the diagonal, -1 below it, 0 on it."""
    ones = torch.ones(n, n, dtype=dtype, device=device)
    return ones.triu(1) - ones.tril(-1)


def _skew_places(n: int, device: torch.device) -> Tensor:
    at = torch.arange(n, device=device)
    upper = 1 + _triangle(n, 1, device)
    below = torch.where(at[:, None] > at, upper + n * (n - 1) // 2, upper)
    return torch.where(at[:, None] == at, 0, below).reshape(-1)


def _places(make, n: int, device: torch.device, *how: Any) -> Tensor:  # type: ignore[no-untyped-def]
    """`make(n, device, *how)`: kept, since it takes longer than the gather it is for; but not while torch traces."""
    plain = not torch.compiler.is_compiling() and not _len_torch_dispatch_stack() and n <= KEPT_SIZE
    return _kept(make, n, device, *how) if plain else make(n, device, *how)


@functools.lru_cache(maxsize=32)
def _kept(make, n: int, device: torch.device, *how: Any) -> Tensor:  # type: ignore[no-untyped-def]
    # inside a transform even a new tensor is wrapped, and the wrapper would outlive it, as the marks of inference mode would
    with torch.inference_mode(False):
        return torch.func.debug_unwrap(make(n, device, *how), recurse=True)
