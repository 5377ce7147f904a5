"""Calls of which torch has no forward mode, or a wrong rule for several columns or examples at once."""

import torch
import torch.nn.functional as F

from tests.zoo.member import Member, weights


def prototypes(r):
    """Minus the distances to a prototype of each class."""
    f = lambda p, x: -torch.cdist(torch.tanh(F.linear(x, p["w"])), p["prototypes"])
    return Member(f, weights(r, {"w": (2, 3), "prototypes": (3, 2)}), r(4, 3), {"w": "linear", "prototypes": "exact"})


def rolled(r):
    """Each example is moved on in one line."""

    def f(p, x):
        h = torch.tanh(x @ p["w"])
        return torch.stack([t.roll(1) for t in h.unbind(0)] if len(h) else [h]).flatten(1) @ p["head"]

    return Member(f, weights(r, {"w": (2, 2), "head": (6, 2)}), r(4, 3, 2), {"w": "matmul", "head": "matmul"})


def windows(r):
    """Windows that overlap, as a view with strides of its own."""

    def f(p, x):
        h = torch.tanh(F.linear(x, p["w"])).contiguous()
        length = h.shape[1]
        seen = h.as_strided((len(h), length - 1, 2), (length, 1, 1))
        return (seen * p["kernel"]).sum(1)

    return Member(f, weights(r, {"w": (4, 3), "kernel": (2,)}), r(4, 3), {"w": "linear", "kernel": "scale"})


def transformer_of_space(r):
    """Maps read where a network says (Jaderberg et al., 2015)."""

    def f(p, x):
        shift = torch.tanh(F.linear(x.flatten(1), p["where"]))
        own = torch.eye(2, 3, dtype=x.dtype) + 0.3 * shift.reshape(-1, 1, 3)
        moved = F.grid_sample(x, F.affine_grid(own, [len(x), 1, 3, 3], align_corners=False), align_corners=False)
        return F.linear(moved.flatten(1), p["head"])

    return Member(
        f, weights(r, {"where": (3, 9), "head": (2, 9)}), r(3, 1, 3, 3), {"where": "linear", "head": "linear"}
    )
