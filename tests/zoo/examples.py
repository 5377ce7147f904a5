"""Where the examples are: with positions beside them, flattened, behind time, read at one step."""

import torch
import torch.nn.functional as F
from torch.func import vmap

from tests.zoo.member import Member


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


def first_step(r):
    """Time first inside, as many steps as examples or a multiple, and only one step read."""

    def f(p, x):
        h = torch.tanh(F.linear(x.transpose(0, 1), p["a"]["weight"], p["a"]["bias"]))
        return F.linear(torch.cat([h, h.flip(0)])[0], p["b"]["weight"])

    params = {"a": {"weight": r(4, 3), "bias": r(4)}, "b": {"weight": r(3, 4)}}
    return Member(f, params, r(3, 6, 3), {"a": "linear", "b": "linear"})


def own_step(r):
    """Time first inside, and each example is read where it is largest: the first at the first step, the last at the last."""

    def f(p, x):
        h = torch.tanh(x.transpose(0, 1) @ p["w"])
        where = (x[..., 0].argmax(1) == torch.arange(x.shape[1])[:, None]).to(x)
        return (h * where[..., None]).sum(0) @ p["v"]

    x = r(4, 4, 2)
    x[torch.arange(4), torch.tensor([0, 2, 1, 3]), 0] = 9.0
    return Member(f, {"w": 0.2 * r(2, 3), "v": r(3, 2)}, x, {"w": "matmul", "v": "matmul"})


def silent_head(r):
    """A head of zeros: no gradient says where the examples are, but the values do."""

    def f(p, x):
        h = torch.tanh(x.reshape(-1, x.shape[-1]) @ p["w"])
        return h.reshape(*x.shape[:2], -1).mean(1) @ p["head"]

    return Member(f, {"w": r(2, 3), "head": torch.zeros(3, 2).double()}, r(3, 2, 2), {"w": "matmul", "head": "matmul"})


def mapped(r):
    """A function of one example, mapped; it has as many positions as there are examples."""

    def one(p, x):
        return F.linear(torch.tanh(x @ p["w"] + p["b"]).mean(0), p["v"])

    f = lambda p, x: vmap(lambda x: one(p, x))(x)
    return Member(f, {"w": r(2, 3), "b": r(3), "v": r(2, 3)}, r(4, 4, 2), dict.fromkeys("wbv", "exact"))
