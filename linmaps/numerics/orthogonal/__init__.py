"""Orthogonal and unitary matrices: as products of reflections, and as exponentials of skew matrices.

In reading order:
    householder  products of reflections by blocks
    rotations    rotations of skew matrices, and their logarithm
    unitary      products of complex reflections and phases
"""
