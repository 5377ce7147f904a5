"""Matrices by layer: a [O, I] weight's block is G (x) A, or exact.

In reading order:
    blockdiag  dense blocks
    factored   blocks G (x) A, damped
    ekfac      Kronecker eigenbases with eigenvalues of their own
    kfac       Kronecker factors
    arrowhead  a diagonal with one border
    quasidiag  each weight with its bias
    mixed      another representation for each part
"""
