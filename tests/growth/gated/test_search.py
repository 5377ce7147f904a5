"""Gate rows searched, and a transformer of two blocks grown."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fisher
import growth
from tests.growth.gated.slopes import along, every
from tests.growth.oracle import close, slope
from tests.growth.rows_gated import GATES, gated
from tests.growth.rows_surgery import normal


@every
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_searching_gate_rows_gains(kind, target):
    """Steps of a gate row never lower what its unit explains, and the gains are slopes."""
    net = gated(kind)
    search = lambda k, steps: growth.gated_neurons(
        net.f,
        net.params,
        net.data,
        net.pair,
        k,
        target=target,
        steps=steps,
        candidates=8,
        generator=torch.Generator().manual_seed(0),
    )
    start, new = search(1, 0), search(2, 3)
    assert new.eigenvalues[0] > start.eigenvalues[0]
    for j in range(2):
        one = growth.keep(new, torch.arange(2) == j)
        assert abs(along(net, one) + float(one.gain)) < 1e-4 * max(1e-3, abs(float(one.gain)))


@pytest.mark.parametrize("kind", ["swiglu", "bilinear"])
def test_what_a_unit_explains_is_not_explained_again(kind):
    """A target that one more unit reaches: the first unit found is that one, and leaves nothing to a second."""
    net = gated(kind, (False, False, False), loss="squared_error")
    linear = lambda p, name, x: F.linear(x, p[name]["weight"], p[name].get("bias"))

    def f(p, x):
        return linear(p, "down", GATES[kind](linear(p, "gate", x)) * linear(p, "up", x))

    row = normal(1, 1, 3)
    more = {"gate": row, "up": normal(2, 1, 3), "down": normal(3, 3, 1)}
    wanted = {n: {"weight": torch.cat([net.params[n]["weight"], t], int(n == "down"))} for n, t in more.items()}
    data = net.x, f(wanted, net.x)
    options = {"loss": "squared_error", "target": "gradient"}
    given = growth.gated_neurons(f, net.params, data, net.pair, 2, gates=row, steps=0, **options)
    assert given.eigenvalues[1] < 1e-6 * given.eigenvalues[0]
    close(given.eigenvalues[0] ** 2, given.gains[0], 1e-8)
    near = row + 0.3 * normal(4, 1, 3)
    search = lambda n: growth.gated_neurons(f, net.params, data, net.pair, 1, gates=near, steps=n, **options)
    left = [search(n).eigenvalues[0] for n in (0, 2, 6)]
    assert left[0] < left[1] < left[2] <= given.eigenvalues[0] * (1 + 1e-9)


class Block(nn.Module):
    """A block as in LLaMA: RMS norm, attention, RMS norm, gated feed-forward, residual sums."""

    def __init__(self, width=6, hidden=5):
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj, self.act_fn = nn.Linear(hidden, width, bias=False), nn.SiLU()

    def forward(self, x):
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.out((q @ k.mT / 6**0.5).softmax(-1) @ v)
        y = self.norms[1](x)
        return x + self.down_proj(self.act_fn(self.gate_proj(y)) * self.up_proj(y))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_transformer_grows():
    torch.manual_seed(0)
    model = Transformer().double()
    f, params = fisher.functional(model)
    x, t = normal(1, 8, 4, 6), torch.arange(32).reshape(8, 4) % 3
    pairs = [growth.Gated(*(f"layers.{i}.{n}_proj" for n in ("gate", "up", "down"))) for i in range(2)]
    stats = growth.statistics(f, params, (x, t), pairs)
    loss = lambda p: F.cross_entropy(f(p, x).mT, t, reduction="sum") / len(x)
    for pair, one in zip(pairs, stats):
        new = growth.optimal_neurons(one, 2)
        step = slope(lambda s, pair=pair, new=new: loss(growth.grow(params, pair, new, scale=s)))
        assert abs(step + float(new.gain)) < 1e-4 * float(new.gain)
    new = [growth.optimal_neurons(one, 2) for one in stats]
    larger = growth.into_module(model, growth.grow(params, pairs, new, scale=0.1))
    assert larger.layers[1].gate_proj.out_features == 7
    assert larger.layers[0].down_proj.in_features == 7
    assert F.cross_entropy(larger(x).mT, t) < F.cross_entropy(model(x).mT, t)
    wide = growth.widen(params, pairs[0], 3, check=(f, x))
    close(f(wide, x), f(params, x), 1e-10)
