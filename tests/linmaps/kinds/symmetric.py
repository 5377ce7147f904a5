"""Symmetric and skew matrices and their kin."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, asymmetry, excess, linear_std, orthonormal


def symmetric_member(spec, rng):
    A = rng.standard_normal((spec.in_features,) * 2)
    return A + A.T


def skew_member(spec, rng):
    A = rng.standard_normal((spec.in_features,) * 2)
    return A - A.T


def expm(S):
    values, V = np.linalg.eigh(S / 1j)
    return ((V * np.exp(1j * values)) @ V.conj().T).real


def damped_member(spec, rng):
    gamma, S = 0.3 * spec.sigma_min + 0.7 * spec.sigma_max, 0.4 * skew_member(spec, rng)
    return gamma * expm(S) if spec.time == "discrete" else S - gamma * np.eye(len(S))


def damped_residual(spec, W):
    n = len(W)
    if spec.time == "continuous":
        gamma, off = -np.trace(W) / n, np.abs((W + W.T) / 2 - np.trace(W) / n * np.eye(n)).max()
    else:
        gamma = abs(np.linalg.det(W)) ** (1 / n)
        off = max(np.abs(W.T @ W - gamma**2 * np.eye(n)).max(), float(np.linalg.det(W) < 0))
    return max(off, excess(gamma - spec.sigma_max, spec.sigma_min - gamma))


def damped_std(spec):
    gamma = (spec.sigma_min + spec.sigma_max) / 2
    return gamma if spec.time == "discrete" else math.sqrt(1 / 3 + gamma**2)


def psd_member(spec, rng):
    A = rng.standard_normal((spec.rank or spec.in_features, spec.in_features))
    return A.T @ A + spec.eps * np.eye(spec.in_features)


def psd_residual(spec, W):
    values = np.linalg.eigvalsh((W + W.T) / 2) - spec.eps
    return max(asymmetry(W), excess(-values, values[: spec.in_features - (spec.rank or spec.in_features)]))


def null_space_member(spec, rng):
    A = rng.standard_normal((spec._rank, spec.in_features))
    left = A.T @ A + spec.epsilon * np.eye(spec.in_features)
    return np.hstack([left, rng.standard_normal((spec.in_features, spec.out_features - spec.in_features))])


def bounded_symmetric_member(spec, rng):
    lam = spec.sigma_min + (spec.sigma_max - spec.sigma_min) * rng.uniform(0.1, 0.9, spec.in_features)
    Q = orthonormal(rng, spec.in_features, spec.in_features)
    W = (Q * lam) @ Q.T
    return (W + W.T) / 2


def bounded_symmetric_residual(spec, W):
    lam = np.linalg.eigvalsh((W + W.T) / 2)
    return max(asymmetry(W), excess(lam - spec.sigma_max, spec.sigma_min - lam))


def bounded_symmetric_std(spec):
    mean, width = (spec.sigma_max + spec.sigma_min) / 2, 0.9 * (spec.sigma_max - spec.sigma_min)
    return math.sqrt(mean**2 + width**2 / 12)


KINDS = {
    "symmetric": Kind(symmetric_member, linear_std, lambda spec, W: asymmetry(W)),
    "skew_symmetric": Kind(
        skew_member, linear_std, lambda spec, W: float(np.abs(W + W.T).max()), lambda spec: spec.in_features % 2 == 1
    ),
    "damped_skew_symmetric": Kind(damped_member, damped_std, damped_residual),
    "psd": Kind(
        psd_member,
        linear_std,
        psd_residual,
        lambda spec: spec.eps == 0 and (spec.rank or spec.in_features) < spec.in_features,
    ),
    "trivial_null_space": Kind(
        null_space_member,
        linear_std,
        lambda spec, W: excess(spec.epsilon - np.linalg.svd(W, compute_uv=False)),
        projects=False,
    ),
    "symmetric_spectral": Kind(bounded_symmetric_member, bounded_symmetric_std, bounded_symmetric_residual),
    "symmetric_svd": Kind(bounded_symmetric_member, bounded_symmetric_std, bounded_symmetric_residual),
}
ENTRIES = [
    Entry(L.Symmetric(5)),
    Entry(L.Symmetric(3, bias=True), table=True),
    Entry(L.Symmetric(1)),
    Entry(L.SkewSymmetric(4), table=True),
    Entry(L.SkewSymmetric(3, bias=True)),
    Entry(L.SkewSymmetric(1)),
    Entry(L.DampedSkewSymmetric(3), table=True),
    Entry(L.DampedSkewSymmetric(4, bias=True, sigma_min=0.2, sigma_max=0.2)),
    Entry(L.DampedSkewSymmetric(3, time="discrete"), table=True),
    Entry(L.DampedSkewSymmetric(4, time="discrete", sigma_min=0.5, sigma_max=1.0)),
    Entry(L.DampedSkewSymmetric(1)),
    Entry(L.PSD(4)),
    Entry(L.PSD(3, eps=0.1, bias=True), table=True),
    Entry(L.PSD(4, rank=2), table=True),
    Entry(L.PSD(1)),
    Entry(L.TrivialNullSpace(3, 5, bias=True), table=True),
    Entry(L.TrivialNullSpace(4, rank=4)),
    Entry(L.TrivialNullSpace(3, 4, rank=1, epsilon=0.5)),
    Entry(L.SymmetricSpectral(4)),
    Entry(L.SymmetricSpectral(3, bias=True, sigma_min=-0.5, sigma_max=0.3), table=True),
    Entry(L.SymmetricSpectral(4, n_reflectors=4)),
    Entry(L.SymmetricSpectral(4, n_reflectors=1), "one reflector"),
    Entry(L.SymmetricSpectral(1)),
    Entry(L.SymmetricSVD(3), table=True),
    Entry(L.SymmetricSVD(4, bias=True, sigma_min=-1.0, sigma_max=1.0)),
]
