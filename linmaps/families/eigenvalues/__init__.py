"""Promises about eigenvalues, hence about x W^t or x exp(W t).

In reading order:
    schur       a real Schur form with eigenvalues inside a circle
    stable      split, power-bounded, and Hurwitz matrices
    gershgorin  discs inside a circle, and diagonal dominance
"""
