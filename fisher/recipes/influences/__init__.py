"""Influences of examples on losses, on measurements and on params.

In reading order:
    losses     losses of single examples
    examples   their gradients, one by one or summed
    repeated   several passes over the same examples
    spaces     which params and layers are meant
    sides      the gradients of one side of a score, held or streamed
    contracts  what is held against what streams, layer by layer
    forms      of each example's gradients against the inverse of each layer's block
    gathering  results of batches side by side
    scores     influence, self_influence
    left_out   leave_one_out
"""

from fisher.recipes.influences.left_out import leave_one_out
from fisher.recipes.influences.losses import LossName
from fisher.recipes.influences.scores import Aggregate, influence, self_influence

__all__ = ["Aggregate", "LossName", "influence", "leave_one_out", "self_influence"]


def __dir__() -> list[str]:
    return sorted(__all__)
