"""Promises about singular values: W = Q1 diag(s) Q2', s between bounds.

In reading order:
    orthogonal          all of them one: W'W = I or WW' = I
    factors             W by frames made of reflections and s: what the next ones share
    spectral            s between sigma_min and sigma_max, by products of reflections
    fixed_rank          exactly so many above sigma_min, the others 0
    invertible          all above sigma_min, and det W > 0
    unit_determinant    of product 1, and det W = 1
    unitary             all of them one, of a complex W
    symmetric_spectral  the same of eigenvalues, W = W'
    svd                 s between bounds, given or learned, softly: by a penalty on the frames
    symmetric_svd       the same of eigenvalues, W = W'
    bounded             norms below a bound: Frobenius, 1, infinity
    null_space          the smallest above a bound: x W = 0 only for x = 0
"""
