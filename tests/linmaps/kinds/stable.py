"""Matrices with bounded eigenvalues or bounded row sums."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess


def square(spec, rng):
    return rng.standard_normal((spec.in_features,) * 2)


def radius(W):
    return np.abs(np.linalg.eigvals(W)).max()


def power_bound_member(spec, rng):
    A = square(spec, rng)
    return A * (spec.max_p * rng.uniform(0.5, 0.9) / radius(A))


def hurwitz_excess(spec, W):
    return np.linalg.eigvals(W).real.max() + spec.margin


def hurwitz_member(spec, rng):
    A = square(spec, rng)
    return A - (hurwitz_excess(spec, A) + rng.uniform(0.1, 0.5)) * np.eye(len(A))


def split_member(spec, rng):
    sums = spec.sigma_max * rng.uniform(0.2, 0.8, (spec.in_features, 1))
    shape = (spec.in_features, spec.out_features)
    return sums * rng.dirichlet(2 * np.ones(spec.out_features), spec.in_features) * rng.choice([-1, 1], shape)


def split_std(spec):
    rng, rows = np.random.default_rng(0), 4000
    B, C = np.exp(rng.standard_normal((2, rows, spec.out_features)))
    t, tau = rng.uniform(0.05, 0.95, (2, rows, 1))
    tau = spec.sigma_min + (spec.sigma_max - spec.sigma_min) * tau
    W = tau * (t * B / B.sum(1, keepdims=True) - (1 - t) * C / C.sum(1, keepdims=True))
    return math.sqrt(spec.in_features * np.mean(W**2))


KINDS = {
    "power_bound": Kind(
        power_bound_member,
        lambda spec: spec.max_p * math.sqrt(1 / 3),
        lambda spec, W: excess(radius(W) - spec.max_p),
    ),
    "hurwitz": Kind(
        hurwitz_member,
        lambda spec: math.sqrt(max(1 / 3, 25 / 16 * spec.margin**2)),
        lambda spec, W: excess(hurwitz_excess(spec, W)),
        projects=False,  # another matrix has its whole spectrum moved
    ),
    "stable_split": Kind(split_member, split_std, lambda spec, W: excess(np.abs(W).sum(1) - spec.sigma_max)),
}
ENTRIES = [
    Entry(L.PowerBound(4)),
    Entry(L.PowerBound(3, max_p=0.7, bias=True), table=True),
    Entry(L.PowerBound(1, max_p=2.0)),
    Entry(L.PowerBound(4, method="rescale")),
    Entry(L.PowerBound(3, method="rescale", max_p=0.4), table=True),
    Entry(L.PowerBound(4, method="soft", max_p=0.5, bias=True)),
    Entry(L.PowerBound(3, method="soft", max_p=0.3), table=True),
    Entry(L.Hurwitz(4, bias=True)),
    Entry(L.Hurwitz(3, margin=0.5), table=True),
    Entry(L.Hurwitz(2, margin=0.0)),
    Entry(L.Hurwitz(1)),
    Entry(L.StableSplit(4), table=True),
    Entry(L.StableSplit(5, 3, bias=True)),
    Entry(L.StableSplit(2, 4, sigma_min=0.5, sigma_max=2.0), table=True),
    Entry(L.StableSplit(4, 3, sigma_min=1.0)),
    Entry(L.StableSplit(3, 1, sigma_min=0.0)),
    Entry(L.StableSplit(1)),
]
