"""Numerics: what maps and matrices compute with, right to rounding in every mode and under every transform.

In reading order:
    dtypes       the dtypes to compute in
    draws        numbers from a generator
    numeric      sums, norms and roots, right where they are zero
    ranges       free parameters, and quantities between bounds
    shapes       sizes of the modes of a tensorized matrix
    moments      second moments of rows
    packing      triangles as vectors, a diagonal and the rest
    lapack       the one door to eigenvalues, singular values and pseudo-inverses: NaN in, NaN out
    linalg       solves, inverses, determinants
    eigen        eigen-decompositions and pseudo-inverses, differentiable where values repeat
    singular     singular vectors and orthonormal bases with finite derivatives
    lyapunov     equations of Lyapunov and Stein
    excess       what eigenvalues exceed a bound by
    nearest      nearest rows: of bounded absolute sum, of probabilities
    scaling      rows and columns that sum to one
    orthogonal/  reflections, rotations
"""
