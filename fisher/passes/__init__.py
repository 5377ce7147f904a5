"""Passes over data: matrices made, and means of matrices.  B batch, C columns.

In reading order:
    positions     weights of the positions of each use
    checkpoints   a pass that goes on where it was cut off
    run           batches one by one through a reducer
    matrix_free   the function kept with its data
    information   fim, and eigenvalues corrected in given bases
    fold          Mean and ema over matrices
    second_order  hessian and ggn of a loss
"""
