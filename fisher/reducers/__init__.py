"""Reducers: what one batch adds up for each representation.  B batch, S shared, I inputs, O outputs, C columns.

In reading order:
    base     what a reducer is: sums over a batch, and the matrix of their mean
    through  leaves that make weights: J'(G (x) A)J
    sides    factors of a weight that is used as W and as W'
    moments  second moments of what enters and leaves a layer
    kfac     Kronecker factors
    rows     gradients of single examples: dense, blocks, diagonals, rows
    ekfac    second moments in Kronecker eigenbases
    table    representation -> reducer
    mixed    several of them at once, by layer
"""

from fisher.reducers.base import Options, Reducer
from fisher.reducers.table import REDUCERS

__all__ = ["REDUCERS", "Options", "Reducer"]


def __dir__() -> list[str]:
    return sorted(__all__)
