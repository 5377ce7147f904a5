"""Promises about W [n, n] and its transpose.

In reading order:
    symmetric    W = W'
    skew         W = -W'
    damped       W + W' = -2 gamma I, or W W' = gamma^2 I: rotations that decay
    gram         W = A'A + eps I: positive (semi-)definite
    phase_space  rows (q, p), and J
    symplectic   W'JW = J
    hamiltonian  J W = (J W)'
    block_skew   W = [[0, A], [-A', 0]]
"""
