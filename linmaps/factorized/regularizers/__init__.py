"""Regularizers of factorized matrices: fewer terms in the sums between their leaves, and distances to other matrices.

In reading order:
    bond_vectors    sums between leaves, and vectors that weight their terms
    dropout         random ones
    lasso           trained ones, towards zero
    pruning         smaller ranks
    inner_products  of two factorized matrices, and their distance
"""
