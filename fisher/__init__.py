"""Fisher information matrices of any pure function `f(params, x)`, as matrix objects.

    import fisher

    layers = fisher.LayerCollection.from_function(f, params, x)      # which leaf is used how; print it
    F = fisher.fim(f, params, x, representation=fisher.PMatKFAC)     # 1/B sum over b of J_b' H_b J_b
    step = F.solve(gradient, regul=1e-3)                             # (F + regul I)^-1 gradient, a tree like params

f is hand-written, or `lambda p, x: torch.func.functional_call(module, p, (x,))`.  Everything composes with vmap (an
ensemble of stacked params in one call), grad, jacrev and jacfwd.
"""

from fisher import recipes, rules
from fisher.fim import fim
from fisher.fmat import FMatDense
from fisher.fold import Mean, ema
from fisher.gram import gram
from fisher.hessian import ggn, hessian
from fisher.jacobian import jacobian
from fisher.layers import LayerCollection
from fisher.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Segmentation
from fisher.pfmap import PFMapDense, PFMapImplicit
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
from fisher.pmat.pullback import pullback
from fisher.taps import layer_io
from fisher.uses import Layer, Use

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
    "ema",
    "fim",
    "ggn",
    "gram",
    "hessian",
    "jacobian",
    "layer_io",
    "pullback",
    "recipes",
    "rules",
]
