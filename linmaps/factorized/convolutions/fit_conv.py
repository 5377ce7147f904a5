"""From a given kernel to a spec and params.  Kernels are torch's, [out, in, *k]."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.convolutions.conv import ConvFactorization, FactorizedConv
from linmaps.factorized.kinds.names import Implementation
from linmaps.factorized.tensors.ranks import Rank


@door
@typed
def factorize_conv(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    factorization: ConvFactorization = "cp",
    rank: Rank = "same",
    implementation: Implementation = "auto",
    n_sweeps: int | None = None,
) -> tuple[FactorizedConv, dict[str, Tensor]]:
    """A spec and params near the weight [out, in, *k] of one of torch's convolutions, and its bias [out].

    `spec.from_kernel(weight, bias=bias)` says the same and how far away the kernel is.  An nn.Parameter is taken detached;
    through other tensors there are derivatives.  A weight of a convolution with groups is [out, in / groups, *k] and is
    factorized as such; see `FactorizedConv`.

    ValueError or TypeError for a weight that is no kernel of 1 to 3 axes, or what `from_kernel` refuses.

    >>> import torch
    >>> weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> spec, params = factorize_conv(weight, factorization="tt", rank=0.9)
    >>> error = (spec.kernel(params) - weight).norm() / weight.norm()
    >>> spec.ranks, round(spec.ratio, 2), round(error.item(), 2)
    ((1, 4, 4, 8, 1), 0.78, 0.57)
    """
    if not isinstance(weight, Tensor) or not 3 <= weight.ndim <= 5:
        got = f"of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        error = ValueError if isinstance(weight, Tensor) else TypeError
        given: Any = weight
        cure = "; give conv.weight and conv.bias" if isinstance(given, nn.Module) else ""
        raise error(f"factorize_conv: weight is {got}, expected a tensor [out, in, *k] with 1 to 3 sizes k{cure}")
    weight = weight.detach() if isinstance(weight, nn.Parameter) else weight
    bias = bias.detach() if isinstance(bias, nn.Parameter) else bias
    out, c, *k = weight.shape
    spec = FactorizedConv(
        c,
        out,
        tuple(k),
        factorization=factorization,
        rank=rank,
        implementation=implementation,
        bias=bias is not None,
    )
    return spec, spec.from_kernel(weight, bias=bias, n_sweeps=n_sweeps)[0]
