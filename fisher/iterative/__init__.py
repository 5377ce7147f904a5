"""Iterative methods on products alone: v -> F v.  v a tree, or a vector [d].

In reading order:
    cg       conjugate gradients, with a report
    lanczos  extreme eigenvalues and eigenvectors
    traces   traces and diagonals by probes
"""
