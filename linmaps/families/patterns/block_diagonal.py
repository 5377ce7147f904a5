"""Equal blocks along the diagonal of W [in, out], zeros elsewhere."""

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
from linmaps.numerics.draws import uniform
from linmaps.numerics.linalg import inv, logabsdet
from linmaps.numerics.numeric import frobenius


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
    at_zero: ClassVar[str] = "0"

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
