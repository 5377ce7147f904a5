"""Promises about singular values: W = Q1 diag(s) Q2', s between bounds.

In reading order:
    orthogonal          all of them one: W'W = I or WW' = I
    spectral            s between sigma_min and sigma_max, by products of reflections
    symmetric_spectral  the same of eigenvalues, W = W'
    svd                 s between bounds, given or learned, softly: by a penalty on the frames
    symmetric_svd       the same of eigenvalues, W = W'
    bounded             norms below a bound: Frobenius, 1, infinity
    null_space          the smallest above a bound: x W = 0 only for x = 0
"""
