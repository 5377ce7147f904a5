"""The one list of specs that runs all laws of maps, with oracles that share no code with the maps.

Each kind of map says what its promise means to numpy, how to draw a random member of the promised set, and the output's
standard deviation at init for inputs of unit variance.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

import linmaps as L


@dataclasses.dataclass(frozen=True)
class Kind:
    residual: Callable[[L.Map, np.ndarray], float]
    member: Callable[[L.Map, np.random.Generator], np.ndarray]
    std: Callable[[L.Map], float]


@dataclasses.dataclass(frozen=True)
class Entry:
    """incomplete: why this spec does not reach every member of the promised set."""

    spec: L.Map
    incomplete: str = ""


def determinant(spec):
    """The sign of the determinant that a square spec promises."""
    return (spec.det or 1) if spec.in_features == spec.out_features else None


def orthonormal(rng, rows, columns, det=None):
    Q = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    if det is not None and np.linalg.det(Q) * det < 0:
        Q[:, 0] *= -1
    return Q


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


def symmetric_member(spec, rng):
    A = rng.standard_normal((spec.in_features,) * 2)
    return A + A.T


def stochastic_std(spec):
    weights = np.exp(np.random.default_rng(0).standard_normal((4000, spec.out_features)))
    return math.sqrt(spec.in_features * np.mean((weights / weights.sum(1, keepdims=True)) ** 2))


KINDS = {
    "linear": Kind(
        lambda spec, W: 0.0,
        lambda spec, rng: rng.standard_normal((spec.in_features, spec.out_features)),
        lambda spec: math.sqrt(1 / 3),
    ),
    "symmetric": Kind(lambda spec, W: float(np.abs(W - W.T).max()), symmetric_member, lambda spec: math.sqrt(1 / 3)),
    "right_stochastic": Kind(
        lambda spec, W: float(max(np.abs(W.sum(1) - 1).max(), -W.min(), 0.0)),
        lambda spec, rng: rng.dirichlet(np.ones(spec.out_features), spec.in_features),
        stochastic_std,
    ),
    "orthogonal": Kind(
        orthogonal_residual,
        orthogonal_member,
        lambda spec: math.sqrt(min(spec.in_features, spec.out_features) / spec.out_features),
    ),
    "spectral": Kind(spectral_residual, spectral_member, spectral_std),
}

ENTRIES = [
    Entry(L.Linear(5, 3, bias=True)),
    Entry(L.Linear(3, 5)),
    Entry(L.Linear(1)),
    Entry(L.Symmetric(5)),
    Entry(L.Symmetric(4, bias=True)),
    Entry(L.Symmetric(1)),
    Entry(L.RightStochastic(5, 3)),
    Entry(L.RightStochastic(3, 5, bias=True)),
    Entry(L.RightStochastic(4)),
    Entry(L.RightStochastic(3, 1)),
    Entry(L.Orthogonal(6, 3)),
    Entry(L.Orthogonal(3, 6, bias=True)),
    Entry(L.Orthogonal(5)),
    Entry(L.Orthogonal(4, det=-1)),
    Entry(L.Orthogonal(1, det=-1)),
    Entry(L.Orthogonal(1, 4)),
    Entry(L.Orthogonal(6, n_reflectors=2), "two reflectors"),
    Entry(L.Orthogonal(4, n_reflectors=4)),
    Entry(L.Orthogonal(4, method="cayley")),
    Entry(L.Orthogonal(3, method="cayley", det=-1, bias=True)),
    Entry(L.Orthogonal(5, 2, method="cayley")),
    Entry(L.Orthogonal(4, method="exp")),
    Entry(L.Orthogonal(3, method="exp", det=-1)),
    Entry(L.Orthogonal(2, 4, method="exp")),
    Entry(L.Spectral(5, 3)),
    Entry(L.Spectral(3, 6, bias=True, sigma_min=0.5, sigma_max=2.0)),
    Entry(L.Spectral(4)),
    Entry(L.Spectral(4, det=-1, sigma_min=0.3)),
    Entry(L.Spectral(1)),
    Entry(L.Spectral(3, sigma_min=0.0)),
    Entry(L.Spectral(5, 4, sigma_min=1.0, sigma_max=1.0)),
    Entry(L.Spectral(5, n_U_reflectors=1, n_V_reflectors=2), "one and two reflectors"),
]


def label(entry):
    changed = [
        f"{f.name}={getattr(entry.spec, f.name)}"
        for f in dataclasses.fields(entry.spec)[2:]
        if getattr(entry.spec, f.name) != f.default
    ]
    return "-".join([entry.spec.name, f"{entry.spec.in_features}x{entry.spec.out_features}", *changed])


def residual(spec, W):
    """The oracle of the promise, independent of `spec.violation`."""
    return KINDS[spec.name].residual(spec, W.detach().double().numpy())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_params(spec, seed, dtype=torch.float64):
    return spec.init(generator(seed), dtype=dtype)


def descend(spec, loss, seed, steps, lr):
    """Adam from a random init towards a smaller `loss(W)`; returns the params."""
    params = random_params(spec, seed)
    slope = torch.func.grad(lambda p: loss(spec.effective_W(p)))
    optimizer = torch.optim.Adam(params.values(), lr=lr)
    for _ in range(steps):
        for name, gradient in slope(params).items():
            params[name].grad = gradient
        optimizer.step()
    return params
