"""Rows of the transform table for gated pairs, and the networks of their tests."""

import dataclasses

import torch
from torch.nn import functional as F

import growth
from growth.strategies import Network
from tests.growth.rows_surgery import normal
from tests.laws import Case, Exempt

GATES = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu by hand": lambda z: 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    "bilinear": lambda z: z,
    "glu": torch.sigmoid,
    "reglu": torch.relu,
}
BIASES = {"without biases": (False, False, False), "with biases": (True, True, True), "mixed": (True, False, True)}


def gated(
    kind: str = "swiglu",
    bias: tuple[bool, bool, bool] = (True, True, True),
    *,
    p: int = 4,
    positions: int = 0,
    seed: int = 0,
    loss: str = "cross_entropy",
    dtype: torch.dtype = torch.float64,
) -> Network:
    """first -> tanh -> (gate, up) -> sigma(gate) * up -> down -> tanh -> head."""
    sizes = {"first": (3, 3, True), "gate": (p, 3, bias[0]), "up": (p, 3, bias[1]), "down": (3, p, bias[2])}
    params = {}
    for n, (name, (o, i, biased)) in enumerate((sizes | {"head": (4, 3, True)}).items()):
        params[name] = {"weight": (normal(10 * seed + n, o, i) / max(1, i) ** 0.5).to(dtype)}
        params[name] |= {"bias": 0.3 * normal(100 + 10 * seed + n, o).to(dtype)} if biased else {}

    def f(params, x):
        linear = lambda name, x: F.linear(x, params[name]["weight"], params[name].get("bias"))
        z = torch.tanh(linear("first", x))
        hidden = GATES[kind](linear("gate", z)) * linear("up", z)
        return linear("head", torch.tanh(linear("down", hidden)))

    lead = (14, positions) if positions else (14,)
    x = normal(7 + seed, *lead, 3).to(dtype)
    classes = torch.randint(0, 4, lead, generator=torch.Generator().manual_seed(seed))
    target = classes if loss == "cross_entropy" else normal(9 + seed, *lead, 4).to(dtype)
    return Network(f, params, x, target, loss, growth.Gated("gate", "up", "down"), GATES[kind], (bias[1], bias[2]))


def pack(tree, order: str = "gate_up", layout="out_in"):
    """A tree of the network with gate and up in one leaf, in this order, and the weights of the pair stored so."""
    first, second = layout if isinstance(layout, tuple) else (layout, layout)
    names = order.split("_")
    joined = {n: torch.cat([tree[name][n] for name in names]) for n in tree["gate"]}
    joined["weight"] = joined["weight"] if first == "out_in" else joined["weight"].mT.contiguous()
    down = tree["down"] if second == "out_in" else {**tree["down"], "weight": tree["down"]["weight"].mT.contiguous()}
    return {"first": tree["first"], "gate_up": joined, "down": down, "head": tree["head"]}


def packed(
    kind: str = "swiglu",
    bias: tuple[bool, bool, bool] = (True, True, True),
    *,
    order="gate_up",
    layout="out_in",
    **options,
):
    """The network of `gated` with one layer for gate and up, whose output is cut in two."""
    net = gated(kind, bias, **options)
    sides = layout if isinstance(layout, tuple) else (layout, layout)

    def f(params, x):
        def linear(name, x, side="out_in"):
            weight, own = params[name]["weight"], params[name].get("bias")
            if side == "out_in":
                return F.linear(x, weight, own)
            return x @ weight if own is None else x @ weight + own

        one, two = linear("gate_up", torch.tanh(linear("first", x)), sides[0]).chunk(2, -1)
        gate, up = (one, two) if order == "gate_up" else (two, one)
        return linear("head", torch.tanh(linear("down", GATES[kind](gate) * up, sides[1])))

    pair = growth.Gated(None, None, "down", packed="gate_up", order=order, layout=layout)
    return dataclasses.replace(net, f=f, params=pack(net.params, order, layout), pair=pair)


def collect(net: Network, params=None, **options):
    params = net.params if params is None else params
    return growth.statistics(net.f, params, net.data, net.pair, net.loss, **options)


def effects(new: growth.Neurons):
    """What does not depend on the signs of units."""
    return torch.einsum("qk,kr->kqr", new.fan_out, new.joined), new.joined_gate, new.eigenvalues, new.gains


def table() -> dict[str, Case | Exempt]:
    net = gated()
    rows = normal(3, 3, 4)
    stats = collect(net, gates=rows)
    new = growth.optimal_neurons(stats, 2)
    more = lambda m: (
        m + 2 * torch.eye(m.shape[-1], dtype=m.dtype)
    )  # well conditioned under the perturbations of the laws
    solid = dataclasses.replace(stats, S=more(stats.S), gates=dataclasses.replace(stats.gates, S=more(stats.gates.S)))
    draws = normal(5, 2, 3 + 1 + 3 + 3)

    one = packed(order="up_gate", layout=("in_out", "out_in"))
    bare, wide = dataclasses.replace(new, pair=None), growth.widen(one.params, one.pair, 2)

    def seen(p, x, gates):
        return growth.statistics(one.f, p, (x, one.target), one.pair, gates=gates)

    def statistics(p, x, gates):
        return growth.statistics(net.f, p, (x, net.target), net.pair, gates=gates)

    def found(p, x, gates):
        return effects(growth.gated_neurons(net.f, p, (x, net.target), net.pair, 2, gates=gates, steps=2))

    def signed(p, x, new):
        return growth.choose_sign(net.f, p, (x, net.target), net.pair, new).gains

    return {
        "growth.Gated": Exempt("a name: paths and an activation, no tensors"),
        "growth.statistics/gated": Case(statistics, (net.params, net.x, rows)),
        "growth.optimal_neurons/gated": Case(lambda s: effects(growth.optimal_neurons(s, 2)), (solid,)),
        "growth.random/gated": Case(lambda s: effects(growth.random(s, 2, std_out=1.0)), (solid,)),
        "growth.gated_neurons": Case(found, (net.params, net.x, rows)),
        "growth.grow/gated": Case(lambda p, n: growth.grow(p, net.pair, n, scale=0.3), (net.params, new)),
        "growth.widen/gated": Case(
            lambda p, d: growth.widen(p, net.pair, 2, "pair", draws=d, noise=0.1), (net.params, draws)
        ),
        "growth.prune/gated": Case(lambda p: growth.prune(p, net.pair, [1]), (net.params,)),
        "growth.statistics/packed": Case(seen, (one.params, one.x, rows)),
        "growth.grow/packed": Case(lambda p, n: growth.grow(p, one.pair, n, scale=0.3), (one.params, bare)),
        "growth.widen/packed": Case(
            lambda p, d: growth.widen(p, one.pair, 2, "pair", draws=d, noise=0.1), (one.params, draws)
        ),
        "growth.prune/packed": Case(lambda p: growth.prune(p, one.pair, [1]), (one.params,)),
        "growth.grow_like/packed": Case(
            lambda m, p, g: growth.grow_like(m, p, g, heads=one.pair), (one.params, one.params, wide)
        ),
        "growth.choose_sign/gated": Case(signed, (net.params, net.x, new)),
    }


CASES: dict[str, Case | Exempt] = table()
