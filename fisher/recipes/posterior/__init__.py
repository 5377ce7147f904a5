"""The Laplace approximation: posteriors of params, in parameter space and in function space, tuned by the evidence.

In reading order:
    parts          the leaves that a matrix is of
    priors         diagonal precisions: a number, by layer, by entry
    bases          a matrix decomposed once
    layerwise      covariances of outputs, by layers
    covariances    the same, by rows of the Jacobian where there are none
    links          probabilities of normal logits
    saved          posteriors in files
    predictions    what both posteriors predict
    approximation  laplace: the posterior of params
    inner          the kernel of a prior, and a likelihood's root within it
    functional     the same in function space, from kernels
    tuning         priors and noise that maximize the evidence
"""

from fisher.recipes.posterior.approximation import Laplace, laplace
from fisher.recipes.posterior.functional import FunctionalLaplace, functional_laplace
from fisher.recipes.posterior.tuning import tune_noise, tune_prior_precision

__all__ = [
    "FunctionalLaplace",
    "Laplace",
    "functional_laplace",
    "laplace",
    "tune_noise",
    "tune_prior_precision",
]


def __dir__() -> list[str]:
    return sorted(__all__)
