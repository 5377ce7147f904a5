"""The kinds of factorization, by name, one a file: what its leaves are, its matrix, its products, its fit.

In reading order:
    names    what they are called
    base     what a kind answers
    dense    one full tensor
    lowrank  U V
    cp       canonical polyadic
    tucker   a core and a factor for each mode
    trains   tensor trains, and block trains
    joint    several layers in one tensor
    places   what slices of modes mean, and the place of a new one
"""

from linmaps.factorized.kinds.base import Fitting, Kind, Leaves
from linmaps.factorized.kinds.cp import CP
from linmaps.factorized.kinds.dense import Dense
from linmaps.factorized.kinds.lowrank import LowRank
from linmaps.factorized.kinds.trains import TT, BlockTT
from linmaps.factorized.kinds.tucker import Tucker

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Dense(), LowRank(), CP(), Tucker(), TT(), BlockTT())}
ALIASES = {"ttm": "blocktt"}

__all__ = ["ALIASES", "KINDS", "Fitting", "Kind", "Leaves"]


def __dir__() -> list[str]:
    return sorted(__all__)
