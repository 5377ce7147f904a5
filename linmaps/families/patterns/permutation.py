"""Soft permutations: doubly stochastic products of interpolated riffles and reversals.  n = 2^m rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.draws import normal
from linmaps.numerics.numeric import eye_like, frobenius

# in multiplications of a matrix product, measured: one step of a level, per entry of x
STEP = 40


@register
@dataclass(frozen=True)
class Permutation(Map):
    """A soft permutation: a doubly stochastic W, a product of m - 1 levels, that training may bring to a permutation.

    n = 2^m.  The levels k = m - 1, ..., 1 cut x into runs of 2 s, s = 2^k, and mix, for p = sigmoid(logits[k - 1]),

        run <- (1 - p_0) run + p_0 (its even places, then its odd ones),
        half_h <- (1 - p_h) half_h + p_h (half_h in reverse),   h = 1, 2.

    The leaf "logits" is [m - 1, 3]; for n = 2 it is [1, 1] with one reversal of the two, and for n = 1 it is empty.  The
    products of these 2^(3 (m - 1)) choices are few of the n! permutations; bit reversal is among them.  `argmax` is the
    permutation of the more probable choices, which W approaches as the logits grow.

    The promise is hard: W >= 0, and rows and columns sum to 1, at any logits.  init: N(0, 1), far from a permutation; the
    promise fixes the scale, and inputs of unit variance give outputs of a variance between 1 / n and 1: sum(W^2) / n.
    `violation(W)` is the Frobenius norm of what rows and columns lack to sums 1, and of the negative entries.

    `apply` takes the 2 (m - 1) steps, or forms W where x has about as many rows as W or more.  Forming W costs as much as
    n rows do; below about n = 1024, a dense matrix that is formed once and used often is the faster choice.

    ValueError for an n that is not a power of two.

    Source: Dao et al., Learning fast algorithms for linear transforms using butterfly factorizations, 2019.

    >>> import torch, linmaps
    >>> spec = linmaps.Permutation(8)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> torch.allclose(W.sum(0), torch.ones(8)) and torch.allclose(W.sum(1), torch.ones(8))
    True
    """

    name: ClassVar[str] = "permutation"
    promise: ClassVar[str] = "doubly stochastic: W >= 0, rows and columns sum to 1"
    at_zero: ClassVar[str] = "mean of all choices"
    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        n, below = self.in_features, 2 ** (self.in_features.bit_length() - 1)
        self._expect(n == below, "in_features", f"a power of two; the nearest ones are {below} and {2 * below}")

    @property
    def _m(self) -> int:
        return self.in_features.bit_length() - 1

    @classmethod
    def _of_size(cls, rows: int, columns: int, **options: Any) -> Self:
        return cls(2 ** (rows.bit_length() - 1), **options)

    def _shapes(self) -> dict[str, Shape]:
        return {"logits": (1, 1) if self._m == 1 else (max(self._m - 1, 0), 3)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"logits": normal(generator, self._shapes()["logits"], dtype)}

    def argmax(self, params: Params) -> Tensor:
        """The permutation [n] of the more probable choices: `x[..., argmax]` is what `x @ W` approaches as logits grow.

        A logit of 0 counts as a choice not made.  The result is of dtype int64 and has no derivative.

        >>> import torch, linmaps
        >>> logits = torch.tensor([[2.0, -1.0, -1.0], [2.0, -1.0, -1.0]])
        >>> linmaps.Permutation(8).argmax({"logits": logits})
        tensor([0, 4, 2, 6, 1, 5, 3, 7])
        """
        self._check(params)
        chosen = params["logits"].detach() > 0
        places = torch.arange(self.in_features, device=chosen.device)

        def choose(i: int, h: int, x: Tensor, moved: Tensor) -> Tensor:
            return torch.where(chosen[i, h], moved, x)

        return self._levels(choose, places)

    def _levels(self, mix: Any, x: Tensor) -> Tensor:
        """All steps on x [..., n]; `mix(i, h, x, moved)` is choice h of level i + 1 between x and what it becomes."""
        lead = x.shape[:-1]
        if self._m == 1:
            return mix(0, 0, x, x.flip(-1))
        for k in range(self._m - 1, 0, -1):
            runs, s = 2 ** (self._m - 1 - k), 2**k
            run = mix(
                k - 1, 0, x.reshape(*lead, runs, 2 * s), x.reshape(*lead, runs, s, 2).mT.reshape(*lead, runs, 2 * s)
            )
            first, second = run.reshape(*lead, runs, 2, s).unbind(-2)
            first, second = mix(k - 1, 1, first, first.flip(-1)), mix(k - 1, 2, second, second.flip(-1))
            x = torch.stack([first, second], -2).reshape(*lead, self.in_features)
        return x

    def _mixed(self, params: Params, x: Tensor) -> Tensor:
        moving, staying = params["logits"].sigmoid(), (-params["logits"]).sigmoid()
        return self._levels(lambda i, h, x, moved: staying[i, h] * x + moving[i, h] * moved, x)

    def _weight(self, params: Params) -> Tensor:
        return self._mixed(params, eye_like(params["logits"], self.in_features))

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, rows, steps = self.in_features, x.numel() // self.in_features, 2 * max(self._m - 1, 1)
        if STEP * steps * (rows - n) > n * rows:
            return x @ self._weight(params)
        return self._mixed(params, x)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.sum(0) - 1, W.sum(1) - 1, W.clamp(max=0))
