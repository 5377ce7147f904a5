"""One block, decomposed: values and vectors of a symmetric matrix, and functions of them.

In reading order:
    precise      in float64 where that is affordable
    spectra      functions of eigenvalues
    exact        a dense or a diagonal block
    eigenblocks  a block in a Kronecker or a dense eigenbasis
"""
