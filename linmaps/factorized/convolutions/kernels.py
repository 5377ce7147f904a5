"""Kernels K [(L,) out, in, *k] and tensors T of modes ((L,) in, k_1..k_n, out): put together, decomposed, or kept whole.

To a kind of factorization the out shape is (in,) and the in shape (*k, out).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import Params, Shape
from linmaps.factorized.kinds import KINDS, Fitting, Kind, Leaves
from linmaps.factorized.kinds.base import Places, Side
from linmaps.factorized.kinds.dense import Dense
from linmaps.factorized.tensors.multilinear import amid, taken

COMPLEX = (torch.complex64, torch.complex128)


class Whole(Dense):
    """ "kernel" [(L,) out, in, *k]; layers share nothing."""

    layered = ("kernel", 0)

    def shapes(self, r: Any, L: int, O: Shape, I: Shape) -> dict[str, Shape]:
        return {"kernel": ((L,) if L > 1 else ()) + (I[-1], *O, *I[:-1])}

    def inner(self, a: Leaves, b: Leaves) -> Tensor:
        return (a["kernel"].conj() * b["kernel"]).sum()

    def matrix(self, params: Leaves, O: Shape, I: Shape) -> Tensor:
        return as_matrix(params["kernel"], len(I) - 1)

    def select(self, params: Leaves, layer: int | Tensor) -> dict[str, Tensor]:
        return {"kernel": params["kernel"][layer]}

    def cut(self, params: Leaves, L: int, O: Shape, I: Shape, outs: Places, ins: Places) -> dict[str, Tensor]:
        K = params["kernel"]
        for axis, places in enumerate((ins[-1], *outs, *ins[:-1]), L > 1):
            K = taken(K, axis, places)
        return {"kernel": K}

    def insert(
        self, params: Leaves, r: Any, L: int, O: Shape, I: Shape, size: int, side: Side, at: int
    ) -> tuple[Any, dict[str, Tensor]]:
        return r, {"kernel": amid(params["kernel"], (L > 1) + 2 + at, size)}

    def decompose(self, W: Tensor, r: Any, L: int, O: Shape, I: Shape, how: Fitting) -> dict[str, Tensor]:
        return {"kernel": as_kernel(W, (*O, *I)).clone()}


CONV_KINDS: dict[str, Kind] = {**KINDS, "dense": Whole()}


def as_kernel(W: Tensor, sizes: Shape) -> Tensor:
    """K [(L,) out, in, *k] of W [(L,) prod(k) out, in], whose tensor has sizes (in, *k, out)."""
    return W.mT.reshape(*W.shape[:-2], *sizes).movedim(-1, W.ndim - 2)


def as_matrix(K: Tensor, n: int) -> Tensor:
    """W [(L,) prod(k) out, in] of K [(L,) out, in, *k] with n axes of space."""
    T = K.movedim(-n - 2, -1)
    lead = T.ndim - n - 2
    return T.reshape(*T.shape[: lead + 1], math.prod(T.shape[lead + 1 :])).mT


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
    """K [out, in, *k] of the leaves of one layer.

    >>> import torch
    >>> put_together({"weights": torch.ones(1), "U0": 2 * torch.ones(4, 1), "U1": torch.ones(3, 1)}, "cp", (4, 3)).shape
    torch.Size([3, 4])
    """
    if "kernel" in leaves:
        return leaves["kernel"]
    return as_kernel(KINDS[kind].matrix(leaves, sizes[:1], sizes[1:]), sizes)


def decomposed(kernel: Tensor, kind: str, r: Any, L: int, sizes: Shape, how: Fitting) -> dict[str, Tensor]:
    """Leaves whose kernel, or kernels, are near given ones [(L,) out, in, *k]."""
    W = as_matrix(kernel, len(sizes) - 2)
    return CONV_KINDS[kind].decompose(W, r, L, sizes[:1], sizes[1:], how)
