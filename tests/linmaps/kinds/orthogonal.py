"""Orthogonal matrices and those made of them."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, determinant, excess, orthonormal


def orthogonal_residual(spec, W):
    tall = W if W.shape[0] >= W.shape[1] else W.T
    gram = np.abs(tall.T @ tall - np.eye(tall.shape[1])).max()
    det = determinant(spec)
    return max(gram, 0.0 if det is None else abs(np.linalg.det(W) - det))


def orthogonal_member(spec, rng):
    n, r = max(spec.in_features, spec.out_features), min(spec.in_features, spec.out_features)
    Q = orthonormal(rng, n, r, determinant(spec))
    return Q if spec.in_features >= spec.out_features else Q.T


def spectral_residual(spec, W):
    s = np.linalg.svd(W, compute_uv=False)
    det = determinant(spec)
    if det is not None and np.linalg.det(W) * det < 0:
        s[-1] *= -1
    return max(0.0, (s - spec.sigma_max).max(), (spec.sigma_min - s).max())


def spectral_member(spec, rng):
    r, det = min(spec.in_features, spec.out_features), determinant(spec)
    s = spec.sigma_min + (spec.sigma_max - spec.sigma_min) * rng.uniform(0.1, 0.9, r)
    left = orthonormal(rng, spec.in_features, r, det)
    return left * s @ orthonormal(rng, spec.out_features, r, None if det is None else 1).T


def spectral_std(spec):
    mean, width = (spec.sigma_max + spec.sigma_min) / 2, 0.9 * (spec.sigma_max - spec.sigma_min)
    return math.sqrt(min(spec.in_features, spec.out_features) / spec.out_features * (mean**2 + width**2 / 12))


def norm(spec, W):
    return np.linalg.norm(W, np.inf if spec.p == "inf" else spec.p)


def norm_member(spec, rng):
    W = rng.standard_normal((spec.in_features, spec.out_features))
    return W * (0.4 * spec.sigma_min + 0.6 * spec.sigma_max) / norm(spec, W)


def norm_residual(spec, W):
    return excess(norm(spec, W) - spec.sigma_max, spec.sigma_min - norm(spec, W))


def norm_std(spec):
    """The norm of such random matrices is (sqrt(in) + sqrt(out)) sqrt(1 / (3 in)), cut at 0.955."""
    wide = math.sqrt(spec.in_features) + math.sqrt(spec.out_features)
    return min(wide / math.sqrt(3 * spec.in_features), 0.955) * math.sqrt(spec.in_features) / wide


KINDS = {
    "orthogonal": Kind(
        orthogonal_member,
        lambda spec: math.sqrt(min(spec.in_features, spec.out_features) / spec.out_features),
        orthogonal_residual,
    ),
    "spectral": Kind(spectral_member, spectral_std, spectral_residual),
    "svd": Kind(spectral_member, spectral_std, spectral_residual),
    "svd_learn_bounds": Kind(spectral_member, spectral_std),
    "bounded_norm": Kind(norm_member, norm_std, norm_residual, projects=False),
}
ENTRIES = [
    Entry(L.Orthogonal(6, 3, bias=True), table=True),
    Entry(L.Orthogonal(3, 6), table=True),
    Entry(L.Orthogonal(5)),
    Entry(L.Orthogonal(3, det=-1), table=True),
    Entry(L.Orthogonal(1, det=-1), table=True),
    Entry(L.Orthogonal(1, 4)),
    Entry(L.Orthogonal(6, n_reflectors=2), "two reflectors"),
    Entry(L.Orthogonal(4, n_reflectors=4)),
    Entry(L.Orthogonal(3, method="cayley"), table=True),
    Entry(L.Orthogonal(4, method="cayley", det=-1, bias=True)),
    Entry(L.Orthogonal(5, 2, method="cayley")),
    Entry(L.Orthogonal(4, method="exp")),
    Entry(L.Orthogonal(3, method="exp", det=-1)),
    Entry(L.Orthogonal(3, 2, method="exp"), table=True),
    Entry(L.Orthogonal(3, method="cayley", base=1), table=True),
    Entry(L.Orthogonal(2, 4, method="exp", base=0)),
    Entry(L.Orthogonal(3, method="exp", base=2, det=-1)),
    Entry(L.Spectral(4, 2), table=True),
    Entry(L.Spectral(2, 3, bias=True, sigma_min=0.5, sigma_max=2.0), table=True),
    Entry(L.Spectral(4)),
    Entry(L.Spectral(3, det=-1, sigma_min=0.3), table=True),
    Entry(L.Spectral(1)),
    Entry(L.Spectral(3, sigma_min=0.0)),
    Entry(L.Spectral(5, 4, sigma_min=1.0, sigma_max=1.0)),
    Entry(L.Spectral(5, n_U_reflectors=1, n_V_reflectors=2), "one and two reflectors"),
    Entry(L.SVD(4, 2), table=True),
    Entry(L.SVD(3, bias=True, sigma_min=0.5, sigma_max=2.0), table=True),
    Entry(L.SVD(2, 5, sigma_min=1.0, sigma_max=1.0)),
    Entry(L.SVDLearnBounds(3, 4), table=True),
    Entry(L.SVDLearnBounds(3, bias=True)),
    Entry(L.BoundedNorm(3, 4), table=True),
    Entry(L.BoundedNorm(4, 3, p=1, bias=True), table=True),
    Entry(L.BoundedNorm(3, p="inf")),
    Entry(L.BoundedNorm(3, p="fro", sigma_min=0.7, sigma_max=0.7), table=True),
    Entry(L.BoundedNorm(3, 2, soft=True), table=True),
    Entry(L.BoundedNorm(1, 3)),
]
