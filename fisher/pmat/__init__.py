"""Representations of a Fisher matrix, one file each.  d parameters; v a tree like params, J a map with leading axes.

Rooms in reading order:
    contract/        what a matrix is: the methods common to all
    decompositions/  one block, decomposed
    whole/           on all of parameter space at once
    layered/         by layer
    matrix_free/     functions v -> F v
    algebra/         sums and products of two
    names            classes by name
    representation   the class asked for, in a signature
"""

from fisher.pmat.algebra.product import multiply
from fisher.pmat.algebra.sums import PMatSum
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.layered.ekfac import PMatEKFAC
from fisher.pmat.layered.kfac import PMatKFAC
from fisher.pmat.layered.mixed import PMatMixed
from fisher.pmat.layered.quasidiag import PMatQuasiDiag
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.matrix_free.pulled_back import PMatPullback
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eigen import PMatEigen
from fisher.pmat.whole.eye import PMatEye
from fisher.pmat.whole.lowrank import PMatLowRank
from fisher.pmat.whole.range import PMatRange

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
    "multiply",
]


def __dir__() -> list[str]:
    return sorted(__all__)
