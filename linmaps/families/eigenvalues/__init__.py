"""Promises about eigenvalues, hence about x W^t or x exp(W t).

In reading order:
    schur               a real Schur form with eigenvalues inside a circle
    candidates          of several params the nearest
    power_bound         a spectral radius below a bound, by several ways
    hurwitz             real parts below a margin
    stable_split        rows whose absolute entries sum to less than a bound
    gershgorin          in an interval or a disc, by sums of rows
    diagonal_dominance  right of a margin: diagonal entries above the sum of the others in their row
"""
