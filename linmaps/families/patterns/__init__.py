"""Promises about structure: fewer numbers than entries, and cheap products, solves, determinants.

In reading order:
    structured   block-diagonal, circulant, low rank
    arrays       x with several axes of features
    kronecker    W = A (x) B (x) ...
    monarch      two block-diagonal factors and a fixed permutation
    butterfly    log n factors of pairs
    permutation  soft and hard permutations
"""
