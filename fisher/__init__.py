"""Fisher information matrices of any pure function `f(params, x)`, as matrix objects.

    layers = fisher.LayerCollection.from_function(f, params, x)      # which leaf is used how; print it
    F = fisher.fim(f, params, x, representation=fisher.PMatKFAC)     # 1/B sum over b of J_b' H_b J_b
    step = F.solve(gradient, regul=1e-3)                             # (F + regul I)^-1 gradient, a tree like params

f is hand-written, or `f, params = fisher.functional(module)` of a torch.nn.Module.  Everything composes with vmap (an
ensemble of stacked params in one call), grad, jacrev and jacfwd.

>>> import torch, fisher
>>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"]
>>> params = {"w": torch.ones(2, 3), "b": torch.zeros(3), "v": torch.eye(3)}
>>> fisher.fim(f, params, torch.ones(4, 2), fisher.PMatDiag).get_diag()["b"].shape
torch.Size([3])

`fisher.interop.coming_from("nngeometry")`: its names and ours; of laplace-torch, kronfluence, kfac-jax, ... too.

Rooms, each built on those before it, and what they are asked for:
    checks/          what f, params and data must be
    distributed/     many processes: all_reduce, all_gather
    collector/       which leaf is used how, what enters each use, the gradient at its output: LayerCollection,
                     layer_io; functional of a module
    derivatives/     f as forward and reverse mode differentiate alike
    trials/          f and losses are run before matrices are made of them
    likelihoods/     the Fisher matrix of the outputs, as columns: Categorical, Bernoulli, Gaussian,
                     HeteroscedasticGaussian, Poisson, Segmentation
    iterative/       conjugate gradients, Lanczos, traces
    pmat/            the matrices, solve, inverse, logdet, sample, ... of each: PMatDense, BlockDiag, Diag, QuasiDiag,
                     KFAC, EKFAC, LowRank, Eigen, Range, Implicit, Mixed, Sum, Eye; pullback
    reducers/        what one batch adds up for each
    passes/          passes over data: fim, hessian, ggn; means of matrices: Mean, ema
    function_space/  jacobian (PFMapDense, PFMapImplicit), example_gradients, gram (FMatDense)
    recipes/         kfac, soap, laplace, influence, pruning_scores, ewc_penalty, merge, natural_gradient_step, ...
    interop/         from other libraries: coming_from
    rules            the rules of the collector, for those who add one
    strategies       Hypothesis strategies (needs hypothesis)
"""

from fisher import distributed, interop, likelihoods, recipes, rules
from fisher.collector.blocks.uses import Layer, Use
from fisher.collector.collection import LayerCollection
from fisher.collector.io import layer_io
from fisher.collector.modules import functional
from fisher.function_space.fmat import FMatDense
from fisher.function_space.gradients import example_gradients
from fisher.function_space.implicit import PFMapImplicit
from fisher.function_space.jacobians import jacobian
from fisher.function_space.kernels import gram
from fisher.function_space.pfmap import PFMapDense
from fisher.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Segmentation
from fisher.passes.fold import Mean, ema
from fisher.passes.information import fim
from fisher.passes.second_order import ggn, hessian
from fisher.pmat import (
    PMat,
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEigen,
    PMatEKFAC,
    PMatEye,
    PMatImplicit,
    PMatKFAC,
    PMatLowRank,
    PMatMixed,
    PMatPullback,
    PMatQuasiDiag,
    PMatRange,
    PMatSum,
)
from fisher.pmat.matrix_free.pulled_back import pullback
from linmaps import __version__ as __version__

PMatEKFACBlockDiag = PMatEKFAC  # exact blocks stand beside the factored ones in any case

__all__ = [
    "Bernoulli",
    "Categorical",
    "FMatDense",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Layer",
    "LayerCollection",
    "Mean",
    "PFMapDense",
    "PFMapImplicit",
    "PMat",
    "PMatBlockDiag",
    "PMatDense",
    "PMatDiag",
    "PMatEKFAC",
    "PMatEKFACBlockDiag",
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
    "Poisson",
    "Segmentation",
    "Use",
    "distributed",
    "ema",
    "example_gradients",
    "fim",
    "functional",
    "ggn",
    "gram",
    "hessian",
    "interop",
    "jacobian",
    "layer_io",
    "likelihoods",
    "pullback",
    "recipes",
    "rules",
]


def __dir__() -> list[str]:
    return sorted(__all__)
