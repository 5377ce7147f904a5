"""Laws of derivatives: forward mode is the transpose of reverse mode, for torch's own layers too, under vmap too."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from fisher.derivatives.forward import jvp
from fisher.derivatives.plain import plainly
from linmaps import trees

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class First(nn.Module):
    """The first of several outputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Grouped(nn.Module):
    """Two heads of queries for each of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        return (
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            .transpose(1, 2)
            .flatten(2)
        )


LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), randn(2, 4)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.SiLU()),
        randn(2, 2, 4, 4),
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), randn(2, 3, 4)),
    "attention": (Attention, randn(2, 3, 4)),
    "causal attention": (Causal, randn(2, 3, 4)),
    "attention in groups": (Grouped, randn(2, 3, 4)),
    "a recurrent layer": (lambda: First(nn.LSTM(4, 3, batch_first=True)), randn(2, 3, 4)),
    "a bag": (lambda: nn.EmbeddingBag(5, 3, padding_idx=0), torch.tensor([[0, 2, 1], [3, 0, 0]])),
    "embedding with padding": (lambda: nn.Embedding(5, 3, padding_idx=0), torch.tensor([[0, 2, 1], [3, 0, 0]])),
    "batch norm": (lambda: nn.BatchNorm1d(4), randn(2, 4)),
}


def function(name):
    """(f, params) of a layer in eval mode with its own random numbers."""
    make, x = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double().eval()
    return lambda p: functional_call(module, p, (x,)), {k: t.detach() for k, t in module.named_parameters()}


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_the_transpose_of_reverse(name):
    f, params = function(name)
    y, back = vjp(plainly(f), params)
    for seed in range(3):
        u = randn(*y.shape, seed=seed)
        v = trees.map(lambda t, seed=seed: randn(*t.shape, seed=seed + 7), params)
        made, push = jvp(f, (params,), (v,))
        assert torch.allclose(made, y)
        assert abs(float((u * push).sum() - trees.dot(back(u)[0], v))) <= 1e-12 * float(u.norm() * push.norm() + 1)


@pytest.mark.parametrize("name", LAYERS)
def test_plain_functions_keep_their_values(name):
    f, params = function(name)
    assert torch.allclose(plainly(f)(params), f(params), rtol=1e-12, atol=1e-12)


def test_forward_mode_of_an_ensemble():
    x = randn(5, 3)
    f = lambda p: torch.tanh(x @ p["w"])
    stacked, v = {"w": randn(4, 3, 2, seed=1)}, {"w": randn(4, 3, 2, seed=2)}
    both = vmap(lambda p, v: jvp(f, (p,), (v,))[1])(stacked, v)
    for k in range(4):
        assert torch.allclose(both[k], jvp(f, ({"w": stacked["w"][k]},), ({"w": v["w"][k]},))[1])
