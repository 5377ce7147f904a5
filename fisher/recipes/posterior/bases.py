"""A matrix decomposed once: F + regul as a matrix and a rest of regul, and that matrix in its eigenbasis.

In the basis solves, determinants and samples for any multiple of the identity, and of each layer's identity, need no other
factorization.  The basis is constant: where a derivative of F is asked for, the matrix itself is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd.forward_ad import unpack_dual

from fisher.checks import finiteness
from fisher.pmat import PMatDiag, PMatMixed, PMatSum
from fisher.pmat.contract.blocks import Blockwise, Layerwise
from fisher.pmat.contract.damping import Amounts
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.matrix_free.matrixfree import MatrixFree
from fisher.trials import modes
from linmaps import checks, trees
from linmaps.numerics.dtypes import working, working_dtype

INDEFINITE = (
    "N F + prior_precision I is not positive definite, so it is no precision; take the Fisher or Gauss-Newton matrix in place "
    "of an indefinite Hessian, or a larger prior_precision"
)


def apart(F: PMat, regul: Any) -> bool:
    """Whether F + regul has the eigenbasis of F: a multiple of the identity, or of the identity of each block."""
    found = F._damping(regul)
    if not isinstance(found, Amounts):
        return True
    return isinstance(F, Layerwise) and found.named is not None and set(found.named) == set(F._blocks())


def damped(F: PMat, regul: Any) -> tuple[PMat, Any]:
    """(M, r) with F + regul = M + r: F itself where `apart`, else the sum as a matrix and its least amount."""
    if apart(F, regul) or not isinstance(F, Blockwise | PMatMixed):
        return F, regul
    amounts = [t.to(F.dtype) for t in F._damping(regul).tensors(F._like())]
    filled = [t.amin() for t in amounts if t.numel()]
    least = torch.stack(filled).amin() if filled else torch.zeros((), dtype=F.dtype, device=F.device)
    rest = F.layout.unflatten([t - least for t in amounts])
    if isinstance(F, PMatMixed):
        return F.replaced([part + PMatDiag(own, part.layout) for part, own in zip(F.parts, F._cut(rest))]), least
    return F + PMatDiag(rest, F.layout), least


def decomposed(M: PMat) -> PMat | None:
    """M in its eigenbasis, detached, float32 in place of half precision; None where a product or a sum is all there is."""
    parts = M.parts if isinstance(M, PMatMixed) else [M]
    if any(isinstance(part, MatrixFree | PMatSum) or not getattr(part, "symmetric", True) for part in parts):
        return None
    found: PMat = cast(trees.map(lambda t: t.detach(), M), working_dtype(M.dtype)).eigendecomposition()
    return found


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """The tree with its floating tensors in a dtype."""
    return trees.map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, tree)


def constant(F: PMat) -> bool:
    """Whether no derivative can be asked of F's numbers; members of an ensemble under vmap have none of their own."""
    return not any(isinstance(t, Tensor) and _followed(t) for t in trees.leaves(F))


def _followed(t: Tensor) -> bool:
    while is_functorch_wrapped_tensor(t):
        if not is_batchedtensor(t):
            return True
        t = get_unwrapped(t)
    return t.requires_grad or unpack_dual(t).tangent is not None


def check_definite(M: PMat, regul: Any, name: str) -> None:
    """Raise if M + regul has an eigenvalue that is negative beyond rounding, where that costs less than a solve."""
    if isinstance(M._damping(regul), Amounts):
        M, regul = damped(M, regul)
        if isinstance(M._damping(regul), Amounts):
            return
    regul = regul.detach() if isinstance(regul, Tensor) else regul
    for part in M._at_hand():
        m = working(part.detach())
        slack = 100 * torch.finfo(m.dtype).eps * m.abs().sum(-1).amax() + regul if m.numel() else regul
        if m.ndim == 2:
            eye = torch.eye(len(m), dtype=m.dtype, device=m.device)
            definite(torch.linalg.cholesky_ex(m + slack * eye).info == 0, name)
        elif m.ndim == 1:
            definite(m + slack >= 0, name)


def check_determinant(M: PMat, name: str) -> None:
    """Raise a ValueError where a matrix is known by its products alone, whose determinant is an estimate."""
    if any(isinstance(part, MatrixFree) for part in (M.parts if isinstance(M, PMatMixed) else [M])):
        raise ValueError(
            f"{name}: {type(M).__name__} has products alone, of whose determinant random probes give no more than an estimate, "
            "expected a matrix that stores numbers; make F as PMatKFAC, PMatLowRank, ..., or of few params take "
            "PMatDense(F.to_torch(), F.layout)"
        )


def check_covariance(found: Tensor, M: PMat, regul: Any) -> None:
    """Raise a ValueError where a covariance is not finite: M + regul is singular, or the derivatives overflow."""
    if not untrue(found.isfinite()):
        return
    unit = M.layout.unflatten([torch.ones(s, dtype=M.dtype, device=M.device) for s in M.layout.shapes])
    if untrue(trees.ravel(M.solve(unit, regul))[0].isfinite()):
        raise ValueError(
            "predict: N F + prior_precision is singular, expected one that has an inverse; give laplace a larger prior_precision"
        )
    finiteness.finite(found, "predict", modes.OVERFLOWS)


def definite(fine: Tensor, name: str) -> None:
    """Raise unless all is True."""
    if untrue(fine):
        raise ValueError(f"{name}: {INDEFINITE}")


def untrue(fine: Tensor) -> bool:
    """Whether a value under the transforms is False; looked at only to raise."""
    seen = checks.values(fine)
    return seen is not None and not bool(seen.all())
