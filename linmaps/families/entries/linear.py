"""Free matrices: every entry of W [in, out] is a parameter, which starts at random or at the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import uniform


@register
@dataclass(frozen=True)
class Linear(Map):
    """A free matrix, `W[i, o] = params["W"][i, o]`: no promise.

    W [in, out] is the transpose of `torch.nn.Linear.weight`; `from_module` converts.  init: U(-1/sqrt(in),
    1/sqrt(in)), as torch.nn.Linear, so that inputs of unit variance give outputs of variance 1/3 in tall and wide maps.

    >>> import torch, linmaps
    >>> spec = linmaps.Linear(3, 2, bias=True)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> x = torch.ones(5, 3)
    >>> torch.equal(spec.apply(params, x), x @ spec.effective_W(params) + params["bias"])
    True
    """

    name: ClassVar[str] = "linear"
    promise: ClassVar[str] = "none: a free matrix"
    at_zero: ClassVar[str] = "0"

    def _shapes(self) -> dict[str, Shape]:
        return {"W": (self.in_features, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"W": uniform(generator, (self.in_features, self.out_features), self.in_features**-0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return params["W"]

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        return {"W": W.clone()}


@register
@dataclass(frozen=True)
class IdentityInit(Linear):
    """A free matrix that starts at the identity, `W = eye(in, out)`: no promise.

    init draws nothing but the bias: outputs are the inputs, cut or padded with zeros, of variance min(in, out) / out.

    >>> import torch, linmaps
    >>> linmaps.IdentityInit(2, 3).init(torch.Generator())
    {'W': tensor([[1., 0., 0.],
            [0., 1., 0.]])}
    """

    name: ClassVar[str] = "identity_init"
    promise: ClassVar[str] = "none: a free matrix that starts at the identity"
    at_zero: ClassVar[str] = "0"

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"W": torch.eye(self.in_features, self.out_features, dtype=dtype, device=generator.device)}
