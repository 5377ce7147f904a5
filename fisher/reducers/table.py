"""The table of reducers: representation -> what a batch adds up for it."""

from __future__ import annotations

from fisher.pmat import PMat, PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatLowRank, PMatQuasiDiag
from fisher.reducers.base import Reducer
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
