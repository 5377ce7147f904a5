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

`print(linmaps.maps)` is the table of all maps and promises.  `linmaps.interop.coming_from("slim")` and
`coming_from("tensorly-torch")` are tables of their names beside ours; `from_module` takes a trained module over.

Rooms, each built on those before it:
    trees/       vectors and params as pytrees of tensors
    checks/      what is said of wrong arguments
    numerics/    decompositions with right derivatives, reflections, rotations
    base/        what a map is, and the registry
    families/    the maps, one promise a file
    composed/    maps made of maps, and `rnn`
    factorized/  tensorized weights: CP, Tucker, tensor trains; `factorize`
    interop/     from other libraries
    strategies   Hypothesis strategies (needs hypothesis)
"""

from linmaps import factorized, interop, trees
from linmaps.base import Map
from linmaps.base.registry import maps
from linmaps.composed.block import Block
from linmaps.composed.cell import RNNCell
from linmaps.composed.compose import Affine, Scale, Transpose
from linmaps.composed.product import Product
from linmaps.composed.recurrent import rnn
from linmaps.composed.sum import Sum
from linmaps.factorized import (
    Factorized,
    FactorizedConv,
    LipschitzConv,
    factorize,
    factorize_conv,
    tensor_dropout,
    tensor_lasso,
    tensorized_shape,
)
from linmaps.families.eigenvalues.diagonal_dominance import DiagonallyDominant
from linmaps.families.eigenvalues.gershgorin import Gershgorin
from linmaps.families.eigenvalues.hurwitz import Hurwitz
from linmaps.families.eigenvalues.power_bound import PowerBound
from linmaps.families.eigenvalues.schur import Schur
from linmaps.families.eigenvalues.stable_split import StableSplit
from linmaps.families.entries.doubly_stochastic import DoublyStochastic
from linmaps.families.entries.gates import L0
from linmaps.families.entries.identity import Identity
from linmaps.families.entries.lasso import Lasso, LassoReLU
from linmaps.families.entries.linear import IdentityInit, Linear
from linmaps.families.entries.non_negative import NonNegative
from linmaps.families.entries.perron import PerronFrobenius
from linmaps.families.entries.split import Split
from linmaps.families.entries.stochastic import LeftStochastic, RightStochastic
from linmaps.families.entries.unit_norm import UnitNorm
from linmaps.families.entries.weight_norm import WeightNorm
from linmaps.families.functions import hprod, identity_grad_relu
from linmaps.families.patterns.block_diagonal import BlockDiagonal
from linmaps.families.patterns.butterfly import Butterfly
from linmaps.families.patterns.circulant import Circulant
from linmaps.families.patterns.diagonal import Diagonal
from linmaps.families.patterns.kronecker import Kronecker
from linmaps.families.patterns.low_rank import LowRank
from linmaps.families.patterns.monarch import Monarch
from linmaps.families.patterns.permutation import Permutation
from linmaps.families.patterns.toeplitz import Toeplitz
from linmaps.families.patterns.triangular import Triangular
from linmaps.families.singular_values.bounded import BoundedNorm
from linmaps.families.singular_values.fixed_rank import FixedRank
from linmaps.families.singular_values.invertible import Invertible
from linmaps.families.singular_values.null_space import TrivialNullSpace
from linmaps.families.singular_values.orthogonal import Orthogonal
from linmaps.families.singular_values.spectral import Spectral
from linmaps.families.singular_values.svd import SVD, SVDLearnBounds
from linmaps.families.singular_values.symmetric_spectral import SymmetricSpectral
from linmaps.families.singular_values.symmetric_svd import SymmetricSVD
from linmaps.families.singular_values.unit_determinant import UnitDeterminant
from linmaps.families.singular_values.unitary import Unitary
from linmaps.families.symmetries.block_skew import BlockSkew
from linmaps.families.symmetries.damped import DampedSkewSymmetric
from linmaps.families.symmetries.gram import PSD
from linmaps.families.symmetries.hamiltonian import Hamiltonian
from linmaps.families.symmetries.skew import SkewSymmetric
from linmaps.families.symmetries.symmetric import Symmetric
from linmaps.families.symmetries.symplectic import Symplectic
from linmaps.interop import Module, from_module, parametrize
from linmaps.trees.files.version import __version__ as __version__

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
    "Diagonal",
    "DiagonallyDominant",
    "DoublyStochastic",
    "Factorized",
    "FactorizedConv",
    "FixedRank",
    "Gershgorin",
    "Hamiltonian",
    "Hurwitz",
    "Identity",
    "IdentityInit",
    "Invertible",
    "Kronecker",
    "Lasso",
    "LassoReLU",
    "LeftStochastic",
    "Linear",
    "LipschitzConv",
    "LowRank",
    "Map",
    "Module",
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
    "Toeplitz",
    "Transpose",
    "Triangular",
    "TrivialNullSpace",
    "UnitDeterminant",
    "UnitNorm",
    "Unitary",
    "WeightNorm",
    "factorize",
    "factorize_conv",
    "factorized",
    "from_module",
    "hprod",
    "identity_grad_relu",
    "interop",
    "maps",
    "parametrize",
    "rnn",
    "tensor_dropout",
    "tensor_lasso",
    "tensorized_shape",
    "trees",
]


def __dir__() -> list[str]:
    return sorted(__all__)
