"""Representations of a Fisher matrix, one file each."""

from fisher.pmat.base import PMat
from fisher.pmat.dense import PMatDense
from fisher.pmat.diag import PMatDiag
from fisher.pmat.ekfac import PMatEKFAC
from fisher.pmat.kfac import PMatKFAC
from fisher.pmat.sum import PMatSum

__all__ = ["PMat", "PMatDense", "PMatDiag", "PMatEKFAC", "PMatKFAC", "PMatSum"]
