"""Unitary matrices W [n, n] from real parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.checks.arguments import COMPLEX
from linmaps.numerics import lapack
from linmaps.numerics.numeric import eye_like, frobenius
from linmaps.numerics.orthogonal import householder, unitary


@register
@dataclass(frozen=True)
class Unitary(Map):
    """A complex matrix with `W*W = I`, `W = H_0 H_1 ... H_{n-2} diag(exp(i angle))`, at any parameters.

    H_i = I - 2 v_i* v_i / |v_i|^2 with v_i = e_i + V[i], for the real leaf "V" [n - 1, n, 2] of real and imaginary parts, and the
    real leaf "angle" [n]: every unitary matrix is reached, and no loop runs over reflectors.  `init(dtype=)` is the dtype
    of these leaves, so that float64 gives a complex128 W; half precision gives complex64.  `apply` takes a real or complex x,
    and the leaf "bias" is real.

    init is Haar (uniform).  The promise fixes the scale: inputs of unit variance give outputs of variance 1.
    `violation(W)` is the Frobenius norm of W*W - I; `from_matrix` takes the polar factor, the nearest unitary matrix, of a
    real or complex W.  `inverse` is the adjoint, `logabsdet` is 0, singular values are 1.

    >>> import torch, linmaps
    >>> spec = linmaps.Unitary(3)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> W.dtype, torch.allclose(W.mH @ W, torch.eye(3) + 0j, atol=1e-6)
    (torch.complex64, True)
    """

    name: ClassVar[str] = "unitary"
    promise: ClassVar[str] = "W complex, W*W = I"
    at_zero: ClassVar[str] = "diag(+-1)"
    square: ClassVar[bool] = True
    half_ready: ClassVar[bool] = False
    complex_W: ClassVar[bool] = True

    def _shapes(self) -> dict[str, Shape]:
        n = self.in_features
        return {"V": (n - 1, n, 2), "angle": (n,)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        V, angle = unitary.haar(generator, self.in_features, dtype)
        return {"V": V, "angle": angle}

    def _weight(self, params: Params) -> Tensor:
        Q = householder.frame(unitary.reflectors(params["V"]), self.in_features)
        return unitary.materialized(Q * unitary.phases(params["angle"]))

    def _reflected(self, x: Tensor) -> bool:
        """Whether products with the reflectors are cheaper than forming W."""
        n, rows = self.in_features, x.numel() // self.in_features
        form, once, per_row = householder.costs(n, n - 1, n)
        return form + rows * n * n >= once + rows * per_row

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        x = x.to(COMPLEX.get(x.dtype, x.dtype))
        if not self._reflected(x):
            return x @ self._weight(params)
        y = householder.times_frame(x, unitary.reflectors(params["V"]), self.in_features)
        return unitary.materialized(y * unitary.phases(params["angle"]))

    def _singular_values(self, params: Params) -> Tensor:
        return self._like(params).new_ones(self.in_features)

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        y = y.to(COMPLEX.get(y.dtype, y.dtype))
        if not self._reflected(y):
            return y @ self._inverse(params)
        x = y * unitary.phases(-params["angle"])
        return unitary.materialized(householder.times_frame_t(x, unitary.reflectors(params["V"]), self.in_features))

    def _inverse(self, params: Params) -> Tensor:
        return unitary.materialized(self._weight(params).mH)

    def _logabsdet(self, params: Params) -> Tensor:
        return self._like(params).new_zeros(())

    def _from_matrix(self, W: Tensor) -> Params:
        U, _, Vh = lapack.svd(W if W.is_complex() else torch.complex(W, torch.zeros_like(W)))
        V, angle = unitary.from_unitary(U @ Vh)
        return {"V": V, "angle": angle}

    def _violation(self, W: Tensor) -> Tensor:
        gram = W.mH @ W
        return frobenius(gram - eye_like(gram, len(gram)))
