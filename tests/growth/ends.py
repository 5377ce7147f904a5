"""Networks whose weights are stored [in, out], at one end or at both: x @ W, transposed convolutions, lookups, and 1 x 1 ones.

Each is (f, params, x, target, pair) in float64; losses are half the sum of squares.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import growth

G = torch.Generator().manual_seed(3)
HAS, BARE = (True, True), (False, False)


def R(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class End:
    f: Callable[..., Any]
    params: Any
    x: Any
    target: Any
    pair: growth.Pair
    smooth: bool = True

    @property
    def data(self):
        return self.x, self.target


def layer(out, into, *kernel, layout="out_in", bias=True):
    weight = R(out, into, *kernel) / max(1, into) ** 0.5
    weight = weight if layout == "out_in" else weight.transpose(0, 1).contiguous()
    return {"weight": weight} | ({"bias": 0.3 * R(out)} if bias else {})


def use(p, x):
    """x @ W + b"""
    z = x @ p["weight"]
    return z + p["bias"] if "bias" in p else z


def conv1d_of_gpt(p, x):
    """The Conv1D of GPT-2: one addmm of all positions."""
    return torch.addmm(p["bias"], x.flatten(0, -2), p["weight"]).unflatten(0, x.shape[:-1])


def two(first, second, sigma=torch.tanh):
    return lambda p, x: second(p["b"], sigma(first(p["a"], x)))


def linear(p, x):
    return F.linear(x, p["weight"], p.get("bias"))


def conv(**options):
    return lambda p, x: getattr(F, f"conv{p['weight'].ndim - 2}d")(x, p["weight"], p.get("bias"), **options)


def back(**options):
    return lambda p, x: getattr(F, f"conv_transpose{p['weight'].ndim - 2}d")(x, p["weight"], p.get("bias"), **options)


def dense(first, second, layout, bias=HAS, x=None, sigma=torch.tanh, sizes=(3, 4, 2), named=None):
    r, p, q = sizes
    ways = layout if isinstance(layout, tuple) else (layout, layout)
    params = {
        "a": layer(p, r, layout=ways[0], bias=bias[0]),
        "b": layer(q, p, layout=ways[1], bias=bias[1]),
    }
    x = R(20, r) if x is None else x
    f = two(first, second, sigma)
    return End(f, params, x, R(*f(params, x).shape), growth.Pair("a", "b", named, layout=layout), sigma is torch.tanh)


def maps(first, second, layout, kernels, size, bias=HAS, sigma=torch.tanh, between=None, pair=None):
    ways = layout if isinstance(layout, tuple) else (layout, layout)
    params = {
        "a": layer(4, 2, *kernels[0], layout=ways[0], bias=bias[0]),
        "b": layer(3, 4, *kernels[1], layout=ways[1], bias=bias[1]),
    }
    f = two(first, second, sigma if between is None else lambda z: between(sigma(z)))
    x = R(12, 2, *size)
    smooth = sigma is torch.tanh
    return End(f, params, x, R(*f(params, x).shape), growth.Pair("a", "b", layout=layout), smooth)


def flattened():
    f = lambda p, x: use(p["b"], torch.tanh(conv()(p["a"], x)).flatten(1))
    params = {"a": layer(3, 2, 2, 2), "b": layer(2, 3 * 4, layout="in_out")}
    x = R(40, 2, 3, 3)
    return End(f, params, x, R(40, 2), growth.Pair("a", "b", layout=("out_in", "in_out")))


def flattened_back():
    f = lambda p, x: linear(p["b"], torch.tanh(back(stride=2)(p["a"], x)).flatten(1))
    params = {"a": layer(3, 2, 2, 2, layout="in_out"), "b": layer(2, 3 * 16)}
    x = R(80, 2, 2, 2)
    return End(f, params, x, R(80, 2), growth.Pair("a", "b", layout=("in_out", "out_in")))


def summed():
    f = lambda p, x: use(p["b"], torch.tanh(use(p["a"], x[:, 0]) + use(p["s"], x[:, 1])))
    params = {
        "a": layer(4, 3, layout="in_out"),
        "s": layer(4, 3, layout="in_out", bias=False),
        "b": layer(2, 4, layout="in_out"),
    }
    x, pair = R(20, 2, 3), growth.Pair(growth.Sum("a", "s"), "b", torch.tanh, layout="in_out")
    return End(f, params, x, R(20, 2), pair)


def normed():
    def f(p, x):
        n = p["n"]
        z = back(stride=2)(p["a"], x)
        z = F.batch_norm(z, n["running_mean"], n["running_var"], n["weight"], n["bias"], eps=1e-12)
        return back(padding=1)(p["b"], torch.tanh(z))

    params = {
        "a": layer(4, 2, 3, 3, layout="in_out"),
        "n": {"weight": R(4), "bias": R(4), "running_mean": R(4), "running_var": 0.5 + R(4) ** 2},
        "b": layer(3, 4, 3, 3, layout="in_out"),
    }
    x = R(12, 2, 3, 3)
    return End(f, params, x, R(*f(params, x).shape), growth.Pair("a", "b", norm="n", layout="in_out"))


IO, MIXED, OI = "in_out", ("in_out", "out_in"), ("out_in", "in_out")
ENDS = {
    "x @ W": lambda: dense(use, use, IO),
    "x @ W without biases": lambda: dense(use, use, IO, BARE),
    "x @ W square": lambda: dense(use, use, IO, sizes=(3, 3, 3)),
    "x @ W on positions": lambda: dense(use, use, IO, x=R(8, 5, 3)),
    "x @ W of relu": lambda: dense(use, use, IO, sigma=torch.relu),
    "Conv1D": lambda: dense(conv1d_of_gpt, conv1d_of_gpt, IO, x=R(8, 5, 3), named=torch.tanh),
    "x @ W into linear": lambda: dense(use, linear, MIXED, (True, False)),
    "linear into x @ W": lambda: dense(linear, use, OI, (False, True)),
    "a sum of x @ W": summed,
    "flattened map into x @ W": flattened,
    "1 x 1": lambda: maps(conv(), conv(), "out_in", ((1, 1), (1, 1)), (3, 4)),
    "3 x 3 into 1 x 1": lambda: maps(conv(padding=1), conv(stride=2), "out_in", ((3, 3), (1, 1)), (3, 4)),
    "1 x 1 into 3 x 3": lambda: maps(conv(), conv(padding=1), "out_in", ((1, 1), (3, 3)), (3, 4)),
    "transposed": lambda: maps(back(stride=2), back(stride=2, padding=1), IO, ((2, 2), (3, 3)), (3, 2)),
    "transposed without biases": lambda: maps(back(), back(stride=2), IO, ((2, 2), (2, 2)), (3, 3), BARE),
    "transposed of relu": lambda: maps(back(), back(stride=2), IO, ((2, 2), (3, 3)), (3, 3), sigma=torch.relu),
    "transposed with output padding": lambda: maps(
        back(stride=2, output_padding=1),
        back(stride=(3, 2), padding=1, output_padding=(2, 1)),
        IO,
        ((3, 2), (3, 3)),
        (3, 2),
    ),
    "transposed and dilated": lambda: maps(back(dilation=2), back(dilation=2, padding=1), IO, ((2, 2), (2, 3)), (3, 3)),
    "transposed in line": lambda: maps(back(stride=2), back(stride=3), IO, ((4,), (3,)), (5,)),
    "transposed in volume": lambda: maps(back(), back(stride=2), IO, ((1, 2, 2), (2, 2, 1)), (2, 2, 2)),
    "into a transposed one": lambda: maps(conv(padding=1), back(stride=2), OI, ((3, 3), (3, 3)), (3, 3)),
    "out of a transposed one": lambda: maps(back(stride=2), conv(padding=1), MIXED, ((2, 2), (3, 3)), (3, 3)),
    "transposed and upsampled": lambda: maps(
        back(), back(), IO, ((2, 2), (2, 2)), (3, 3), between=lambda z: F.interpolate(z, scale_factor=2.0)
    ),
    "transposed and flattened": flattened_back,
    "transposed and normed": normed,
}


def table(p, index):
    return F.embedding(index, p["weight"])


def words(second, layout, between=lambda z: z, named=None, lookup=table, length=5, rows=7, bias=True, sigma=torch.tanh):
    """A table of 4 columns, what is done with its rows, and a dense layer; no biases of the table."""
    params = {"a": layer(4, rows, layout="in_out", bias=False), "b": layer(3, 4, layout=layout[1], bias=bias)}
    index = torch.randint(rows, (40, *([length] if length else [])), generator=G)
    f = lambda p, x: second(p["b"], between(sigma(lookup(p["a"], x))))
    return End(
        f,
        params,
        index,
        R(*f(params, index).shape),
        growth.Pair("a", "b", named, layout=layout),
        sigma is not torch.relu,
    )


def bags(mode):
    f = lambda p, x: linear(p["b"], F.embedding_bag(x, p["a"]["weight"], mode=mode))
    params = {"a": layer(4, 7, layout="in_out", bias=False), "b": layer(3, 4)}
    index = torch.randint(7, (40, 5), generator=G)
    return End(f, params, index, R(40, 3), growth.Pair("a", "b", layout=MIXED))


def two_tables():
    """Tokens and positions."""
    f = lambda p, x: linear(p["b"], torch.tanh(table(p["a"], x[..., 0]) + table(p["s"], x[..., 1])))
    params = {"a": layer(4, 7, layout=IO, bias=False), "s": layer(4, 5, layout=IO, bias=False), "b": layer(3, 4)}
    index = torch.stack([torch.randint(7, (30, 5), generator=G), torch.arange(5).expand(30, 5)], -1)
    pair = growth.Pair(growth.Sum("a", "s"), "b", torch.tanh, layout=MIXED)
    return End(f, params, index, R(30, 5, 3), pair)


ENDS |= {
    "table": lambda: words(linear, MIXED),
    "table by index": lambda: words(use, IO, lookup=lambda p, i: p["weight"][i], bias=False),
    "table of one word": lambda: words(linear, MIXED, length=0, sigma=torch.relu),
    "table without activation": lambda: words(linear, MIXED, sigma=lambda z: z),
    "table with padding": lambda: words(linear, MIXED, lookup=lambda p, i: F.embedding(i, p["weight"], padding_idx=2)),
    "table and a mean": lambda: words(use, IO, between=lambda z: z.mean(1)),
    "table and a sum": lambda: words(linear, MIXED, between=lambda z: z.sum(dim=1)),
    "table and a maximum": lambda: words(linear, MIXED, between=lambda z: torch.amax(z, 1), sigma=torch.relu),
    "bags of means": lambda: bags("mean"),
    "bags of sums": lambda: bags("sum"),
    "two tables": two_tables,
    "Conv1D read": lambda: dense(conv1d_of_gpt, conv1d_of_gpt, IO, x=R(8, 5, 3)),
    "mean of positions": lambda: dense(use, lambda p, h: use(p, h.mean(1)), IO, x=R(30, 5, 3)),
}


def mobile(sigma=torch.tanh, norms=(), kernel=(3, 3), bias=True, size=(4, 5), **options):
    """1 x 1, (norm,) activation, depthwise, (norm,) activation, 1 x 1."""

    def norm(p, name, z):
        if name not in p:
            return z
        n = p[name]
        return F.batch_norm(z, n["running_mean"], n["running_var"], n["weight"], n["bias"], eps=1e-12)

    def f(p, x):
        h = sigma(norm(p, "n", conv()(p["a"], x)))
        return conv()(p["b"], sigma(norm(p, "m", conv(groups=h.shape[1], **options)(p["d"], h))))

    params = {"a": layer(4, 2, 1, 1, bias=bias), "d": layer(4, 1, *kernel, bias=bias), "b": layer(3, 4, 1, 1)}
    for name in norms:
        params[name] = {"weight": R(4), "bias": 0.5 + R(4).abs(), "running_mean": R(4), "running_var": 0.5 + R(4) ** 2}
    x = R(12, 2, *size)
    pair = growth.Pair("a", "b", norm=list(norms) if len(norms) > 1 else (norms[0] if norms else None), depthwise="d")
    return End(f, params, x, R(*f(params, x).shape), pair, sigma is torch.tanh)


ENDS |= {
    "depthwise": lambda: mobile(padding=1),
    "depthwise and strided": lambda: mobile(stride=2, padding=1),
    "depthwise without padding": lambda: mobile(kernel=(2, 3), bias=False),
    "depthwise and dilated": lambda: mobile(dilation=(1, 2), padding=(2, 1), stride=(1, 2)),
    "depthwise and normed": lambda: mobile(norms=("n", "m"), stride=2, padding=1),
    "depthwise behind a norm": lambda: mobile(norms=("n",), padding=1, bias=False),
    "depthwise of relu6": lambda: mobile(F.relu6, norms=("n", "m"), padding=1),
}
