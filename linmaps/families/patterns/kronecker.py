"""Kronecker products of small free matrices.  Factor k is [in_shape[k], out_shape[k]]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.patterns.arrays import OfArrays
from linmaps.numerics import lapack
from linmaps.numerics.draws import generic, normal
from linmaps.numerics.eigen import eigh
from linmaps.numerics.linalg import inv, logabsdet
from linmaps.numerics.numeric import binade, frobenius, norm_or


@register
@dataclass(frozen=True)
class Kronecker(OfArrays):
    """A Kronecker product, `W = A_0 (x) A_1 (x) ...`, of factors "A0", "A1", ... with shapes [in_shape[k], out_shape[k]].

    `Kronecker(in_shape, out_shape)`: in_features and out_features are the products of the shapes; out_shape is in_shape
    unless given; an int stands for factors as equal as its divisors allow, two
    unless the other shape says how many.  Seen as an array of in_shape, x is
    multiplied along each axis by one factor, so `apply` never forms W and costs about (in + out) max(shape) per row;
    `solve`, `inverse`, `logabsdet` and the spectrum go by factor where all factors are square.  init: normal factors of
    variance (1/3)^(1/K) / in_shape[k], K factors, so that inputs of unit variance give outputs of variance 1/3 (with heavier
    tails, the more factors).  `violation(W)` is the distance to what `from_matrix` makes: for two factors the nearest such
    matrix (Van Loan and Pitsianis 1993), for more the first factor is split off and the rest treated alike, which is
    exact for a Kronecker product and within a factor sqrt(K - 1) of the best; for W = 0 all factors but the last are
    generic, so that it can still learn.

    ValueError or TypeError for shapes that are not of positive ints, or of different lengths.

    >>> import torch, linmaps
    >>> spec = linmaps.Kronecker((2, 3), (4, 2))
    >>> spec.in_features, spec.out_features, spec.n_params
    (6, 8, 14)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> torch.equal(spec.effective_W(params), torch.kron(params["A0"], params["A1"]))
    True
    """

    name: ClassVar[str] = "kronecker"
    promise: ClassVar[str] = "W is a Kronecker product"
    at_zero: ClassVar[str] = "0"

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...] = None  # type: ignore[assignment]
    in_features: int = field(init=False, repr=False)
    out_features: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        same = len(self.in_shape) == len(self.out_shape)
        self._expect(same, "out_shape", f"{len(self.in_shape)} sizes, as in_shape={self.in_shape}; pad with ones")

    @property
    def _by_factor(self) -> bool:
        return self.in_shape == self.out_shape

    def _shapes(self) -> dict[str, Shape]:
        return {f"A{k}": shape for k, shape in enumerate(zip(self.in_shape, self.out_shape))}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        third = (1 / 3) ** (1 / len(self.in_shape))
        return {k: (third / s[0]) ** 0.5 * normal(generator, s, dtype) for k, s in self._shapes().items()}

    def _factors(self, params: Params) -> list[Tensor]:
        return [params[k] for k in self._shapes()]

    def _weight(self, params: Params) -> Tensor:
        return reduce(torch.kron, self._factors(params))

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        return self._along(x, self._factors(params))

    @staticmethod
    def _along(x: Tensor, factors: list[Tensor]) -> Tensor:
        y = x.reshape(-1, *[A.shape[0] for A in factors])  # a list: torch.compile knows no generator here
        for A in factors:  # the first axis is used up, its product comes last: after the last factor the order is right
            y = torch.tensordot(y, A, dims=([1], [0]))
        return y.reshape(*x.shape[:-1], math.prod([A.shape[1] for A in factors]))

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        if not self._by_factor:
            return super()._solve(params, y)
        return self._along(y, [inv(A) for A in self._factors(params)])

    def _inverse(self, params: Params) -> Tensor:
        if not self._by_factor:
            return super()._inverse(params)
        return reduce(torch.kron, [inv(A) for A in self._factors(params)])

    def _logabsdet(self, params: Params) -> Tensor:
        if not self._by_factor:
            return super()._logabsdet(params)
        terms = [self.in_features / len(A) * logabsdet(A) for A in self._factors(params)]
        return torch.stack(terms).sum()

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not self._by_factor:
            return super()._eig(params, vectors)
        if not vectors:
            return reduce(torch.kron, [lapack.eigvals(A) for A in self._factors(params)]), None
        pairs = [lapack.eig(A) for A in self._factors(params)]
        return reduce(torch.kron, [p[0] for p in pairs]), reduce(torch.kron, [p[1] for p in pairs])

    def _singular_values(self, params: Params) -> Tensor:
        s = reduce(torch.kron, [lapack.svdvals(A) for A in self._factors(params)]).sort(descending=True).values
        return torch.nn.functional.pad(s, (0, min(self.in_features, self.out_features) - len(s)))

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W - self._weight(self._from_matrix(W)))

    def _from_matrix(self, W: Tensor) -> Params:
        factors, scale = [], binade(W)
        root, W = binade(scale ** (1 / len(self.in_shape))), W / scale  # each factor has a share of the size
        for k in range(len(self.in_shape) - 1):
            p, q = self.in_shape[k], self.out_shape[k]
            rest = W.reshape(p, W.shape[0] // p, q, W.shape[1] // q)
            blocks = rest.transpose(1, 2).reshape(p * q, -1)  # a Kronecker product becomes an outer product
            size = blocks.detach().abs().amax()
            none = size == 0
            scaled = blocks / torch.where(none, 1.0, size)
            # the leading left singular vector, with derivatives where other singular values are 0 or repeat
            u = eigh(scaled @ scaled.mT)[1][:, -1]
            u = torch.where(none, torch.nn.functional.normalize(generic(u, p * q), dim=0), u)
            right = u @ blocks
            share = norm_or(right) ** (1 / (len(self.in_shape) - k))
            factors.append((share * u).reshape(p, q))
            W = (right / share).reshape(rest.shape[1], rest.shape[3])
        rest = scale
        for k, A in enumerate(factors):
            factors[k], rest = root * A, rest / root
        return {f"A{k}": A for k, A in enumerate([*factors, rest * W])}
