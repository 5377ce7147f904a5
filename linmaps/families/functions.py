"""Two free functions of the literature: products of reflections applied to x, and the straight-through rectifier."""

from __future__ import annotations

from torch import Tensor

from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.checks.precision import HALF
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.orthogonal.householder import times_frame


@door
@typed
def hprod(x: Tensor, U: Tensor) -> Tensor:
    """`x H_0 H_1 ... H_{k-1}` with `H_i = I - 2 u_i u_i' / |u_i|^2`, u_i the rows of U [k, n], for x [..., n].

    All reflections at once, without a loop; rows of a triangular U give the products of the literature, in which u_i
    reflects the coordinates from i on.  A row of zeros reflects nothing.

    ValueError if the last axes of x and U differ, or U is not a matrix.

    Source: Mhammedi et al., arXiv:1612.00188.

    >>> import torch
    >>> hprod(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([-3., -4.])
    """
    if U.ndim != 2 or x.ndim == 0 or x.shape[-1] != U.shape[1]:
        raise ValueError(
            f"hprod: x has shape {tuple(x.shape)} and U {tuple(U.shape)}, expected [..., n] and [k, n]; "
            "reflections are the rows of U, and torch.func.vmap maps over further axes"
        )
    y = times_frame(x.to(working_dtype(x.dtype)), U.to(working_dtype(U.dtype)), U.shape[1])
    return y.to(x.dtype) if x.dtype in HALF else y


@typed
def identity_grad_relu(x: Tensor) -> Tensor:
    """max(x, 0) with the derivative of the identity, in every mode (straight-through estimator).

    >>> import torch
    >>> torch.func.vmap(torch.func.grad(identity_grad_relu))(torch.tensor([-1.0, 2.0]))
    tensor([1., 1.])
    """
    return x + (x.clamp(min=0) - x).detach()
