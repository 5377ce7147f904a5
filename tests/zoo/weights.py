"""Weights that are computed from their leaves."""

import torch
import torch.nn.functional as F

from tests.zoo.member import Member


def derived(r):
    """The weight is computed from the leaf."""
    f = lambda p, x: torch.tanh(x @ (p["w"] * p["w"].sign().detach()) @ p["v"])
    return Member(f, {"w": r(3, 3), "v": r(3, 2)}, r(5, 3), {"w": "exact", "v": "matmul"})


def weight_norm(r):
    """Weight norm and cosine layers: the weight is derived from its leaves."""

    def f(p, x):
        w = p["g"][:, None] * p["v"] / p["v"].norm(dim=1, keepdim=True)
        h = torch.tanh(F.linear(x, w))
        c = p["c"] / (p["c"].square().sum(1, keepdim=True) + 1e-5).sqrt()
        return F.linear(h / (h.square().sum(-1, keepdim=True) + 1e-5).sqrt(), c)

    return Member(f, {"v": r(4, 3), "g": r(4), "c": r(3, 4)}, r(5, 3), {"v": "exact", "g": "exact", "c": "exact"})
