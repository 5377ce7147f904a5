"""Models: the one list of functions, one per way a leaf can be used.  Each new rule adds a member here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from linmaps import trees


@dataclasses.dataclass(frozen=True)
class Member:
    """f(params, x); blocks: expected kind of block per layer name; class_axis of its logits."""

    f: Callable[..., torch.Tensor]
    params: Any
    x: torch.Tensor
    blocks: dict[str, str]
    class_axis: int = 1


def _randn(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


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
    return Member(f, {"w": r(3, 2)}, r(5, 3), {"w": "exact"})


def sequence(r):
    f = lambda p, x: F.linear(torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])).cumsum(1), p["b"]["weight"])
    return Member(
        f,
        {"a": {"weight": r(3, 2), "bias": r(3)}, "b": {"weight": r(2, 3)}},
        r(4, 3, 2),
        {"a": "linear", "b": "linear"},
        class_axis=-1,
    )


def pooled(r):
    f = lambda p, x: torch.tanh(x @ p["a"]).mean(1) @ p["b"]
    return Member(f, {"a": r(2, 3), "b": r(3, 2)}, r(4, 3, 2), {"a": "matmul", "b": "matmul"})


def flattened(r):
    """Tokens flattened into the batch, examples outside."""

    def f(p, x):
        h = torch.tanh(x.reshape(-1, x.shape[-1]) @ p["a"])
        return h.reshape(len(x), -1) @ p["b"]

    return Member(f, {"a": r(2, 3), "b": r(9, 2)}, r(4, 3, 2), {"a": "matmul", "b": "matmul"})


def steps_first(r):
    """Inside, time comes first: the batch axis is the second, and once it is flattened with time outside."""

    def f(p, x):
        h = torch.tanh(x.transpose(0, 1) @ p["a"])
        h = torch.tanh(h.reshape(-1, h.shape[-1]) @ p["c"]).reshape(*h.shape[:2], -1)
        return h.sum(0) @ p["b"]

    return Member(f, {"a": r(2, 3), "c": r(3, 3), "b": r(3, 2)}, r(4, 3, 2), dict.fromkeys("acb", "matmul"))


def bare(r):
    """A scale (no rule), a scalar temperature, and a leaf that nothing uses."""
    f = lambda p, x: (x @ p["w"]) * p["scale"] * torch.exp(p["t"])
    return Member(
        f,
        {"w": r(3, 4), "scale": r(4), "t": r(), "idle": r(2, 2)},
        r(5, 3),
        {"w": "matmul", "scale": "exact", "t": "exact", "idle": "unused"},
    )


def derived(r):
    """The weight is computed from the leaf."""
    f = lambda p, x: torch.tanh(x @ (p["w"] * p["w"].sign().detach()) @ p["v"])
    return Member(f, {"w": r(3, 3), "v": r(3, 2)}, r(5, 3), {"w": "exact", "v": "matmul"})


def module(r):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4, bias=False), nn.GELU(), nn.Linear(4, 3)
    ).double()
    params = {name: r(*t.shape) for name, t in net.named_parameters()}
    return Member(
        lambda p, x: functional_call(net, p, (x,)), params, r(5, 3), {"0": "linear", "2": "linear", "4": "linear"}
    )


def attention(r):
    """Packed projections, layer norms and an inside order of time first: torch's own encoder layer."""
    net = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True).double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    blocks = {
        "linear1": "linear",
        "linear2": "linear",
        "self_attn.in_proj_weight": "linear",
        "self_attn.out_proj": "linear",
    }
    norms = {f"norm{k}.{leaf}": "exact" for k in (1, 2) for leaf in ("weight", "bias")}
    return Member(lambda p, x: functional_call(net, p, (x,)), params, r(3, 2, 4), blocks | norms, class_axis=-1)


BUILDERS = [
    mlp, matmul_joined_bias, addmm, bias_apart, in_place, tied, both_ways, sequence, pooled, flattened, steps_first,
    bare, derived, module, attention,
]  # fmt: skip
MODELS = {build.__name__: build(_randn(k)) for k, build in enumerate(BUILDERS)}


def perturbed(params, seed, size=0.1):
    r = _randn(seed)
    return trees.map(lambda t: t + size * r(*t.shape), params)
