"""Matrices whose spectrum is placed by the absolute sums of their rows."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, asymmetry, excess


def center_and_radius(spec):
    return (spec.sigma_min + spec.sigma_max) / 2, (spec.sigma_max - spec.sigma_min) / 2


def without_diagonal(rng, n, symmetric=False):
    A = rng.standard_normal((n, n))
    A = A + A.T if symmetric else A
    return A - np.diag(np.diag(A))


def gershgorin_member(spec, rng):
    n, (c, R) = spec.in_features, center_and_radius(spec)
    off = without_diagonal(rng, n, spec.real)
    off *= 0.7 * R / max(np.abs(off).sum(1).max(), 1e-300)
    return off + np.diag(c + (R - np.abs(off).sum(1)) * rng.uniform(-0.9, 0.9, n))


def gershgorin_residual(spec, W):
    c, R = center_and_radius(spec)
    if spec.real:
        values = np.linalg.eigvalsh((W + W.T) / 2)
        return max(excess(values - spec.sigma_max, spec.sigma_min - values), asymmetry(W))
    return excess(np.abs(np.linalg.eigvals(W) - c) - R)


def gershgorin_std(spec):
    rng, n, (c, R) = np.random.default_rng(0), spec.in_features, center_and_radius(spec)
    squares = []
    for _ in range(10):
        a, s = rng.uniform(0.05, 0.95, n), without_diagonal(rng, n, spec.real)
        q = R * a / np.abs(s).sum(1)
        off = s * (np.minimum(q[:, None], q) if spec.real else q[:, None])
        d = c + R * (1 - a) * rng.uniform(-0.9, 0.9, n)
        squares.append(((off**2).sum() + (d**2).sum()) / n)
    return math.sqrt(np.mean(squares))


def dominant_member(spec, rng):
    n = spec.in_features
    off = without_diagonal(rng, n)
    return off + np.diag(spec.margin + np.abs(off).sum(1) + rng.uniform(0.1, 1.0, n))


def dominant_residual(spec, W):
    off = np.abs(W - np.diag(np.diag(W))).sum(1)
    return excess(spec.margin + off - np.diag(W))


KINDS = {
    "gershgorin": Kind(gershgorin_member, gershgorin_std, gershgorin_residual),
    "diagonally_dominant": Kind(dominant_member, lambda spec: math.sqrt(1 / 3), dominant_residual, projects=False),
}
ENTRIES = [
    Entry(L.Gershgorin(4, bias=True), table=True),
    Entry(L.Gershgorin(5, sigma_min=-0.5, sigma_max=2.0)),
    Entry(L.Gershgorin(1, sigma_min=-1.0)),
    Entry(L.Gershgorin(3, real=False, sigma_min=-1.0), table=True),
    Entry(L.Gershgorin(5, real=False)),
    Entry(L.Gershgorin(1, real=False)),
    Entry(L.DiagonallyDominant(4, bias=True), table=True),
    Entry(L.DiagonallyDominant(3, margin=2.0)),
    Entry(L.DiagonallyDominant(1)),
]
