"""No factorization: a free matrix, beside which the others are measured."""

from __future__ import annotations

import math
from typing import Any

from linmaps.factorized.kinds.base import Kind, dense_product
from linmaps.factorized.tensors.plan import Way


class Dense(Kind):
    """ "W" [(L,) in, out]; layers share nothing."""

    name, joint, layered = "dense", "nothing", ("W", 0)

    def ranks(self, rank, L, O, I, compat=False):
        return None

    def shapes(self, r, L, O, I):
        return {"W": ((L,) if L > 1 else ()) + (math.prod(I), math.prod(O))}

    def terms(self, r):
        return 1.0

    def inner(self, a, b):
        return (a["W"].conj() * b["W"]).sum()

    def matrix(self, params, O, I):
        return params["W"]

    def ways(self, r, O, I, B):
        return {"dense": Way(None, dense_product(O, I, B))}

    def apply(self, params, x, O, I, **options: Any):
        return x @ params["W"]

    def rows(self, params, index, O, I):
        return params["W"].reshape(*I, math.prod(O))[index]

    def select(self, params, layer):
        return {"W": params["W"][layer]}

    def bonds(self, r):
        return {}

    def scale_bonds(self, params, factors):
        return dict(params)

    def keep(self, params, r, kept):
        return r, dict(params)

    def decompose(self, W, r, L, O, I, how):
        return {"W": W.clone()}

    def unfoldings(self, W, r, L, O, I):
        return []
