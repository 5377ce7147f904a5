"""What a Fisher matrix is for: small pure functions on any PMat, one file each.

In reading order:
    steps             the exact length and momentum of a step
    optimizers/       K-FAC as a pair of pure functions, and what it is made of
    natural_gradient  steps along the natural gradient, damped
    posterior/        the Laplace approximation, in parameter and in function space
    influences/       influences of examples
    pruning           scores and masks
    surgeon           the same where other weights make up for it
    ewc               continual learning
    merging           one model of several
    embeddings        what a task asks of a network
    dimension         effective dimension
"""

from fisher.recipes.dimension import effective_dimension
from fisher.recipes.embeddings import task_distance, task_embedding
from fisher.recipes.ewc import ewc_online, ewc_penalty, ewc_total
from fisher.recipes.influences import influence, leave_one_out, self_influence
from fisher.recipes.merging import merge
from fisher.recipes.natural_gradient import Damping, NaturalStep, natural_gradient_step
from fisher.recipes.optimizers.batchnorm import in_train_mode
from fisher.recipes.optimizers.descent import kfac
from fisher.recipes.optimizers.graphs import CompiledStep, compiled_step
from fisher.recipes.optimizers.memory import KFACState
from fisher.recipes.optimizers.partition import partitioned
from fisher.recipes.optimizers.protocol import Optimizer
from fisher.recipes.optimizers.rotated import soap
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
from fisher.recipes.surgeon import surgeon_scores, surgeon_step

__all__ = [
    "CompiledStep",
    "Damping",
    "FunctionalLaplace",
    "KFACState",
    "Laplace",
    "NaturalStep",
    "Optimizer",
    "best_step",
    "compiled_step",
    "effective_dimension",
    "ewc_online",
    "ewc_penalty",
    "ewc_total",
    "functional_laplace",
    "in_train_mode",
    "influence",
    "kfac",
    "laplace",
    "leave_one_out",
    "merge",
    "natural_gradient_step",
    "partitioned",
    "prune_mask",
    "pruning_scores",
    "self_influence",
    "soap",
    "surgeon_scores",
    "surgeon_step",
    "task_distance",
    "task_embedding",
    "tune_noise",
    "tune_prior_precision",
    "unit_mask",
    "unit_scores",
]


def __dir__() -> list[str]:
    return sorted(__all__)
