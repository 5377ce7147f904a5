"""Matrices that are functions: v -> F v.

In reading order:
    curvature    J' H J v of one batch
    matrixfree   what follows from products alone
    implicit     the Fisher matrix of f on data that it keeps
    pulled_back  a matrix in other coordinates
"""
