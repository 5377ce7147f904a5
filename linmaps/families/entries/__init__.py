"""Promises about the entries of W [in, out].

In reading order:
    linear             any matrix, from a random start or from the identity
    identity           the identity, which has no params
    positive           numbers >= 0 from free parameters, and back
    non_negative       no negative entries
    split              a difference of non-negative matrices, without overlap
    lasso              sparse by the penalty on |W|_1
    vectors            columns and rows: lengths, directions
    unit_norm          columns, or rows, of one length
    weight_norm        columns, or rows, by direction and length
    gates              L0: entries that are switched off at random
    stochastic         rows, or columns, that sum to one
    doubly_stochastic  rows and columns that sum to one
    perron             Perron-Frobenius: positive, with bounds on the dominant eigenvalue
"""
