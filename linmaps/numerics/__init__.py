"""Numerics: what maps and matrices compute with, right to rounding in every mode and under every transform.

In reading order:
    dtypes       the dtypes to compute in
    draws        numbers from a generator
    numeric      sums, norms and roots, right where they are zero
    ranges       free parameters, and quantities between bounds
    shapes       sizes of the modes of a tensorized matrix
    lapack       the one door to decompositions: NaN in, NaN out
    linalg       solves, inverses, determinants
    eigen        eigen-decompositions and pseudo-inverses, differentiable where values repeat
    singular     singular vectors and orthonormal bases with finite derivatives
    lyapunov     equations of Lyapunov and Stein
    householder  products of reflections by blocks
    rotations    rotations of skew matrices, and their logarithm
    packing      triangles as vectors, a diagonal and the rest
    bounds       excess of eigenvalues, nearest rows
    scaling      rows and columns that sum to one
"""
