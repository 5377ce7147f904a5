"""Kernels K [out, in, *k] and tensors T of modes (in, k_1..k_n, out): put together from leaves, decomposed into them.

`kind` is the name of a factorization of T, `sizes` are those of its modes, r its ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import Params, Shape
from linmaps.factorized.kinds import KINDS, Fitting
from linmaps.numerics.numeric import frobenius

COMPLEX = (torch.complex64, torch.complex128)


def check_kernel(kernel: Any, shape: Shape, title: str, *, complex_too: bool = True) -> None:
    """ValueError or TypeError unless it is a floating (or complex) tensor of this shape."""
    fine = COMPLEX if complex_too else ()
    if not isinstance(kernel, Tensor) or not (kernel.is_floating_point() or kernel.dtype in fine):
        found, kinds = (
            getattr(kernel, "dtype", type(kernel).__name__),
            "floating or complex" if fine else "real floating",
        )
        raise TypeError(f"{title}: kernel is {found}, expected a {kinds} tensor {shape}")
    if tuple(kernel.shape) != shape:
        cure = "; use torch.func.vmap(spec.from_kernel)(stacked)" if kernel.shape[1:] == shape else ""
        raise ValueError(f"{title}: kernel has shape {tuple(kernel.shape)}, expected {shape}{cure}")


def put_together(leaves: Params, kind: str, sizes: Shape) -> Tensor:
    """K [out, in, *k] of the leaves.

    >>> import torch
    >>> put_together({"weights": torch.ones(1), "U0": 2 * torch.ones(4, 1), "U1": torch.ones(3, 1)}, "cp", (4, 3)).shape
    torch.Size([3, 4])
    """
    if "kernel" in leaves:
        return leaves["kernel"]
    return KINDS[kind].matrix(leaves, sizes[:1], sizes[1:]).mT.reshape(sizes).movedim(-1, 0)


def named(leaves: Mapping[str, Tensor], kind: str, sizes: Shape) -> dict[str, Tensor]:
    """The leaves of a kind by their names in the params of a convolution, which call a dense one its kernel."""
    return {"kernel": put_together(leaves, kind, sizes)} if kind == "dense" else dict(leaves)


def decomposed(
    kernel: Tensor, kind: str, r: Any, sizes: Shape, n_sweeps: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Leaves whose kernel is near a given one, and the distance, a scalar."""
    W = kernel.movedim(0, -1).reshape(sizes[0], -1).mT
    found = KINDS[kind].decompose(W, r, 1, sizes[:1], sizes[1:], Fitting(n_sweeps=n_sweeps))
    leaves = named(found, kind, sizes)
    return leaves, frobenius(put_together(leaves, kind, sizes) - kernel)
