"""Promises about W [n, n] and its transpose.

In reading order:
    symmetric   W = W'
    skew        W = -W', damped too
    gram        W = A A': positive (semi-)definite; a null space that is trivial
    symplectic  W' J W = J, J W symmetric, and block skew
"""
