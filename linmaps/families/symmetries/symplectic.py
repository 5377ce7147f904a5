"""Maps of phase space, rows x = (q, p) of n = 2 m numbers: symplectic, Hamiltonian, and skew by blocks.

J = [[0, I], [-I, 0]] [n, n] throughout, in blocks of m rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.linalg import inv, logabsdet, solve
from linmaps.numerics.numeric import eye_like, frobenius
from linmaps.numerics.packing import symmetric
from linmaps.numerics.ranges import squashed


class Even(Map):
    """A square map of an even number n = 2 m of features."""

    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.in_features
        self._expect(n % 2 == 0, "in_features", f"an even number, for q and p of equal size; use {n - 1} or {n + 1}")

    @property
    def _m(self) -> int:
        return self.in_features // 2

    @classmethod
    def _of_size(cls, rows: int, columns: int, **options: Any) -> Map:
        return cls(max(2, rows - rows % 2), **options)


def times_J(W: Tensor) -> Tensor:
    """`J @ W` for W [n, k]."""
    top, bottom = W.chunk(2)
    return torch.cat([bottom, -top])


@register
@dataclass(frozen=True)
class Symplectic(Even):
    """A symplectic matrix, W'JW = J with J = [[0, I], [-I, 0]]: W keeps areas in phase space, and |det W| = 1.

        W = F_0 F_1 ... F_{k-1},    F_i = [[I, 0], [A_i, I]] for even i, [[I, A_i], [0, I]] for odd i,

    A_i = S_i asinh(|S_i|) / |S_i| (Frobenius norm) symmetric [m, m], which reaches every A but keeps a product of
    factors with outlying params within reach of floating point.  The leaf "factors" [n_factors, m (m + 1) / 2] holds the
    upper triangles of the S_i row by row.  Zero params give W = I.  Five factors reach every symplectic matrix.

    `apply` and `solve` go through the factors without forming W unless x has many rows, `inverse` is -J W'J, and
    `logabsdet` is 0.  init: entries of S_i from N(0, 1 / n^2), which is near the identity: inputs of unit variance
    give outputs of variance between 1 and 1 + 2 / n, as |det W| = 1 allows no less than 1.

    `violation(W)` is |W'JW - J| / max(1, |W|^2), in Frobenius norms: rounding the entries of W alone gives |W'JW - J| of
    about eps |W|^2, however W came about.

    ValueError for an odd number of features, or n_factors that is not a positive int.

    Source: Jin, Lin and Xiao, "Optimal unit triangular factorization of symplectic matrices".

    >>> import torch, linmaps
    >>> spec = linmaps.Symplectic(4)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0), dtype=torch.float64))
    >>> J = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]], dtype=torch.float64)
    >>> torch.allclose(W.T @ J @ W, J)
    True
    """

    name: ClassVar[str] = "symplectic"
    promise: ClassVar[str] = "W'JW = J"
    half_ready: ClassVar[bool] = False

    n_factors: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_int("n_factors", 1, None)

    def _shapes(self) -> dict[str, Shape]:
        return {"factors": (self.n_factors, self._m * (self._m + 1) // 2)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"factors": normal(generator, self._shapes()["factors"], dtype) / (2 * self._m)}

    def _factors(self, params: Params) -> list[Tensor]:
        """The A_i [m, m]."""
        m, packed = self._m, params["factors"]
        return [squashed(S, frobenius(S)) for S in (symmetric(row, m) for row in packed.unbind())]

    @staticmethod
    def _through(x: Tensor, factors: list[Tensor], first: int, sign: int) -> Tensor:
        """x times the factors, the first of which turns q by p if `first` is 0, p by q if it is 1."""
        q, p = x.chunk(2, dim=-1)
        for i, A in enumerate(factors):
            if (i + first) % 2 == 0:
                q = q + sign * (p @ A)
            else:
                p = p + sign * (q @ A)
        return torch.cat([q, p], dim=-1)

    def _weight(self, params: Params) -> Tensor:
        return self._through(eye_like(params["factors"], self.in_features), self._factors(params), 0, 1)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        # k factors cost k m^2 per row, W costs 4 m^2 per row once k factors were applied to its n rows
        n, k, rows = self.in_features, self.n_factors, x.numel() // self.in_features
        if k * n + 4 * rows < k * rows:
            return x @ self._weight(params)
        return self._through(x, self._factors(params), 0, 1)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        return self._through(y, self._factors(params)[::-1], (self.n_factors - 1) % 2, -1)

    def _inverse(self, params: Params) -> Tensor:
        (a, b), (c, d) = (half.chunk(2, dim=1) for half in self._weight(params).chunk(2))
        return torch.cat([torch.cat([d.mT, -b.mT], dim=1), torch.cat([-c.mT, a.mT], dim=1)])

    def _logabsdet(self, params: Params) -> Tensor:
        return params["factors"].new_zeros(())

    def _violation(self, W: Tensor) -> Tensor:
        residual = frobenius(W.mT @ times_J(W) - times_J(eye_like(W, len(W))))
        return residual / W.square().sum().clamp(min=1)


@register
@dataclass(frozen=True)
class Hamiltonian(Even):
    """A Hamiltonian matrix, `W = -J S` with S symmetric, J = [[0, I], [-I, 0]]: J W is symmetric, and exp(W t) symplectic.

    The leaf "upper" [n (n + 1) / 2] is the upper triangle of S row by row.  Eigenvalues come in pairs +-lambda, and x exp(W
    t) neither grows nor decays on the whole.  init: U(-1/sqrt(n), 1/sqrt(n)), which gives outputs of variance 1/3 for
    inputs of unit variance.  `violation(W)` is the Frobenius norm of J W - (J W)'; `from_matrix` takes the nearest W.

    ValueError for an odd number of features.

    >>> import torch, linmaps
    >>> linmaps.Hamiltonian(2).effective_W({"upper": torch.tensor([1.0, 2.0, 3.0])})
    tensor([[-2., -3.],
            [ 1.,  2.]])
    """

    name: ClassVar[str] = "hamiltonian"
    promise: ClassVar[str] = "J W = (J W)'"
    time: ClassVar[str] = "continuous"

    def _shapes(self) -> dict[str, Shape]:
        return {"upper": (self.in_features * (self.in_features + 1) // 2,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"upper": uniform(generator, self._shapes()["upper"], self.in_features**-0.5, dtype)}

    def _symmetric(self, params: Params) -> Tensor:
        return symmetric(params["upper"], self.in_features)

    def _weight(self, params: Params) -> Tensor:
        return -times_J(self._symmetric(params))

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.eigvalsh(self._symmetric(params)).abs().sort(descending=True).values

    def _violation(self, W: Tensor) -> Tensor:
        S = times_J(W)
        return frobenius(S - S.mT)

    def _from_matrix(self, W: Tensor) -> Params:
        S = times_J(W)
        rows, columns = torch.triu_indices(len(W), len(W), device=W.device)
        return {"upper": ((S + S.mT) / 2)[rows, columns]}


@register
@dataclass(frozen=True)
class BlockSkew(Even):
    """A skew-symmetric matrix of two blocks, `W = [[0, A], [-A', 0]]`: W == -W' bit by bit, q drives p and p drives q.

    The leaf "A" is [m, m].  Eigenvalues are +-i sigma for the singular values sigma of A, singular values sigma twice:
    both cost a decomposition of A, as `solve`, `inverse` and `logabsdet` do, and `apply` multiplies by A alone.  init:
    U(-1/sqrt(m), 1/sqrt(m)), which gives outputs of variance 1/3 for inputs of unit variance.  `violation(W)` is the
    Frobenius distance to the nearest such matrix, which `from_matrix` takes.

    ValueError for an odd number of features.

    Source: the antisymmetric blocks of Haber and Ruthotto, "Stable architectures for deep neural networks".

    >>> import torch, linmaps
    >>> linmaps.BlockSkew(2).effective_W({"A": torch.tensor([[3.0]])})
    tensor([[ 0.,  3.],
            [-3.,  0.]])
    """

    name: ClassVar[str] = "block_skew"
    promise: ClassVar[str] = "W = [[0, A], [-A', 0]]"
    time: ClassVar[str] = "continuous"

    def _shapes(self) -> dict[str, Shape]:
        return {"A": (self._m, self._m)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"A": uniform(generator, (self._m, self._m), self._m**-0.5, dtype)}

    def _weight(self, params: Params) -> Tensor:
        return _crossed(params["A"], -params["A"].mT)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        q, p = x.chunk(2, dim=-1)
        return torch.cat([-p @ params["A"].mT, q @ params["A"]], dim=-1)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not vectors:
            s = lapack.svdvals(params["A"])
            return 1j * torch.cat([s, -s]), None
        U, s, Vh = lapack.svd(params["A"])
        u, v = U * 0.5**0.5, 1j * Vh.mT * 0.5**0.5
        return 1j * torch.cat([s, -s]), torch.cat([torch.cat([u, u], dim=1), torch.cat([v, -v], dim=1)])

    def _singular_values(self, params: Params) -> Tensor:
        return lapack.svdvals(params["A"]).repeat_interleave(2)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        m, A = self._m, params["A"]
        first, second = (half.reshape(-1, m).mT for half in y.chunk(2, dim=-1))
        q, p = solve(A.mT, second).mT, -solve(A, first).mT
        return torch.cat([q, p], dim=1).reshape(y.shape)

    def _inverse(self, params: Params) -> Tensor:
        inverse = inv(params["A"])
        return _crossed(-inverse.mT, inverse)

    def _logabsdet(self, params: Params) -> Tensor:
        return 2 * logabsdet(params["A"])

    def _violation(self, W: Tensor) -> Tensor:
        (a, b), (c, d) = (half.chunk(2, dim=1) for half in W.chunk(2))
        return frobenius(a, d, (b + c.mT) * 0.5**0.5)

    def _from_matrix(self, W: Tensor) -> Params:
        (_, b), (c, _) = (half.chunk(2, dim=1) for half in W.chunk(2))
        return {"A": (b - c.mT) / 2}


def _crossed(upper: Tensor, lower: Tensor) -> Tensor:
    zero = torch.zeros_like(upper)
    return torch.cat([torch.cat([zero, upper], dim=1), torch.cat([lower, zero], dim=1)])
