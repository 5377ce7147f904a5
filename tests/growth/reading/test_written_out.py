"""Activations that f writes out in several calls, as those of GPT-2 and CLIP are: read as what they are, or refused."""

import math

import pytest
import torch
import torch.nn.functional as F

import growth
from growth import Pair
from tests.laws import close

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


PARAMS = {
    "a.weight": randn(6, 4, seed=1),
    "a.bias": randn(6, seed=2),
    "b.weight": randn(3, 6, seed=3),
    "b.bias": randn(3),
}
DATA = randn(20, 5, 4, seed=4), torch.arange(100).reshape(20, 5) % 3
ROOT = math.sqrt(2 / math.pi)
WRITTEN = {
    "GPT-2": (
        lambda z: 0.5 * z * (1.0 + torch.tanh(ROOT * (z + 0.044715 * torch.pow(z, 3.0)))),
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "constants of ten digits": (
        lambda z: 0.5 * z * (1.0 + torch.tanh(z * 0.7978845608 * (1.0 + 0.044715 * z * z))),
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "error function": (lambda z: z * 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0))), F.gelu),
    "CLIP": (lambda z: z * torch.sigmoid(1.702 * z), None),
    "swish": (lambda z: z * torch.sigmoid(z), F.silu),
    "mish": (lambda z: z * torch.tanh(F.softplus(z)), F.mish),
    "rectified": (lambda z: (z + z.abs()) / 2, F.relu),
}


def network(sigma):
    return lambda p, x: F.linear(sigma(F.linear(x, p["a.weight"], p["a.bias"])), p["b.weight"], p["b.bias"])


def statistics(sigma, dtype=D, activation=None):
    p, x = {name: t.to(dtype) for name, t in PARAMS.items()}, DATA[0].to(dtype)
    return growth.statistics(network(sigma), p, (x, DATA[1]), Pair("a", "b", activation))


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16])
def test_statistics_are_those_of_the_activation(name, dtype):
    written, named = WRITTEN[name]
    got, want = statistics(written, dtype), statistics(written, dtype, named or written)
    tol = {D: 1e-8, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    close([got.S, got.M, got.S_prev], [want.S, want.M, want.S_prev], tol, name)


def test_the_output_metric_too():
    pair, (written, named) = Pair("a", "b"), WRITTEN["swish"]
    got, want = (growth.output_fisher(network(sigma), PARAMS, DATA[0], pair) for sigma in (written, named))
    close(got, want, 1e-10, "metric")


def test_convolutions_and_stored_the_other_way():
    sigma, _ = WRITTEN["GPT-2"]
    p = {"a": randn(4, 2, 3, 3, seed=1), "b": randn(3, 4, 3, 3, seed=2)}
    f = lambda p, x: F.conv2d(sigma(F.conv2d(x, p["a"], padding=1)), p["b"], padding=1).mean((2, 3))
    data = randn(6, 2, 5, 5, seed=3), torch.arange(6) % 3
    one = growth.step(f, p, data, Pair("a", "b"), 2)
    other = growth.step(f, p, data, Pair("a", "b", lambda z: F.gelu(z, approximate="tanh")), 2)
    close(one.params, other.params, 1e-8, "convolutions")
    turned = {"a": PARAMS["a.weight"].T, "b": PARAMS["b.weight"].T}
    g = lambda p, x: sigma(x @ p["a"]) @ p["b"]
    assert growth.step(g, turned, DATA, Pair("a", "b", layout="in_out"), 2).params["a"].shape == (4, 8)


REFUSED = {
    "another constant": lambda z: z * torch.sigmoid(1.7 * z),
    "another half": lambda z: torch.where(z > 0, z * torch.sigmoid(z), 0.3 * z),
    "a residual": lambda z: z + z * torch.sigmoid(z),
    "mixed units": lambda z: z * torch.sigmoid(z.flip(-1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_none_of_them_is_refused_with_the_cure(name):
    with pytest.raises(ValueError, match=r"name it: Pair\(before, after, activation=\.\.\.\)|is not read"):
        statistics(REFUSED[name])


def test_an_output_that_is_read_elsewhere_is_refused():
    def f(p, x):
        z = F.linear(x, p["a.weight"], p["a.bias"])
        return F.linear(z * torch.sigmoid(z), p["b.weight"], p["b.bias"]) + z[..., :3]

    with pytest.raises(ValueError, match=r"the output of a\.weight is also read by"):
        growth.statistics(f, PARAMS, DATA, Pair("a", "b"))
