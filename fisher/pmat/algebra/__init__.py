"""Sums and products of matrices, closed where a representation holds them.

In reading order:
    sumblocks  blocks of a sum: several Kronecker terms
    regrouped  a sum by layers, or as products alone
    sums       PMatSum
    addition   F + G
    product    F G
"""
