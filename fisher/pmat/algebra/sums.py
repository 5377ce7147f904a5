"""PMatSum: a sum of matrices whose sum has no common representation (two KFACs, a KFAC and a diagonal)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fisher.pmat.algebra.regrouped import Layered, Products
from fisher.pmat.algebra.sumblocks import DIRECT, conjugate
from fisher.pmat.contract import maps
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.cuts import Over
from fisher.pmat.contract.damping import Amounts, Regul, Scalar, plus
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.precise import cast
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.matrix_free.matrixfree import MatrixFree
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eigen import raveled
from fisher.pmat.whole.eye import PMatEye
from linmaps import trees
from linmaps.numerics.dtypes import precise
from linmaps.numerics.numeric import positive_root
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


@trees.record()
class PMatSum(PMat):
    """F_1 + F_2 + ...: mv, trace and diagonal by linearity, solve by parts too; all else through `dense()`.

    A matrix plus a multiple of the identity is that matrix with another regul, in solve, inverse, pow, logdet and sample.
    Where all other terms are direct sums over the same layers, dense blocks are as large as a layer (PMatBlockDiag); else
    there is one of d (PMatDense).  It stores what its terms store: to sum over batches average them (`fisher.Mean`), where
    they are linear in their numbers.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatKFAC, "gaussian")
    >>> G = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.ones(1, 2), fisher.PMatKFAC, "gaussian")
    >>> F + G
    PMatSum(2 terms, d = 2, 10 numbers stored, float32, cpu)
    >>> (F + G).dense()
    PMatBlockDiag(1 blocks, d = 2, 4 numbers stored, float32, cpu)
    """

    terms: tuple[Any, ...]

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return f"{len(self.terms)} terms, "

    @property
    def linear(self) -> bool:
        return all(F.linear for F in self.terms)

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.terms[0].layout

    def dense(self) -> PMatBlockDiag | PMatDense:
        """The sum as a matrix: by layers where all terms are, else whole.  ValueError beyond 2^15 rows of a block."""
        layered = self._layered()
        if layered is not None:
            return PMatBlockDiag(layered.matrices(), layered.layers, self.symmetric)
        return PMatDense(self.to_torch(), self.layout, self.symmetric)

    @property
    def known_layers(self) -> Any:
        """Those of its first term that knows its layers."""
        return next((F.known_layers for F in self.terms if F.known_layers is not None), None)

    @property
    def symmetric(self) -> bool:
        return all(getattr(F, "symmetric", True) for F in self.terms)

    def _layered(self) -> Layered | None:
        """The same by layers, where all terms are direct sums over the same layers."""
        first = next((F for F in self.terms if isinstance(F, Layerwise)), None)
        if first is None:
            return None
        by_layer = lambda F: (
            isinstance(F, (PMatEye, PMatDiag)) or (isinstance(F, Layerwise) and F.layers == first.layers)
        )
        return Layered(self.terms, first.layers, self.symmetric) if all(map(by_layer, self.terms)) else None

    def _compact(self) -> PMat:
        """Dense where that stores less."""
        if any(isinstance(F, MatrixFree) for F in self.terms):
            return self
        layered = self._layered()
        sizes = [self.layout.numel] if layered is None else [math.prod(s) for s in layered.shapes().values()]
        stored = sum(t.numel() for t in trees.leaves(self))
        return self.dense() if stored > sum(n**2 for n in sizes) else self

    def _apart(self) -> tuple[PMat | None, Regul]:
        """(F, alpha) with the sum = F + alpha I, for one term beside a PMatEye."""
        eyes = [F for F in self.terms if isinstance(F, PMatEye)]
        rest = [F for F in self.terms if not isinstance(F, PMatEye)]
        return (rest[0], eyes[0].alpha) if len(eyes) == len(rest) == 1 else (None, 0.0)

    def shifted(self) -> tuple[PMat, Regul]:
        """(F, alpha) with the sum = F + alpha I: alpha is 0 but for one term and a PMatEye."""
        F, alpha = self._apart()
        return (self.dense() if F is None else F), alpha

    def _blockwise(self) -> tuple[PMat, Regul]:
        """(F, alpha) as of `shifted`, by blocks that are summed where they are needed."""
        F, alpha = self._apart()
        return F or self._layered() or self.dense(), alpha

    def _taking(self, regul: Any) -> tuple[PMatSum, Any]:
        """The sum and a regul, with one that has several numbers among the terms, but beside one term and a PMatEye."""
        if not isinstance(regul, Amounts) or self._apart()[0] is not None:
            return self, regul
        if any(isinstance(F, MatrixFree) for F in self.terms):
            return self, regul
        diag = trees.map(lambda t: t.to(self.dtype), regul.tree(self._like()))
        return PMatSum((*self.terms, PMatDiag(diag, self.layout))), self._like().new_zeros(())

    # --- by linearity ----------------------------------------------------------------------------------------------

    def mv(self, v: Tree) -> Tree:
        """F v, a tree like v."""
        total: Tree = _total([F.mv(v) for F in self.terms])
        return total

    def _mv_map(self, J: Tree, n: int) -> Tree:
        total: Tree = _total([F._mv_map(J, n) for F in self.terms])
        return total

    def get_diag(self) -> Any:
        return _total([F.get_diag() for F in self.terms])

    def trace(self) -> Tensor:
        return _total([F.trace() for F in self.terms])

    def to_torch(self) -> Tensor:
        check_dense(self.layout.numel, "PMatSum.to_torch", "use F.mv(v) and F.solve(v, regul)", dtype=self.dtype)
        return _total([F.to_torch() for F in self.terms])

    def get_block(self, name: str) -> Tensor:
        return (self._layered() or self.dense()).get_block(name)

    def scaled(self, alpha: Scalar) -> PMatSum:
        return PMatSum(tuple(F.scaled(alpha) for F in self.terms))

    # --- with another regul ----------------------------------------------------------------------------------------

    def _solved(self, v: Any, regul: Regul, kind: str, **options: Any) -> Any:
        """Kinds and options of the one term beside a multiple of I, else those of `dense()`.

        Dense up to 2,048 rows of a layer (of all, where the terms are no direct sums over layers), beyond by conjugate
        gradients on products of the parts: ValueError where these do not converge, as they need not for an indefinite sum.
        With a matrix-free term beside others (a centred implicit matrix) in any case, with the options of PMatImplicit.
        """
        self, regul = self._taking(regul)
        F, alpha = self._apart()
        if F is not None and kind != "lstsq":
            return F._solved(v, plus(regul, alpha), kind, **options)
        if kind in ("default", "cg") and any(isinstance(F, MatrixFree) for F in self.terms):
            return Products(self)._solved(v, regul, kind, **options)
        layered = self._layered()
        if layered is not None:
            return layered._solved(v, regul, kind, **options)
        if kind == "default" and not options and self.symmetric and self.layout.numel > DIRECT:
            return maps.each(self.layout, v, "v", lambda v, n: self._iterated(v, n, regul), self._space)
        return self.dense()._solved(v, regul, kind, **options)

    def _iterated(self, v: Any, n: int, regul: Regul) -> Any:
        """By conjugate gradients in float64, preconditioned by the diagonal."""
        leaves, treedef = trees.flatten(v)
        lead, space = leaves[0].shape[:n], self.layout
        rows = torch.cat([t.reshape(-1, size) for t, size in zip(leaves, space.sizes)], 1)
        shared: dict[str, Any] = {"F": self, "regul": torch.as_tensor(regul, dtype=rows.dtype, device=rows.device)}
        wide = cast(shared, precise(rows.dtype, rows.device, 1))
        D = raveled(wide["F"].get_diag(), space).detach().abs()
        x = conjugate(
            lambda s, b: raveled(s["F"].mv(space.unravel(b)), space) + s["regul"] * b,
            lambda s, b: b / (s["D"] + s["regul"]),
            wide | {"D": D},
            rows,
            D.amax() + wide["regul"].detach(),
        )
        parts = x.split(list(space.sizes), 1)
        return treedef.unflatten([t.reshape((*lead, *s)) for t, s in zip(parts, space.shapes)])

    def _inverse(self, regul: Regul) -> PMat:
        self, regul = self._taking(regul)
        F, alpha = self._apart()
        if F is not None:
            return F._inverse(plus(regul, alpha))
        if any(isinstance(F, MatrixFree) for F in self.terms):
            return self.dense()._inverse(regul)
        layered, d = self._layered(), self.layout.numel
        rows = max([math.prod(s) for s in layered.shapes().values()], default=0) if layered is not None else d
        wide = cast(self, precise(self.dtype, self.device, rows))  # the sum is made as precisely as it is inverted
        return cast(wide.dense()._inverse(regul), self.dtype)

    def _pow(self, p: float, regul: Regul) -> PMat:
        self, regul = self._taking(regul)
        F, alpha = self.shifted()
        return F._pow(p, plus(regul, alpha))

    def _logdet(self, regul: Regul) -> Tensor:
        self, regul = self._taking(regul)
        F, alpha = self._blockwise()
        return F._logdet(plus(regul, alpha))

    def _sampled(self, generator: Any, regul: Regul, noise: Any) -> Any:
        self, regul = self._taking(regul)
        F, alpha = self._blockwise()
        return F._sampled(generator, plus(regul, alpha), noise)

    def frobenius_norm(self) -> Tensor:
        F, alpha = self._apart()
        if F is None:
            return (self._layered() or self.dense()).frobenius_norm()
        return positive_root(F.frobenius_norm() ** 2 + 2 * alpha * F.trace() + alpha**2 * self.layout.numel)

    # --- through the dense matrix ----------------------------------------------------------------------------------

    def pinv(self, rtol: float | None = None, *, atol: float = 0.0, over: Over = "block") -> PMat:
        """F^+, of `dense()`."""
        return self.dense().pinv(rtol, atol=atol, over=over)

    def eigendecomposition(self, *, group: Any = None) -> PMat:
        """F = U diag(values) U', dense; group: decomposed at one rank for all."""
        return self.dense().eigendecomposition(group=group)

    def _spectral_norm(self, largest: bool) -> Tensor:
        return self.dense()._spectral_norm(largest)


def _total(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = trees.add(total, part)
    return total
