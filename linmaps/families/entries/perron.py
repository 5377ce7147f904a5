"""Non-negative matrices with a bounded dominant eigenvalue (Perron root).  W [in, out]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.families.entries.stochastic import relative_logits, with_zero_first
from linmaps.families.interval import check_bounds, outside
from linmaps.numerics import lapack
from linmaps.numerics.draws import middle, normal
from linmaps.numerics.eigen import eigvals, shifted
from linmaps.numerics.nearest import simplex
from linmaps.numerics.numeric import binade, frobenius, homogeneous
from linmaps.numerics.ranges import MARGIN, between, unbetween

STRETCH = 20.0  # log of the Perron vector's entries stays within +-20, so that their ratios are floats


@register
@dataclass(frozen=True)
class PerronFrobenius(Map):
    """A non-negative matrix whose row sums, hence whose Perron root, lie in [sigma_min, sigma_max].

        W = diag(r) P,    P = rows of probabilities,    r_i = sigma_min + (sigma_max - sigma_min) sigmoid(params["r"][i]),

    with P = softmax([0, L]) by rows for the leaf "logits" L [in, out - 1] and the leaf "r" [in] (absent when the bounds are
    equal).  A square W has a real dominant eigenvalue between its least and its greatest row sum, so x W^t neither
    explodes nor, for sigma_min = 1, dies out; `sum |x W| <= sigma_max sum |x|` for rectangular ones too.

    exact: of square maps, adds a leaf "d" [n - 1] and makes "r" a scalar (shape ()):

        W = r D P D^-1,    D = diag(1, exp(20 tanh(d / 20))),

    whose Perron root is r exactly, with the Perron vector diag(D): all positive matrices with that root (and vectors of
    entries within e^+-20 of the first), whatever their row sums.

    init: differences of independent N(0, 1) logits, r uniform over the middle nine tenths of the bounds, d = 0.  The row
    sums fix the scale: inputs of unit variance and mean 0 give outputs of variance about e r^2 in / out^2 for many
    outputs.  `violation(W)` is the norm of the negative entries and of what the row sums (exact: the spectral radius)
    exceed the bounds by.  `from_matrix` clips the row sums and takes the nearest rows (exact: clips the Perron root).

    ValueError for bounds that are negative or out of order, exact with a rectangular map.

    >>> import torch, linmaps
    >>> spec = linmaps.PerronFrobenius(4, sigma_min=0.9, sigma_max=0.9)
    >>> W = spec.effective_W(spec.init(torch.Generator().manual_seed(0)))
    >>> torch.linalg.eigvals(W).abs().max()
    tensor(0.9000)
    """

    name: ClassVar[str] = "perron_frobenius"
    promise: ClassVar[str] = "W >= 0, sigma_min <= row sums (exact: Perron root) <= sigma_max"
    at_zero: ClassVar[str] = "uniform"
    time: ClassVar[str] = "discrete"

    sigma_min: float = 0.8
    sigma_max: float = 1.0
    exact: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)
        self._expect(isinstance(self.exact, bool), "exact", "a bool", error=TypeError)
        self._expect(self._square or not self.exact, "exact", "False, since a rectangular map has no eigenvalues")

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"logits": (self.in_features, self.out_features - 1)}
        if self.sigma_min < self.sigma_max:
            shapes["r"] = () if self.exact else (self.in_features,)
        return shapes | ({"d": (self.in_features - 1,)} if self.exact else {})

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes = self._shapes()
        logits = normal(generator, (self.in_features, self.out_features), dtype)
        params = {"logits": logits[:, 1:] - logits[:, :1]}
        if "r" in shapes:
            params["r"] = middle(generator, shapes["r"], dtype)
        return params | ({"d": logits.new_zeros(shapes["d"])} if self.exact else {})

    def _weight(self, params: Params) -> Tensor:
        P = with_zero_first(params["logits"]).softmax(dim=1)
        r = between(self.sigma_min, self.sigma_max, params["r"]) if "r" in params else self.sigma_max
        if not self.exact:
            return (r[:, None] if isinstance(r, Tensor) else r) * P
        d = torch.nn.functional.pad(STRETCH * (params["d"] / STRETCH).tanh(), (1, 0))
        return r * (d[:, None] - d).exp() * P

    def _violation(self, W: Tensor) -> Tensor:
        r = eigvals(W).abs().amax() if self.exact else W.sum(1)
        return frobenius(*outside(self, r), W.clamp(max=0))

    def _from_matrix(self, W: Tensor) -> Params:
        params = {}
        if self.exact:
            W = W.clamp(min=MARGIN * self.sigma_max)
            scale = binade(W)
            W = W / scale
            values, vectors = lapack.eig(shifted(W))
            r = values.abs().amax()
            v = (vectors * (values.abs() == r)).sum(1).abs()
            v = v.clamp(min=torch.finfo(v.dtype).tiny)
            d = (v[1:] / v[0]).log()
            params["d"] = STRETCH * torch.atanh((d / STRETCH).clamp(MARGIN - 1, 1 - MARGIN))
            P = W * v / (v[:, None] * r)
            r = r * scale
        else:
            r = homogeneous(lambda t: t.sum(1), W)
            r = r.clamp(max(self.sigma_min, MARGIN * self.sigma_max), self.sigma_max)
            # a row of nearly nothing has its gradient from far-off corners of the simplex to none
            small = (r <= 2 * MARGIN * self.sigma_max)[:, None]
            P = torch.where(small, 1 / W.shape[1], simplex(W, r[:, None]))
        if self.sigma_min < self.sigma_max:
            params["r"] = unbetween(self.sigma_min, self.sigma_max, r)
        return {"logits": relative_logits(P), **params}
