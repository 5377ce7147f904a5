"""Matrices with few parameters."""

import functools
import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, linear_std


def low_rank_member(spec, rng):
    return rng.standard_normal((spec.in_features, spec.rank)) @ rng.standard_normal((spec.rank, spec.out_features))


def shifts(n):
    return [np.roll(np.eye(n), k, axis=1) for k in range(n)]


def circulant_member(spec, rng):
    return sum(rng.standard_normal() * P for P in shifts(spec.in_features))


def circulant_residual(spec, W):
    n = spec.in_features
    return float(np.abs(W - sum((W * P).sum() / n * P for P in shifts(n))).max())


def mask(spec):
    b = spec.n_blocks
    return np.kron(np.eye(b), np.ones((spec.in_features // b, spec.out_features // b)))


def kronecker_member(spec, rng):
    return functools.reduce(np.kron, [rng.standard_normal(s) for s in zip(spec.in_shape, spec.out_shape)])


def kronecker_residual(spec, W):
    """Of a split into the first factor and the rest, then of the rest: the second singular value of the rearranged W."""
    worst = 0.0
    for p, q in list(zip(spec.in_shape, spec.out_shape))[:-1]:
        n, m = W.shape[0] // p, W.shape[1] // q
        blocks = np.stack([W[i * n : (i + 1) * n, j * m : (j + 1) * m].ravel() for i in range(p) for j in range(q)])
        _, s, V = np.linalg.svd(blocks, full_matrices=False)
        worst = max(worst, s[1] if len(s) > 1 else 0.0)
        W = (s[0] * V[0]).reshape(n, m)
    return worst


KINDS = {
    "low_rank": Kind(
        low_rank_member,
        linear_std,
        lambda spec, W: float(np.linalg.svd(W, compute_uv=False)[spec.rank :].max(initial=0.0)),
        lambda spec: spec.rank < spec.in_features,
    ),
    "circulant": Kind(circulant_member, linear_std, circulant_residual),
    "block_diagonal": Kind(
        lambda spec, rng: mask(spec) * rng.standard_normal((spec.in_features, spec.out_features)),
        linear_std,
        lambda spec, W: float(np.abs(W * (1 - mask(spec))).max()),
        lambda spec: spec.in_features % spec.n_blocks != 0,
    ),
    "kronecker": Kind(
        kronecker_member, linear_std, kronecker_residual, lambda spec: spec.in_shape != spec.out_shape, projects=False
    ),
}
ENTRIES = [
    Entry(L.LowRank(5, 4), table=True),
    Entry(L.LowRank(3, bias=True)),
    Entry(L.LowRank(2, 6, 1)),
    Entry(L.LowRank(1)),
    Entry(L.Circulant(4), table=True),
    Entry(L.Circulant(5, bias=True)),
    Entry(L.Circulant(1)),
    Entry(L.BlockDiagonal(4, 6, 2), table=True),
    Entry(L.BlockDiagonal(6, bias=True, n_blocks=3)),
    Entry(L.BlockDiagonal(4), table=True),
    Entry(L.BlockDiagonal(1)),
    Entry(L.Kronecker((2, 3), (3, 2)), table=True),
    Entry(L.Kronecker((2, 2), bias=True), table=True),
    Entry(L.Kronecker((2, 3, 2), (2, 1, 3)), "three factors of a random start may end in a local minimum"),
    Entry(L.Kronecker((4,))),
]


def triangular_mask(spec):
    mask = np.tril(np.ones((spec.in_features,) * 2), -1)
    return mask if spec.lower else mask.T


def triangular_member(spec, rng):
    n = spec.in_features
    d = {"free": rng.standard_normal(n), "positive": rng.uniform(0.2, 2, n), "unit": np.ones(n)}[spec.diagonal]
    return triangular_mask(spec) * rng.standard_normal((n, n)) + np.diag(d)


def triangular_residual(spec, W):
    d = np.diag(W)
    off = {"free": 0.0, "positive": excess(-d) + float((d == 0).any()), "unit": float(np.abs(d - 1).max())}
    return max(float(np.abs(W * (1 - triangular_mask(spec) - np.eye(len(W)))).max()), off[spec.diagonal])


def triangular_std(spec):
    n = spec.in_features
    return math.sqrt({"free": 1 / 3, "positive": 1.0, "unit": 1 if n == 1 else 7 / 6}[spec.diagonal])


def toeplitz_basis(spec):
    n, m = spec.in_features, spec.out_features
    return [np.eye(n, m, k) for k in range(1 - n, m)]


def toeplitz_residual(spec, W):
    return float(np.abs(W - sum((W * P).sum() / P.sum() * P for P in toeplitz_basis(spec))).max())


KINDS |= {
    "triangular": Kind(triangular_member, triangular_std, triangular_residual),
    "diagonal": Kind(
        lambda spec, rng: np.diag(rng.standard_normal(spec.in_features)),
        linear_std,
        lambda spec, W: float(np.abs(W - np.diag(np.diag(W))).max()),
    ),
    "toeplitz": Kind(
        lambda spec, rng: sum(rng.standard_normal() * P for P in toeplitz_basis(spec)), linear_std, toeplitz_residual
    ),
}
ENTRIES += [
    Entry(L.Triangular(4), table=True),
    Entry(L.Triangular(3, lower=False, diagonal="positive", bias=True), table=True),
    Entry(L.Triangular(4, diagonal="positive")),
    Entry(L.Triangular(4, diagonal="unit")),
    Entry(L.Triangular(3, lower=False, diagonal="unit", bias=True)),
    Entry(L.Triangular(1)),
    Entry(L.Diagonal(4), table=True),
    Entry(L.Diagonal(3, bias=True)),
    Entry(L.Diagonal(1)),
    Entry(L.Toeplitz(3, 5, bias=True), table=True),
    Entry(L.Toeplitz(4), table=True),
    Entry(L.Toeplitz(5, 2)),
    Entry(L.Toeplitz(1)),
]
