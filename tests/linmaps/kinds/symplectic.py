"""Maps of phase space."""

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, asymmetry, linear_std


def J(n):
    m = n // 2
    return np.block([[np.zeros((m, m)), np.eye(m)], [-np.eye(m), np.zeros((m, m))]])


def symplectic_residual(spec, W):
    """Relative to |W|^2, the size of what rounding of W alone does to W'JW."""
    n = spec.in_features
    return np.linalg.norm(W.T @ J(n) @ W - J(n)) / max(1.0, np.linalg.norm(W) ** 2)


def hamiltonian_member(spec, rng):
    A = rng.standard_normal((spec.in_features,) * 2)
    return J(spec.in_features) @ (A + A.T)


def symplectic_member(spec, rng):
    """The Cayley transform of a Hamiltonian matrix."""
    H, eye = hamiltonian_member(spec, rng) / 10, np.eye(spec.in_features)
    return np.linalg.solve(eye - H, eye + H)


def block_skew_member(spec, rng):
    m = spec.in_features // 2
    A, zero = rng.standard_normal((m, m)), np.zeros((m, m))
    return np.block([[zero, A], [-A.T, zero]])


def block_skew_residual(spec, W):
    m = spec.in_features // 2
    return max(np.abs(W[:m, :m]).max(), np.abs(W[m:, m:]).max(), np.abs(W + W.T).max())


KINDS = {
    "symplectic": Kind(symplectic_member, lambda spec: 1.0, symplectic_residual),
    "hamiltonian": Kind(hamiltonian_member, linear_std, lambda spec, W: asymmetry(J(spec.in_features) @ W)),
    "block_skew": Kind(block_skew_member, linear_std, block_skew_residual),
}
ENTRIES = [
    Entry(L.Symplectic(4), table=True),
    Entry(L.Symplectic(6, bias=True)),
    Entry(L.Symplectic(2), table=True),
    Entry(L.Symplectic(4, n_factors=2), "two factors"),
    Entry(L.Symplectic(4, n_factors=8)),
    Entry(L.Hamiltonian(4, bias=True), table=True),
    Entry(L.Hamiltonian(2)),
    Entry(L.BlockSkew(4), table=True),
    Entry(L.BlockSkew(2)),
    Entry(L.BlockSkew(6, bias=True)),
]
