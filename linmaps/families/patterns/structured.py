"""Matrices with few parameters and cheap products: low rank, circulant, block diagonal.  W [in, out]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import generic, normal, uniform
from linmaps.numerics.linalg import inv, logabsdet
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.singular import product_svdvals


@register
@dataclass(frozen=True)
class LowRank(Map):
    """A matrix of bounded rank, `W = U V` with leaves "U" [in, rank] and "V" [rank, out].

    rank is half of min(in, out), at least 1, unless given.  `apply` goes through the rank when that is cheaper.  init: normal
    U of variance 1/in and V of variance 1/(3 rank), so that inputs of unit variance give outputs of variance 1/3.
    `singular_values` are computed at size rank.  `violation(W)` is the distance to the nearest matrix of that rank, which
    `from_matrix` takes (truncated SVD, Eckart and Young 1936), its singular values shared evenly between U and V.  Where W has
    a lower rank, the other columns of U are generic and rows of V are 0, so that they can still learn.

    ValueError for a rank outside 1..min(in, out).

    >>> import torch, linmaps
    >>> spec = linmaps.LowRank(100, 80, 5)
    >>> spec.n_params, torch.linalg.matrix_rank(spec.effective_W(spec.init(torch.Generator().manual_seed(0)))).item()
    (900, 5)
    """

    name: ClassVar[str] = "low_rank"
    promise: ClassVar[str] = "rank W <= rank"
    half_ready: ClassVar[bool] = False

    rank: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if vars(self)["rank"] is None:
            object.__setattr__(self, "rank", max(1, min(self.in_features, self.out_features) // 2))
        self._expect_int("rank", 1, min(self.in_features, self.out_features))

    def _shapes(self) -> dict[str, Shape]:
        return {"U": (self.in_features, self.rank), "V": (self.rank, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes = self._shapes()
        U = self.in_features**-0.5 * normal(generator, shapes["U"], dtype)
        return {"U": U, "V": (3 * self.rank) ** -0.5 * normal(generator, shapes["V"], dtype)}

    def _weight(self, params: Params) -> Tensor:
        return params["U"] @ params["V"]

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, m, k, rows = self.in_features, self.out_features, self.rank, x.numel() // self.in_features
        if k * n * m + rows * n * m < rows * k * (n + m):
            return x @ self._weight(params)
        return (x @ params["U"]) @ params["V"]

    def _singular_values(self, params: Params) -> Tensor:
        return product_svdvals(params["U"], params["V"])

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(lapack.svdvals(W)[self.rank :])

    def _from_matrix(self, W: Tensor) -> Params:
        U, s, V = lapack.svd(W)
        U, largest, s, V = U[:, : self.rank], s[0], s[: self.rank], V[: self.rank]
        none = s <= max(W.shape) * torch.finfo(s.dtype).eps * largest
        share = torch.where(none, torch.where(largest > 0, largest, 1.0), s).sqrt()
        U = torch.where(none, torch.nn.functional.normalize(generic(U, *U.shape), dim=0), U)
        return {"U": U * share, "V": torch.where(none, 0.0, share)[:, None] * V}


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
        return W[at[:, None], (at + at[:, None]) % n].mean(0)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - self._weight({"first": self._means(W)}))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"first": self._means(W)}


def block_count(in_features: int, out_features: int) -> int:
    """The default number of blocks: the largest b that divides both sizes and has b^2 <= min(in, out)."""
    common = math.gcd(in_features, out_features)
    return max(b for b in range(1, common + 1) if common % b == 0 and b * b <= min(in_features, out_features))


def check_blocks(spec: Map) -> None:
    """Fill in or check the option n_blocks, which must divide both sizes."""
    if vars(spec)["n_blocks"] is None:
        object.__setattr__(spec, "n_blocks", block_count(spec.in_features, spec.out_features))
    spec._expect_int("n_blocks", 1, None)
    common = math.gcd(spec.in_features, spec.out_features)
    divisors = [b for b in range(1, common + 1) if common % b == 0]
    spec._expect(
        vars(spec)["n_blocks"] in divisors, "n_blocks", f"a divisor of in_features and out_features, {divisors}"
    )


@register
@dataclass(frozen=True)
class BlockDiagonal(Map):
    """Blocks along the diagonal, zeros elsewhere, from the leaf "blocks" [n_blocks, in / n_blocks, out / n_blocks].

    n_blocks divides both sizes; it is the largest such b with b^2 <= min(in, out) unless given.  Everything goes block by
    block in one batched product: `apply`, `solve`, `inverse`, `logabsdet`, the spectrum.  init: U(-b, b), b = (n_blocks /
    in)^(1/2), so that inputs of unit variance give outputs of variance 1/3.  `violation(W)` is the norm of the entries
    outside the blocks; `from_matrix` drops them.  To put different maps on the diagonal, see `Block.diagonal`.

    ValueError for n_blocks that does not divide both sizes.

    >>> import torch, linmaps
    >>> linmaps.BlockDiagonal(2, 4, 2).effective_W({"blocks": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])})
    tensor([[1., 2., 0., 0.],
            [0., 0., 3., 4.]])
    """

    name: ClassVar[str] = "block_diagonal"
    promise: ClassVar[str] = "zero outside the diagonal blocks"

    n_blocks: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blocks(self)

    def _shapes(self) -> dict[str, Shape]:
        b = self.n_blocks
        return {"blocks": (b, self.in_features // b, self.out_features // b)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            "blocks": uniform(generator, self._shapes()["blocks"], (self.n_blocks / self.in_features) ** 0.5, dtype)
        }

    def _weight(self, params: Params) -> Tensor:
        return self._spread(params["blocks"])

    def _spread(self, blocks: Tensor) -> Tensor:
        b, p, q = blocks.shape
        eye = torch.eye(b, dtype=blocks.dtype, device=blocks.device)
        return (blocks[:, :, None, :] * eye[:, None, :, None]).reshape(b * p, b * q)

    def _times(self, x: Tensor, blocks: Tensor) -> Tensor:
        b, p, q = blocks.shape
        rows = x.reshape(-1, b, p).transpose(0, 1)
        return (rows @ blocks).transpose(0, 1).reshape(*x.shape[:-1], b * q)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return self._times(x, params["blocks"])

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return self._times(y, self._inverses(params))

    @staticmethod
    def _inverses(params: Params) -> Tensor:
        return torch.func.vmap(inv)(params["blocks"])

    def _inverse(self, params: Params) -> Tensor:
        return self._spread(self._inverses(params))

    def _logabsdet(self, params: Params) -> Tensor:
        return torch.func.vmap(logabsdet)(params["blocks"]).sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not vectors:
            return lapack.eigvals(params["blocks"]).flatten(), None
        values, right = lapack.eig(params["blocks"])
        return values.flatten(), self._spread(right)

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.svdvals(params["blocks"]).flatten().sort(descending=True).values

    def _blocks(self, W: Tensor) -> Tensor:
        b, p, q = self._shapes()["blocks"]
        return W.reshape(b, p, b, q).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - self._spread(self._blocks(W)))

    def _from_matrix(self, W: Tensor) -> Params:
        return {"blocks": self._blocks(W).contiguous()}
