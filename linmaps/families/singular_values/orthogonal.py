"""Orthogonal and semi-orthogonal matrices: the first r = min(in, out) columns of Q [n, n], n = max(in, out)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.linalg import negative_determinant
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.orthogonal.rotations import log_rotation, polar, rotation
from linmaps.numerics.packing import pack_upper, skew

Method = Literal["householder", "cayley", "exp"]
METHODS = get_args(Method)


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

    ValueError for an unknown method, n_reflectors outside 1..n or with another method, det with a rectangular map.

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
    at_zero: ClassVar[str] = "diag(+-1)"
    half_ready: ClassVar[bool] = False

    method: Method = field(default="householder", kw_only=True)
    n_reflectors: int | None = field(default=None, kw_only=True)
    det: Literal[1, -1] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {METHODS}")
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
        V = householder.offset(householder.haar(generator, self._n, self._n - 1, torch.float64))
        S = log_rotation(householder.frame(V, self._n, det=1), self.method)
        return {"skew": pack_upper(S, diagonal=1).to(dtype)}

    def _weight(self, params: Params) -> Tensor:
        if self.method == "householder":
            Q = householder.frame(householder.offset(params["V"]), self._r, det=sign(self))
        else:
            Q = rotation(skew(params["skew"], self._n), self.method)[:, : self._r]
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
        S = log_rotation(householder.flip_last(Q, negative_determinant(Q)), self.method)
        return {"skew": pack_upper(S, diagonal=1)}

    def _violation(self, W: Tensor) -> Tensor:
        gram = W.mT @ W if self.in_features >= self.out_features else W @ W.mT
        eye = torch.eye(self._r, dtype=W.dtype, device=W.device)
        return frobenius(gram - eye, 2 * householder.wrong_component(W, self.det).to(W.dtype))


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
