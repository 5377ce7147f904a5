"""Circulant matrices W [n, n]: circular convolutions, by the fast Fourier transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import uniform
from linmaps.numerics.numeric import frobenius, homogeneous


@register
@dataclass(frozen=True)
class Circulant(Map):
    """A circulant matrix, `W[i, j] = first[(j - i) mod n]`: x @ W is the circular convolution of x with the leaf "first" [n].

    Everything but W itself goes by the fast Fourier transform, in n log n: `apply`, `solve`, `inverse`, `logabsdet`, `eig`,
    `singular_values`.  init: U(-1/sqrt(n), 1/sqrt(n)), so that inputs of unit variance give outputs of variance 1/3.
    `violation(W)` is the distance to the nearest circulant matrix, which `from_matrix` takes: means along the diagonals.

    >>> import torch, linmaps
    >>> linmaps.Circulant(3).effective_W({"first": torch.tensor([1.0, 2.0, 3.0])})
    tensor([[1., 2., 3.],
            [3., 1., 2.],
            [2., 3., 1.]])
    """

    name: ClassVar[str] = "circulant"
    promise: ClassVar[str] = "W[i, j] depends on (j - i) mod n"
    at_zero: ClassVar[str] = "0"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False

    def _shapes(self) -> dict[str, Shape]:
        return {"first": (self.in_features,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"first": uniform(generator, (self.in_features,), self.in_features**-0.5, dtype)}

    def _diagonals(self, device: torch.device) -> Tensor:
        """(j - i) mod n, [n, n]."""
        at = torch.arange(self.in_features, device=device)
        return (at - at[:, None]) % self.in_features

    def _weight(self, params: Params) -> Tensor:
        return params["first"][self._diagonals(params["first"].device)]

    def _filtered(self, x: Tensor, response: Tensor) -> Tensor:
        """The circular convolution of x [..., n] with the kernel whose rfft is `response`."""
        if x.numel() == 0:
            return x * response.real.sum()  # an FFT refuses the empty batch
        return torch.fft.irfft(torch.fft.rfft(x) * response, n=self.in_features)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return self._filtered(x, torch.fft.rfft(params["first"]))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return self._filtered(y, 1 / torch.fft.rfft(params["first"]))

    def _inverse(self, params: Params) -> Tensor:
        first = torch.fft.irfft(1 / torch.fft.rfft(params["first"]), n=self.in_features)
        return self._weight({"first": first})

    def _logabsdet(self, params: Params) -> Tensor:
        return torch.fft.fft(params["first"]).abs().log().sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        n, first = self.in_features, params["first"]
        values = torch.fft.ifft(first, norm="forward")
        if not vectors:
            return values, None
        eye = torch.eye(n, dtype=values.dtype, device=values.device)
        return values, torch.fft.ifft(eye, dim=0, norm="ortho")

    def _singular_values(self, params: Params) -> Tensor:
        return torch.fft.fft(params["first"]).abs().sort(descending=True).values

    def _means(self, W: Tensor) -> Tensor:
        n = self.in_features
        at = torch.arange(n, device=W.device)
        return homogeneous(lambda t: t.mean(0), W[at[:, None], (at + at[:, None]) % n])

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - self._weight({"first": self._means(W)}))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"first": self._means(W)}
