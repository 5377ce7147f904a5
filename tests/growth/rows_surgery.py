"""Rows of the transform table for resizing, widening, deepening, pruning and carrying; the networks of their tests."""

import dataclasses

import torch
import torch.nn.functional as F

import fisher
import growth
from growth.strategies import network
from tests.laws import Case, Exempt


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Net:
    f: object
    params: dict
    pair: growth.Pair
    x: torch.Tensor


def convolutions(act=torch.relu, bias: bool = True, p: int = 3, seed: int = 0) -> Net:
    """conv 3x3 -> batch norm (eval) -> act -> conv 3x1 -> head."""
    params = {
        "a": {"weight": normal(seed + 1, p, 2, 3, 3) / 3},
        "n": {
            "weight": 1 + 0.1 * normal(seed + 2, p),
            "bias": normal(seed + 3, p),
            "running_mean": normal(seed + 4, p),
        },
        "b": {"weight": normal(seed + 5, 4, p, 3, 1) / 2},
        "head": {"weight": normal(seed + 6, 2, 4)},
    }
    params["n"]["running_var"] = 1 + normal(seed + 7, p) ** 2
    if bias:
        params["a"]["bias"], params["b"]["bias"] = normal(seed + 8, p), normal(seed + 9, 4)

    def f(p, x):
        z = F.conv2d(x, p["a"]["weight"], p["a"].get("bias"), padding=1)
        n = p["n"]
        z = F.batch_norm(z, n["running_mean"], n["running_var"], n["weight"], n["bias"])
        z = F.conv2d(act(z), p["b"]["weight"], p["b"].get("bias"), padding=(1, 0))
        return torch.tanh(z).mean((2, 3)) @ p["head"]["weight"].mT

    return Net(f, params, growth.Pair("a", "b", norm="n"), normal(seed + 10, 5, 2, 4, 4))


def scaled(norm: bool, p: int = 3) -> Net:
    """conv 3x3 -> norm without statistics, or scale and shift -> relu -> conv 3x1 -> mean."""
    net = convolutions(p=p)
    params = {k: net.params[k] for k in "ab"} | {"n": {k: net.params["n"][k] for k in ("weight", "bias")}}

    def f(p, x):
        z, n = F.conv2d(x, p["a"]["weight"], p["a"]["bias"], padding=1), p["n"]
        if norm:
            z = F.batch_norm(z, torch.zeros_like(n["bias"]).detach(), torch.ones_like(n["bias"]).detach(), **n)
        else:
            z = (z.movedim(1, -1) * n["weight"] + n["bias"]).movedim(-1, 1)
        return torch.tanh(F.conv2d(torch.relu(z), p["b"]["weight"], p["b"]["bias"])).mean((2, 3))

    return Net(f, params, net.pair, net.x)


def flattened(act=torch.relu, bias: bool = True, p: int = 3, seed: int = 0) -> Net:
    """conv 1d -> act -> flatten -> dense -> head, in a flat dict."""
    params = {
        "net.a.weight": normal(seed + 1, p, 2, 3) / 2,
        "net.b.weight": normal(seed + 2, 4, p * 5) / 3,
        "net.head.weight": normal(seed + 3, 2, 4),
    }
    if bias:
        params |= {"net.a.bias": normal(seed + 4, p), "net.b.bias": normal(seed + 5, 4)}

    def f(p, x):
        z = act(F.conv1d(x, p["net.a.weight"], p.get("net.a.bias"), padding=1)).flatten(1)
        return torch.tanh(F.linear(z, p["net.b.weight"], p.get("net.b.bias"))) @ p["net.head.weight"].mT

    return Net(f, params, growth.Pair("net.a", "net.b"), normal(seed + 6, 6, 2, 5))


def dense(act: str = "gelu", bias=(True, True), p: int = 4, seed: int = 0, flat: bool = False) -> Net:
    net = network(seed, p=p, activation=act, bias=bias, flat=flat)
    return Net(net.f, net.params, net.pair, net.x)


NETS = {
    "dense": dense,
    "flat": lambda: dense("relu", (False, True), flat=True),
    "no bias": lambda: dense("sigmoid", (False, False)),
    "convolutions": convolutions,
    "convolutions without bias": lambda: convolutions(torch.tanh, False),
    "flattened": flattened,
    "flattened without bias": lambda: flattened(torch.sigmoid, False),
}

SMOOTH = {n: net for n, net in NETS.items() if "convolutions" not in n} | {
    "norm": lambda: scaled(True),
    "scale and shift": lambda: scaled(False),
    "one channel": lambda: scaled(False, 1),
}


def prunable(kind):
    """Of one channel a second one has to be there to stay."""
    net = SMOOTH[kind]()
    return dataclasses.replace(net, params=growth.widen(net.params, net.pair, 1)) if kind == "one channel" else net


def collect(net, params, pair=None, **options):
    target = torch.arange(len(net.x)) % net.f(params, net.x).shape[-1]
    return growth.statistics(net.f, params, (net.x, target), pair or net.pair, **options)


MATRICES = {
    "dense": fisher.PMatDense,
    "blocks": fisher.PMatBlockDiag,
    "diagonal": fisher.PMatDiag,
    "quasi-diagonal": fisher.PMatQuasiDiag,
    "kfac": fisher.PMatKFAC,
    "ekfac": fisher.PMatEKFAC,
    "low rank": fisher.PMatLowRank,
    "mixed": fisher.PMatMixed,
}
DERIVED = {
    "eigen": lambda F: F["dense"].eigendecomposition(),
    "eigen blocks": lambda F: F["blocks"].eigendecomposition(),
    "kfac in its basis": lambda F: F["kfac"].eigendecomposition(),
    "range": lambda F: F["low rank"].eigendecomposition(),
    "sum": lambda F: F["kfac"] + F["low rank"],
}


def matrices(net):
    layers = fisher.LayerCollection.from_function(net.f, net.params, net.x)
    found = {n: fisher.fim(net.f, net.params, net.x, kind, layers=layers) for n, kind in MATRICES.items()}
    return found | {n: make(found) for n, make in DERIVED.items()}


ATTENTION = {n: {"weight": normal(80 + k, 6, 4), "bias": normal(90 + k, 6)} for k, n in enumerate("qkv")}
ATTENTION["o"] = {"weight": normal(83, 4, 6)}
HEADS = growth.Heads("q", "k", "v", "o", 3)
ROWS = {"emb": normal(60, 5, 4), "n": {"weight": normal(61, 4), "bias": normal(62, 4)}}
ROWS |= {"up": {"weight": normal(63, 7, 4)}, "down": {"weight": normal(64, 4, 7), "bias": normal(65, 4)}}
STREAM = {"embeddings": ["emb"], "norms": ["n"], "readers": ["up"], "writers": ["down"]}


def of_heads() -> dict[str, Case | Exempt]:
    packed = growth.Heads(None, None, None, "o", 2, packed="c_attn", n_kv_heads=1)
    grouped = {"c_attn": {"weight": normal(84, 12, 4)}, "o": {"weight": normal(85, 4, 6)}}
    wide = growth.widen(ATTENTION, HEADS, 1)
    weakest = lambda p: growth.prune(p, HEADS, growth.weakest_units(growth.head_scores(p, HEADS), keep=2))

    def widen(method, **options):
        return lambda p, draws: growth.widen(p, HEADS, 2, method, draws=draws, **options)

    def more(method, **options):
        return lambda p, draws: growth.add_heads(p, HEADS, 1, method, draws=draws, **options)

    return {
        "growth.Heads": Exempt("names layers, holds no tensors"),
        "growth.widen/heads": Case(widen("split", noise=0.2), (ATTENTION, normal(86, 2, 48))),
        "growth.widen/heads, pairs": Case(widen("pair", noise=0.2), (ATTENTION, normal(86, 2, 48))),
        "growth.widen/heads, zero_out": Case(widen("zero_out"), (ATTENTION, normal(86, 2, 48))),
        "growth.widen/packed heads": Case(lambda p: growth.widen(p, packed, 3), (grouped,)),
        "growth.add_heads": Case(more("split", noise=0.2), (ATTENTION, normal(87, 1, 32))),
        "growth.add_heads/zero_out": Case(more("zero_out"), (ATTENTION, normal(87, 1, 32))),
        "growth.add_heads/packed": Case(lambda p: growth.add_heads(p, packed, 2), (grouped,)),
        "growth.head_scores": Case(lambda p: growth.head_scores(p, HEADS), (ATTENTION,)),
        "growth.prune/heads": Case(weakest, (ATTENTION,)),
        "growth.grow_like/heads": Case(lambda m: growth.grow_like(m, ATTENTION, wide, heads=HEADS), (ATTENTION,)),
        "growth.widen_stream": Case(
            lambda p, z: growth.widen_stream(p, STREAM, 2, norm="rms", draws=z), (ROWS, normal(88, 2, 7))
        ),
        "growth.widen_stream/layer": Case(
            lambda p, z: growth.widen_stream(p, STREAM, 2, draws=z), (ROWS, normal(88, 2, 7))
        ),
        "growth.prune_like/heads": Case(lambda m, p: growth.prune_like(m, p, HEADS, [1]), (ATTENTION, ATTENTION)),
    }


def table() -> dict[str, Case | Exempt]:
    net = network(71, activation="gelu", samples=30)
    pair, params = net.pair, net.params
    stats = growth.statistics(net.f, params, net.data, pair)
    stats = dataclasses.replace(stats, S=stats.S + torch.eye(5, dtype=torch.float64))
    conv = convolutions(torch.tanh)
    layer = params["output"]
    grown = growth.widen(params, pair, 2)
    smaller, removed = growth.cut(params, pair, [1, 3])
    draws = normal(9, 2, 3 + 1 + 3)
    kfac = fisher.fim(net.f, params, net.x, fisher.PMatKFAC)
    low = fisher.fim(net.f, params, net.x[:3], fisher.PMatLowRank)

    def extended(layer, columns, rows, bias):
        return growth.add_parameters(
            layer,
            added_in_features=columns.shape[1],
            added_out_features=bias.shape[0],
            matrix_extension=(columns, rows),
            bias_extension=bias,
        )

    def widen(method, **options):
        return lambda p, draws: growth.widen(p, pair, 2, method, draws=draws, **options)

    def chosen(p, scores):
        return growth.prune(p, pair, growth.weakest_units(scores, keep=2))

    def compensated(p, stats):
        return growth.prune(p, pair, [2, 0], stats=stats, ridge=0.1)

    def back(p, entries):
        return growth.restore(p, pair, dataclasses.replace(removed, entries=entries))

    scores = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    decoder = {"fc": {"weight": normal(1, 12, 3), "bias": normal(2, 12)}, "up": {"weight": normal(3, 3, 2, 2, 2)}}
    mapped = growth.Pair("fc", "up", layout=("out_in", "in_out"))
    return {
        "growth.add_parameters": Case(extended, (layer, normal(1, 3, 2), normal(2, 1, 6), normal(3, 1))),
        "growth.layer_in_extension": Case(growth.layer_in_extension, (layer, normal(4, 3, 2))),
        "growth.layer_out_extension": Case(growth.layer_out_extension, (layer, normal(5, 2, 4), normal(6, 2))),
        "growth.widen/split": Case(widen("split", noise=0.2), (params, draws)),
        "growth.widen/pair": Case(widen("pair", noise=0.2), (params, draws)),
        "growth.widen/zero_out": Case(widen("zero_out"), (params, draws)),
        "growth.widen/convolutions": Case(lambda p: growth.widen(p, conv.pair, 4), (conv.params,)),
        "growth.widen/maps": Case(
            lambda p, d: growth.widen(p, mapped, 2, noise=0.2, draws=d), (decoder, normal(5, 2, 4 * 3 + 4 + 2 * 4))
        ),
        "growth.prune/maps": Case(lambda p: growth.prune(p, mapped, [1]), (decoder,)),
        "growth.add_classes": Case(lambda p: growth.add_classes(p, "output", 2, probability=0.1), (params,)),
        "growth.add_classes/rows": Case(
            lambda p, w, c: growth.add_classes(p, "output", 2, weight=w, bias=c),
            (params, normal(7, 2, 4), normal(8, 2)),
        ),
        "growth.deepen": Case(lambda p: growth.deepen(p, "hidden", "new"), (params,)),
        "growth.deepen/convolution": Case(lambda p: growth.deepen(p, "a", "new"), (conv.params,)),
        "growth.prune": Case(lambda p: growth.prune(p, conv.pair, [0]), (conv.params,)),
        "growth.prune/constant": Case(lambda p, c: growth.prune(p, pair, [0], sigma0=c), (params, scores[0] / 8)),
        "growth.prune/compensated": Case(compensated, (params, stats)),
        "growth.weakest_units": Case(chosen, (params, scores)),
        "growth.unit_scores": Case(lambda p: growth.unit_scores(p, pair), (params,)),
        "growth.unit_scores/statistics": Case(lambda p, s: growth.unit_scores(p, pair, stats=s), (params, stats)),
        "growth.cut": Case(lambda p: growth.cut(p, pair, [1])[0], (params,)),
        "growth.restore": Case(back, (smaller, removed.entries)),
        "growth.Removed": Case(lambda p: growth.cut(p, pair, [1])[1].entries, (params,)),
        "growth.grow_like/matrices": Case(
            lambda F, G, p, grown: growth.grow_like([F, G], p, grown), (kfac, low, params, grown)
        ),
        "growth.grow_like/statistics": Case(lambda s, p, g: growth.grow_like(s, p, g), (stats, params, grown)),
        "growth.prune_like": Case(
            lambda m, s, p: growth.prune_like({"m": m, "s": s}, p, pair, [3, 0]), (params, stats, params)
        ),
        "growth.prune_like/matrices": Case(lambda F, p: growth.prune_like(F, p, pair, [3]), (kfac, params)),
        "growth.into_module": Exempt("makes a torch.nn.Module, which holds plain tensors"),
        "growth.swap_parameters": Exempt("changes a live torch.optim optimizer: eager use only"),
    }


CASES: dict[str, Case | Exempt] = table() | of_heads()
