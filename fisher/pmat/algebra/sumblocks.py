"""Sums of blocks that stay sums: products by parts, solves by conjugate gradients where the dense block would be large.

n entries of a layer's view `[O, I]` (or `[n]`), V `[K, *view]` K vectors; U `[I, I]`, W `[O, O]` a Kronecker basis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.iterative import cg
from fisher.pmat.contract.cuts import NO_CUT, Cut
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.decompositions.eigenblocks import EigenBlock, diagonal, full, right
from fisher.pmat.decompositions.exact import DiagonalBlock, ExactBlock
from fisher.pmat.decompositions.precise import cast
from fisher.pmat.layered.factored import KroneckerBlock, Stacked
from linmaps import trees
from linmaps.checks import values
from linmaps.numerics.dtypes import precise
from linmaps.numerics.eigen import constant_eigh, cutoff
from linmaps.numerics.numeric import total

DIRECT = 2**11  # rows up to which a sum is solved as a dense matrix


@trees.record(static=("symmetric",))
class SumBlock:
    """T_1 + T_2 + ... of blocks on the same view."""

    terms: tuple[Any, ...]
    symmetric: bool = True

    def mv(self, V: Tensor) -> Tensor:
        return total([T.mv(V) for T in self.terms])

    def diag(self) -> Tensor:
        return total([T.diag().flatten() for T in self.terms])

    def dense(self) -> Tensor:
        D = self.diag()
        cure = "use F.solve(v, regul), or average PMatKFAC with fisher.Mean, which keeps the factors"
        check_dense(len(D), "a block of a PMatSum", cure, dtype=D.dtype)
        return total([T.dense() for T in self.terms])

    def solve(self, V: Tensor, regul: Regul, kind: str, cut: Cut = NO_CUT) -> Tensor:
        if kind == "default" and self.symmetric and len(self.diag()) > DIRECT:
            return self._iterated(V, regul)
        return self._by_dense("solve", V, regul, kind, cut)

    def sample(self, Z: Tensor, regul: Regul) -> Tensor:
        return self._by_dense("sample", Z, regul)

    def logdet(self, regul: Regul) -> Tensor:
        return self._by_dense("logdet", regul)

    def extreme(self, largest: bool) -> Tensor:
        return self._by_dense("extreme", largest)

    def _by_dense(self, method: str, *args: Any) -> Tensor:
        """A method of the dense block, which is summed as precisely as it is decomposed."""
        diag = self.diag()
        dtype = precise(diag.dtype, diag.device, len(diag))
        block = ExactBlock(cast(self, dtype).dense(), cutoff(len(diag), diag.dtype), self.symmetric)
        return getattr(block, method)(*(a.to(dtype) if isinstance(a, Tensor) else a for a in args)).to(diag.dtype)

    def squares(self) -> Tensor:
        pairs = [(S, T) for n, S in enumerate(self.terms) for T in self.terms[n + 1 :]]
        return total([T.squares() for T in self.terms] + [2 * inner(S, T) for S, T in pairs])

    def _iterated(self, V: Tensor, regul: Regul) -> Tensor:
        """By conjugate gradients in float64, preconditioned by `nearest`."""
        shape = V.shape[1:]
        shared: dict[str, Any] = {"T": self, "regul": torch.as_tensor(regul, dtype=V.dtype, device=V.device)}
        wide = cast(shared, precise(V.dtype, V.device, 1))
        r, wide["P"] = wide["regul"], nearest(wide["T"], tuple(shape))
        rows = lambda v: v.reshape(1, *shape)
        return conjugate(
            lambda s, v: s["T"].mv(rows(v)).reshape(v.shape) + s["regul"] * v,
            lambda s, v: s["P"].solve(rows(v), s["regul"], "default").reshape(v.shape),
            wide,
            V.flatten(1),
            wide["P"].extreme(True) + r.detach(),
        ).reshape(V.shape)


def conjugate(apply: Any, precondition: Any, shared: Any, rows: Tensor, size: Tensor) -> Tensor:
    """The solutions of apply(shared, x) = b for the rows b `[K, d]`, in the dtype of shared; size: the operator's norm.

    Raises ValueError where the residual is larger than rounding would leave in a direct solve.
    """
    if len(rows) == 0:
        return rows
    b, eps = rows.to(size.dtype), torch.finfo(rows.dtype).eps
    rtol = None if rows.dtype == size.dtype else eps / 10
    x, report = vmap(lambda b: cg.solve(apply, shared, b, precondition=precondition, rtol=rtol))(b)
    length = lambda t: torch.linalg.vector_norm(t.detach(), dim=-1)
    allowed = 100 * eps * (length(b) + size * length(x))
    excess, steps = values(report.residual * length(b) - allowed), values(report.iterations)
    if excess is not None and steps is not None and not bool((excess <= 0).all()):
        raise ValueError(
            f"PMatSum.solve: conjugate gradients left a residual beyond rounding after {int(steps.max())} products: regul is "
            "too small for them, or the sum is not positive; give a larger regul, or use F.dense().solve(v, regul)"
        )
    return x.to(rows.dtype)


def nearest(T: SumBlock, shape: tuple[int, ...]) -> EigenBlock | DiagonalBlock:
    """|diagonal| of T in the eigenbases of its partial traces, constant: T itself where that is G (x) A, semi-definite."""
    terms = trees.map(lambda t: t.detach(), T.terms)
    if not any(isinstance(t, (KroneckerBlock, EigenBlock)) for t in terms):
        return DiagonalBlock(total([t.diag().reshape(shape) for t in terms]).abs())
    inputs, outputs = zip(*(_traces(t, shape) for t in terms))
    U, W = _basis(inputs), _basis(outputs)
    return EigenBlock(total([_diagonal_in(t, U, W) for t in terms]).abs(), U, W)


def _traces(t: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The means of a block over its outputs and over its inputs; 1-d for diagonal ones."""
    if isinstance(t, KroneckerBlock):
        return t.A * diagonal(t.G).mean(), t.G * diagonal(t.A).mean()
    if isinstance(t, EigenBlock):
        rotated = lambda U, d: d if U.ndim == 1 else (U * d) @ U.mT
        return rotated(t.U, t.D.mean(0)), rotated(t.W, t.D.mean(1))
    D = t.diag().reshape(shape)
    return D.mean(0), D.mean(1)


def _basis(parts: tuple[Tensor, ...]) -> Tensor:
    if all(m.ndim == 1 for m in parts):
        return torch.ones_like(parts[0])
    return constant_eigh(total([full(m) for m in parts]))[1]


def _diagonal_in(t: Any, U: Tensor, W: Tensor) -> Tensor:
    """The diagonal of (W (x) U)' t (W (x) U), `[O, I]`."""
    rotated = lambda A, U: diagonal(A) if U.ndim == 1 else ((full(A) @ U) * U).sum(0)
    if isinstance(t, KroneckerBlock):
        return torch.outer(rotated(t.G, W), rotated(t.A, U))
    D = t.D if isinstance(t, EigenBlock) else t.diag().reshape(len(W), len(U))
    if isinstance(t, EigenBlock):
        D = (W.mT @ t.W) ** 2 @ D
        if U.ndim == t.U.ndim == 1:
            return D
        return D @ ((t.U.mT if U.ndim == 1 else full(t.U).mT @ U) ** 2)
    return right(W.mT**2 @ D, U**2)


def inner(S: Any, T: Any) -> Tensor:
    """The sum of products of entries of two blocks on one view."""
    if isinstance(S, Stacked) and isinstance(T, Stacked):
        return vmap(inner)(S.block, T.block).sum()
    if isinstance(S, KroneckerBlock) and isinstance(T, KroneckerBlock):
        return _inner(S.A, T.A) * _inner(S.G, T.G)
    for s, t in ((S, T), (T, S)):
        if isinstance(t, DiagonalBlock):
            return (s.diag().flatten() * t.diag().flatten()).sum()
        if isinstance(t, EigenBlock) and isinstance(s, (KroneckerBlock, EigenBlock)):
            return (t.D * _diagonal_in(s, t.U, t.W)).sum()
    n = S.diag().numel()
    check_dense(n, "PMatSum.frobenius_norm", "use F.mv(v)", dtype=S.diag().dtype)
    return (S.dense() * T.dense()).sum()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() if a.ndim == b.ndim else (diagonal(a) * diagonal(b)).sum()
