"""The identity as a map W [in, out]: no entry is a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.numeric import eye_like, frobenius


@register
@dataclass(frozen=True)
class Identity(Map):
    """The identity, `W = eye(in, out)`, cut or padded with zeros if rectangular; it has no params but the bias.

    `apply` follows x.  `effective_W` and the spectrum, which have nothing to follow, take their dtype and device from
    the bias where there is one, else from torch's defaults or from the arguments of `effective_W`.  Outputs have
    variance min(in, out) / out for inputs of unit variance.  `violation(W)` is the distance to the identity.

    >>> import torch, linmaps
    >>> spec = linmaps.Identity(2, 3)
    >>> spec.effective_W({}, dtype=torch.float64)
    tensor([[1., 0., 0.],
            [0., 1., 0.]], dtype=torch.float64)
    >>> spec.apply({}, torch.ones(2))
    tensor([1., 1., 0.])
    """

    name: ClassVar[str] = "identity"
    promise: ClassVar[str] = "W = eye(in, out)"
    at_zero: ClassVar[str] = "I"

    def effective_W(
        self, params: Params, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """`eye(in, out)` in the given dtype and on the given device.

        >>> import linmaps
        >>> linmaps.Identity(1).effective_W({})
        tensor([[1.]])
        """
        return super().effective_W(params).to(dtype=dtype, device=device)

    def _shapes(self) -> dict[str, Shape]:
        return {}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {}

    def _weight(self, params: Params) -> Tensor:
        return eye_like(self._like(params), self.in_features, self.out_features)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        kept = x[..., : self.out_features]
        return torch.nn.functional.pad(kept, (0, self.out_features - kept.shape[-1]))

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - eye_like(W, *W.shape))

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        W = self._weight(params)
        return W.diagonal(), W if vectors else None

    def _singular_values(self, params: Params) -> Tensor:
        return self._weight(params).diagonal()

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return y

    def _inverse(self, params: Params) -> Tensor:
        return self._weight(params)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._like(params).new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        return {}
