"""PMatRange: any symmetric matrix on the span of a few directions, a multiple of the identity on everything else.

n directions, d parameters, B `[n, d]` their rows (stored as a tree `[n, *leaf]`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.pmat.base import PMat, Regul, check_regul
from fisher.pmat.limits import PRODUCTS, check_dense
from fisher.pmat.spectra import extremes, log_abs, logdet, matrix_power, raised, spectrum_values
from linmaps import trees
from linmaps.linalg import damped, eigh, inv, pinv, positive_root
from linmaps.numeric import eye_like
from linmaps.trees import Layout


def products(rows: Any, v: Any) -> Tensor:
    """B v `[*lead, n]` for rows `[n, *leaf]` and a vector, or a map with leading axes.

    >>> import torch
    >>> products({"w": torch.eye(2)}, {"w": torch.tensor([3.0, 4.0])})
    tensor([3., 4.])
    """
    parts = []
    for r, t in zip(trees.leaves(rows), trees.leaves(v)):
        flat = r.flatten(1) if r.ndim > 1 else r[:, None]
        lead = tuple(t.shape[: t.ndim - (r.ndim - 1)])
        parts.append(t.reshape((*lead, flat.shape[1])) @ flat.mT)
    return sum(parts[1:], parts[0])


def combination(rows: Any, c: Tensor) -> Any:
    """B'c, a tree `[*lead, *leaf]`, for c `[*lead, n]`.

    >>> import torch
    >>> combination({"w": torch.eye(2)}, torch.tensor([3.0, 4.0]))
    {'w': tensor([3., 4.])}
    """
    return trees.map(
        lambda r: (c @ (r.flatten(1) if r.ndim > 1 else r[:, None])).reshape((*c.shape[:-1], *r.shape[1:])), rows
    )


def gram(rows: Any) -> Tensor:
    """B B' `[n, n]`."""
    flat = trees.leaves(rows)
    check_dense(
        len(flat[0]), "the Gram matrix of the rows of a PMatLowRank", "use PMatDense or PMatDiag", dtype=flat[0].dtype
    )
    return products(rows, rows)


def row_layout(rows: Any) -> Layout:
    """The layout of one of the rows."""
    whole = Layout.of(rows)
    return Layout(whole.treedef, tuple(s[1:] for s in whole.shapes))


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
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": (), "lstsq": ("rtol",)}

    def _about(self) -> str:
        return f"{len(self.core)} directions, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return row_layout(self.basis)

    def _matrix(self) -> Tensor:
        return torch.diag(self.core) if self.core.ndim == 1 else self.core

    def _projected(self, regul: Regul = 0.0) -> tuple[Tensor, Tensor]:
        """(P (C + regul I) P, P) with P = B B' the projection on the coordinates that are used."""
        P = gram(self.basis)
        return P @ damped(self._matrix(), regul) @ P, P

    def _split(self, v: Any) -> tuple[Tensor, Any]:
        """(B v, (I - B'B) v); projected twice, so that little of the span is left in the second."""
        inside = products(self.basis, v)
        outside = trees.sub(v, combination(self.basis, inside))
        return inside, trees.sub(outside, combination(self.basis, products(self.basis, outside)))

    def mv(self, v: Any) -> Any:
        v = self.check_vector(v)
        inside, outside = self._split(v)
        return trees.axpy(self.rest, outside, combination(self.basis, self._matrix() @ inside))

    def _solve(self, v: Any, regul: Regul, kind: str, rtol: float | None = None) -> Any:  # type: ignore[override]
        v = self.check_vector(v)
        return (self.pinv(rtol) if kind == "lstsq" else self.inverse(regul)).mv(v)

    def inverse(self, regul: Regul = 1e-8) -> PMatRange:
        """(F + regul I)^-1 in the same basis."""
        check_regul(regul)
        C, P = self._projected(regul)
        return PMatRange(inv(C + eye_like(P, len(P)) - P), self.basis, 1 / (self.rest + regul))

    def pinv(self, rtol: float | None = None) -> PMatRange:
        """The pseudo-inverse in the same basis; rest 0 stays 0."""
        zero = self.rest == 0
        rest = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, self.rest))
        return PMatRange(pinv(self._projected()[0], rtol=rtol), self.basis, rest)

    def pow(self, p: float, regul: Regul = 0.0) -> PMatRange:
        """(F + regul I)^p in the same basis."""
        check_regul(regul)
        C, P = self._projected(regul)
        return PMatRange(matrix_power(C + eye_like(P, len(P)) - P, p), self.basis, raised(self.rest + regul, p))

    def trace(self) -> Tensor:
        P = gram(self.basis)
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
        return positive_root((C**2).sum() + self.rest**2 * (self.layout.numel - P.trace()))

    def logdet(self, regul: Regul = 1e-8) -> Tensor:
        check_regul(regul)
        C, P = self._projected(regul)
        outside = (self.layout.numel - P.trace()) * log_abs(self.rest + regul)
        return logdet(C + eye_like(P, len(P)) - P, 0.0) + (outside if len(P) < self.layout.numel else 0.0)

    def _spectral_norm(self, largest: bool) -> Tensor:
        C, P = self._projected()
        if len(P) < self.layout.numel:  # coordinates that are not used, and the complement, have the value rest
            C = C + self.rest * (eye_like(P, len(P)) - P)
            return extremes(torch.cat([spectrum_values(C), self.rest[None]]), largest)
        return extremes(spectrum_values(C), largest)

    def _sample(self, noise: Any, regul: Regul) -> Any:
        return self.pow(-0.5, regul).mv(noise)

    def scaled(self, alpha: Regul) -> PMatRange:
        return PMatRange(alpha * self.core, self.basis, alpha * self.rest)

    # --- the spectrum ------------------------------------------------------------------------------------------------

    def eigendecomposition(self) -> PMatRange:
        """The same matrix with a diagonal core."""
        if self.core.ndim == 1:
            return self
        values, U = eigh(self._projected()[0])
        return PMatRange(values, combination(self.basis, U.mT), self.rest)

    def get_eigenvalues(self) -> Tensor:
        """The eigenvalues `[n]` on the span; `rest` is the one outside."""
        return self.eigendecomposition().core

    def project_to_diag(self, v: Any) -> Tensor:
        """The coordinates `[n]` of v in the basis of eigenvectors."""
        return products(self.eigendecomposition().basis, v)

    def project_from_diag(self, u: Tensor) -> Any:
        """The tree like params with these coordinates `[n]`."""
        return combination(self.eigendecomposition().basis, u)
