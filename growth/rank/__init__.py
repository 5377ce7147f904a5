"""More or fewer ranks of structured maps: `grow_rank`, `rank_scores`, `reduce_rank`.

A file for each kind: matrices (LowRank), canonical (CP), tucker, trains (TT, BlockTT), spectral (reflectors).
"""

from growth.rank.change import grow_rank, reduce_rank
from growth.rank.scores import rank_scores

__all__ = ["grow_rank", "rank_scores", "reduce_rank"]
