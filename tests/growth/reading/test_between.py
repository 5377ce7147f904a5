"""What stands between the layers of a pair: slopes are right by finite differences, or it is refused by its name."""

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

import growth
from growth.checks.losses import per_sample
from linmaps import trees

G = torch.Generator().manual_seed(0)
R = lambda *s: torch.randn(*s, generator=G, dtype=torch.float64)
X, T = R(10, 3), R(10, 2)
IMAGES, MAPS = R(6, 2, 5, 5), R(6, 3, 5, 5)
DENSE = {"a": {"weight": R(4, 3), "bias": 0.3 * R(4)}, "b": {"weight": R(2, 4), "bias": R(2)}}
SEQUENCE, MIX = (R(10, 5, 3), R(10, 5, 2)), torch.softmax(R(5, 5), -1)
CONV = {"a": {"weight": 0.3 * R(4, 2, 3, 3)}, "b": {"weight": 0.3 * R(3, 4, 1, 1)}}


class Hidden(torch.autograd.Function):
    """tanh that no one can read."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z):
        return z.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


def dense(between, params=DENSE, data=(X, T)):
    return lambda p, x: F.linear(between(F.linear(x, **p["a"])), **p["b"]), params, data


def conv(between):
    def f(p, x):
        return F.conv2d(between(F.conv2d(x, p["a"]["weight"], padding=1)), p["b"]["weight"])

    return f, CONV, (IMAGES, MAPS)


def mixed(between):
    f, params, _ = dense(between)
    return f, params, SEQUENCE


LAYER = lambda h: F.layer_norm(h, h.shape[-1:])
FINE = {  # between, the activation named
    "tanh": (dense(torch.tanh), torch.tanh),
    "closed to reading": (dense(Hidden.apply), torch.tanh),
    "swish of two uses": (dense(lambda z: z * torch.sigmoid(z)), F.silu),
    "dropout2d in eval": (conv(lambda z: F.dropout2d(torch.tanh(z), 0.5, False)), torch.tanh),
    "scaled": (conv(lambda z: 0.5 * torch.tanh(z)), lambda z: 0.5 * z.tanh()),
    "in place": (dense(lambda z: F.silu(z + 0.0, inplace=True)), F.silu),
    "sequence": (mixed(torch.tanh), torch.tanh),
    "there and back": (mixed(lambda z: torch.tanh(z.transpose(1, 2)).transpose(1, 2)), torch.tanh),
}
WRONG = {  # between, the activation named, the name of what is refused
    "average pool": (conv(lambda z: F.avg_pool2d(z.tanh(), 3, 1, 1)), torch.tanh, "avg_pool2d"),
    "max pool": (conv(lambda z: F.max_pool2d(z.tanh(), 3, 1, 1)), torch.tanh, "max_pool2d"),
    "flip": (conv(lambda z: torch.tanh(z).flip(-1)), torch.tanh, "flip"),
    "roll of units": (dense(lambda z: torch.tanh(z).roll(1, -1)), torch.tanh, "roll"),
    "sort": (dense(lambda z: torch.tanh(z).sort(-1)[0]), torch.tanh, "sort"),
    "mixing of positions": (mixed(lambda z: MIX @ z), lambda z: 1.0 * z, "matmul"),
    "time turned around": (mixed(lambda z: torch.tanh(z).flip(1)), torch.tanh, "flip"),
    "gate": (dense(lambda z: z.tanh() * z.roll(1, -1)), torch.tanh, "roll"),
    "layer norm": (dense(lambda z: LAYER(z).tanh()), torch.tanh, "layer_norm"),
    "softmax": (dense(lambda z: z.softmax(-1)), lambda z: z.softmax(-1), "softmax"),
    "group norm": (conv(lambda z: F.group_norm(z, 2).tanh()), torch.tanh, "group_norm"),
    "another function": (dense(torch.sigmoid), torch.tanh, "sigmoid"),
    "another scale": (dense(lambda z: 0.9 * torch.tanh(z)), torch.tanh, "tanh"),
    "prelu": (dense(lambda z: F.prelu(z, torch.full((4,), 0.3, dtype=z.dtype))), torch.relu, "prelu"),
    "used elsewhere": (dense(lambda z: z.tanh() + 0 * z.mean(-1, keepdim=True)), None, "mean"),
    "detached": (dense(lambda z: z.tanh() + (z - z.detach())), torch.tanh, "detach"),
}


def slopes(f, params, data, pair, tol=1e-6):
    s = growth.statistics(f, params, data, pair, "squared_error")
    delta, new = growth.optimal_delta(s), growth.optimal_neurons(s, 2, "gradient")
    loss = per_sample("squared_error")

    def mean(t, n, d):
        return loss(growth.apply_extended(f, params, pair, n, d, t, data[0]), data[1]).mean()

    t = torch.tensor(1e-9, dtype=torch.float64)  # units curve it by √t
    for n, d, want in ((new, None, new.gain), (None, delta, delta.decrease)):
        got = (mean(0 * t, n, d) - mean(t, n, d)) / t
        assert (got - want).abs() <= 1e-3 * want.abs() + tol


@pytest.mark.parametrize("name", FINE)
def test_slopes_are_right_with_the_activation_named(name):
    (f, params, data), activation = FINE[name]
    slopes(f, params, data, growth.Pair("a", "b", activation))


@pytest.mark.parametrize("name", ["tanh", "scaled", "in place", "sequence"])
def test_slopes_are_right_with_the_activation_read(name):
    (f, params, data), _ = FINE[name]
    slopes(f, params, data, growth.Pair("a", "b"))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_elementwise_is_refused_by_its_name(name, named):
    (f, params, data), activation, call = WRONG[name]
    pair = growth.Pair("a", "b", activation if named else None)
    if name == "max pool" and not named:
        growth.statistics(f, params, data, pair, "squared_error")  # read; the slopes are in test_maps
        return
    if name in ("another function", "another scale", "average pool") and not named:
        slopes(f, params, data, pair)  # read as it is
        return
    with pytest.raises(ValueError, match=f"elementwise.*{call}"):
        growth.statistics(f, params, data, pair, "squared_error")


def test_a_hidden_layer_that_also_goes_elsewhere_is_refused():
    def f(p, x):
        h = torch.tanh(F.linear(x, **p["a"]))
        return F.linear(h, **p["b"]) + h.mean(-1, keepdim=True)

    with pytest.raises(ValueError, match="not the only one"):
        growth.statistics(f, DENSE, (X, T), growth.Pair("a", "b", torch.tanh), "squared_error")


HEADS = DENSE | {"c": {"weight": R(1, 4)}, "d": {"weight": R(4, 4)}}
READERS = {  # what else reads the hidden layer, in words
    "linear of c.weight": lambda p, h: torch.cat([F.linear(h, **p["b"]), F.linear(h, **p["c"])], 1),
    "add": lambda p, h: h[:, :2] * 0 + F.linear(h + F.linear(h, **p["b"]).sum(-1, keepdim=True), **p["d"])[:, :2],
    "cat": lambda p, h: torch.cat([F.linear(h, **p["b"]), h], 1),
    "tanh": lambda p, h: F.linear(h, **p["b"]) + F.linear(h.tanh(), **p["c"]),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("words", READERS)
def test_another_reader_of_the_hidden_layer_is_named(words, named):
    f = lambda p, x: READERS[words](p, torch.relu(F.linear(x, **p["a"])))
    pair = growth.Pair("a", "b", torch.relu if named else None)
    target = torch.zeros_like(f(HEADS, X))
    with pytest.raises(ValueError, match=f"the output of a.weight is also read by .*{words}.*growth.Graph"):
        growth.statistics(f, HEADS, (X, target), pair, "squared_error")


@pytest.mark.parametrize("wrong", [False, True])
def test_width_zero_is_compared_at_one_unit_more(wrong):
    params = {"a": {"weight": R(0, 3)}, "b": {"weight": R(2, 0), "bias": R(2)}}
    f = dense(Hidden.apply)[0]
    pair = growth.Pair("a", "b", torch.sin if wrong else torch.tanh)
    if wrong:
        with pytest.raises(ValueError, match="named activation"):
            growth.statistics(f, params, (X, T), pair, "squared_error")
    else:
        slopes(f, params, (X, T), pair)


@pytest.mark.parametrize("wrong", [False, True])
def test_behind_a_norm_a_new_unit_is_compared(wrong):
    norm = {"weight": R(4), "bias": R(4), "running_mean": R(4), "running_var": R(4) ** 2}

    def f(p, x):
        z = F.linear(x, **p["a"])
        n = p["n"]
        return F.linear(
            torch.tanh(F.batch_norm(z, n["running_mean"], n["running_var"], n["weight"], n["bias"])), **p["b"]
        )

    pair = growth.Pair("a", "b", torch.sin if wrong else torch.tanh, norm="n")
    if wrong:
        with pytest.raises(ValueError, match="named activation"):
            growth.statistics(f, DENSE | {"n": norm}, (X, T), pair, "squared_error")
    else:
        growth.statistics(f, DENSE | {"n": norm}, (X, T), pair, "squared_error")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [torch.relu, F.gelu, F.hardtanh, F.hardshrink])
def test_rounding_is_no_difference(dtype, activation):
    params, x, t = trees.map(lambda t: t.to(dtype), (DENSE, R(200, 3), R(200, 2)))
    f = dense(activation)[0]
    growth.statistics(f, params, (x, t), growth.Pair("a", "b", activation), "squared_error")


def test_ensembles_and_derivatives_meet_the_same_check():
    f, params, data = dense(torch.tanh)
    stacked = trees.stack([params, trees.scale(0.5, params)])
    collect = lambda p, act: growth.statistics(f, p, data, growth.Pair("a", "b", act), "squared_error").M.sum()
    vmap(lambda p: collect(p, torch.tanh))(stacked)
    grad(lambda p: collect(p, torch.tanh))(params)
    for transform in (lambda g: vmap(g)(stacked), lambda g: grad(g)(params)):
        with pytest.raises(ValueError, match="named activation"):
            transform(lambda p: collect(p, torch.sin))


WIDTHS = {
    "1/sqrt(width) behind": lambda p, h: F.linear(h, **p["b"]) / len(p["a"]["weight"]) ** 0.5,
    "1/width between": lambda p, h: F.linear(h / p["b"]["weight"].shape[1], **p["b"]),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_factor_of_the_width_is_refused(width):
    """At amplitude zero f would change: no slope tells what growth does."""
    f = lambda p, x: WIDTHS[width](p, torch.tanh(F.linear(x, **p["a"])))
    with pytest.raises(
        ValueError, match=r"one more hidden unit whose outgoing weights are zero.*keep such a factor constant"
    ):
        growth.statistics(f, DENSE, (X, T), growth.Pair("a", "b"), "squared_error")


SECOND = {
    "norm of the weight": lambda p: p["b"]["weight"].norm(),
    "exp of the bias": lambda p: p["b"]["bias"].exp(),
    "rows of the weight before": lambda p: p["a"]["weight"].square().mean(),
}


@pytest.mark.parametrize("second", SECOND)
def test_a_second_use_without_a_rule_is_refused(second):
    f = lambda p, x: F.linear(torch.tanh(F.linear(x, **p["a"])), **p["b"]) * SECOND[second](p)
    with pytest.raises(ValueError, match="no rule, expected a layer whose leaves are used by itself alone"):
        growth.statistics(f, DENSE, (X, T), growth.Pair("a", "b"), "squared_error")
