"""The kinds of factorization, by name."""

from linmaps.factorized.kinds.base import Fitting, Kind, Leaves
from linmaps.factorized.kinds.cp import CP
from linmaps.factorized.kinds.dense import Dense
from linmaps.factorized.kinds.lowrank import LowRank
from linmaps.factorized.kinds.trains import TT, BlockTT
from linmaps.factorized.kinds.tucker import Tucker

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Dense(), LowRank(), CP(), Tucker(), TT(), BlockTT())}
ALIASES = {"ttm": "blocktt"}

__all__ = ["ALIASES", "KINDS", "Fitting", "Kind", "Leaves"]
