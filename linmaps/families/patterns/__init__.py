"""Promises about structure: fewer numbers than entries, and cheap products, solves, determinants.

In reading order:
    low_rank          rank W <= rank
    diagonal          each feature times a number
    triangular        zeros above the diagonal, or below it
    toeplitz          one number along each diagonal
    circulant         circular convolutions
    block_diagonal    equal blocks along the diagonal
    arrays            x with several axes of features
    kronecker         W = A (x) B (x) ...
    monarch           two block-diagonal factors and a fixed permutation
    butterfly_levels  levels of 2 x 2 blocks, applied a few at a time
    butterfly_pairs   pairs that a part of a butterfly depends on
    butterfly         log n factors of pairs
    permutation       soft and hard permutations
"""
