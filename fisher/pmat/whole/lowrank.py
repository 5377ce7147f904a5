"""PMatLowRank: the rows themselves.  F = R' diag(w) R with R `[n, d]`, n rows of d parameters, K = R R' their Gram matrix.

Where n >= d, what needs a spectrum goes through the dense matrix, which is the smaller one then.
"""

from __future__ import annotations

import math
from numbers import Number
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.distributed.splitting import Job, shared
from fisher.pmat.contract.cuts import LSTSQ, NO_CUT, Cut
from fisher.pmat.contract.damping import Amounts, Regul, Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.precise import cast, singly
from fisher.pmat.decompositions.spectra import extremes, logdet, matrix_power, real, spectrum_values
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diagonals import log_determinant, multiplied, one_number, scaled_by
from fisher.pmat.whole.eigen import raveled
from fisher.pmat.whole.range import PMatRange
from fisher.pmat.whole.rows import combination, gram, orthonormal, products, row_layout
from fisher.pmat.whole.woodbury import constant_inverse
from linmaps import trees
from linmaps.numerics.dtypes import precise, working_dtype
from linmaps.numerics.eigen import cutoff, eigh, pinv
from linmaps.numerics.linalg import refined
from linmaps.numerics.numeric import positive_root
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


@trees.record()
class PMatLowRank(PMat):
    """R' diag(w) R from the rows R: memory n d; mv and mmap two products with R.

    rows: a tree `[n, *leaf]` (of the exact Fisher: the gradients of all columns at all examples over sqrt(B));
    weights w: `[n]`, or None for ones.  Sums, differences and multiples are of this form again.

    solve(v, regul) is (F + regul I)^-1 v exactly, also for v outside the span of the rows, from the eigen-decomposition of
    K: with V = R'U s^(-1/2) its orthonormal basis, V (s + regul)^-1 V'v + (v - V V'v) / regul, which is Woodbury's formula
    without its cancellation.  n^2 d + n^3, then 8 n d a vector.  kind="range": the first term alone; kind="lstsq": F^+ v.

    >>> import torch
    >>> F = PMatLowRank({"w": torch.tensor([[2.0, 0.0]])})
    >>> (
    ...     F,
    ...     F.solve({"w": torch.tensor([5.0, 1.0])}, regul=1.0),
    ...     F.solve({"w": torch.tensor([5.0, 1.0])}, 1.0, kind="range"),
    ... )
    (PMatLowRank(1 rows, d = 2, 2 numbers stored, float32, cpu), {'w': tensor([1., 1.])}, {'w': tensor([1., 0.])})
    """

    rows: Any
    weights: Tensor | None = None

    __repr__ = PMat.__repr__
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": (), "range": (), "lstsq": LSTSQ}

    def _about(self) -> str:
        return f"{self.n} rows, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return row_layout(self.rows)

    @property
    def n(self) -> int:
        """The number of rows: an upper bound of the rank."""
        return trees.leaves(self.rows)[0].shape[0]

    @property
    def _wide(self) -> bool:
        return self.n < self.layout.numel

    @property
    def _dtype(self) -> torch.dtype:
        return trees.leaves(self.rows)[0].dtype

    @property
    def _inner(self) -> torch.dtype:
        """The dtype to decompose K (or F, where that is smaller) in."""
        row = trees.leaves(self.rows)[0]
        return precise(row.dtype, row.device, min(self.n, self.layout.numel))

    def _dense(self) -> PMatDense:
        """F as it is decomposed."""
        return PMatDense(cast(self, self._inner).to_torch(), self.layout)

    def _weighted(self, t: Tensor) -> Tensor:
        """diag(w) t for t `[*lead, n]`."""
        return t if self.weights is None else self.weights * t

    # --- products ----------------------------------------------------------------------------------------------------

    def mv(self, v: Tree) -> Tree:
        v = self.check_vector(v)
        return self._mv_map(v, 0)

    def _mv_map(self, J: Tree, n: int) -> Tree:
        made: Tree = combination(self.rows, self._weighted(products(self.rows, J)))
        return made

    def vTMv(self, v: Any) -> Tensor:
        """v' F v = sum of w (R v)^2, a scalar."""
        v = self.check_vector(v)
        return self._weighted(products(self.rows, v) ** 2).sum()

    # --- solve -------------------------------------------------------------------------------------------------------

    def _solve(self, v: Any, regul: Regul, kind: str, cut: Cut = NO_CUT) -> Any:
        return cast(self._solve_within(cast(v, self._inner), regul, kind, cut), self._dtype)

    def _solve_within(self, v: Any, regul: Regul, kind: str, cut: Cut) -> Any:
        """Of a v in the dtype of K, in which all but the rows is computed."""
        if kind == "lstsq":
            return self._plus_on_range(cut).mv(v)
        if isinstance(regul, Amounts) and kind == "default" and self._wide:
            H, roots = scaled_by(self, regul, self._inner)
            return multiplied(roots, H._solve_within(multiplied(roots, v), 1.0, kind, cut))
        if kind == "range":
            regul = self._number(regul, "solve(kind='range')")
            F = self._on_range()
            core = pinv(F.core + regul * (F.core @ pinv(F.core)))
            return PMatRange(core, F.basis, F.rest).mv(v)
        if not self._wide:
            return self._dense()._solved(v, regul, "default")
        inverse, unravel = constant_inverse(self.rows, self.weights, regul, self._inner), self.layout.unravel
        b = raveled(v, self.layout)
        flat = lambda tree: raveled(tree, self.layout)
        x = refined(
            lambda b: flat(inverse(unravel(b))),
            lambda x: flat(trees.axpy(regul, unravel(x), self._mv_map(unravel(x), 0))),
            b,
            b.detach(),
        )
        return unravel(x)

    def _number(self, regul: Regul, method: str) -> Scalar:
        cure = "use F.solve, F.logdet or F.sample, which take a diagonal, or PMatDense(F.to_torch(), F.layout)"
        return one_number(regul, self._like(), method, cure)

    # --- functions ---------------------------------------------------------------------------------------------------

    def _on_range(self) -> PMatRange:
        """The same matrix as B' M B with B = K^(+1/2) R and M = K^(1/2) diag(w) K^(1/2), smooth in the rows."""
        if not self._wide:
            F = self._dense().matrix
            eye = torch.eye(len(F), dtype=F.dtype, device=F.device)
            basis = self.layout.unflatten(
                [t.reshape(len(F), *s) for t, s in zip(eye.split(list(self.layout.sizes), 1), self.layout.shapes)]
            )
            return PMatRange(F, basis, F.new_zeros(()))
        K = gram(self.rows, self._inner)
        half = matrix_power(K, 0.5)
        M = K if self.weights is None else half @ (self.weights[:, None] * half)
        return PMatRange(M, combination(self.rows, orthonormal(self.rows, pinv(half)), self._dtype), K.new_zeros(()))

    def _inverse(self, regul: Regul) -> PMatRange:
        """(F + regul I)^-1 = B'(M + regul I)^-1 B + (I - B'B) / regul."""
        return cast(self._on_range()._inverse(self._number(regul, "inverse")), self._dtype)

    def _pinv(self, cut: Cut) -> PMatRange:
        """It lives on the span of the rows."""
        return cast(self._plus_on_range(cut), self._dtype)

    def _plus_on_range(self, cut: Cut) -> PMatRange:
        rtol, atol = cut.of(cutoff(min(self.n, self.layout.numel), self._dtype))
        return self._on_range()._pinv(Cut(rtol, atol))

    def _pow(self, p: float, regul: Regul) -> PMat:
        """Low-rank again for p >= 1, ones for weights and no regul: the rows are K^((p-1)/2) R then.

        ValueError for p < 0 without regul: F has a null space.
        """
        p, regul = real(p), self._number(regul, "pow")
        plain = isinstance(regul, Number) and regul == 0
        if plain and p < 0 and self._wide:
            raise ValueError(
                f"PMatLowRank.pow: got p={p} and regul=0, but {self.n} rows leave a null space of {self.layout.numel} "
                "dimensions; give regul > 0, or use pinv().pow(-p)"
            )
        if plain and p >= 1 and self.weights is None and self._wide:
            K = gram(self.rows, self._inner)
            return PMatLowRank(combination(self.rows, matrix_power(K, (p - 1) / 2), self._dtype))
        return cast(self._on_range()._pow(p, regul), self._dtype)

    def eigendecomposition(self, *, group: Any = None) -> PMatRange:
        """Eigenvalues `.core` `[min(n, d)]` ascending and eigenvectors `.basis` (rows; zero rows beyond the rank).

        group: decomposed at one rank for all.
        """
        most = min(self.n, self.layout.numel)
        basis = trees.map(lambda t: t[:1].expand(most, *t.shape[1:]), self.rows)
        like = trees.leaves(self.rows)[0].reshape(-1)[:1]
        whole = PMatRange(like.expand(most), basis, like[0] if self.n else like.sum())
        return shared({"": Job(1.0, self._decomposed, whole)}, group)[""]

    def _decomposed(self) -> PMatRange:
        F = self._on_range()
        values, U = eigh(F.core)
        return cast(PMatRange(values, combination(F.basis, U.mT), F.rest), self._dtype)

    def _logdet(self, regul: Regul) -> Tensor:
        """log |det(M + regul I)| + (d - n) log regul."""
        if not self._wide:
            return self._dense()._logdet(regul).to(self._dtype)
        if isinstance(regul, Amounts):
            H, _ = scaled_by(self, regul, self._inner)
            return (H._logdet(1.0) + log_determinant(regul, self._inner, self._like())).to(self._dtype)
        M = self._on_range().core
        r = torch.as_tensor(regul, dtype=M.dtype, device=M.device)
        return (logdet(M, regul) + (self.layout.numel - self.n) * r.log()).to(self._dtype)

    def _sample(self, noise: Any, regul: Regul) -> Any:
        if isinstance(regul, Amounts):
            if not self._wide:
                return cast(self._dense()._sample_map(cast(noise, self._inner), 0, regul), self._dtype)
            H, roots = scaled_by(self, regul, self._inner)
            return cast(multiplied(roots, H._sample(cast(noise, self._inner), 1.0)), self._dtype)
        return cast(self._on_range()._sample(cast(noise, self._inner), regul), self._dtype)

    # --- numbers -----------------------------------------------------------------------------------------------------

    def trace(self) -> Tensor:
        each = singly(lambda t: (t**2).reshape(self.n, math.prod(t.shape[1:])).sum(1))
        parts = [self._weighted(each(t)).sum() for t in trees.leaves(self.rows)]
        return sum(parts[1:], parts[0])

    def get_diag(self) -> Any:
        if self.weights is None:
            return trees.map(singly(lambda t: (t**2).sum(0)), self.rows)
        w = self.weights
        return trees.map(singly(lambda t: (w.reshape(-1, *[1] * (t.ndim - 1)) * t**2).sum(0)), self.rows)

    def to_torch(self) -> Tensor:
        check_dense(self.layout.numel, "PMatLowRank.to_torch", PRODUCTS, dtype=self.dtype)
        R = torch.cat([t.reshape(self.n, math.prod(t.shape[1:])) for t in trees.leaves(self.rows)], 1)
        return R.mT @ (R if self.weights is None else self.weights[:, None] * R)

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries, from K."""
        K = self._weighted(gram(self.rows, working_dtype(self._dtype)))
        return positive_root((K * K.mT).sum()).to(self._dtype)

    def _spectral_norm(self, largest: bool) -> Tensor:
        if self._wide and not largest:  # the rows leave a null space
            return trees.leaves(self.rows)[0].new_zeros(())
        return extremes(spectrum_values(self._on_range().core), largest).to(self._dtype)

    # --- algebra -----------------------------------------------------------------------------------------------------

    def scaled(self, alpha: Scalar) -> PMatLowRank:
        if isinstance(alpha, Number) and alpha >= 0 and self.weights is None:
            return PMatLowRank(trees.scale(math.sqrt(alpha), self.rows))
        return PMatLowRank(self.rows, alpha * self._all_weights())

    def _all_weights(self) -> Tensor:
        like = trees.leaves(self.rows)[0]
        return like.new_ones(self.n) if self.weights is None else self.weights

    def _compact(self) -> PMat:
        """Dense once there are more than d rows."""
        return self._dense() if self.n > self.layout.numel else self

    def _plus(self, other: PMat) -> PMat | None:
        if not isinstance(other, PMatLowRank):
            return None
        rows = trees.map(lambda s, t: torch.cat([s, t]), self.rows, other.rows)
        if self.weights is None and other.weights is None:
            return PMatLowRank(rows)
        return PMatLowRank(rows, torch.cat([self._all_weights(), other._all_weights()]))
