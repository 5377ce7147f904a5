"""Maps made of maps, by the kinds of their parts."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess


def kind(spec):
    from tests.linmaps.zoo import KINDS as ALL  # which gathers this file's

    return ALL[spec.name]


def member(spec, rng):
    return kind(spec).member(spec, rng)


def residual(spec, W):
    return kind(spec).residual(spec, W)


def std(spec):
    return kind(spec).std(spec)


def singular(spec):
    return kind(spec).singular(spec)


def sizes(spec):
    """Where the block rows and the block columns end."""
    heights = [next(p.in_features for p in row if p) for row in spec.rows]
    widths = [next(p.out_features for p in column if p) for column in zip(*spec.rows)]
    return np.cumsum(heights), np.cumsum(widths)


def blocks(spec, W):
    rows, columns = sizes(spec)
    return [np.split(line, columns[:-1], axis=1) for line in np.split(W, rows[:-1])]


def block_member(spec, rng):
    rows, columns = sizes(spec)
    cut = blocks(spec, np.zeros((rows[-1], columns[-1])))
    return np.block([[member(p, rng) if p else zero for p, zero in zip(*line)] for line in zip(spec.rows, cut)])


def block_residual(spec, W):
    pairs = [pair for line in zip(spec.rows, blocks(spec, W)) for pair in zip(*line)]
    return excess(*(residual(part, b) if part else np.abs(b) for part, b in pairs))


def block_std(spec):
    """The mean of the variances of the outputs."""
    columns = list(zip(*spec.rows))
    widths = np.diff(sizes(spec)[1], prepend=0)
    return math.sqrt(sum(n * sum(std(p) ** 2 for p in c if p) for n, c in zip(widths, columns)) / sum(widths))


KINDS = {
    "transpose": Kind(
        lambda spec, rng: member(spec.map, rng).T,
        lambda spec: std(spec.map) * math.sqrt(spec.in_features / spec.out_features),
        lambda spec, W: residual(spec.map, W.T),
        lambda spec: singular(spec.map),
    ),
    "scale": Kind(
        lambda spec, rng: spec.factor * member(spec.map, rng),
        lambda spec: abs(spec.factor) * std(spec.map),
        lambda spec, W: abs(spec.factor) * residual(spec.map, W / spec.factor),
        lambda spec: singular(spec.map),
    ),
    "affine": Kind(
        lambda spec, rng: member(spec.map, rng),
        lambda spec: math.hypot(std(spec.map), (3 * spec.in_features) ** -0.5),
        lambda spec, W: residual(spec.map, W),
        lambda spec: singular(spec.map),
    ),
    "product": Kind(
        lambda spec, rng: np.linalg.multi_dot([member(p, rng) for p in spec.maps]),
        lambda spec: math.prod(std(p) for p in spec.maps),
        singular=lambda spec: min(p.out_features for p in spec.maps) < spec.in_features,
    ),
    "sum": Kind(
        lambda spec, rng: sum(member(p, rng) for p in spec.maps),
        lambda spec: math.hypot(*(std(p) for p in spec.maps)),
    ),
    "block": Kind(block_member, block_std, block_residual, singular=lambda spec: spec.rows[-1][-1] is None),
}
ENTRIES = [
    Entry(L.Transpose(L.Orthogonal(4, 2)), table=True),
    Entry(L.Transpose(L.RightStochastic(2, 4))),
    Entry(L.Transpose(L.Linear(3)), table=True),
    Entry(L.Transpose(L.Symmetric(3))),
    Entry(L.Transpose(L.Product(L.Linear(3, 2), L.Linear(2, 4)))),
    Entry(L.Transpose(L.Identity(2, 3))),
    Entry(L.Transpose(L.SVD(2, 3))),
    Entry(L.Scale(L.Spectral(3), -2.0), table=True),
    Entry(L.Scale(L.Symmetric(4), -0.5)),
    Entry(L.Scale(L.RightStochastic(3, 5), 3)),
    Entry(L.Affine(L.Linear(3, 2)), table=True),
    Entry(L.Affine(L.Symmetric(3))),
    Entry(L.Affine(L.Scale(L.Identity(3), 2.0)), table=True),
    Entry(L.Affine(L.Transpose(L.Orthogonal(3, 5)))),
    Entry(L.Product(L.Linear(3, 2), L.Linear(2, 4))),
    Entry(L.Product(L.Spectral(3), L.Orthogonal(3)), table=True),
    Entry(L.Product(L.Linear(3, 5), L.Linear(5, 3)), table=True),
    Entry(L.Product(L.Linear(3, 1), L.Linear(1, 3))),
    Entry(L.Product(L.Symmetric(3), L.Identity(3), L.Scale(L.Orthogonal(3, det=-1), 0.5))),
    Entry(L.Sum(L.Symmetric(3), L.Orthogonal(3, method="cayley")), table=True),
    Entry(L.Sum(L.Symmetric(4), L.Scale(L.Identity(4), 2.0), L.Transpose(L.Symmetric(4)))),
    Entry(L.Sum(L.Spectral(2, 5), L.Transpose(L.Linear(5, 2)))),
    Entry(L.Block(((L.Linear(2), L.Symmetric(2)), (None, L.Orthogonal(2)))), table=True),
    Entry(L.Block(((L.Spectral(2, 3), None), (L.Linear(1, 3), L.RightStochastic(1, 2))))),
    Entry(L.Block(((L.Linear(2), L.Linear(2)), (L.Linear(2), None)))),
    Entry(L.Block.diagonal(L.Symmetric(2), L.Spectral(2)), table=True),
    Entry(L.Block.diagonal(L.Symmetric(2), L.Identity(1), L.Symmetric(2))),
    Entry(L.Block.diagonal(L.Orthogonal(3, 2), L.Linear(1, 3))),
    Entry(L.Block.diagonal(L.Affine(L.Linear(2)).map, L.Product(L.Linear(2), L.Linear(2)))),
    Entry(L.Affine(L.Product(L.Block.diagonal(L.Orthogonal(2), L.Identity(2)), L.Linear(4, 2)))),
]
