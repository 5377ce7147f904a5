"""Representations by name: those of the classes without PMat, and those that other libraries use."""

from __future__ import annotations

from typing import Any

from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.layered.ekfac import PMatEKFAC
from fisher.pmat.layered.kfac import PMatKFAC
from fisher.pmat.layered.mixed import PMatMixed
from fisher.pmat.layered.quasidiag import PMatQuasiDiag
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.eye import PMatEye
from fisher.pmat.whole.lowrank import PMatLowRank

KINDS: tuple[type[PMat], ...] = (
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEKFAC,
    PMatEye,
    PMatImplicit,
    PMatKFAC,
    PMatLowRank,
    PMatMixed,
    PMatQuasiDiag,
)
NAMES: dict[str, type[PMat]] = {kind.__name__.removeprefix("PMat").lower(): kind for kind in KINDS} | {
    "full": PMatDense,
    "diagonal": PMatDiag,
    "blockdiagonal": PMatBlockDiag,
    "block": PMatBlockDiag,
    "kron": PMatKFAC,
    "kronecker": PMatKFAC,
    "ekfacblockdiag": PMatEKFAC,
    "matrixfree": PMatImplicit,
}


def by_name(kind: Any) -> Any:
    """The class that a name stands for, in any case, with or without PMat and underscores; anything else as it is.

    >>> by_name("kfac").__name__, by_name("PMatBlockDiag").__name__, by_name("low_rank").__name__, by_name(3)
    ('PMatKFAC', 'PMatBlockDiag', 'PMatLowRank', 3)
    """
    if not isinstance(kind, str):
        return kind
    return NAMES.get(kind.lower().removeprefix("pmat").replace("_", "").replace("-", ""), kind)
