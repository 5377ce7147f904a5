"""Fisher information matrices of any pure function `f(params, x)`, as matrix objects.

    import fisher

    layers = fisher.LayerCollection.from_function(f, params, x)      # which leaf is used how; print it
    F = fisher.fim(f, params, x, representation=fisher.PMatKFAC)     # 1/B sum over b of J_b' H_b J_b
    step = F.solve(gradient, regul=1e-3)                             # (F + regul I)^-1 gradient, a tree like params

f is hand-written, or `lambda p, x: torch.func.functional_call(module, p, (x,))`.  Everything composes with vmap (an
ensemble of stacked params in one call), grad, jacrev and jacfwd.
"""

from fisher import rules
from fisher.fim import fim
from fisher.layers import LayerCollection
from fisher.likelihoods import Categorical, Gaussian
from fisher.pmat import PMat, PMatDense, PMatDiag, PMatEKFAC, PMatKFAC, PMatSum
from fisher.taps import layer_io
from fisher.uses import Layer, Use

__all__ = [
    "Categorical",
    "Gaussian",
    "Layer",
    "LayerCollection",
    "PMat",
    "PMatDense",
    "PMatDiag",
    "PMatEKFAC",
    "PMatKFAC",
    "PMatSum",
    "Use",
    "fim",
    "layer_io",
    "rules",
]
