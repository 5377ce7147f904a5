"""Sums and products of matrices, closed where a representation holds them.

In reading order:
    sums       F + G, and PMatSum
    sumblocks  blocks of a sum: several Kronecker terms
    product    F G
"""
