"""Closed-form growth of networks, as pure functions of parameter pytrees.

A growth step: one pass over data, two small solves, an enlarged tree; the optimizer's state goes along.

>>> import torch, growth
>>> f = lambda p, x: torch.tanh(x @ p["hidden"]["weight"].T + p["hidden"]["bias"]) @ p["output"]["weight"].T
>>> params = {"hidden": {"weight": torch.eye(2), "bias": torch.zeros(2)}, "output": {"weight": torch.ones(3, 2)}}
>>> data, pair = (torch.eye(2), torch.tensor([0, 2])), growth.Pair(before="hidden", after="output")
>>> stats = growth.statistics(f, params, data, pair)
>>> delta = growth.optimal_delta(stats)
>>> new = growth.choose_sign(f, params, data, pair, growth.optimal_neurons(stats, k=2, target="gradient"))
>>> grown = growth.grow(params, pair, new, delta=delta, scale=(0.5, 1.0))
>>> grown["hidden"]["weight"].shape, grown["output"]["weight"].shape
(torch.Size([4, 2]), torch.Size([3, 4]))
>>> state = growth.grow_like({"momentum": params}, params, grown)

The delta is subtracted, new units are added and come last; `decrease` and `gain` are slopes of the mean loss.
`growth.interop.coming_from("gromo")` is a table of its names beside ours.

Rooms, each built on those before it, and what they are asked for:
    beside        that fisher is this one
    checks/       what functions are given
    reading/      what a pair of layers is in the params, and in f: Pair, Sum, Gated, Heads, Reading
    moments/      first-order statistics, one pass over data: statistics; output_fisher, with_fisher
    closed_form/  the best change and the best new units: optimal_delta, optimal_neurons, tiny, gradmax, senn, random,
                  zero_in, zero_out, initialize, paired, normalize, choose_sign, truncate, keep, compact,
                  gradient_norms, scale_neurons, merge_neurons; noise_floor, split_floor, split_half, standard_errors
    surgery/      enlarged, narrowed, rescaled params: grow, apply_extended, widen, deepen, rescale, prune, cut,
                  restore, unit_scores, weakest_units, add_heads, head_scores, widen_stream, add_classes,
                  add_parameters, layer_in_extension, layer_out_extension
    rank/         more or fewer ranks of factorized maps: grow_rank, reduce_rank, rank_scores
    gated/        units whose gate rows are searched: gated_neurons
    carry/        optimizer states, averages, Fisher matrices go along: grow_like, prune_like, swap_parameters
    training/     when, where, how much: step, fit_and_grow, line_search, compare, improvement, senn_score, north_score,
                  gradmax_score, senn_trigger, north_trigger; fixed_proportional, geometric, in_steps_of, to_target,
                  by_gain; shuffles, sgd, adam
    graph/        graphs of layers: Graph, Node, graph_statistics, node_delta, new_edge, new_node, wider_node,
                  candidates, choose_graph_sign, grow_graph, carry_graph
    interop/      modules: into_module; other libraries: coming_from
    strategies    Hypothesis strategies (needs hypothesis)
"""

from growth import beside, interop  # noqa: F401  # beside first: it says where another fisher is in the way
from growth.carry.optimizers import swap_parameters
from growth.carry.state import grow_like, prune_like
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.initialization import initialize, paired
from growth.closed_form.neurons import optimal_neurons
from growth.closed_form.noise import StandardErrors, noise_floor, split_floor, split_half, standard_errors
from growth.closed_form.normalization import normalize
from growth.closed_form.presets import gradient_norms, gradmax, random, senn, tiny, zero_in, zero_out
from growth.closed_form.select import compact, keep, merge_neurons, scale_neurons, truncate
from growth.closed_form.signs import choose_sign
from growth.closed_form.units import Neurons
from growth.gated.search import gated_neurons
from growth.graph.carried import carry_graph
from growth.graph.closed_form import new_edge, new_node, node_delta, wider_node
from growth.graph.expansions import NewEdge, NewUnits, NodeDelta
from growth.graph.nodes import Graph, Node
from growth.graph.signs import choose_graph_sign
from growth.graph.statistics import GraphStatistics, graph_statistics
from growth.graph.step import grow_graph
from growth.graph.table import Candidates, candidates
from growth.interop.modules import into_module
from growth.moments.accumulation import statistics
from growth.moments.exact import output_fisher, with_fisher
from growth.moments.first_order import Statistics
from growth.rank import grow_rank, rank_scores, reduce_rank
from growth.reading.gated_pairs import Gated
from growth.reading.once import Reading
from growth.reading.pairs import Pair, Sum
from growth.reading.transformers.heads import Heads
from growth.surgery.classes import add_classes
from growth.surgery.deepening import deepen
from growth.surgery.enlarge import apply_extended, grow
from growth.surgery.heads import add_heads, head_scores
from growth.surgery.pruning import Removed, cut, prune, restore, unit_scores, weakest_units
from growth.surgery.rescaling import rescale
from growth.surgery.resize import add_parameters, layer_in_extension, layer_out_extension
from growth.surgery.stream_width import widen_stream
from growth.surgery.widening import widen
from growth.training.comparison import Comparison, compare, improvement
from growth.training.descent import Optimizer, adam, sgd
from growth.training.fit import fit_and_grow
from growth.training.growing import GrowthStep, step
from growth.training.schedules import by_gain, fixed_proportional, geometric, in_steps_of, shuffles, to_target
from growth.training.scores import gradmax_score, north_score, north_trigger, senn_score, senn_trigger
from growth.training.search import Search, line_search
from growth.training.steps import Fit, Step
from linmaps import __version__ as __version__

__all__ = [
    "Candidates",
    "Comparison",
    "Delta",
    "Fit",
    "Gated",
    "Graph",
    "GraphStatistics",
    "GrowthStep",
    "Heads",
    "Neurons",
    "NewEdge",
    "NewUnits",
    "Node",
    "NodeDelta",
    "Optimizer",
    "Pair",
    "Reading",
    "Removed",
    "Search",
    "StandardErrors",
    "Statistics",
    "Step",
    "Sum",
    "adam",
    "add_classes",
    "add_heads",
    "add_parameters",
    "apply_extended",
    "by_gain",
    "candidates",
    "carry_graph",
    "choose_graph_sign",
    "choose_sign",
    "compact",
    "compare",
    "cut",
    "deepen",
    "fit_and_grow",
    "fixed_proportional",
    "gated_neurons",
    "geometric",
    "gradient_norms",
    "gradmax",
    "gradmax_score",
    "graph_statistics",
    "grow",
    "grow_graph",
    "grow_like",
    "grow_rank",
    "head_scores",
    "improvement",
    "in_steps_of",
    "initialize",
    "interop",
    "into_module",
    "keep",
    "layer_in_extension",
    "layer_out_extension",
    "line_search",
    "merge_neurons",
    "new_edge",
    "new_node",
    "node_delta",
    "noise_floor",
    "normalize",
    "north_score",
    "north_trigger",
    "optimal_delta",
    "optimal_neurons",
    "output_fisher",
    "paired",
    "prune",
    "prune_like",
    "random",
    "rank_scores",
    "reduce_rank",
    "rescale",
    "restore",
    "scale_neurons",
    "senn",
    "senn_score",
    "senn_trigger",
    "sgd",
    "shuffles",
    "split_floor",
    "split_half",
    "standard_errors",
    "statistics",
    "step",
    "swap_parameters",
    "tiny",
    "to_target",
    "truncate",
    "unit_scores",
    "weakest_units",
    "widen",
    "widen_stream",
    "wider_node",
    "with_fisher",
    "zero_in",
    "zero_out",
]


def __dir__() -> list[str]:
    return sorted(__all__)
