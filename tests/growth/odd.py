"""Valid calls of growth, to be made odd; outcomes that are right all the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch.nn import functional as nnf

import fisher
import growth
import linmaps
from growth import Gated, Graph, Node, Pair
from growth.strategies import network
from linmaps import trees
from tests.odd import Call

STATE = "a state may hold anything: what has no counterpart among the params stays as it is"
CHOICE = "None is a choice of its own here"
NOTHING = "nothing is added"
JUSTIFIED: dict[str, str] = {
    "growth.Pair(*: no*": "a pair is two names: params say what they name",
    "growth.Heads(*: no*": "names of layers: params say what they name",
    "growth.Heads.plus(n: zero)": NOTHING,
    "growth.*(n: zero)": NOTHING,
    "growth.*(params: * in weight in q)": "q, k and v may have inputs of their own, as in attention to another sequence",
    "growth.*(params: none in bias in q)": "a layer without bias",
    "growth.*(params: unexpected)": "other leaves of a layer stay as they are",
    "growth.grow_like/heads(grown: wide in weight in q)": "a neighbour may grow in the same step",
    "growth.widen_stream(params: * in weight in down)": "a writer may have any inputs",
    "growth.widen_stream(params: none in bias in down)": "a layer without bias",
    "growth.widen_stream(layers: missing*": "f, which then raises for layers that were left out, says what is there",
    "growth.prune/heads(units: missing)": "no head is dropped",
    "growth.*(units: zero in *)": "any unit may be split, also twice",
    "growth.gated_neurons(steps: zero)": "the best of the candidates",
    "growth.Gated(*: no*": "three names: params say what they name",
    "growth.Sum(*: no*": "names of layers: params say what they name",
    "growth.to_target(target: zero)": "a layer may have no units",
    "growth.grow/several(delta: none in 0)": "no change of the weights of that pair",
    "growth.cut(params: none in bias in *": "a layer without bias",
    "growth.restore(params: none in bias in *": "a layer without bias",
    "growth.apply_extended(params: none in bias in *": "a layer without bias",
    "growth.*(k: zero)": NOTHING,
    "growth.carry_graph(*: *": STATE,
    "growth.*(params: unexpected in *": "other leaves of a layer stay as they are",
    "growth.*(layer: unexpected)": "other leaves of a layer stay as they are",
    "growth.Graph.with_width(width: zero)": "a node may start without units",
    "growth.*.init(params: *": "any tree of floating tensors",
    "growth.*(initial: zero)": "a layer may start without units",
    "growth.grow*(scale: negative*": "an amplitude may have any sign",
    "growth.grow_like(state: *": STATE,
    "growth.prune_like(state: *": STATE,
    "growth.carry_graph(state: *": STATE,
    "growth.*(input_metric: none)": CHOICE,
    "growth.*(activation: none)": CHOICE,
    "growth.*(delta: none)": "a step without a change of the weights",
    "growth.*(new: none)": "a step without new units",
    "growth.scale_neurons(fan_*: negative*": "a factor may have any sign",
    "growth.to_target(current: huge)": "a width is a number, nothing is allocated",
}
EXEMPT: dict[str, str] = {
    "growth.into_module": "takes a torch.nn.Module; what it refuses is in tests/growth/interop/test_modules.py",
} | dict.fromkeys(
    (
        "growth.Candidates", "growth.Comparison", "growth.Delta", "growth.Fit", "growth.GraphStatistics", "growth.Neurons",
        "growth.NewEdge", "growth.NewUnits", "growth.NodeDelta", "growth.Optimizer", "growth.Removed", "growth.Search",
        "growth.GrowthStep",
        "growth.StandardErrors", "growth.Statistics", "growth.Step",
    ),
    "a record that other functions make: every transform rebuilds it around whatever leaves it carries",
)  # fmt: skip
F32 = torch.float32
NET = network(61, activation="gelu", samples=12, dtype=F32)
RELU = network(63, activation="relu", samples=12, dtype=F32)
PAIR, PARAMS, DATA = NET.pair, NET.params, NET.data
PAIRED = {name: PARAMS[name] for name in ("hidden", "output")}  # the layers that surgery looks at
TARGET = torch.arange(12) % 3
HEADS = growth.Heads("q", "k", "v", "o", 2)


GATED = {"gate": PARAMS["hidden"], "up": NET.params["hidden"], "down": PARAMS["output"]}
THREE = Gated("gate", "up", "down")


def user_gated(p: Any, x: Any) -> Any:
    linear = lambda name, x: nnf.linear(x, p[name]["weight"], p[name].get("bias"))
    return linear("down", nnf.silu(linear("gate", x)) * linear("up", x))


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ATTENTION = {n: {"weight": randn(4, 4, seed=k), "bias": randn(4, seed=k)} for k, n in enumerate("qkv")}
ATTENTION["o"] = {"weight": randn(3, 4, seed=9)}


STREAM = {"emb": randn(5, 4), "n": {"weight": randn(4, seed=1), "bias": randn(4, seed=2)}}
STREAM |= {"up": {"weight": randn(7, 4, seed=3)}, "down": {"weight": randn(4, 7, seed=4), "bias": randn(4, seed=5)}}
STREAM_ROLES = {"embeddings": ["emb"], "norms": ["n"], "readers": ["up"], "writers": ["down"]}


def user_f(p: Any, x: Any) -> Any:
    return NET.f(p, x)


def user_relu(p: Any, x: Any) -> Any:
    return RELU.f(p, x)


GRAPH = Graph(
    (Node("x", 2), Node("a", 2, torch.tanh), Node("b", 1, nnf.gelu), Node("y", 3)),
    ("x->a", "x->b", "a->y"),
    identities=("x->a",),
)


@functools.cache
def made() -> dict[str, Any]:
    stats = growth.statistics(user_f, PARAMS, DATA, PAIR)
    other = growth.statistics(user_f, PARAMS, (NET.x.flip(0), NET.target), PAIR)
    relu = growth.statistics(user_relu, RELU.params, RELU.data, RELU.pair)
    new, delta = growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)
    graph_params = GRAPH.init(gen())
    gstats = growth.graph_statistics(GRAPH, graph_params, (randn(12, 2), TARGET))
    layers = fisher.LayerCollection.from_function(user_f, PARAMS, NET.x)
    return {
        "stats": stats, "other": other, "relu": relu, "new": new, "delta": delta, "graph_params": graph_params,
        "gstats": gstats, "fisher": growth.with_fisher(stats, user_f, PARAMS, NET.x, PAIR), "layers": layers,
    }  # fmt: skip


def unbound(record: Any) -> Any:
    return dataclasses.replace(record, pair=None)


def of_statistics() -> list[Call]:
    m = made()
    base = {"f": user_f, "params": PARAMS, "data": DATA, "pair": PAIR}
    N = "growth."
    return [
        Call(N + "Pair", growth.Pair, {
            "before": "hidden", "after": "output", "activation": torch.tanh, "norm": None, "layout": ("out_in", "in_out"),
        }),
        Call(N + "Gated", Gated, {"gate": "gate", "up": "up", "after": "down", "activation": nnf.silu}),
        Call(N + "Gated/packed", functools.partial(Gated, None, None), {
            "after": "down", "activation": nnf.silu, "packed": "gate_up", "order": "up_gate",
        }),
        Call(N + "statistics/gated", growth.statistics, {
            "f": user_gated, "params": GATED, "data": (NET.x, TARGET), "pair": THREE, "gates": randn(2, 4),
        }, ("f", "params", "data")),
        Call(N + "gated_neurons", growth.gated_neurons, {
            "f": user_gated, "params": GATED, "data": (NET.x, TARGET), "pair": THREE, "k": 1, "loss": "cross_entropy",
            "target": "gradient", "gates": randn(2, 4), "steps": 1, "ridge": 0.1,
        }, ("f", "params", "data")),
        Call(N + "Sum", lambda first, second: growth.Sum(first, second), {"first": "hidden", "second": "output"}),
        Call(N + "statistics", growth.statistics, base | {"loss": "cross_entropy", "layers": m["layers"], "taps": "all"}),
        Call(N + "Reading.from_function", growth.Reading.from_function, {
            "f": user_f, "params": PARAMS, "x": NET.x, "pair": PAIR, "layers": m["layers"],
        }),
        Call(N + "output_fisher", growth.output_fisher, {
            "f": user_f, "params": PARAMS, "data": NET.x, "pair": PAIR, "likelihood": "categorical", "chunk_size": 1,
        }, ("f",)),
        Call(N + "with_fisher", growth.with_fisher, {
            "stats": m["stats"], "f": user_f, "params": PARAMS, "data": NET.x, "pair": PAIR, "likelihood": "categorical",
        }, ("f", "params")),
        Call(N + "choose_sign", growth.choose_sign, {
            "f": user_relu, "params": RELU.params, "data": RELU.data, "pair": RELU.pair,
            "new": growth.optimal_neurons(m["relu"], 2), "loss": "cross_entropy",
        }, ("f",)),
        Call(N + "line_search", growth.line_search, base | {
            "new": m["new"], "delta": m["delta"], "loss": "cross_entropy", "grid": (0.5, 1.0), "chunk_size": 1,
        }, ("f",)),
        Call(N + "apply_extended", growth.apply_extended, {
            "f": user_f, "params": PARAMS, "pair": PAIR, "new": m["new"], "delta": m["delta"], "scale": 0.5, "x": NET.x,
        }),
        Call(N + "Statistics.__add__", lambda other: m["stats"] + other, {"other": m["other"]}),
        Call(N + "standard_errors", lambda a, b: growth.standard_errors([a, b]), {"a": m["stats"], "b": m["other"]}),
        Call(N + "standard_errors/list", growth.standard_errors, {"parts": [m["stats"], m["other"]]}),
        Call(N + "split_half", growth.split_half, {"first": m["stats"], "second": m["other"]}),
        Call(N + "split_floor", growth.split_floor, {
            "first": m["stats"], "second": m["other"], "probability": 0.05, "target": "residual", "input_metric": "covariance",
        }),
        Call(N + "noise_floor", growth.noise_floor, {
            "stats": m["fisher"], "probability": 0.05, "input_metric": "covariance", "output_metric": "fisher", "shrinkage": 0.1,
        }),
    ]  # fmt: skip


def of_closed_forms() -> list[Call]:
    m, N = made(), "growth."
    stats, new, delta = m["stats"], m["new"], m["delta"]
    options = {"stats": stats, "k": 2}
    return [
        Call(N + "optimal_delta", growth.optimal_delta, {
            "stats": m["fisher"], "ridge": 0.1, "rtol": 1e-4, "output_metric": "fisher", "shrinkage": 0.1,
        }),
        Call(N + "optimal_delta/tensor", growth.optimal_delta, {"stats": stats, "ridge": torch.tensor(0.1)}, ("stats",)),
        Call(N + "optimal_neurons", growth.optimal_neurons, options | {
            "target": "residual", "ridge": 0.1, "rtol": 1e-4, "delta": growth.optimal_delta(stats, 0.1), "threshold": 0.01,
            "input_metric": "covariance", "noise_floor": 0.01,
        }),
        Call(N + "optimal_neurons/fisher", growth.optimal_neurons, {
            "stats": m["fisher"], "k": 2, "output_metric": "fisher", "shrinkage": torch.tensor(0.1),
        }, ("stats", "k")),
        Call(N + "tiny", growth.tiny, options),
        Call(N + "gradmax", growth.gradmax, options | {"scale": 0.3, "generator": gen()}),
        Call(N + "senn", growth.senn, options | {"generator": gen()}),
        Call(N + "zero_in", growth.zero_in, options | {"generator": gen()}),
        Call(N + "zero_out", growth.zero_out, options | {"generator": gen()}),
        Call(N + "random", growth.random, options | {"generator": gen(), "std": 0.3, "std_out": 0.1}),
        Call(N + "random/draws", growth.random, options | {"draws": randn(2, 7)}, ("stats",)),
        Call(N + "gradient_norms", growth.gradient_norms, {"stats": stats, "new": new}),
        Call(N + "truncate", growth.truncate, {"new": new, "k": 1}),
        Call(N + "keep", growth.keep, {"new": new, "which": 0.9}),
        Call(N + "keep/mask", growth.keep, {"new": new, "which": torch.tensor([False, True])}, ("new",)),
        Call(N + "scale_neurons", growth.scale_neurons, {"new": new, "fan_in": 0.5, "fan_out": torch.tensor(2.0)}),
        Call(N + "merge_neurons", growth.merge_neurons, {"a": new, "b": growth.optimal_neurons(m["other"], 1)}),
        Call(N + "compact", growth.compact, {"new": new}),
        Call(N + "paired", growth.paired, {"new": new, "noise": 0.1, "generator": gen()}),
        Call(N + "normalize", growth.normalize, {
            "new": new, "delta": delta, "params": PAIRED, "pair": PAIR, "kind": "units", "std": 0.4,
        }),
        Call(N + "normalize/gradmax", growth.normalize, {
            "new": new, "delta": delta, "params": PAIRED, "pair": PAIR, "kind": "gradmax", "gradmax_scale": 1.5,
        }, ("params", "pair")),
        Call(N + "initialize", growth.initialize, {
            "params": PAIRED, "pair": PAIR, "k": 2, "fan_in": "copy_uniform", "fan_out": "zeros", "generator": gen(),
            "sigma0": 0.7,
        }),
        Call(N + "improvement", growth.improvement, {"new": new, "delta": delta}),
        Call(N + "compare", growth.compare, {
            "pairs": [Pair("a", "b"), Pair("b", "c")], "news": [None, unbound(new)], "deltas": [unbound(delta)] * 2,
        }),
        Call(N + "compare/params", growth.compare, {"pairs": [PAIR], "news": [new], "deltas": None, "params": PARAMS}),
    ]  # fmt: skip


def of_surgery() -> list[Call]:
    m, N = made(), "growth."
    stats, new, delta = m["stats"], m["new"], m["delta"]
    layer = PARAMS["output"]
    grown = growth.grow(PAIRED, PAIR, new)
    smaller, removed = growth.cut(PAIRED, PAIR, [1, 3])
    moved = trees.scale(2.0, PAIRED)
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])

    def swapped(params: Any, grown: Any, fill: str) -> Any:
        live = trees.map(lambda t: t.clone().requires_grad_(), params)
        optimizer = torch.optim.SGD(trees.leaves(live), 0.1)
        return growth.swap_parameters(optimizer, live, grown, fill=fill)

    return [
        Call(N + "grow", growth.grow, {"params": PAIRED, "pair": PAIR, "new": new, "delta": delta, "scale": 0.5}),
        Call(N + "grow/several", growth.grow, {
            "params": PAIRED, "pair": [PAIR], "new": [new], "delta": [delta], "scale": [(0.5, 0.5)],
        }, ("params",)),
        Call(N + "grow/two amplitudes", growth.grow, {
            "params": PAIRED, "pair": PAIR, "new": new, "delta": delta, "scale": (torch.tensor(0.5), torch.tensor(0.2)),
        }, ("params", "pair", "new", "delta")),
        Call(N + "add_parameters", growth.add_parameters, {
            "layer": layer, "added_in_features": 2, "matrix_extension": randn(3, 2),
        }),
        Call(N + "layer_in_extension", growth.layer_in_extension, {"layer": layer, "weight": randn(3, 2)}),
        Call(N + "layer_out_extension", growth.layer_out_extension, {"layer": layer, "weight": randn(2, 4), "bias": randn(2)}),
        Call(N + "widen", growth.widen, {
            "params": PAIRED, "pair": PAIR, "k": 2, "method": "split", "generator": gen(), "noise": 0.1, "units": [0, 1],
        }),
        Call(N + "widen/zero_out", growth.widen, {
            "params": PAIRED, "pair": PAIR, "k": 2, "method": "zero_out", "draws": randn(2, 7),
        }, ("params", "pair")),
        Call(N + "Heads", growth.Heads, {"q": "q", "k": "k", "v": "v", "out": "o", "n_heads": 4, "n_kv_heads": 2}),
        Call(N + "Heads.plus", HEADS.plus, {"n": 1}),
        Call(N + "widen/heads", growth.widen, {
            "params": ATTENTION, "pair": HEADS, "k": 2, "method": "split", "generator": gen(), "noise": 0.1, "units": [0, 1],
        }),
        Call(N + "add_heads", growth.add_heads, {
            "params": ATTENTION, "heads": HEADS, "n": 2, "method": "split", "generator": gen(), "noise": 0.1, "units": [0, 1],
        }),
        Call(N + "add_heads/zero_out", growth.add_heads, {
            "params": ATTENTION, "heads": HEADS, "n": 1, "method": "zero_out", "draws": randn(1, 30),
        }, ("params", "heads")),
        Call(N + "head_scores", growth.head_scores, {"params": ATTENTION, "heads": HEADS}),
        Call(N + "prune/heads", growth.prune, {"params": ATTENTION, "pair": HEADS, "units": [0]}),
        Call(N + "grow_like/heads", growth.grow_like, {
            "state": {"m": ATTENTION}, "params": ATTENTION, "grown": growth.widen(ATTENTION, HEADS, 1), "heads": HEADS,
        }, ("state",)),
        Call(N + "widen_stream", growth.widen_stream, {
            "params": STREAM, "layers": STREAM_ROLES, "k": 2, "norm": "layer", "draws": randn(2, 7),
        }),
        Call(N + "add_classes", growth.add_classes, {
            "params": PAIRED, "layer": "output", "n": 2, "weight": "mean", "probability": 0.1, "layout": "out_in",
        }),
        Call(N + "deepen", growth.deepen, {
            "params": PAIRED, "after": "hidden", "name": "new", "bias": True, "layout": "out_in",
        }, ("name",)),
        Call(N + "prune", growth.prune, {"params": PAIRED, "pair": PAIR, "units": [2, 0], "stats": stats, "ridge": 0.1}),
        Call(N + "prune/tensor", growth.prune, {"params": PAIRED, "pair": PAIR, "units": torch.tensor([2, 0])}, ("params",)),
        Call(N + "prune/sigma0", growth.prune, {"params": PAIRED, "pair": PAIR, "units": [2], "sigma0": 0.5}, ("params",)),
        Call(N + "prune/f", growth.prune, {
            "params": PARAMS, "pair": PAIR, "units": [1], "f": user_f, "x": NET.x,
        }, ("params", "f", "x")),
        Call(N + "widen/f", growth.widen, {
            "params": PARAMS, "pair": PAIR, "k": 1, "f": user_f, "x": NET.x,
        }, ("params", "f", "x")),
        Call(N + "cut", growth.cut, {"params": PAIRED, "pair": PAIR, "units": [1]}),
        Call(N + "restore", growth.restore, {"params": smaller, "pair": PAIR, "removed": removed}),
        Call(N + "unit_scores", growth.unit_scores, {"params": PAIRED, "pair": PAIR, "stats": stats}),
        Call(N + "weakest_units", growth.weakest_units, {"scores": scores, "keep": 2}),
        Call(N + "rescale", growth.rescale, {"params": PAIRED, "pair": PAIR, "k": 2, "kind": "default"}),
        Call(N + "grow_like", growth.grow_like, {"state": {"m": moved}, "params": PAIRED, "grown": grown, "fill": "zero"}),
        Call(N + "prune_like", growth.prune_like, {"state": {"m": moved}, "params": PAIRED, "pair": PAIR, "units": [3, 0]}),
        Call(N + "swap_parameters", swapped, {"params": PAIRED, "grown": grown, "fill": "zero"}),
    ]  # fmt: skip


def of_graphs() -> list[Call]:
    m, N = made(), "growth."
    gstats, params = m["gstats"], m["graph_params"]
    data = (randn(12, 2), TARGET)
    units = growth.new_node(gstats, ["x", "b"], "y", 2, nnf.softplus)
    edge = growth.new_edge(gstats, "b", "y")
    found = growth.candidates(gstats, 1, torch.tanh)
    relu = Graph((Node("x", 2), Node("h", 1, torch.relu), Node("y", 3)), ("x->h", "h->y"))
    relu_params = relu.init(gen())
    relu_stats = growth.graph_statistics(relu, relu_params, data)
    wider = growth.wider_node(relu_stats, "h", 1)
    G = N + "Graph."
    return [
        Call(N + "Node", growth.Node, {"name": "h", "width": 2, "activation": torch.tanh}),
        Call(N + "Graph", growth.Graph, {"nodes": GRAPH.nodes, "edges": GRAPH.edges, "identities": GRAPH.identities}),
        Call(G + "init", GRAPH.init, {"generator": gen(), "dtype": F32}),
        Call(G + "apply", GRAPH.apply, {"params": params, "x": data[0]}),
        Call(G + "values", GRAPH.values, {"params": params, "x": data[0]}),
        Call(G + "check", GRAPH.check, {"params": params}),
        Call(G + "node", GRAPH.node, {"name": "a"}),
        Call(G + "parents", GRAPH.parents, {"name": "a"}),
        Call(G + "children", GRAPH.children, {"name": "a"}),
        Call(G + "has_bias", GRAPH.has_bias, {"name": "a"}),
        Call(G + "reaches", GRAPH.reaches, {"u": "x", "v": "y"}),
        Call(G + "with_edge", GRAPH.with_edge, {"u": "b", "v": "y"}),
        Call(G + "with_node", GRAPH.with_node, {"node": Node("c", 2), "sources": ["x"], "targets": ["y"]}),
        Call(G + "with_width", GRAPH.with_width, {"name": "b", "width": 3}),
        Call(N + "graph_statistics", growth.graph_statistics, {
            "graph": GRAPH, "params": params, "data": data, "loss": "cross_entropy",
        }),
        Call(N + "GraphStatistics.__add__", lambda other: gstats + other, {"other": gstats}),
        Call(N + "GraphStatistics.between", gstats.between, {
            "sources": ["x", "b"], "targets": ["a", "y"], "activation": torch.tanh,
        }),
        Call(N + "node_delta", growth.node_delta, {"gstats": gstats, "node": "y", "ridge": 0.1}),
        Call(N + "new_edge", growth.new_edge, {"gstats": gstats, "u": "b", "v": "y", "target": "residual", "ridge": 0.1}),
        Call(N + "new_node", growth.new_node, {
            "gstats": gstats, "sources": ["x", "b"], "targets": "y", "k": 2, "activation": nnf.gelu, "name": "new",
            "target": "residual", "ridge": 0.1,
        }),
        Call(N + "wider_node", growth.wider_node, {
            "gstats": relu_stats, "node": "h", "k": 1, "target": "gradient", "ridge": 0.1,
        }),
        Call(N + "candidates", growth.candidates, {
            "gstats": gstats, "k": 1, "activation": torch.tanh, "target": "residual", "ridge": 0.1,
        }),
        Call(N + "Candidates.take", found.take, {"n": 1, "by": "gain"}),
        Call(N + "choose_graph_sign", growth.choose_graph_sign, {
            "graph": relu, "params": relu_params, "data": data, "items": wider, "loss": "cross_entropy",
        }),
        Call(N + "grow_graph", growth.grow_graph, {"graph": GRAPH, "params": params, "items": [units, edge], "scale": 0.5}),
        Call(N + "carry_graph", growth.carry_graph, {
            "state": {"m": params}, "params": params, "grown": growth.grow_graph(GRAPH, params, [units])[1],
        }),
    ]  # fmt: skip


def of_ranks() -> list[Call]:
    N, low = "growth.", linmaps.LowRank(5, 4, 2)
    params, G = low.init(gen()), randn(5, 4)
    eye = (torch.eye(5), torch.eye(4))
    return [
        Call(N + "grow_rank", growth.grow_rank, {"spec": low, "params": params, "k": 1, "generator": gen()}),
        Call(N + "grow_rank/gradient", growth.grow_rank, {
            "spec": low, "params": params, "k": 1, "gradient": G, "fisher": eye, "ridge": 1e-4,
        }),
        Call(N + "reduce_rank", growth.reduce_rank, {"spec": low, "params": params, "k": 1}),
        Call(N + "rank_scores", growth.rank_scores, {
            "spec": low, "params": params, "gradient": G, "k": 1, "fisher": eye, "ridge": 1e-4, "n_steps": 4,
        }),
    ]  # fmt: skip


def of_training() -> list[Call]:
    m, N = made(), "growth."
    order = growth.shuffles(12, [1, 1], 6, generator=gen())
    tree = {"w": torch.tensor([0.3, -0.7])}
    sgd, adam = growth.sgd(0.1), growth.adam(0.1)
    one = torch.tensor(0.4)
    return [
        Call(N + "fit_and_grow", growth.fit_and_grow, {
            "f": user_f, "params": PARAMS, "data": DATA, "pair": PAIR, "order": order, "target": 6, "k": 2,
            "loss": "cross_entropy", "optimizer": sgd, "scale": (0.1, 0.1), "ridge": 0.1,
        }, ("f", "params", "pair")),
        Call(N + "fit_and_grow/batches", growth.fit_and_grow, {
            "f": user_f, "params": PARAMS, "data": [DATA, DATA], "pair": [PAIR], "order": [1, 1], "target": [6], "k": 2,
            "optimizer": adam, "choose": "slope", "scale": (0.1, 0.1), "generator": gen(),
        }, ("f", "params", "pair", "data")),
        Call(N + "step", growth.step, {
            "f": user_f, "params": PARAMS, "data": DATA, "pair": PAIR, "k": 2, "loss": "cross_entropy", "scale": (0.1, 0.1),
            "ridge": 0.1,
        }, ("f", "params", "pair")),
        Call(N + "sgd", growth.sgd, {"lr": 0.1, "momentum": 0.9}),
        Call(N + "adam", growth.adam, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}),
        Call(N + "sgd.init", sgd.init, {"params": tree}),
        Call(N + "adam.init", adam.init, {"params": tree}),
        Call(N + "shuffles", growth.shuffles, {"n": 12, "epochs": [1, 1], "batch": 6, "generator": gen()}),
        Call(N + "fixed_proportional", growth.fixed_proportional, {"initial": 2, "target": 8, "steps": 3}),
        Call(N + "geometric", growth.geometric, {"initial": 2, "target": 8, "steps": 3}),
        Call(N + "in_steps_of", growth.in_steps_of, {"initial": 2, "target": 8, "k": 2}),
        Call(N + "to_target", growth.to_target, {"current": 2, "target": 8, "most": 3}),
        Call(N + "senn_score", growth.senn_score, {"stats": m["stats"], "ridge": 0.1, "new": m["new"], "of": "new"}),
        Call(N + "senn_trigger", growth.senn_trigger, {"added": one, "current": 2 * one, "ratio": 2.0, "least": 0.1}),
        Call(N + "north_score", growth.north_score, {"stats": m["stats"], "eps": 0.01}),
        Call(N + "north_trigger", growth.north_trigger, {
            "score": one + 0.5, "baseline": one + 0.3, "width": 40, "gamma": 0.97, "most": 8,
        }),
        Call(N + "gradmax_score", growth.gradmax_score, {"stats": m["stats"], "k": 2}),
        Call(N + "by_gain", growth.by_gain, {"gains": torch.linspace(0, 2, 5), "least": 0.1, "relative": 0.3, "most": 2}),
    ]  # fmt: skip


def calls() -> list[Call]:
    return [*of_statistics(), *of_closed_forms(), *of_surgery(), *of_graphs(), *of_ranks(), *of_training()]
