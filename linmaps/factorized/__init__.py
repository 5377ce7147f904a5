"""Tensorized matrices: shapes, ranks within a budget, kinds of factorization, and decompositions of a given tensor."""

from linmaps.factorized.conv import FactorizedConv, factorize_conv
from linmaps.factorized.decompose import (
    cp_als,
    reconstruct_cp,
    reconstruct_tt,
    reconstruct_tucker,
    tt_svd,
    tucker_hosvd,
)
from linmaps.factorized.fit import Factorization, factorize, relative_error, sketches
from linmaps.factorized.ranks import cp_rank, low_rank, tt_rank, tucker_rank
from linmaps.factorized.shapes import tensorized_shape
from linmaps.factorized.spec import Factorized

__all__ = [
    "Factorization",
    "Factorized",
    "FactorizedConv",
    "cp_als",
    "cp_rank",
    "factorize",
    "factorize_conv",
    "low_rank",
    "reconstruct_cp",
    "reconstruct_tt",
    "reconstruct_tucker",
    "relative_error",
    "sketches",
    "tensorized_shape",
    "tt_rank",
    "tt_svd",
    "tucker_hosvd",
    "tucker_rank",
]
