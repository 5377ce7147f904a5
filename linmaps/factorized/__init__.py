"""Tensorized matrices: weights, embeddings and convolutions as tensors of few parameters, stateless.

`linmaps.Factorized` is the map; `linmaps.factorize` makes one from given weights; here are the parts they are made of.
W [in, out]; the tensor's modes are out first.  `linmaps.interop.coming_from("tensorly-torch")`: its names beside ours.

>>> import torch, linmaps
>>> spec = linmaps.Factorized((7, 8, 14), (4, 8, 8), factorization="tt", rank=0.1)
>>> params = spec.init(torch.Generator().manual_seed(0))
>>> spec.apply(params, torch.ones(64, 784)).shape, round(spec.ratio, 3)
(torch.Size([64, 256]), 0.099)

In reading order:
    tensors/       tensors of few parameters: ranks, decompositions, cheapest contractions
    kinds/         the kinds of factorization, one a file
    convolutions/  the same of kernels: FactorizedConv, factorize_conv; kernels of bounded norm: LipschitzConv
    joint          several layers in one tensor
    checkpoint     chains computed again in the backward pass
    products       x times a factorized matrix, by its cheapest chain; rows of it; itself
    reshaping      some places of its modes, and one mode more
    spec           Factorized
    fit            factorize: given weights compressed
    regularizers/  random, trained and fewer terms in the sums between leaves; distances
"""

from linmaps.factorized.convolutions.conv import FactorizedConv
from linmaps.factorized.convolutions.fit_conv import factorize_conv
from linmaps.factorized.convolutions.lipschitz import LipschitzConv
from linmaps.factorized.fit import Factorization, factorize, relative_error, sketches
from linmaps.factorized.regularizers.bond_vectors import bonds
from linmaps.factorized.regularizers.dropout import dropout_mask, tensor_dropout
from linmaps.factorized.regularizers.inner_products import distance, inner
from linmaps.factorized.regularizers.lasso import lasso_prox, lasso_weights, tensor_lasso
from linmaps.factorized.regularizers.pruning import prune_ranks
from linmaps.factorized.spec import Factorized
from linmaps.factorized.tensors.cp import cp_als, cp_start, reconstruct_cp
from linmaps.factorized.tensors.ranks import cp_rank, low_rank, tt_rank, tucker_rank
from linmaps.factorized.tensors.trains import reconstruct_tt, tt_svd
from linmaps.factorized.tensors.tucker import reconstruct_tucker, tucker_hosvd
from linmaps.numerics.shapes import tensorized_shape

__all__ = [
    "Factorization",
    "Factorized",
    "FactorizedConv",
    "LipschitzConv",
    "bonds",
    "cp_als",
    "cp_rank",
    "cp_start",
    "distance",
    "dropout_mask",
    "factorize",
    "factorize_conv",
    "inner",
    "lasso_prox",
    "lasso_weights",
    "low_rank",
    "prune_ranks",
    "reconstruct_cp",
    "reconstruct_tt",
    "reconstruct_tucker",
    "relative_error",
    "sketches",
    "tensor_dropout",
    "tensor_lasso",
    "tensorized_shape",
    "tt_rank",
    "tt_svd",
    "tucker_hosvd",
    "tucker_rank",
]


def __dir__() -> list[str]:
    return sorted(__all__)
