"""Representations of a Fisher matrix, one file each."""

from fisher.pmat.base import PMat
from fisher.pmat.blockdiag import PMatBlockDiag
from fisher.pmat.dense import PMatDense
from fisher.pmat.diag import PMatDiag
from fisher.pmat.eigen import PMatEigen
from fisher.pmat.ekfac import PMatEKFAC
from fisher.pmat.eye import PMatEye
from fisher.pmat.implicit import PMatImplicit
from fisher.pmat.kfac import PMatKFAC
from fisher.pmat.lowrank import PMatLowRank
from fisher.pmat.mixed import PMatMixed
from fisher.pmat.pullback import PMatPullback
from fisher.pmat.quasidiag import PMatQuasiDiag
from fisher.pmat.range import PMatRange
from fisher.pmat.sum import PMatSum

__all__ = [
    "PMat",
    "PMatBlockDiag",
    "PMatDense",
    "PMatDiag",
    "PMatEKFAC",
    "PMatEigen",
    "PMatEye",
    "PMatImplicit",
    "PMatKFAC",
    "PMatLowRank",
    "PMatMixed",
    "PMatPullback",
    "PMatQuasiDiag",
    "PMatRange",
    "PMatSum",
]
