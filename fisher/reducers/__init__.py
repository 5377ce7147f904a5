"""Reducers: what one batch adds up for each representation, and the table of them."""

from fisher.pmat import PMat, PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatLowRank, PMatQuasiDiag
from fisher.reducers.base import Options, Reducer, gram
from fisher.reducers.kfac import KFAC
from fisher.reducers.rows import BlockDiag, Dense, Diag, Eye, LowRank, QuasiDiag

REDUCERS: dict[type[PMat], type[Reducer]] = {
    PMatKFAC: KFAC,
    PMatDiag: Diag,
    PMatQuasiDiag: QuasiDiag,
    PMatBlockDiag: BlockDiag,
    PMatDense: Dense,
    PMatLowRank: LowRank,
    PMatEye: Eye,
}

__all__ = ["REDUCERS", "Options", "Reducer", "gram"]
