"""Orthogonal and unitary matrices: as products of reflections, and as exponentials of skew matrices.

In reading order:
    householder  products of reflections by blocks
    exponential  exp of a skew matrix, and its derivatives
    cayley       the Cayley transform of a skew matrix, and its derivatives
    rotations    rotations of skew matrices, and their logarithm
    unitary      products of complex reflections and phases
"""
