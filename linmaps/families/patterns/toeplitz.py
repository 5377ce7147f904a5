"""Toeplitz matrices W [in, out]: one number along each diagonal."""

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

LARGE = 2**16  # entries of W from which on Fourier transforms are faster than the product with W, measured


@register
@dataclass(frozen=True)
class Toeplitz(Map):
    """A Toeplitz matrix, `W[i, j] = t[j - i + in - 1]`, with the leaf "diagonals" t [in + out - 1] from the lower left one on.

    x @ W is a part of the convolution of x with t.  `apply` goes by fast Fourier transforms where W has 2^16 entries or more,
    in (in + out) log(in + out) for each row and without W; below that, the product is faster.  `solve`, `logabsdet` and `eig`
    are those of the dense matrix.

    init: U(-1/sqrt(in), 1/sqrt(in)), so that inputs of unit variance give outputs of variance 1/3.  `violation(W)` is the
    distance to the nearest Toeplitz matrix, which `from_matrix` takes: means along the diagonals.  For a matrix that wraps
    around see `Circulant`.

    >>> import torch, linmaps
    >>> linmaps.Toeplitz(2, 3).effective_W({"diagonals": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    tensor([[2., 3., 4.],
            [1., 2., 3.]])
    """

    name: ClassVar[str] = "toeplitz"
    promise: ClassVar[str] = "W[i, j] depends on j - i"
    at_zero: ClassVar[str] = "0"
    half_ready: ClassVar[bool] = False

    def _shapes(self) -> dict[str, Shape]:
        return {"diagonals": (self.in_features + self.out_features - 1,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"diagonals": uniform(generator, self._shapes()["diagonals"], self.in_features**-0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        n, m, t = self.in_features, self.out_features, params["diagonals"]
        return _spread(t, n, m) if n <= m else _spread(t.flip(0), m, n).mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, m = self.in_features, self.out_features
        if n * m < LARGE or x.numel() == 0:  # an FFT refuses the empty batch
            return x @ self._weight(params)
        length = 1 << (n + m - 2).bit_length()  # what wraps around stays below n - 1
        filtered = torch.fft.rfft(x, n=length) * torch.fft.rfft(params["diagonals"], n=length)
        return torch.fft.irfft(filtered, n=length)[..., n - 1 : n + m - 1]

    def _means(self, W: Tensor) -> Tensor:
        wide = self.in_features <= self.out_features
        return homogeneous(_means, W) if wide else homogeneous(_means, W.mT).flip(0)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - self._weight({"diagonals": self._means(W)}))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"diagonals": self._means(W)}


def _spread(t: Tensor, n: int, m: int) -> Tensor:
    """W [n, m] with W[i, j] = t[j - i + n - 1], n <= m: n copies of t in lines longer by one, cut to m, the last one first.

    Tensor.unfold does it too, without a batched derivative.
    """
    lines = torch.nn.functional.pad(t.expand(n, m + n - 1).reshape(-1), (0, n))
    return lines.reshape(n, m + n)[:, :m].flip(0)


def _means(W: Tensor) -> Tensor:
    """Means along the diagonals of W [n, m], n <= m, [n + m - 1]: rows, the last one first, each shifted by one to the right."""
    n, m = W.shape
    stacked = torch.stack([W, torch.ones_like(W)]).flip(1)
    lines = torch.nn.functional.pad(stacked, (0, n)).reshape(2, n * (m + n))
    sums = lines[:, : n * (m + n - 1)].reshape(2, n, m + n - 1).sum(1)
    return sums[0] / sums[1]
