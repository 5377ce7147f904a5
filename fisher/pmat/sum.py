"""PMatSum: a sum of matrices whose sum has no common representation (two KFACs, a KFAC and a diagonal)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisher.pmat.base import PMat, Regul, check_regul
from fisher.pmat.blockdiag import PMatBlockDiag, added
from fisher.pmat.blocks import Layerwise
from fisher.pmat.dense import PMatDense
from fisher.pmat.eye import PMatEye
from fisher.pmat.matrixfree import MatrixFree
from linmaps import trees
from linmaps.linalg import positive_root
from linmaps.trees import Layout


@trees.record()
class PMatSum(PMat):
    """F_1 + F_2 + ...: mv, trace and diagonal by linearity; all else through `dense()`.

    A matrix plus a multiple of the identity is that matrix with another regul.  Where all other terms are direct sums over
    the same layers, dense blocks are as large as a layer (PMatBlockDiag); else there is one of d (PMatDense).

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatKFAC, "gaussian")
    >>> F + F
    PMatSum(2 terms, d = 2, 10 numbers stored, float32, cpu)
    >>> (F + F).dense()
    PMatBlockDiag(1 blocks, d = 2, 4 numbers stored, float32, cpu)
    """

    terms: tuple[Any, ...]

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return f"{len(self.terms)} terms, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.terms[0].layout

    def dense(self) -> PMatBlockDiag | PMatDense:
        """The sum as a matrix: by layers where all terms are, else whole."""
        first = next((F for F in self.terms if isinstance(F, Layerwise)), None)
        if first is not None:
            total: Any = PMatBlockDiag(first.matrices(), first.layers, first.symmetric)
            for F in self.terms:
                total = total if F is first or total is None else added(total, F)
            if total is not None:
                return total
        symmetric = all(getattr(F, "symmetric", True) for F in self.terms)
        return PMatDense(_total([F.to_torch() for F in self.terms]), self.layout, symmetric)

    def shifted(self) -> tuple[PMat, Regul]:
        """(F, alpha) with the sum = F + alpha I: alpha is 0 but for one term and a PMatEye."""
        eyes = [F for F in self.terms if isinstance(F, PMatEye)]
        rest = [F for F in self.terms if not isinstance(F, PMatEye)]
        return (rest[0], eyes[0].alpha) if len(eyes) == len(rest) == 1 else (self.dense(), 0.0)

    # --- by linearity ----------------------------------------------------------------------------------------------

    def mv(self, v: Any) -> Any:
        """F v, a tree like v."""
        return _total([F.mv(v) for F in self.terms])

    def _mv_map(self, J: Any, n: int) -> Any:
        return _total([F._mv_map(J, n) for F in self.terms])

    def get_diag(self) -> Any:
        return _total([F.get_diag() for F in self.terms])

    def trace(self) -> Tensor:
        return _total([F.trace() for F in self.terms])

    def to_torch(self) -> Tensor:
        return _total([F.to_torch() for F in self.terms])

    def get_block(self, name: str) -> Tensor:
        return self.dense().get_block(name)

    def scaled(self, alpha: Regul) -> PMatSum:
        return PMatSum(tuple(F.scaled(alpha) for F in self.terms))

    # --- with another regul ----------------------------------------------------------------------------------------

    def solve(self, v: Any, regul: Regul = 1e-8, *, kind: str = "default", **options: Any) -> Any:
        """(F + regul I)^-1 v; kinds and options of the one term beside a multiple of I, else those of `dense()`.

        With a matrix-free term beside others (a centred implicit matrix) by conjugate gradients on products of the sum.
        """
        check_regul(regul)
        rest = [F for F in self.terms if not isinstance(F, PMatEye)]
        if kind in ("default", "cg") and len(rest) > 1 and any(isinstance(F, MatrixFree) for F in rest):
            return Products(self).solve(v, regul, kind=kind, **options)
        F, alpha = (self.dense(), 0.0) if kind == "lstsq" else self.shifted()
        return F.solve(v, regul + alpha, kind=kind, **options)

    def inverse(self, regul: Regul = 1e-8) -> PMat:
        """(F + regul I)^-1, as the inverse of the one term beside a multiple of I, else dense."""
        check_regul(regul)
        F, alpha = self.shifted()
        return F.inverse(regul + alpha)

    def pow(self, p: float, regul: Regul = 0.0) -> PMat:
        """(F + regul I)^p."""
        check_regul(regul)
        F, alpha = self.shifted()
        return F.pow(p, regul + alpha)

    def logdet(self, regul: Regul = 1e-8) -> Tensor:
        check_regul(regul)
        F, alpha = self.shifted()
        return F.logdet(regul + alpha)

    def sample(self, generator: Any = None, regul: Regul = 1e-8, *, noise: Any = None) -> Any:
        check_regul(regul)
        F, alpha = self.shifted()
        return F.sample(generator, regul + alpha, noise=noise)

    def frobenius_norm(self) -> Tensor:
        F, alpha = self.shifted()
        if isinstance(alpha, float):
            return F.frobenius_norm()
        return positive_root(F.frobenius_norm() ** 2 + 2 * alpha * F.trace() + alpha**2 * self.layout.numel)

    # --- through the dense matrix ----------------------------------------------------------------------------------

    def pinv(self, rtol: float | None = None) -> PMat:
        """F^+, dense."""
        return self.dense().pinv(rtol)

    def eigendecomposition(self) -> PMat:
        """F = U diag(values) U', dense."""
        return self.dense().eigendecomposition()

    def _spectral_norm(self, largest: bool) -> Tensor:
        return self.dense()._spectral_norm(largest)


def add(F: PMat, G: Any) -> PMat:
    """F + G: in a representation that holds it where there is one, else a PMatSum of as few terms as possible."""
    if not isinstance(G, PMat):
        raise TypeError(f"{type(F).__name__} + {type(G).__name__}: expected a PMat on the right")
    same_space(F, G, "+")
    terms = list(F.terms) if isinstance(F, PMatSum) else [F]
    for new in G.terms if isinstance(G, PMatSum) else (G,):
        terms = _with(terms, new)
    return terms[0] if len(terms) == 1 else PMatSum(tuple(terms))


def _with(terms: list[PMat], new: PMat) -> list[PMat]:
    if isinstance(new, PMatDense):
        total: PMat = new
        for F in terms:
            total = new._plus(F) if total is new else total._plus(F)  # type: ignore[assignment]
        return [total]
    for n, F in enumerate(terms):
        found = F._plus(new)
        found = new._plus(F) if found is None else found
        if found is not None:
            return [*terms[:n], found, *terms[n + 1 :]]
    return [*terms, new]


def same_space(F: PMat, G: PMat, sign: str) -> None:
    """Raise a ValueError unless both are matrices of the same params."""
    if F.layout != G.layout:
        raise ValueError(
            f"{type(F).__name__} {sign} {type(G).__name__}: layouts differ, got leaves "
            f"{[trees.path_str(p) for p in G.layout.paths]} {G.layout.shapes}, expected "
            f"{[trees.path_str(p) for p in F.layout.paths]} {F.layout.shapes}; take matrices of the same params"
        )


@trees.record()
class Products(MatrixFree):
    """A sum of which only products are formed: what conjugate gradients need."""

    total: PMatSum

    __repr__ = PMat.__repr__

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.total.layout

    def mv(self, v: Any) -> Any:
        return self.total.mv(v)


def _total(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = trees.add(total, part)
    return total
