"""Stochastic and Perron-Frobenius matrices."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, orthonormal


def softmax_std(n_sum, n_softmax):
    """Of a sum of n_sum inputs weighted by entries of a softmax over n_softmax standard normal logits."""
    weights = np.exp(np.random.default_rng(0).standard_normal((4000, n_softmax)))
    return math.sqrt(n_sum * np.mean((weights / weights.sum(1, keepdims=True)) ** 2))


def doubly(spec, rng):
    n = spec.in_features
    if spec.method == "orthostochastic":
        return orthonormal(rng, n, n) ** 2
    W = rng.uniform(0.1, 1, (n, n))
    for _ in range(3000):
        W /= W.sum(0)
        W /= W.sum(1, keepdims=True)
    return W


def perron(spec, rng):
    n, m = spec.in_features, spec.out_features
    P = rng.dirichlet(5 * np.ones(m), n)
    if not spec.exact:
        return (
            rng.uniform(
                0.1 * spec.sigma_max + 0.9 * spec.sigma_min, 0.9 * spec.sigma_max + 0.1 * spec.sigma_min, (n, 1)
            )
            * P
        )
    d = np.exp(rng.uniform(-1, 1, n))
    return (0.4 * spec.sigma_min + 0.6 * spec.sigma_max) * d[:, None] * P / d


def perron_residual(spec, W):
    r = np.abs(np.linalg.eigvals(W)).max() if spec.exact else W.sum(1)
    return excess(-W, r - spec.sigma_max, spec.sigma_min - r)


def perron_std(spec):
    low, high = spec.sigma_min, spec.sigma_max
    r2 = ((low + high) / 2) ** 2 + (0.9 * (high - low)) ** 2 / 12
    return math.sqrt(r2) * softmax_std(spec.in_features, spec.out_features)


KINDS = {
    "right_stochastic": Kind(
        lambda spec, rng: rng.dirichlet(5 * np.ones(spec.out_features), spec.in_features),
        lambda spec: softmax_std(spec.in_features, spec.out_features),
        lambda spec, W: excess(np.abs(W.sum(1) - 1), -W),
    ),
    "left_stochastic": Kind(
        lambda spec, rng: rng.dirichlet(5 * np.ones(spec.in_features), spec.out_features).T,
        lambda spec: softmax_std(spec.in_features, spec.in_features),
        lambda spec, W: excess(np.abs(W.sum(0) - 1), -W),
    ),
    "doubly_stochastic": Kind(
        doubly,
        lambda spec: softmax_std(spec.in_features, spec.in_features),
        lambda spec, W: excess(np.abs(W.sum(0) - 1), np.abs(W.sum(1) - 1), -W),
        projects=False,
    ),
    "perron_frobenius": Kind(perron, perron_std, perron_residual, projects=False),
}
ENTRIES = [
    Entry(L.RightStochastic(5, 3)),
    Entry(L.RightStochastic(4, 3, bias=True), table=True),
    Entry(L.RightStochastic(4), table=True),
    Entry(L.RightStochastic(3, 1)),
    Entry(L.LeftStochastic(3, 5)),
    Entry(L.LeftStochastic(4, 3, bias=True), table=True),
    Entry(L.LeftStochastic(4)),
    Entry(L.LeftStochastic(1, 3)),
    Entry(L.DoublyStochastic(4)),
    Entry(L.DoublyStochastic(3, bias=True, n_iters=5), "five iterations", table=True),
    Entry(L.DoublyStochastic(3, method="orthostochastic"), table=True),
    Entry(L.DoublyStochastic(1)),
    Entry(L.PerronFrobenius(4, 3, bias=True), table=True),
    Entry(L.PerronFrobenius(3, 5)),
    Entry(L.PerronFrobenius(4, sigma_min=0.0, sigma_max=2.0)),
    Entry(L.PerronFrobenius(3, exact=True), table=True),
    Entry(L.PerronFrobenius(4, exact=True, sigma_min=0.9, sigma_max=0.9)),
    Entry(L.PerronFrobenius(1)),
]
