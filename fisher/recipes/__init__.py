"""What a Fisher matrix is for: small pure functions on any PMat, one file each.

In reading order:
    natural_gradient  steps along the natural gradient, damped
    steps             the exact length and momentum of a step
    posterior         the Laplace approximation, in parameter and in function space
    influences        influences of examples
    pruning           scores and masks
    ewc               continual learning
    dimension         effective dimension
"""

from fisher.recipes.dimension import effective_dimension
from fisher.recipes.ewc import ewc_penalty, ewc_total
from fisher.recipes.influences import influence, leave_one_out, self_influence
from fisher.recipes.natural_gradient import Damping, NaturalStep, natural_gradient_step
from fisher.recipes.posterior import (
    FunctionalLaplace,
    Laplace,
    functional_laplace,
    laplace,
    tune_noise,
    tune_prior_precision,
)
from fisher.recipes.pruning import prune_mask, pruning_scores, unit_mask, unit_scores
from fisher.recipes.steps import best_step

__all__ = [
    "Damping",
    "FunctionalLaplace",
    "Laplace",
    "NaturalStep",
    "best_step",
    "effective_dimension",
    "ewc_penalty",
    "ewc_total",
    "functional_laplace",
    "influence",
    "laplace",
    "leave_one_out",
    "natural_gradient_step",
    "prune_mask",
    "pruning_scores",
    "self_influence",
    "tune_noise",
    "tune_prior_precision",
    "unit_mask",
    "unit_scores",
]


def __dir__() -> list[str]:
    return sorted(__all__)
