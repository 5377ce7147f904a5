"""What a Fisher matrix is for: small pure functions on any PMat, one file each."""

from fisher.recipes.dimension import effective_dimension
from fisher.recipes.ewc import ewc_penalty, ewc_total
from fisher.recipes.influence import influence, leave_one_out, self_influence
from fisher.recipes.laplace import Laplace, laplace, tune_prior_precision
from fisher.recipes.natural_gradient import Damping, NaturalStep, natural_gradient_step
from fisher.recipes.pruning import prune_mask, pruning_scores, unit_mask, unit_scores
from fisher.recipes.steps import best_step

__all__ = [
    "Damping",
    "Laplace",
    "NaturalStep",
    "best_step",
    "effective_dimension",
    "ewc_penalty",
    "ewc_total",
    "influence",
    "laplace",
    "leave_one_out",
    "natural_gradient_step",
    "prune_mask",
    "pruning_scores",
    "self_influence",
    "tune_prior_precision",
    "unit_mask",
    "unit_scores",
]
