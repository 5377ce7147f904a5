"""Matrices W [in, out] with bounded singular values, by products of reflections.  r = min(in, out)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from linmaps.base.registry import register
from linmaps.families.interval import check_bounds
from linmaps.families.singular_values.factors import Factors
from linmaps.families.singular_values.orthogonal import check_det, check_reflectors


@register
@dataclass(frozen=True)
class Spectral(Factors):
    """Bounded singular values, `W = Q1[:, :r] diag(s) Q2[:, :r]'`, `s = low + (high - low) sigmoid(p)`.

    low and high are sigma_min and sigma_max.

    Q1 [in, in] and Q2 [out, out] are products of reflections as in `Orthogonal`, along e_i + U[i] for the leaf "U"
    [n_U_reflectors, in] and e_i + V[i] for the leaf "V" [n_V_reflectors, out], so the singular values are s at any
    parameters; if W is square, every eigenvalue's modulus lies in the bounds too.  The leaf "p" [r] is absent when the
    bounds are equal.  By default there are as many reflectors as reach every matrix within the bounds; fewer are
    cheaper, and leave the rank full.

    det: 1 or -1, of square maps only: the sign of the determinant, which sigma_min > 0 keeps from changing.  None covers
    positive determinants and promises none.

    init: Q1, Q2 Haar, s uniform over the middle nine tenths of the bounds.  The bounds fix the scale: inputs of unit
    variance give outputs of mean variance sum(s^2) / out.  `singular_values` costs a sort.  `violation(W)` is the
    Frobenius distance to the nearest matrix that keeps the promise, which `from_matrix` takes: it clips the singular
    values.  `solve`, `inverse` and `logabsdet` use the factors.

    ValueError for bounds that are negative or out of order, reflectors outside 1..in (1..out), det with a rectangular
    map.

    Source: Zhang, Lei and Dhillon, arXiv:1803.09327.

    >>> import torch, linmaps
    >>> spec = linmaps.Spectral(3, 2, sigma_min=0.5, sigma_max=1.0)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> s = torch.linalg.svdvals(spec.effective_W(params))
    >>> bool((s >= 0.5).all() and (s <= 1.0).all())
    True
    """

    name: ClassVar[str] = "spectral"
    promise: ClassVar[str] = "sigma_min <= singular values <= sigma_max"
    at_zero: ClassVar[str] = "diag(+-m)"

    sigma_min: float = 0.1
    sigma_max: float = 1.0
    n_U_reflectors: int | None = field(default=None, kw_only=True)
    n_V_reflectors: int | None = field(default=None, kw_only=True)
    det: Literal[1, -1] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)
        check_det(self)
        for key, n in (("n_U_reflectors", self.in_features), ("n_V_reflectors", self.out_features)):
            if getattr(self, key) is not None:
                check_reflectors(self, key, n)

    @property
    def _bounds(self) -> tuple[float, float | None]:
        return self.sigma_min, self.sigma_max

    @property
    def _counts(self) -> tuple[int, int]:
        counts, given = self._enough, (self.n_U_reflectors, self.n_V_reflectors)
        return counts[0] if given[0] is None else given[0], counts[1] if given[1] is None else given[1]
