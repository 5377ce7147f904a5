"""From given kernels to a spec and params: one, or several as one joint tensor.  Kernels are torch's, [out, in, *k]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.convolutions.conv import ConvFactorization, FactorizedConv
from linmaps.factorized.kinds.names import Implementation
from linmaps.factorized.tensors.ranks import Rank


@door
@typed
def factorize_conv(
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor | None] | None = None,
    *,
    factorization: ConvFactorization = "cp",
    rank: Rank = "same",
    implementation: Implementation = "auto",
    n_sweeps: int | None = None,
    compat: bool = False,
) -> tuple[FactorizedConv, dict[str, Tensor]]:
    """A spec and params near the weight [out, in, *k] of one of torch's convolutions, and its bias [out].

    A list of weights of one shape becomes the layers of one joint kernel; then bias is a list of both (a missing one becomes
    zeros where another has one), and `spec.apply_conv(params, x, layer)` is one of them.
    `spec.from_kernel(weight, bias=bias)` says the same and how far away the kernel is.  An nn.Parameter is taken detached;
    through other tensors there are derivatives.  A weight of a convolution with groups is [out, in / groups, *k] and is
    factorized as such; see `FactorizedConv`.

    ValueError or TypeError for a weight that is no kernel of 1 to 3 axes, weights of several shapes or dtypes, an empty list,
    or what `from_kernel` refuses.

    >>> import torch
    >>> weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    >>> spec, params = factorize_conv(weight, factorization="tt", rank=0.9)
    >>> error = (spec.kernel(params) - weight).norm() / weight.norm()
    >>> spec.ranks, round(spec.ratio, 2), round(error.item(), 2)
    ((1, 4, 4, 8, 1), 0.78, 0.57)
    >>> spec, params = factorize_conv([weight, weight.flip(0)], factorization="tucker", rank=0.5)
    >>> spec.n_layers, spec.apply_conv(params, torch.ones(2, 4, 9, 9), 1).shape
    (2, torch.Size([2, 8, 7, 7]))
    """
    joint = isinstance(weight, (list, tuple))
    weights: list[Any] = list(weight) if joint else [weight]
    biases: list[Any] = list(bias) if isinstance(bias, (list, tuple)) else [bias] * len(weights)
    if not weights or len(biases) != len(weights) or (len(weights) > 1 and isinstance(bias, Tensor)):
        raise ValueError(
            f"factorize_conv: got {len(weights)} weights and {'one bias' if isinstance(bias, Tensor) else len(biases)}, "
            "expected at least one weight and a list of as many biases, each a tensor or None"
        )
    names = [f"factorize_conv: weight{f' {k}' * joint}" for k in range(len(weights))]
    weights = [_kernel(w, name) for w, name in zip(weights, names)]
    _alike(weights, "factorize_conv: weight")
    first = weights[0]
    out, c, *k = first.shape
    given = [b.detach() if isinstance(b, nn.Parameter) else b for b in biases]
    stacked = None
    if any(b is not None for b in given):
        for j, b in enumerate(given):
            if b is not None and (not isinstance(b, Tensor) or tuple(b.shape) != (out,)):
                got = f"has shape {tuple(b.shape)}" if isinstance(b, Tensor) else f"is {type(b).__name__}"
                error = ValueError if isinstance(b, Tensor) else TypeError
                raise error(f"factorize_conv: bias{f' {j}' * joint} {got}, expected shape ({out},), or None")
        filled = [first.new_zeros(out) if b is None else b for b in given]
        _alike(filled, "factorize_conv: bias")
        stacked = torch.stack(filled) if len(weights) > 1 else filled[0]
    spec = FactorizedConv(
        c,
        out,
        tuple(k),
        factorization=factorization,
        rank=rank,
        implementation=implementation,
        n_layers=len(weights),
        compat=compat,
        bias=stacked is not None,
    )
    kernels = torch.stack(weights) if len(weights) > 1 else first
    return spec, spec.from_kernel(kernels, bias=stacked, n_sweeps=n_sweeps)[0]


def _kernel(weight: Any, name: str) -> Tensor:
    if not isinstance(weight, Tensor) or not 3 <= weight.ndim <= 5:
        got = f"of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        error = ValueError if isinstance(weight, Tensor) else TypeError
        cure = "; give conv.weight and conv.bias" if isinstance(weight, nn.Module) else ""
        raise error(f"{name} is {got}, expected a tensor [out, in, *k] with 1 to 3 sizes k{cure}")
    return weight.detach() if isinstance(weight, nn.Parameter) else weight


def _alike(tensors: list[Tensor], name: str) -> None:
    first = tensors[0]
    for k, t in enumerate(tensors):
        if (t.shape, t.dtype, t.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"{name} {k} is {tuple(t.shape)} of {t.dtype} on {t.device}, expected {tuple(first.shape)} of {first.dtype} on "
                f"{first.device}, as the first; convert it, or factorize it by itself"
            )
