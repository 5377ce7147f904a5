"""Sparse matrices and those of one sign."""

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, free, linear_std

KINDS = {
    "non_negative": Kind(
        lambda spec, rng: rng.uniform(0.1, 2, (spec.in_features, spec.out_features)),
        lambda spec: 0.3508**0.5,
        lambda spec, W: excess(-W),
    ),
    "split": Kind(free, linear_std),
    "lasso": Kind(free, linear_std),
    "lasso_relu": Kind(free, linear_std),
    "l0": Kind(
        lambda spec, rng: np.where(rng.uniform(size=(spec.in_features, spec.out_features)) < 0.5, 0.3, 1.2), linear_std
    ),
}
ENTRIES = [
    Entry(L.NonNegative(4, 3), table=True),
    Entry(L.NonNegative(3, bias=True)),
    Entry(L.NonNegative(3, 4, method="relu"), table=True),
    Entry(L.NonNegative(3, method="square"), table=True),
    Entry(L.NonNegative(2, 5, method="exp"), table=True),
    Entry(L.NonNegative(1)),
    Entry(L.NonNegative(3, deep=True)),
    Entry(L.Split(3, 4), table=True),
    Entry(L.Split(3, bias=True, method="relu"), table=True),
    Entry(L.Split(2, 1, method="square"), "a start with both parts large may end with one stuck at zero"),
    Entry(L.Split(1, method="exp")),
    Entry(L.Lasso(3, 4, gamma=0.3), table=True),
    Entry(L.Lasso(3, bias=True)),
    Entry(L.LassoReLU(3, 4, gamma=0.3), "both parts of an entry may be cut off", table=True),
    Entry(L.LassoReLU(3, bias=True), "both parts of an entry may be cut off"),
    Entry(L.L0(3, 4), table=True),
    Entry(L.L0(4, bias=True, gate="input"), table=True),
    Entry(L.L0(2, 3, gate="output", droprate_init=0.3, lamda=0.1), table=True),
    Entry(L.L0(1)),
]
