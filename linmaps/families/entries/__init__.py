"""Promises about the entries of W [in, out].

In reading order:
    dense       any matrix; the identity, fixed or where training starts
    sparse      non-negative, split, and soft-thresholded matrices
    gates       L0: entries that are switched off at random
    stochastic  rows or columns, or both, that sum to one
    perron      Perron-Frobenius: positive, with bounds on the dominant eigenvalue
"""
