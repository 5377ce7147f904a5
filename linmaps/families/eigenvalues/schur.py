"""Matrices by their real Schur form: a rotation of scaled rotations, coupled one way.  n rows and columns, m = n // 2."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics import lapack
from linmaps.numerics.draws import middle, normal, uniform
from linmaps.numerics.excess import radius_excess
from linmaps.numerics.numeric import frobenius, positive_root, unit
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.ranges import squashed


@register
@dataclass(frozen=True)
class Schur(Map):
    """Known eigenvalues below a bound, non-normal growth on the way: `W = Q (L + T) Q'` with

        L = blockdiag(g_k [[cos t_k, -sin t_k], [sin t_k, cos t_k]]),    g_k = gamma_max sigmoid("gamma"[k]),

    t = "theta" [m] and, for odd n, a last block gamma_max tanh("real") [1].  Eigenvalues are g_k exp(+-i t_k) exactly, so
    the spectral radius is max g < gamma_max whatever T is: `eig` costs nothing (with vectors, a general solver).

    * Q is a product of k reflections along e_i + V[i], with determinant 1, for the leaf "V" [k, n], as in `Orthogonal`;
      k = n - 1 for odd n, n - 2 for even n, as another would only turn the last block.  For n <= 2 it is absent.
    * T is strictly block-upper, T_ij = gamma_max e_i e_j S_ij asinh(r) / r.  The leaf "T" [2 m (m - 1), and n - 1 more for
      odd n] holds the 2 x 2 blocks of S right of the diagonal, row by row, then for odd n its last column; r = |S S'|^1/2
      (Frobenius norm) and e_i = sqrt(1 - |lambda_i / gamma_max|^2).  T reaches any size, but outlying params do not make
      W so far from normal, nor couple eigenvalues so strongly near the bound, that the rounding of W carries them over.
      `nonnormal=False` leaves T out, and W is normal.

    Reached are the matrices with rho(W) < gamma_max whose real Schur form has such blocks, so none with two different
    real eigenvalues; `PowerBound` reaches every matrix below a bound, with more params and without the spectrum.

    init: Q Haar, t uniform, g / gamma_max uniform over [0.05, 0.95], "T" normal with variance 1 / (16 n), so that inputs of
    unit variance give outputs of variance about gamma_max^2 / 3.  `violation(W)` is max(0, rho(W) - gamma_max).

    ValueError for gamma_max that is not positive and finite, TypeError for nonnormal that is no bool.

    Source: the coupling, of rotations of modulus 1, is that of Kerg et al., arXiv:1905.12080.

    >>> import torch, linmaps
    >>> spec = linmaps.Schur(5, gamma_max=0.9)
    >>> params = spec.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> rho = 0.9 * max(params["gamma"].sigmoid().max(), params["real"].tanh().abs().max())
    >>> torch.allclose(torch.linalg.eigvals(spec.effective_W(params)).abs().max(), rho)
    True
    """

    name: ClassVar[str] = "schur"
    promise: ClassVar[str] = "spectral radius < gamma_max"
    at_zero: ClassVar[str] = "gamma_max / 2 I, odd n: a 0"
    square: ClassVar[bool] = True
    time: ClassVar[str] = "discrete"
    half_ready: ClassVar[bool] = False

    gamma_max: float = field(default=1.0, kw_only=True)
    nonnormal: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("gamma_max")
        self._expect(self.gamma_max > 0, "gamma_max", "a positive number")
        self._expect(isinstance(self.nonnormal, bool), "nonnormal", "a bool", error=TypeError)

    @property
    def _m(self) -> int:
        return self.in_features // 2

    @property
    def _k(self) -> int:
        return 2 * ((self.in_features - 1) // 2)

    def _shapes(self) -> dict[str, Shape]:
        n, m, odd = self.in_features, self._m, self.in_features % 2
        shapes: dict[str, Shape] = {"V": (self._k, n)} if n > 2 else {}
        shapes |= {"theta": (m,), "gamma": (m,)} if m else {}
        shapes |= {"real": (1,)} if odd else {}
        return shapes | ({"T": (2 * m * (m - 1) + odd * (n - 1),)} if self.nonnormal and n > 2 else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        n, shapes = self.in_features, self._shapes()
        draw = {
            "V": lambda shape: householder.haar(generator, n, self._k, dtype),
            "theta": lambda shape: uniform(generator, shape, math.pi, dtype),
            "gamma": lambda shape: middle(generator, shape, dtype),
            "real": lambda shape: uniform(generator, shape, 0.95, dtype).atanh(),
            "T": lambda shape: normal(generator, shape, dtype) / (4 * n**0.5),
        }
        return {key: draw[key](shape) for key, shape in shapes.items()}

    def _core(self, params: Params) -> Tensor:
        """L + T [n, n]."""
        like, n, m = self._like(params), self.in_features, self._m
        D = like.new_zeros(0, 0)
        if m:
            c, s = params["theta"].cos(), params["theta"].sin()
            turns = params["gamma"].sigmoid()[:, None] * torch.stack([c, -s, s, c], dim=1)
            at = torch.arange(m, device=like.device)
            D = _assembled(turns, (at, at), m)
        if n % 2:
            D = _bordered(D, like.new_zeros(2 * m), params["real"].tanh())
        if "T" not in params:
            return self.gamma_max * D
        S, e = self._coupling(params["T"]), self._room(params)
        scale = unit(S.detach().abs().amax())
        size = scale * positive_root(frobenius((S / scale) @ (S / scale).mT))
        return self.gamma_max * (D + e[:, None] * squashed(S, size) * e)

    def _coupling(self, packed: Tensor) -> Tensor:
        """S [n, n], strictly block-upper."""
        m, inner = self._m, 2 * self._m * (self._m - 1)
        i, j = torch.triu_indices(m, m, 1, device=packed.device)
        S = _assembled(packed[:inner].reshape(-1, 4), (i, j), m)
        return _bordered(S, packed[inner:], packed.new_zeros(1)) if self.in_features % 2 else S

    def _room(self, params: Params) -> Tensor:
        """e [n], with its digits and a finite derivative where an eigenvalue is at the bound to rounding."""
        r = torch.nn.functional.logsigmoid
        gamma = params["gamma"]
        e = ((r(-gamma) / 2).exp() * (1 + gamma.sigmoid()).sqrt()).repeat_interleave(2)
        if self.in_features % 2 == 0:
            return e
        real = 2 * params["real"]
        return torch.cat([e, 2 * ((r(real) + r(-real)) / 2).exp()])  # sech = sqrt(1 - tanh^2)

    def _weight(self, params: Params) -> Tensor:
        D = self._core(params)
        if "V" not in params:
            return D
        Q = householder.frame(householder.offset(params["V"]), self.in_features, det=1)
        return Q @ D @ Q.mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, rows = self.in_features, x.numel() // self.in_features
        form, once, per_row = householder.costs(n, self._k, n)
        if n <= 2 or form + 2 * n**3 + rows * n**2 < 2 * once + rows * (2 * per_row + n**2):
            return x @ self._weight(params)
        V = householder.offset(params["V"])
        return householder.times_frame_t(householder.times_frame(x, V, n, det=1) @ self._core(params), V, n, det=1)

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if vectors:
            return super()._eig(params, vectors)
        values = []
        if self._m:
            g, t = params["gamma"].sigmoid(), params["theta"]
            pair = torch.complex(g * t.cos(), g * t.sin())
            values = [pair, pair.conj()]
        if self.in_features % 2:
            real = params["real"].tanh()
            values.append(torch.complex(real, torch.zeros_like(real)))
        return self.gamma_max * torch.cat(values), None

    def _singular_values(self, params: Params) -> Tensor:
        if "T" in params:
            return lapack.svdvals(self._core(params))
        # a normal matrix has the moduli of its eigenvalues, of which pairs coincide: a decomposition would differentiate
        # their difference
        values = [params["gamma"].sigmoid().repeat_interleave(2)] if self._m else []
        values += [params["real"].tanh().abs()] if self.in_features % 2 else []
        return self.gamma_max * torch.cat(values).sort(descending=True).values

    def _logabsdet(self, params: Params) -> Tensor:
        total = self._like(params).new_full((), self.in_features * math.log(self.gamma_max))
        if self._m:
            total = total + 2 * torch.nn.functional.logsigmoid(params["gamma"]).sum()
        return total + params["real"].tanh().abs().log().sum() if self.in_features % 2 else total

    def _violation(self, W: Tensor) -> Tensor:
        return radius_excess(W, self.gamma_max)


def _assembled(blocks: Tensor, at: tuple[Tensor, Tensor], m: int) -> Tensor:
    """The matrix [2m, 2m] with 2 x 2 blocks, given row by row as [count, 4], at these places and zeros elsewhere."""
    placed = blocks.new_zeros(m, m, 2, 2).index_put(at, blocks.reshape(-1, 2, 2))
    return placed.transpose(1, 2).reshape(2 * m, 2 * m)


def _bordered(D: Tensor, column: Tensor, corner: Tensor) -> Tensor:
    """D [k, k] with a further column [k], a row of zeros and a corner [1]."""
    right = torch.cat([column, corner])[:, None]
    return torch.cat([torch.nn.functional.pad(D, (0, 0, 0, 1)), right], dim=1)
