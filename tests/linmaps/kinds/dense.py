"""Free matrices."""

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, free, linear_std


def eye(spec, rng=None):
    return np.eye(spec.in_features, spec.out_features)


def eye_std(spec):
    return (min(spec.in_features, spec.out_features) / spec.out_features) ** 0.5


KINDS = {
    "linear": Kind(free, linear_std),
    "identity_init": Kind(free, eye_std),
    "identity": Kind(eye, eye_std, lambda spec, W: float(np.abs(W - eye(spec)).max())),
}
ENTRIES = [
    Entry(L.Linear(5, 3, bias=True), table=True),
    Entry(L.Linear(3, 5)),
    Entry(L.Linear(3), table=True),
    Entry(L.Linear(1)),
    Entry(L.IdentityInit(3), table=True),
    Entry(L.IdentityInit(4, 2, bias=True)),
    Entry(L.IdentityInit(2, 3)),
    Entry(L.Identity(3)),
    Entry(L.Identity(2, 4)),
    Entry(L.Identity(4, 3, bias=True)),
    Entry(L.Identity(2, bias=True), table=True),
]
