"""Linear maps with a guarantee: free parameters in, a matrix that keeps its promise out.

A map is a frozen spec (sizes and options) beside a dict of tensors (params); its methods are pure functions of the
params, so that they compose with `torch.func.grad`, `vmap`, `jacrev`, `jacfwd` and any optimizer.

>>> import torch, linmaps
>>> spec = linmaps.Spectral(8, 5, sigma_min=0.1, sigma_max=1.0)
>>> params = spec.init(torch.Generator().manual_seed(0))
>>> spec.effective_W(params).shape
torch.Size([8, 5])
>>> y = spec.apply(params, torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
>>> bool(spec.singular_values(params).max() <= 1.0)
True

`linmaps.maps` is the registry of all maps; it prints as a table of their promises.  `linmaps.strategies` (needs
hypothesis) draws specs, params and inputs for tests.  `from_module` takes a trained module over.  `Factorized` and
`factorize` are tensorized weights; `linmaps.factorized` says more, also to those who come from tensorly-torch.

Coming from NeuroMANCER's slim, whose matrices are [in, out] too (its modules hold what here is a spec and its params; its
`effective_W()`, `reg_error()`, `eig()` and `forward(x)` are `effective_W(params)`, `reg_error(params)`, `eig(params)` and
`apply(params, x)`; its biases are never part of W here; sizes come first, all options are keywords):

    ================================================  =================================================================
    slim                                              linmaps
    ================================================  =================================================================
    Linear(insize, outsize, bias)                     Linear(in_features=, out_features=, bias=)
    IdentityLinear                                    Identity()
    IdentityInitLinear                                IdentityInit()
    NonNegativeLinear                                 NonNegative(method="relu"); by default softplus, never dead
    SplitLinear                                       Split(method="relu")
    StableSplitLinear(sigma_min, sigma_max)           StableSplit(sigma_min=, sigma_max=), stable indeed
    LassoLinear(gamma)                                Lasso(gamma=), with project after each step
    LassoLinearRELU(gamma)                            LassoReLU(gamma=)
    L0Linear(weight_decay, droprate_init)             L0(weight_decay=, droprate_init=), noise is an argument
    L0Linear(temperature, lamda)                      L0(temperature=, lamda=)
    RightStochasticLinear                             RightStochastic()
    LeftStochasticLinear                              LeftStochastic()
    PerronFrobeniusLinear(sigma_min, sigma_max)       PerronFrobenius(sigma_min=, sigma_max=)
    SymmetricLinear                                   Symmetric()
    SkewSymmetricLinear                               SkewSymmetric()
    DampedSkewSymmetricLinear(sigma_min, sigma_max)   DampedSkewSymmetric(sigma_min=, sigma_max=, time=), which damps
    PSDLinear                                         PSD(rank=, eps=)
    OrthogonalLinear                                  Orthogonal(method=, n_reflectors=, det=)
    SpectralLinear(n_U_reflectors, n_V_reflectors)    Spectral(n_U_reflectors=, n_V_reflectors=)
    SpectralLinear(sigma_min, sigma_max)              Spectral(sigma_min=, sigma_max=)
    SymmetricSpectralLinear(n_reflectors)             SymmetricSpectral(n_reflectors=, sigma_min=, sigma_max=)
    SVDLinear(sigma_min, sigma_max)                   SVD(sigma_min=, sigma_max=); Spectral() without a penalty
    SVDLinearLearnBounds(sigma_min, sigma_max)        SVDLearnBounds(sigma_min=, sigma_max=) and its bounds
    SymmetricSVDLinear(sigma_min, sigma_max)          SymmetricSVD(sigma_min=, sigma_max=), symmetric indeed
    SchurDecompositionLinear(l2)                      Schur(gamma_max=, nonnormal=); bounds in place of the penalty
    SymplecticLinear                                  BlockSkew() is that matrix; Symplectic(n_factors=) is symplectic
    GershgorinLinear(sigma_min, sigma_max, real)      Gershgorin(sigma_min=, sigma_max=, real=)
    BoundedNormLinear(sigma_min, sigma_max, p)        BoundedNorm(sigma_min=, sigma_max=, p=, soft=)
    TrivialNullSpaceLinear(rank, epsilon)             TrivialNullSpace(rank=, epsilon=)
    PowerBoundLinear(max_p, pwr_iters)                PowerBound(max_p=, method=); no iteration
    ButterflyLinear(complex, tied_weight)             Butterfly(complex=, tied_weight=)
    ButterflyLinear(increasing_stride, ortho_init)    Butterfly(increasing_stride=, blocks=), "rotation" stays orthogonal
    Permutation                                       Permutation() and its argmax
    Hprod(x, u, k)                                    hprod(x, U), all reflections at once
    IdentityGradReLU                                  identity_grad_relu(x)
    RNNCell(hidden_map, input_map, nonlin)            RNNCell(hidden_map=, input_map=, activation=)
    RNN                                               rnn(cell, params, xs)
    maps                                              maps
    ================================================  =================================================================
"""

from linmaps import trees
from linmaps.base import Map
from linmaps.base.registry import maps
from linmaps.composed.assembled import Block, Product, Sum
from linmaps.composed.compose import Affine, Scale, Transpose
from linmaps.composed.recurrent import RNNCell, rnn
from linmaps.factorized import (
    Factorized,
    FactorizedConv,
    factorize,
    factorize_conv,
    tensor_dropout,
    tensor_lasso,
    tensorized_shape,
)
from linmaps.families.eigenvalues.gershgorin import DiagonallyDominant, Gershgorin
from linmaps.families.eigenvalues.schur import Schur
from linmaps.families.eigenvalues.stable import Hurwitz, PowerBound, StableSplit
from linmaps.families.entries.dense import Identity, IdentityInit, Linear
from linmaps.families.entries.gates import L0
from linmaps.families.entries.perron import PerronFrobenius
from linmaps.families.entries.sparse import Lasso, LassoReLU, NonNegative, Split
from linmaps.families.entries.stochastic import DoublyStochastic, LeftStochastic, RightStochastic
from linmaps.families.literature import hprod, identity_grad_relu
from linmaps.families.patterns.butterfly import Butterfly
from linmaps.families.patterns.kronecker import Kronecker
from linmaps.families.patterns.monarch import Monarch
from linmaps.families.patterns.permutation import Permutation
from linmaps.families.patterns.structured import BlockDiagonal, Circulant, LowRank
from linmaps.families.singular_values.bounded import BoundedNorm
from linmaps.families.singular_values.orthogonal import Orthogonal
from linmaps.families.singular_values.spectral import Spectral, SymmetricSpectral
from linmaps.families.singular_values.svd import SVD, SVDLearnBounds, SymmetricSVD
from linmaps.families.symmetries.gram import PSD, TrivialNullSpace
from linmaps.families.symmetries.skew import DampedSkewSymmetric, SkewSymmetric
from linmaps.families.symmetries.symmetric import Symmetric
from linmaps.families.symmetries.symplectic import BlockSkew, Hamiltonian, Symplectic
from linmaps.interop import from_module

__all__ = [
    "L0",
    "PSD",
    "SVD",
    "Affine",
    "Block",
    "BlockDiagonal",
    "BlockSkew",
    "BoundedNorm",
    "Butterfly",
    "Circulant",
    "DampedSkewSymmetric",
    "DiagonallyDominant",
    "DoublyStochastic",
    "Factorized",
    "FactorizedConv",
    "Gershgorin",
    "Hamiltonian",
    "Hurwitz",
    "Identity",
    "IdentityInit",
    "Kronecker",
    "Lasso",
    "LassoReLU",
    "LeftStochastic",
    "Linear",
    "LowRank",
    "Map",
    "Monarch",
    "NonNegative",
    "Orthogonal",
    "Permutation",
    "PerronFrobenius",
    "PowerBound",
    "Product",
    "RNNCell",
    "RightStochastic",
    "SVDLearnBounds",
    "Scale",
    "Schur",
    "SkewSymmetric",
    "Spectral",
    "Split",
    "StableSplit",
    "Sum",
    "Symmetric",
    "SymmetricSVD",
    "SymmetricSpectral",
    "Symplectic",
    "Transpose",
    "TrivialNullSpace",
    "factorize",
    "factorize_conv",
    "from_module",
    "hprod",
    "identity_grad_relu",
    "maps",
    "rnn",
    "tensor_dropout",
    "tensor_lasso",
    "tensorized_shape",
    "trees",
]
