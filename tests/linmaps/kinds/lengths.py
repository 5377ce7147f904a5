"""Matrices with columns or rows of known lengths."""

import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, free, linear_std


def lengths(spec, W):
    return np.linalg.norm(W, axis=0 if spec.axis == "out" else 1, keepdims=True)


def unit_member(spec, rng):
    W = free(spec, rng)
    return spec.radius * W / lengths(spec, W)


def unit_std(spec):
    return spec.radius * math.sqrt(1 if spec.axis == "out" else spec.in_features / spec.out_features)


KINDS = {
    "unit_norm": Kind(unit_member, unit_std, lambda spec, W: float(np.abs(lengths(spec, W) - spec.radius).max())),
    "weight_norm": Kind(free, linear_std),
}
ENTRIES = [
    Entry(L.UnitNorm(4, 3), table=True),
    Entry(L.UnitNorm(3, axis="in", radius=2.0, bias=True), table=True),
    Entry(L.UnitNorm(2, 5)),
    Entry(L.UnitNorm(1, 3, axis="in")),
    Entry(L.WeightNorm(4, 3), table=True),
    Entry(L.WeightNorm(3, axis="in", bias=True), table=True),
    Entry(L.WeightNorm(3, 4)),
]
