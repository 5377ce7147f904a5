"""Entry by entry: scales, shifts, norms, slopes."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.member import Member, network


def bare(r):
    """A scale (no rule), a scalar in a call without a rule, and a leaf that nothing uses."""
    f = lambda p, x: torch.lerp(x, torch.sin(x), p["t"]) @ p["w"] * p["scale"]
    return Member(
        f,
        {"w": r(3, 4), "scale": r(4), "t": r(), "idle": r(2, 2)},
        r(5, 3),
        {"w": "matmul", "scale": "scale", "t": "exact", "idle": "unused"},
    )


def affine(r):
    """Scales and shifts of all shapes: per feature (joined), per position, of one channel axis, a single number."""

    def f(p, x):
        h = torch.tanh(F.linear(x + p["position"], p["w"])) * p["scale"] + p["shift"]
        h = (h[:, None] * p["channel"])[:, 0] * p["temperature"]
        return h.mean(1) @ p["v"]

    shapes = {"position": (3, 2), "w": (4, 2), "scale": (4,), "shift": (4,), "channel": (1, 1, 4), "v": (4, 3)}
    kinds = {
        "position": "positions",
        "w": "linear",
        "scale": "scale",
        "channel": "scale",
        "temperature": "scale",
        "v": "matmul",
    }
    return Member(f, {k: r(*s) for k, s in shapes.items()} | {"temperature": r()}, r(4, 3, 2), kinds)


def norms(r):
    """Layer, RMS, group, instance and batch norm, on positions and without, with and without bias."""
    net = nn.Sequential(
        nn.LayerNorm((2, 6), eps=1e-3), nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True),
        nn.BatchNorm1d(4), nn.RMSNorm(6, eps=1e-3), nn.LayerNorm(6, bias=False), nn.Flatten(), nn.Linear(24, 4),
        nn.GroupNorm(2, 4), nn.BatchNorm1d(4, eps=0.3),
    )  # fmt: skip
    kinds = {str(k): "scale" for k in (0, 2, 3, 4, 5, 6, 9, 10)}
    return network(r, net, 3, 2, 6, kinds=kinds | {"1": "conv1d", "8": "linear"})


def prelu(r):
    """Slopes of negative inputs: one for all, one for each channel."""
    net = nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.PReLU(4), nn.Conv1d(4, 2, 2), nn.PReLU(), nn.Flatten(), nn.Linear(4, 3), nn.PReLU(3)
    )
    kinds = {"0": "conv1d", "2": "conv1d", "5": "linear"} | dict.fromkeys("136", "prelu")
    return network(r, net, 4, 2, 4, kinds=kinds)
