"""What a weight and its bias look like: one product after the other, several in one leaf, one met twice."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tests.zoo.member import Member


def mlp(r):
    f = lambda p, x: F.linear(
        torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])), p["b"]["weight"], p["b"]["bias"]
    )
    return Member(
        f,
        {"a": {"weight": r(4, 3), "bias": r(4)}, "b": {"weight": r(3, 4), "bias": r(3)}},
        r(5, 3),
        {"a": "linear", "b": "linear"},
    )


def matmul_joined_bias(r):
    f = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T
    return Member(f, {"w": r(3, 4), "b": r(4), "v": r(2, 4)}, r(5, 3), {"w": "matmul", "v": "matmul"})


def addmm(r):
    f = lambda p, x: torch.addmm(p["b"], torch.sin(torch.mm(x, p["w"])), p["v"])
    return Member(f, {"w": r(3, 4), "v": r(4, 2), "b": r(2)}, r(4, 3), {"w": "matmul", "v": "matmul"})


def bias_apart(r):
    """The output of the product is used twice: its bias may not join it."""

    def f(p, x):
        z = x @ p["w"]
        return torch.tanh(z + p["b"]) * z

    return Member(f, {"w": r(3, 3), "b": r(3)}, r(4, 3), {"w": "matmul", "b": "bias"})


def in_place(r):
    """Bias, activation and skip connection in place."""

    def f(p, x):
        z = x @ p["w"]
        z += p["b"]
        h = torch.relu_(z)
        out = h @ p["v"]
        out += x
        return out @ p["u"]

    return Member(
        f, {"w": r(3, 4), "b": r(4), "v": r(4, 3), "u": r(3, 2)}, r(5, 3), {"w": "matmul", "v": "matmul", "u": "matmul"}
    )


def tied(r):
    """One weight met twice."""
    f = lambda p, x: torch.tanh(torch.tanh(x @ p["w"]) @ p["w"])
    return Member(f, {"w": r(3, 3)}, r(5, 3), {"w": "matmul"})


def both_ways(r):
    """A weight and its transpose: an autoencoder with tied weights."""
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["w"].T
    return Member(f, {"w": r(3, 2)}, r(5, 3), {"w": "matmul"})


def module(r):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4, bias=False), nn.GELU(), nn.Linear(4, 3)
    ).double()
    params = {name: r(*t.shape) for name, t in net.named_parameters()}
    return Member(
        lambda p, x: functional_call(net, p, (x,)), params, r(5, 3), {"0": "linear", "2": "linear", "4": "linear"}
    )


def einsum(r):
    """Contractions over several axes, in any order, and one with a matrix for each group."""

    def f(p, x):
        h = torch.tanh(torch.einsum("bthd,hdo->bto", x, p["heads"]))
        h = torch.tanh(torch.einsum("go,btg->bot", p["w"], h))
        h = torch.einsum("bgt,gts->bgs", h, p["grouped"])
        return torch.einsum("bgs,os->bog", h, p["v"])

    shapes = {"heads": (2, 3, 4), "w": (4, 2), "grouped": (2, 3, 2), "v": (2, 2)}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(3, 3, 2, 3), dict.fromkeys(shapes, "einsum"))


def heads(r):
    """Weights of several heads at once: batched products, tensordot, a bilinear form."""

    def f(p, x):
        h = torch.tanh(x[:, :, None, None] @ p["w"])[..., 0, :]
        h = torch.tensordot(h, p["o"], 2)
        return F.bilinear(h, x, p["pair"], p["b"])

    shapes = {"w": (2, 4, 3), "o": (2, 3, 2), "pair": (3, 2, 4), "b": (3,)}
    kinds = {"w": "matmul", "o": "tensordot", "pair": "bilinear"}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(4, 2, 4), kinds, class_axis=-1)


def mixed_bias(r):
    """One weight used with its bias at three positions, and without it once more."""

    def f(p, x):
        h = torch.tanh(F.linear(x, p["w"], p["b"]))
        return F.linear(h.sum(1), p["w"])

    return Member(f, {"w": r(3, 3), "b": r(3)}, r(5, 3, 3), {"w": "linear"})


def flat_vector(r):
    """All weights and biases in one vector, cut and reshaped."""

    def f(p, x):
        w, b, v = p["flat"][:12].view(3, 4), p["flat"][12:15], p["flat"][15:].reshape(3, 2)
        return torch.tanh(F.linear(x, w, b)) @ v

    kinds = {"flat[0:12]": "linear", "flat[12:15]": "bias", "flat[15:21]": "matmul"}
    return Member(f, {"flat": r(21)}, r(5, 4), kinds)


def stacked_layers(r):
    """The weights of several layers in one leaf, as a scan over layers has them; multiples of weights."""

    def f(p, x):
        for w, b in zip(p["w"], p["b"]):
            x = torch.tanh(F.linear(x, w, b))
        return (p["head"] / 2 @ x.mT).mT

    kinds = {"w[0:1]": "linear", "w[1:2]": "linear", "head": "matmul"}
    return Member(f, {"w": r(2, 3, 3), "b": r(2, 3), "head": r(2, 3)}, r(4, 2, 3), kinds, class_axis=-1)


def parted_bias(r):
    """Biases for some outputs, constants between: as many examples as there are numbers in each."""

    def f(p, x):
        q, k, v = F.linear(x, p["w"], torch.cat([p["q"], torch.zeros_like(p["v"]), p["v"]])).chunk(3, -1)
        return torch.tanh(q * k.exp()) + v

    return Member(f, {"w": r(9, 2), "q": r(3), "v": r(3)}, r(3, 2), {"w": "linear", "q+v": "cat"})


def zeroed_bias(r):
    """Biases of which some are put to zero in place, in a copy."""

    def f(p, x):
        bias = p["b"].clone()
        bias[3:6].zero_()
        q, k, v = F.linear(x, p["w"], bias).chunk(3, -1)
        return torch.tanh(q * k.exp()) + v

    return Member(f, {"w": r(9, 2), "b": r(9)}, r(4, 2), {"w": "linear", "b": "exact"})
