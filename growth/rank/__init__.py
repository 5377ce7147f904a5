"""More or fewer ranks of structured maps: `grow_rank`, `rank_scores`, `reduce_rank`.

In reading order:
    directions  new directions from a gradient, or drawn
    curvature   the metric that ranks are measured in
    matrices    LowRank
    canonical   CP
    tucker      Tucker
    trains      TT, BlockTT
    spectral    reflectors
    form        a spec by its kind: bonds, and how many ranks they may have
    change      grow_rank, reduce_rank
    scores      what each rank is worth
"""

from growth.rank.change import grow_rank, reduce_rank
from growth.rank.scores import rank_scores

__all__ = ["grow_rank", "rank_scores", "reduce_rank"]


def __dir__() -> list[str]:
    return sorted(__all__)
