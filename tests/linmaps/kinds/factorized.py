"""Tensorized matrices: W [in, out] as a tensor of modes (out, in), built and measured with numpy alone."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, linear_std

F = L.Factorized


def matrix_of(spec, T):
    return T.reshape(spec.out_features, spec.in_features).T


def member(spec, rng):
    sizes = (*spec.out_shape, *spec.in_shape)
    r = spec.ranks
    if spec.factorization == "dense":
        return rng.standard_normal((spec.in_features, spec.out_features))
    if spec.factorization == "lowrank":
        return rng.standard_normal((spec.in_features, r)) @ rng.standard_normal((r, spec.out_features))
    if spec.factorization == "cp":
        T = 0
        for _ in range(r):
            term = np.ones(())
            for s in sizes:
                term = np.multiply.outer(term, rng.standard_normal(s))
            T = T + term
        return matrix_of(spec, T)
    if spec.factorization == "tucker":
        T = rng.standard_normal(r)
        for s, k in zip(sizes, r):
            T = np.tensordot(T, rng.standard_normal((k, s)), axes=(0, 0))
        return matrix_of(spec, T)
    if spec.factorization == "blocktt":
        sizes = [o * i for o, i in zip(spec.out_shape, spec.in_shape)]
    T = np.ones((1, 1))
    for s, before, after in zip(sizes, r, r[1:]):
        T = np.tensordot(T, rng.standard_normal((before, s, after)), axes=(-1, 0))
    T = T.reshape(sizes)
    return matrix_of(spec, T if spec.factorization == "tt" else unpaired(spec, T))


def unpaired(spec, T):
    """A tensor of paired modes (o_1 i_1), (o_2 i_2), ... as one of modes (out, in)."""
    d = len(spec.out_shape)
    T = T.reshape([n for pair in zip(spec.out_shape, spec.in_shape) for n in pair])
    return T.transpose([2 * k for k in range(d)] + [2 * k + 1 for k in range(d)])


def paired(spec, W):
    d = len(spec.out_shape)
    T = W.T.reshape(*spec.out_shape, *spec.in_shape).transpose([k + half * d for k in range(d) for half in (0, 1)])
    return T.reshape([o * i for o, i in zip(spec.out_shape, spec.in_shape)])


def residual(spec, W):
    """The largest singular value beyond the rank, over the unfoldings whose rank is bounded."""
    r = spec.ranks
    sizes = (*spec.out_shape, *spec.in_shape)
    T = paired(spec, W) if spec.factorization == "blocktt" else W.T.reshape(sizes)
    alone = [np.moveaxis(T, k, 0).reshape(T.shape[k], -1) for k in range(T.ndim)]
    splits = [T.reshape(math.prod(T.shape[:k]), -1) for k in range(1, T.ndim)]
    bounded = {
        "dense": [],
        "lowrank": [(W, r)],
        "cp": [(M, r) for M in alone + splits],
        "tucker": list(zip(alone, r)) if spec.factorization == "tucker" else [],
        "tt": list(zip(splits, r[1:-1])) if spec.factorization == "tt" else [],
        "blocktt": list(zip(splits, r[1:-1])) if spec.factorization == "blocktt" else [],
    }[spec.factorization]
    return max((float(np.linalg.svd(M, compute_uv=False)[n:].max(initial=0.0)) for M, n in bounded), default=0.0)


def singular(spec):
    W = member(spec, np.random.default_rng(0))
    return bool(np.linalg.cond(W) > 1e10)


KINDS = {"factorized": Kind(member, linear_std, residual, singular, projects=False)}
ALTERNATING = "alternating least squares finds local optima"
ENTRIES = [
    Entry(F((2, 2), (2, 2), rank=0.9), table=True),
    Entry(F((2, 3), (4,), rank=(3, 2, 2), bias=False)),
    Entry(F((2, 2), (3, 1), factorization="dense"), table=True),
    Entry(F((4, 2), (2, 3), factorization="lowrank", rank=2), table=True),
    Entry(F((2, 2), (2, 2), factorization="cp", rank=2), table=True, incomplete=ALTERNATING),
    Entry(F((3,), (2, 2), factorization="cp", rank=3, bias=False), incomplete=ALTERNATING),
    Entry(F((2, 2), (2, 2), factorization="tt", rank=2), table=True),
    Entry(F((2, 3), (3, 1, 2), factorization="tt", rank=0.8, bias=False)),
    Entry(F((2, 2), (2, 2), factorization="blocktt", rank=2), table=True),
    Entry(F((3, 2), (2, 2), factorization="blocktt", rank="same", bias=False), table=True),
    Entry(F((1,), (1,), factorization="blocktt")),
    Entry(F((2, 2), (2, 2), rank=0.9, checkpointing=True, implementation="factorized"), table=True),
    Entry(F((2, 2), (2, 2), factorization="cp", rank=2, implementation="reconstructed"), incomplete=ALTERNATING),
]
