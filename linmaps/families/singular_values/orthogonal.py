"""Orthogonal and semi-orthogonal matrices: the first r = min(in, out) columns of Q [n, n], n = max(in, out)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape, floating, values
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.linalg import negative_determinant
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.orthogonal.rotations import haar_rotation, log_rotation, polar, rotation
from linmaps.numerics.packing import pack_upper, skew

Method = Literal["householder", "cayley", "exp"]
METHODS = get_args(Method)
BASES = 16  # seeds that `of` tries


@register
@dataclass(frozen=True)
class Orthogonal(Map):
    """A (semi-)orthogonal matrix: `W'W = I` for in >= out, `WW' = I` for in <= out, at any parameters.

    W is the first r columns of Q (for in < out, transposed), with

    * householder: Q = H_0 H_1 ... H_{k-1}, H_i = I - 2 v_i v_i' / |v_i|^2, v_i = e_i + V[i] for the leaf "V" [k, n];
      k = r reflectors reach every semi-orthogonal matrix, k = n - 1 every square one of the given determinant.  Fewer
      (`n_reflectors`) are cheaper and reach less; the rank of W is full always.  Every entry of V is free, also where a
      triangular V would do: a packed triangle costs more than it saves.  Where v_i = 0, nothing is reflected.
    * cayley: Q = 2 (I + S)^-1 - I, with S skew and "skew" [n (n - 1) / 2] its strict upper triangle row by row: all
      rotations without the eigenvalue -1; a descent that would have to pass it runs off to infinity instead.  One
      inverse of size n.
    * exp: Q = exp(S): all rotations.  Smooth and slow; best near the identity.

    base: a seed, for cayley and exp: Q = R(S) B with B the Haar rotation of that seed, so that S = 0 is B, and cayley
    reaches the rotations whose Q B' has no eigenvalue -1.  None is B = I.  `of(W)` chooses det and base for a given W.

    Cost of `effective_W` by householder: 2 n k^2 + n k r multiplications and no loop; `apply` of few rows does not
    form W.  For tall and wide maps the other two work at size n, so prefer householder there.

    det: 1 or -1, of square maps only: orthogonal matrices are two components that no path connects, and this says which
    one is covered, by the sign of the last column.  None covers determinant 1 and promises none.

    init is Haar (uniform) on the matrices that the default n_reflectors covers.  The promise fixes the scale: inputs of
    unit variance give outputs of variance 1 for in >= out, and in / out for in < out.  Singular values are 1.
    `violation(W)` is the Frobenius norm of W'W - I (or WW' - I), with 2 more in a further coordinate if the determinant
    has another sign than a given `det`.  `from_matrix` takes the polar factor, the nearest one of the covered component; with
    fewer reflectors than the default there is no closed form, and cayley only comes near an eigenvalue -1.  `inverse` is
    the transpose and `logabsdet` is 0.

    ValueError for an unknown method, n_reflectors outside 1..n or with another method, a base with householder, a negative
    one, det with a rectangular map.

    Source: Mhammedi et al., arXiv:1612.00188 (reflectors); Likhosherstov et al., arXiv:2004.08675 (without a loop);
    Lezcano-Casado and Martinez-Rubio, arXiv:1901.08428 (exp).

    >>> import torch, linmaps
    >>> spec = linmaps.Orthogonal(5, 3)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> torch.allclose(W.T @ W, torch.eye(3), atol=1e-6)
    True
    """

    name: ClassVar[str] = "orthogonal"
    promise: ClassVar[str] = "W'W = I (in >= out) or WW' = I (in <= out)"
    at_zero: ClassVar[str] = "diag(+-1) (base: that)"
    half_ready: ClassVar[bool] = False

    method: Method = field(default="householder", kw_only=True)
    n_reflectors: int | None = field(default=None, kw_only=True)
    det: Literal[1, -1] | None = field(default=None, kw_only=True)
    base: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {METHODS}")
        if self.base is not None:
            self._expect(self.method != "householder", "base", "None with method='householder', which needs none")
            self._expect_int("base", 0, 2**31 - 1)
        check_det(self)
        if self.n_reflectors is not None:
            self._expect(self.method == "householder", "n_reflectors", "None unless method='householder'")
            check_reflectors(self, "n_reflectors", self._n)

    @property
    def _n(self) -> int:
        return max(self.in_features, self.out_features)

    @property
    def _r(self) -> int:
        return min(self.in_features, self.out_features)

    @property
    def _k(self) -> int:
        return householder.default_reflectors(self._n, self._r) if self.n_reflectors is None else self.n_reflectors

    def _shapes(self) -> dict[str, Shape]:
        if self.method == "householder":
            return {"V": (self._k, self._n)}
        return {"skew": (self._n * (self._n - 1) // 2,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        if self.method == "householder":
            return {"V": householder.haar(generator, self._n, self._k, dtype)}
        Q = householder.haar_frame(generator, self._n, self._n, torch.float64)  # times a fixed B it is as uniform
        S = log_rotation(Q, self.method)
        return {"skew": pack_upper(S, diagonal=1).to(dtype)}

    def _based(self, R: Tensor) -> Tensor:
        """The first r columns of R B."""
        if self.base is not None:
            return R @ haar_rotation(self.base, R)[:, : self._r]
        return R if self._r == self._n else R[:, : self._r]

    def _weight(self, params: Params) -> Tensor:
        if self.method == "householder":
            Q = householder.frame(householder.offset(params["V"]), self._r, det=sign(self))
        else:
            Q = self._based(rotation(skew(params["skew"], self._n), self.method))
            if sign(self) == -1:
                Q = torch.cat([Q[:, :-1], -Q[:, -1:]], dim=1)
        return Q if self.in_features >= self.out_features else Q.mT

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        n, r, rows = self._n, self._r, x.numel() // self.in_features
        form, once, per_row = householder.costs(n, self._k, r)
        if self.method != "householder" or form + rows * n * r < once + rows * per_row:
            return x @ self._weight(params)
        times = householder.times_frame if self.in_features >= self.out_features else householder.times_frame_t
        return times(x, householder.offset(params["V"]), r, det=sign(self))

    def _singular_values(self, params: Params) -> Tensor:
        return self._like(params).new_ones(self._r)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        n, rows = self._n, y.numel() // self._n
        form, once, per_row = householder.costs(n, self._k, n)
        if self.method != "householder" or form + rows * n * n < once + rows * per_row:
            return y @ self._weight(params).mT
        return householder.times_frame_t(y, householder.offset(params["V"]), n, det=sign(self))

    def _inverse(self, params: Params) -> Tensor:
        return self._weight(params).mT

    def _logabsdet(self, params: Params) -> Tensor:
        return self._like(params).new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        Q = polar(W if self.in_features >= self.out_features else W.mT, sign(self))
        if self.method == "householder":
            if self._k < householder.default_reflectors(self._n, self._r):
                return super()._from_matrix(W)
            return {"V": householder.from_frame(Q, self._k)}
        if self._r < self._n:  # any rotation that begins with these columns
            Q = householder.frame(householder.offset(householder.from_frame(Q, self._r)), self._n)
        Q = householder.flip_last(Q, negative_determinant(Q))
        S = log_rotation(Q if self.base is None else Q @ haar_rotation(self.base, Q).mT, self.method)
        return {"skew": pack_upper(S, diagonal=1)}

    def _violation(self, W: Tensor) -> Tensor:
        gram = W.mT @ W if self.in_features >= self.out_features else W @ W.mT
        eye = torch.eye(self._r, dtype=W.dtype, device=W.device)
        return frobenius(gram - eye, 2 * householder.wrong_component(W, self.det).to(W.dtype))

    @classmethod
    def of(cls, W: Tensor, *, method: Method = "householder") -> tuple[Self, dict[str, Tensor]]:
        """The spec and the params whose matrix is a given orthogonal or semi-orthogonal W [in, out], to rounding.

        det is that of a square W; for cayley, the base is the first of None and 16 seeds that reaches W to rounding,
        or the best of them.  Of another W it is the nearest one, the polar factor.

        ValueError for an unknown method, a W that is no matrix, or one under `vmap` or without values, as the spec is chosen by
        them; TypeError for a W that is no real floating tensor.

        >>> import torch, linmaps
        >>> spec, params = linmaps.Orthogonal.of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), method="cayley")
        >>> spec.det, spec.effective_W(params).round(decimals=4) + 0.0
        (-1, tensor([[0., 1.],
                [1., 0.]]))
        """
        if not isinstance(W, Tensor):
            raise TypeError(f"{cls.__name__}.of: W is {type(W).__name__}, expected a tensor [in, out]")
        floating(W, f"{cls.__name__}.of: W", "W.to(...)")
        if W.is_complex():
            raise TypeError(f"{cls.__name__}.of: W is {W.dtype}, expected real numbers; use Unitary(n).from_matrix(W)")
        if W.ndim != 2 or not W.numel():
            raise ValueError(f"{cls.__name__}.of: W has shape {tuple(W.shape)}, expected a matrix [in, out]")
        one = values(W)
        if one is None or one.shape != W.shape:
            raise ValueError(
                f"{cls.__name__}.of: W has no values, or those of several matrices; a spec is chosen by one matrix, so call "
                "it outside of vmap and of tracing, or use from_matrix of a spec"
            )
        n, m = W.shape
        det: Literal[1, -1] | None = None
        if n == m:
            det = -1 if bool(negative_determinant(one)) else 1
        enough = 4 * max(n, m) * torch.finfo(working_dtype(W.dtype)).eps
        found = best = cls(n, m, method=method, det=det)
        least = distance = float(best.from_matrix(one)[1])
        for base in range(BASES) if method == "cayley" else ():
            if distance <= enough:
                break
            found = cls(n, m, method=method, det=det, base=base)
            distance = float(found.from_matrix(one)[1])
            if distance < least:
                least, best = distance, found
        return best, best.from_matrix(W)[0]


def sign(spec: Map) -> int | None:
    """The determinant's sign that a spec with the option `det` covers: None for rectangular maps."""
    det: Literal[1, -1] | None = getattr(spec, "det", None)
    return (1 if det is None else det) if spec.in_features == spec.out_features else None


def check_det(spec: Map) -> None:
    """ValueError unless `spec.det` is None, or 1 or -1 with a square map."""
    square = spec.in_features == spec.out_features
    det = getattr(spec, "det", None)
    spec._expect(det is None or (det in (1, -1) and not isinstance(det, bool)), "det", "1, -1 or None")
    spec._expect(det is None or square, "det", "None, since a rectangular map has no determinant")


def check_reflectors(spec: Map, key: str, n: int) -> None:
    """ValueError or TypeError unless the option `key` is a number of reflectors in n dimensions."""
    spec._expect(n > 1, key, "None, since a 1 x 1 orthogonal matrix is a sign and has no parameter")
    spec._expect_int(key, 1, n)
