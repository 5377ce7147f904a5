"""Tensorized matrices: shapes, ranks within a budget, kinds of factorization, and decompositions of a given tensor."""

from linmaps.factorized.decompose import (
    cp_als,
    reconstruct_cp,
    reconstruct_tt,
    reconstruct_tucker,
    tt_svd,
    tucker_hosvd,
)
from linmaps.factorized.ranks import cp_rank, low_rank, tt_rank, tucker_rank
from linmaps.factorized.shapes import tensorized_shape
from linmaps.factorized.spec import Factorized

__all__ = [
    "Factorized",
    "cp_als",
    "cp_rank",
    "low_rank",
    "reconstruct_cp",
    "reconstruct_tt",
    "reconstruct_tucker",
    "tensorized_shape",
    "tt_rank",
    "tt_svd",
    "tucker_hosvd",
    "tucker_rank",
]
