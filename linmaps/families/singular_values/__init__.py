"""Promises about singular values: W = Q1 diag(s) Q2', s between bounds.

In reading order:
    orthogonal  all of them one: W'W = I or WW' = I
    spectral    s between sigma_min and sigma_max by products of reflections, symmetric too
    svd         the soft versions, by a penalty on the frames
    bounded     norms below a bound: Frobenius, 1, infinity
"""
