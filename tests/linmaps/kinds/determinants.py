"""Matrices of a fixed rank or determinant, and unitary ones."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, orthonormal

EU, EU2 = 0.5, 0.25 + 0.81 / 12  # of u uniform over [0.05, 0.95]


def above_std(spec):
    """s = low + t u, with t such that inputs of unit variance give outputs of variance 1/3, or 0.1 low at least."""
    low, k = spec.sigma_min, getattr(spec, "rank", spec.in_features)
    roots = np.roots([EU2, 2 * low * EU, low**2 - spec.out_features / (3 * k)])
    t = max(0.1 * low, *(float(r.real) for r in roots))
    return math.sqrt(k / spec.out_features * (low**2 + 2 * low * t * EU + t * t * EU2))


def rotations(spec, rng, s):
    """A matrix with the singular values s, of positive determinant where it is regular."""
    full = len(s) == spec.in_features == spec.out_features
    left, right = (orthonormal(rng, n, len(s), 1 if full else None) for n in (spec.in_features, spec.out_features))
    return (left * s) @ right.T


def fixed_rank_member(spec, rng):
    return rotations(spec, rng, spec.sigma_min + rng.uniform(0, 3, spec.rank) * (rng.uniform(size=spec.rank) > 0.2))


def fixed_rank_residual(spec, W):
    s = np.linalg.svd(W, compute_uv=False)
    return excess(spec.sigma_min - s[: spec.rank], s[spec.rank :])


def invertible_member(spec, rng):
    high = spec.sigma_max or 3
    return rotations(spec, rng, spec.sigma_min + (high - spec.sigma_min) * rng.uniform(0.1, 0.9, spec.in_features))


def invertible_residual(spec, W):
    s = np.linalg.svd(W, compute_uv=False)
    s[-1] *= np.sign(np.linalg.det(W)) or 1
    return excess(spec.sigma_min - s, s - (spec.sigma_max or np.inf))


def invertible_std(spec):
    if spec.sigma_max is None:
        return above_std(spec)
    width = 0.9 * (spec.sigma_max - spec.sigma_min)
    return math.sqrt(((spec.sigma_max + spec.sigma_min) / 2) ** 2 + width**2 / 12)


def unit_determinant_member(spec, rng):
    logs = rng.standard_normal(spec.in_features)
    return rotations(spec, rng, np.exp(logs - logs.mean()))


def unit_determinant_residual(spec, W):
    """|det W - 1| over its slope: how far W is from the set, to first order."""
    U, s, Vh = np.linalg.svd(W)
    cofactors = [np.prod(np.delete(s, i)) for i in range(len(s))]
    return abs(np.linalg.det(U) * np.linalg.det(Vh) * np.prod(s) - 1) / np.linalg.norm(cofactors)


def unitary_member(spec, rng):
    n = spec.in_features
    return np.linalg.qr(rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n)))[0]


KINDS = {
    "fixed_rank": Kind(
        fixed_rank_member,
        above_std,
        fixed_rank_residual,
        lambda spec: spec.rank < max(spec.in_features, spec.out_features),
    ),
    "invertible": Kind(invertible_member, invertible_std, invertible_residual),
    "unit_determinant": Kind(
        unit_determinant_member, lambda spec: math.sqrt(1 + 2 * 0.5**2 / 3), unit_determinant_residual
    ),
    "unitary": Kind(
        unitary_member, lambda spec: 1.0, lambda spec, W: float(np.abs(W.conj().T @ W - np.eye(len(W))).max())
    ),
}
ENTRIES = [
    Entry(L.FixedRank(5, 4, 2), table=True),
    Entry(L.FixedRank(3, bias=True), table=True),
    Entry(L.FixedRank(3, 3, 3)),
    Entry(L.FixedRank(2, 5, 2, sigma_min=0.5)),
    Entry(L.FixedRank(5, 2, 2), table=True),
    Entry(L.FixedRank(1)),
    Entry(L.Invertible(3), table=True),
    Entry(L.Invertible(4, bias=True, sigma_min=0.5)),
    Entry(L.Invertible(3, sigma_max=2.0), table=True),
    Entry(L.Invertible(3, sigma_min=1.0, sigma_max=1.0)),
    Entry(L.Invertible(1)),
    Entry(L.UnitDeterminant(3), table=True),
    Entry(L.UnitDeterminant(4, bias=True)),
    Entry(L.UnitDeterminant(2)),
    Entry(L.UnitDeterminant(1)),
    Entry(L.Unitary(3), table=True),
    Entry(L.Unitary(4, bias=True)),
    Entry(L.Unitary(2)),
    Entry(L.Unitary(1)),
]
