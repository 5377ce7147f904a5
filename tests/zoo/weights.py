"""Weights that are computed from their leaves."""

import torch
import torch.nn.functional as F

import linmaps
from tests.zoo.member import Member


def derived(r):
    """The weight is computed from the leaf."""
    f = lambda p, x: torch.tanh(x @ (p["w"] * p["w"].sign().detach()) @ p["v"])
    return Member(f, {"w": r(3, 3), "v": r(3, 2)}, r(5, 3), {"w": "mul", "v": "matmul"})


def weight_norm(r):
    """Weight norm and cosine layers: the weight is derived from its leaves."""

    def f(p, x):
        w = p["g"][:, None] * p["v"] / p["v"].norm(dim=1, keepdim=True)
        h = torch.tanh(F.linear(x, w))
        c = p["c"] / (p["c"].square().sum(1, keepdim=True) + 1e-5).sqrt()
        return F.linear(h / (h.square().sum(-1, keepdim=True) + 1e-5).sqrt(), c)

    return Member(f, {"v": r(4, 3), "g": r(4), "c": r(3, 4)}, r(5, 3), {"g+v": "div", "c": "div"})


def lora(r):
    """A low-rank change beside each weight, as a branch, and merged into it."""

    def f(p, x):
        h = torch.tanh(F.linear(x, p["w"]) + 2.0 * F.linear(F.linear(x, p["a"]), p["b"]))
        return F.linear(h, p["v"] + 2.0 * p["d"] @ p["c"])

    shapes = {"w": (3, 3), "a": (1, 3), "b": (3, 1), "v": (2, 3), "c": (1, 3), "d": (2, 1)}
    kinds = dict.fromkeys("wab", "linear") | {"c+d+v": "add"}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(4, 3), kinds)


def fused_norm(r):
    """Torch's own weight norm, as its modules call it."""
    f = lambda p, x: F.linear(torch.tanh(F.linear(x, torch._weight_norm(p["v"], p["g"], 0), p["b"])), p["head"])
    params = {"v": r(3, 2), "g": r(3, 1), "b": r(3), "head": r(2, 3)}
    return Member(f, params, r(4, 2), {"b+g+v": "weight_norm", "head": "linear"})


def spectral_norm(r):
    """A weight over its largest singular value, whose vectors are constants at rest."""
    u, v = F.normalize(r(3), dim=0), F.normalize(r(2), dim=0)

    def f(p, x):
        w = p["w"] / torch.dot(u, torch.mv(p["w"], v))
        return F.linear(torch.tanh(F.linear(x, w, p["b"])), p["head"])

    return Member(f, {"w": r(3, 2), "b": r(3), "head": r(2, 3)}, r(4, 2), {"b+w": "div", "head": "linear"})


def bounded(r):
    """Weights inside a set: rows that sum to one, positive ones, a rotation, a scale about one."""

    def f(p, x):
        h = torch.tanh(F.linear(x, p["rows"].softmax(-1))) * (1 + p["scale"])
        h = torch.tanh(F.linear(h, torch.matrix_exp(p["skew"] - p["skew"].T)))
        return F.linear(h, F.softplus(p["positive"]))

    shapes = {"rows": (3, 3), "scale": (3,), "skew": (3, 3), "positive": (2, 3)}
    kinds = {"rows": "softmax", "scale": "scale", "skew": "matrix_exp", "positive": "softplus"}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(4, 3), kinds)


def kernel(r):
    """The kernel of a convolution is a network's value at its places."""
    places = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]

    def f(p, x):
        w = F.linear(torch.sin(F.linear(places, p["in"]["weight"], p["in"]["bias"])), p["out"])
        return F.conv1d(x, w.T.view(2, 2, 3), padding=1).tanh().mean(-1) @ p["head"]

    params = {"in": {"weight": r(3, 1), "bias": r(3)}, "out": r(4, 3), "head": r(2, 2)}
    return Member(f, params, r(4, 2, 4), dict.fromkeys(("in", "out"), "linear") | {"head": "matmul"})


def _through(r, spec, features, seed):
    """A map between two layers."""
    generator = torch.Generator().manual_seed(seed)
    params = {"in": r(spec.in_features, features), "map": spec.init(generator, dtype=torch.float64)}
    f = lambda p, x: F.linear(torch.tanh(spec.apply(p["map"], torch.tanh(F.linear(x, p["in"])))), p["head"])
    kinds = {"in": "linear", "map": spec.name, "head": "linear"}
    return Member(f, params | {"head": r(2, spec.out_features)}, r(4, features), kinds)


def orthogonal_map(r):
    return _through(r, linmaps.Orthogonal(4, 3), 2, 1)


def low_rank_map(r):
    return _through(r, linmaps.LowRank(3, 3, rank=1), 2, 2)


def spectral_map(r):
    return _through(r, linmaps.Spectral(3, 3), 2, 3)


def train_map(r):
    return _through(r, linmaps.Factorized((2, 2), (2, 2), factorization="tt", rank=2), 2, 4)
