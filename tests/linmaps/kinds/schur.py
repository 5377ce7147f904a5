"""Matrices by their real Schur form."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, orthonormal


def schur_member(spec, rng):
    n = spec.in_features
    D, m = np.zeros((n, n)), n // 2
    if spec.nonnormal:
        D = 0.3 * spec.gamma_max * np.triu(rng.standard_normal((n, n)), 1)
    for k in range(m):
        g, t = spec.gamma_max * rng.uniform(0.2, 0.8), rng.uniform(-np.pi, np.pi)
        D[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[g * np.cos(t), -g * np.sin(t)], [g * np.sin(t), g * np.cos(t)]]
    if n % 2:
        D[-1, -1] = spec.gamma_max * rng.uniform(-0.9, 0.9)
    Q = orthonormal(rng, n, n, 1)
    return Q @ D @ Q.T


def schur_std(spec):
    n, moment = spec.in_features, 0.25 + 0.81 / 12
    coupling = (1 - moment) ** 2 / 16 * (n - 2) / (2 * n) if spec.nonnormal else 0.0
    return spec.gamma_max * math.sqrt(moment + coupling)


KINDS = {
    "schur": Kind(
        schur_member,
        schur_std,
        lambda spec, W: excess(np.abs(np.linalg.eigvals(W)).max() - spec.gamma_max),
    ),
}
ENTRIES = [
    Entry(L.Schur(4), table=True),
    Entry(L.Schur(5, gamma_max=0.8, bias=True)),
    Entry(L.Schur(3, gamma_max=2.0), table=True),
    Entry(L.Schur(4, nonnormal=False)),
    Entry(L.Schur(3, nonnormal=False), table=True),
    Entry(L.Schur(2)),
    Entry(L.Schur(1)),
]
