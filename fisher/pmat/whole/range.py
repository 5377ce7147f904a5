"""PMatRange: any symmetric matrix on the span of a few directions, a multiple of the identity on everything else.

n directions, d parameters, B `[n, d]` their rows (stored as a tree `[n, *leaf]`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.distributed.splitting import Job, cubes, shared
from fisher.pmat.contract.cuts import LSTSQ, NO_CUT, Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.precise import cast, inner, singly
from fisher.pmat.decompositions.spectra import (
    entrywise_power,
    extremes,
    log_abs,
    logdet,
    matrix_power,
    pseudo,
    spectrum_values,
)
from fisher.pmat.whole.diagonals import one_number
from fisher.pmat.whole.rows import combination, gram, products, row_layout
from linmaps import trees
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.eigen import cutoff, eigh, pinv
from linmaps.numerics.linalg import damped, inv
from linmaps.numerics.numeric import eye_like, positive_root
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


def purified(P: Tensor) -> Tensor:
    """The projection near P (McWeeny, 1960): rows that are orthonormal in float32 count as orthonormal in float64."""
    for _ in range(2):
        squared = P @ P
        P = 3 * squared - 2 * squared @ P
    return P


@trees.record()
class PMatRange(PMat):
    """B'C B + rest (I - B'B), the rows of B orthonormal, or zero (more generally: B'B a projection).

    core C `[n, n]`, or `[n]` for a diagonal one (then its entries are eigenvalues and the rows eigenvectors);
    basis B, a tree `[n, *leaf]`; rest a scalar.  Every function of it is exact; mv costs 6 n d.

    `PMatLowRank.inverse` and `.eigendecomposition` are of this form, and so is a rank-k approximation by Lanczos.

    >>> import torch
    >>> F = PMatRange(torch.tensor([4.0]), {"w": torch.tensor([[1.0, 0.0]])}, torch.tensor(1.0))
    >>> F.mv({"w": torch.tensor([1.0, 1.0])}), F.pow(0.5).to_torch()
    ({'w': tensor([4., 1.])}, tensor([[2., 0.],
            [0., 1.]]))
    """

    core: Tensor
    basis: Any
    rest: Tensor

    __repr__ = PMat.__repr__
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": (), "lstsq": LSTSQ}

    def _about(self) -> str:
        return f"{len(self.core)} directions, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return row_layout(self.basis)

    def _matrix(self) -> Tensor:
        return torch.diag(self.core) if self.core.ndim == 1 else self.core

    def _projected(self, regul: Regul = 0.0) -> tuple[Tensor, Tensor]:
        """(P (C + regul I) P, P) with P = B B' the projection on the coordinates that are used, in the dtype to compute in."""
        core = self._matrix()
        core = core.to(inner(core))
        P = purified(gram(self.basis, core.dtype))
        return P @ damped(core, regul) @ P, P

    def _made(self, core: Tensor, rest: Tensor) -> PMatRange:
        return PMatRange(core.to(self.core.dtype), self.basis, rest.to(self.rest.dtype))

    @property
    def _noise(self) -> float:
        return cutoff(len(self.core), self.core.dtype)

    def _split(self, v: Any) -> tuple[Tensor, Any]:
        """(B v, (I - B'B) v); projected twice, so that little of the span is left in the second."""
        inside = products(self.basis, v)
        outside = trees.sub(v, combination(self.basis, inside))
        return inside, trees.sub(outside, combination(self.basis, products(self.basis, outside)))

    def mv(self, v: Tree) -> Tree:
        v = self.check_vector(v)
        return cast(self._applied(cast(v, working_dtype(self.core.dtype))), trees.leaves(v)[0].dtype)

    def _applied(self, v: Any) -> Any:
        inside, outside = self._split(v)
        rest, core = (t.to(inside.dtype) for t in (self.rest, self._matrix()))
        return trees.axpy(rest, outside, combination(self.basis, core @ inside))

    def _solve(self, v: Any, regul: Regul, kind: str, cut: Cut = NO_CUT) -> Any:
        v = self.check_vector(v)
        return (self._pinv(cut) if kind == "lstsq" else self._inverse(regul)).mv(v)

    def _number(self, regul: Regul, method: str) -> Scalar:
        cure = "use PMatDense(F.to_torch(), F.layout)"
        return one_number(regul, self.core, method, cure)

    def _inverse(self, regul: Regul) -> PMatRange:
        regul = self._number(regul, "inverse and solve")
        C, P = self._projected(regul)
        return self._made(inv(C + eye_like(P, len(P)) - P), entrywise_power(self.rest, -1, regul))

    def _pinv(self, cut: Cut) -> PMatRange:
        """rest 0 stays 0."""
        rtol, atol = cut.of(self._noise)
        return self._made(pinv(self._projected()[0], rtol=rtol, atol=atol), singly(pseudo)(self.rest, 0.0, atol))

    def _pow(self, p: float, regul: Regul) -> PMatRange:
        regul = self._number(regul, "pow and sample")
        C, P = self._projected(regul)
        power = matrix_power(C + eye_like(P, len(P)) - P, p, 0.0, self._noise)
        return self._made(power, entrywise_power(self.rest, p, regul))

    def trace(self) -> Tensor:
        P = gram(self.basis, working_dtype(self.core.dtype))
        return (self._matrix() * P).sum() + self.rest * (self.layout.numel - P.trace())

    def get_diag(self) -> Any:
        middle = damped(self._matrix(), -self.rest)
        return trees.map(lambda r, s: (r * s).sum(0) + self.rest, self.basis, combination(self.basis, middle))

    def to_torch(self) -> Tensor:
        check_dense(self.layout.numel, "PMatRange.to_torch", PRODUCTS, dtype=self.dtype)
        rows = torch.cat([r.flatten(1) if r.ndim > 1 else r[:, None] for r in trees.leaves(self.basis)], 1)
        return damped(rows.mT @ damped(self._matrix(), -self.rest) @ rows, self.rest)

    def frobenius_norm(self) -> Tensor:
        C, P = self._projected()
        outside = self.rest.to(P.dtype) ** 2 * (self.layout.numel - P.trace())
        return positive_root((C**2).sum() + outside).to(self.core.dtype)

    def _logdet(self, regul: Regul) -> Tensor:
        regul = self._number(regul, "logdet")
        C, P = self._projected(regul)
        outside = (self.layout.numel - P.trace()) * log_abs(self.rest.to(P.dtype) + regul)
        total = logdet(C + eye_like(P, len(P)) - P, 0.0) + (outside if len(P) < self.layout.numel else 0.0)
        return total.to(self.core.dtype)

    def _spectral_norm(self, largest: bool) -> Tensor:
        return self._extreme(*self._projected(), largest).to(self.core.dtype)

    def _extreme(self, C: Tensor, P: Tensor, largest: bool) -> Tensor:
        rest = self.rest.to(P.dtype)
        if len(P) < self.layout.numel:  # coordinates that are not used, and the complement, have the value rest
            C = C + rest * (eye_like(P, len(P)) - P)
            return extremes(torch.cat([spectrum_values(C), rest[None]]), largest)
        return extremes(spectrum_values(C), largest)

    def _sample(self, noise: Any, regul: Regul) -> Any:
        return self._pow(-0.5, regul).mv(noise)

    def scaled(self, alpha: Scalar) -> PMatRange:
        return PMatRange(alpha * self.core, self.basis, alpha * self.rest)

    # --- the spectrum ------------------------------------------------------------------------------------------------

    def eigendecomposition(self, *, group: Any = None) -> PMatRange:
        """The same matrix with a diagonal core; group: decomposed at one rank for all."""
        if self.core.ndim == 1:
            return self
        like = PMatRange(self.core[0] if len(self.core) else self.core, self.basis, self.rest)
        return shared({"": Job(cubes(self.core), self._decomposed, like)}, group)[""]

    def _decomposed(self) -> PMatRange:
        values, U = eigh(self._projected()[0])
        basis = combination(self.basis, U.mT, trees.leaves(self.basis)[0].dtype)
        return PMatRange(values.to(self.core.dtype), basis, self.rest)

    def get_eigenvalues(self) -> Tensor:
        """The eigenvalues `[n]` on the span; `rest` is the one outside."""
        return self.eigendecomposition().core

    def project_to_diag(self, v: Any) -> Tensor:
        """The coordinates `[n]` of v in the basis of eigenvectors."""
        return products(self.eigendecomposition().basis, self.check_vector(v))

    def project_from_diag(self, u: Tensor) -> Any:
        """The tree like params with these coordinates `[n]`."""
        basis = self.eigendecomposition().basis
        expected = (len(trees.leaves(basis)[0]),)
        if tuple(u.shape) != expected:
            raise ValueError(f"u: got shape {tuple(u.shape)}, expected {expected}, as project_to_diag gives")
        return combination(basis, u)
