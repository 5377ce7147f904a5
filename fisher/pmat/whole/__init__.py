"""Matrices on all of parameter space at once, d x d or of rank r.

In reading order:
    aligned   what a diagonal and a multiple of the identity share
    eye       alpha I
    diag      a diagonal
    eigen     U diag(D) U'
    dense     all entries
    rows      R v, R'c and R R' of rows R [n, d]
    diagonals low rank plus a diagonal
    range     a matrix on the range of given rows
    woodbury  inverses by R R'
    lowrank   R' R
"""
