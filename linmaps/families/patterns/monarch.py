"""Monarch matrices: two block-diagonal factors with a transposition between them.

b blocks; p and r rows and columns of a block of W, q = min(p, r) the width between the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.patterns.block_diagonal import check_blocks
from linmaps.numerics import lapack
from linmaps.numerics.draws import uniform
from linmaps.numerics.linalg import logabsdet, solve
from linmaps.numerics.numeric import frobenius


@register
@dataclass(frozen=True)
class Monarch(Map):
    """A product of two block-diagonal matrices with a shuffle between them, `W = diag(F_1..F_b) P diag(S_1..S_b)`.

    in = b p, out = b r, q = min(p, r); the leaf "first" [b, p, q] holds F, "second" [b, q, r] holds S, and P transposes:
    the b rows of q numbers after F are read column by column, and the sequence is cut into b rows of q again for S.

    As seen on W, a grid of b x b blocks [p, r]: number u of row k goes to the place u b + k of the sequence, which feeds
    S_c for c = (u b + k) // q; so block (k, c) of W is any matrix of rank at most the number of such u, q / b where b
    divides q, and the blocks do not depend on each other.  W may have full rank.  b = 1 is a free matrix.

    n_blocks: b, a common divisor of in and out; unless given, the largest one with b^2 <= min(in, out), for which
    parameters and multiplications are 2 / b of those of a dense W when it is square.

    init: U(-sqrt(3 / p), sqrt(3 / p)) for F and U(-1/sqrt(q), 1/sqrt(q)) for S, so that inputs of unit variance give
    outputs of variance 1/3.  `violation(W)` is the Frobenius distance to the nearest matrix of this form, which
    `from_matrix` finds, by the singular value decomposition of each block.  `apply` takes two batched products and no W.

    ValueError for an n_blocks that does not divide both sizes, TypeError if it is not an int.

    Source: Dao et al., Monarch: expressive structured matrices for efficient and accurate training, 2022.

    >>> import torch, linmaps
    >>> spec = linmaps.Monarch(64, 32)
    >>> spec.shapes()
    {'first': (4, 16, 8), 'second': (4, 8, 8)}
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> x = torch.ones(64)
    >>> torch.allclose(spec.apply(params, x), x @ spec.effective_W(params), atol=1e-6)
    True
    """

    name: ClassVar[str] = "monarch"
    promise: ClassVar[str] = "b x b blocks, of rank q / b each"
    at_zero: ClassVar[str] = "0"

    n_blocks: int = None  # type: ignore[assignment]  # filled below

    def __post_init__(self) -> None:
        super().__post_init__()
        integer = isinstance(self.n_blocks, (int, type(None))) and not isinstance(self.n_blocks, bool)
        self._expect(
            integer,
            "n_blocks",
            "a positive int; n_blocks is the third positional argument, bias a keyword",
            error=TypeError,
        )
        check_blocks(self)

    def _shapes(self) -> dict[str, Shape]:
        b = self.n_blocks
        p, r = self.in_features // b, self.out_features // b
        return {"first": (b, p, min(p, r)), "second": (b, min(p, r), r)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        first, second = self._shapes().values()
        return {
            "first": uniform(generator, first, (3 / first[1]) ** 0.5, dtype),
            "second": uniform(generator, second, second[1] ** -0.5, dtype),
        }

    def _weight(self, params: Params) -> Tensor:
        b, p, q = params["first"].shape
        # each block-row of W is F_k spread over the sequence, times the second factor
        spread = torch.diag_embed(params["first"].permute(1, 2, 0)).permute(2, 0, 1, 3)  # [k, p, u, k]
        return (spread.reshape(b * p, b, q).transpose(0, 1) @ params["second"]).transpose(0, 1).reshape(b * p, -1)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        b, p, q = params["first"].shape
        rows = x.numel() // self.in_features
        z = torch.bmm(x.reshape(rows, b, p).transpose(0, 1), params["first"])
        z = z.permute(1, 2, 0).reshape(rows, b, q).transpose(0, 1)
        return torch.bmm(z, params["second"]).transpose(0, 1).reshape(*x.shape[:-1], self.out_features)

    # --- the set, block by block -------------------------------------------------------------------------------------

    def _grid(self, W: Tensor) -> Tensor:
        """The blocks [b, b, p, r] of W."""
        b = self.n_blocks
        return W.reshape(b, self.in_features // b, b, self.out_features // b).transpose(1, 2)

    def _sequence(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of number u of row k, as [b, q] each: the row c and the place in it that it goes to, and which it is of c's."""
        b, _, q = self._shapes()["first"]
        k, u = torch.arange(b, device=like.device)[:, None], torch.arange(q, device=like.device)
        c = (u * b + k) // q
        return c, (u * b + k) % q, u - (c * q - k + b - 1) // b

    def _violation(self, W: Tensor) -> Tensor:
        b, _, q = self._shapes()["first"]
        k, c = torch.arange(b, device=W.device)[:, None], torch.arange(b, device=W.device)
        rank = ((c + 1) * q - k + b - 1) // b - (c * q - k + b - 1) // b
        tail = torch.arange(q, device=W.device) >= rank[..., None]
        return frobenius(torch.where(tail, lapack.svdvals(self._grid(W)), 0.0))

    def _from_matrix(self, W: Tensor) -> Params:
        U, s, V = lapack.svd(self._grid(W))
        c, place, which = self._sequence(W)
        b, q = c.shape
        k = torch.arange(b, device=W.device)[:, None]
        back = (c * q + place).reshape(-1).argsort()
        # all of the scale in the second factor, so that zero blocks can still learn
        second = (s[..., None] * V)[k, c, which]
        return {"first": U[k, c, :, which].mT, "second": second.reshape(b * q, -1)[back].reshape(b, q, -1)}

    # --- square maps: blocks p = q = r, each with an inverse ---------------------------------------------------------

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        b, _, q = params["first"].shape
        rows = y.numel() // self.out_features
        z = vmap(solve)(params["second"].mT, y.reshape(rows, b, q).permute(1, 2, 0))  # [b, q, rows]
        z = z.permute(2, 0, 1).reshape(rows, q, b).transpose(1, 2)
        return vmap(solve)(params["first"].mT, z.permute(1, 2, 0)).permute(2, 0, 1).reshape(y.shape)

    def _logabsdet(self, params: Params) -> Tensor:
        return vmap(logabsdet)(params["first"]).sum() + vmap(logabsdet)(params["second"]).sum()
