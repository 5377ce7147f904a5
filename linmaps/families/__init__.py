"""Families: the maps themselves, one promise a file.  W [in, out] is used as `x @ W + b`; r = min(in, out), n = in = out.

Where a promise has two forms (rows or columns, a start at random or at the identity, bounds given or learned), they share
its file.

In reading order, rooms by what a promise is about:
    interval          the options sigma_min and sigma_max
    entries/          which entries W has: any, non-negative, sparse, stochastic
    symmetries/       W = W', W = -W', J W symmetric, W = A A'
    singular_values/  orthogonal, or with singular values and norms between bounds
    eigenvalues/      stable in discrete or continuous time, by several certificates
    patterns/         a structure that makes products, solves and determinants cheap
    functions         two free functions of the literature
"""
