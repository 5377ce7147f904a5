"""The names of options: what a Literal lists for type checkers is what is taken when the program runs, no more and no less."""

import dataclasses
import re
import typing

import pytest
import torch
import torch.nn.functional as nnf

import fisher
import growth
import linmaps
from fisher.function_space.fmat import Kernel
from fisher.iterative import traces
from fisher.likelihoods.columns import Estimator
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.acting import Kind, Reduction
from fisher.pmat.contract.cuts import Over
from fisher.pmat.contract.pmat import Ord
from fisher.pmat.matrix_free.matrixfree import Diagonal, Trace
from fisher.recipes import influences, pruning, surgeon
from fisher.recipes.optimizers.curvature import Damped
from fisher.recipes.posterior import links, tuning
from fisher.reducers.base import Sharing
from growth.carry.carrier import Fill
from growth.carry.orders import OrderName
from growth.checks.losses import LossName
from growth.closed_form import initialization, normalization
from growth.closed_form.neurons import Target
from growth.graph.table import By
from growth.moments.metric import InputMetric, OutputMetric
from growth.reading.link import Taps
from growth.reading.pairs import LayoutName
from growth.strategies import from_rows, rows
from growth.surgery import classes, rescaling, widening
from growth.surgery.heads import HeadMethod
from growth.surgery.stream_width import Norm
from growth.training.choice import Choose
from growth.training.scores import Of
from linmaps.factorized.convolutions.axes import Padding
from linmaps.factorized.convolutions.conv import ConvFactorization
from linmaps.factorized.kinds.base import Side
from linmaps.factorized.kinds.names import FactorizationName, Implementation
from linmaps.families.eigenvalues import power_bound
from linmaps.families.entries import doubly_stochastic, gates, positive, unit_norm
from linmaps.families.patterns import butterfly, triangular
from linmaps.families.singular_values import bounded, orthogonal
from linmaps.families.symmetries import damped

f = lambda p, x: x @ p["w"]
P, X, CLASSES = {"w": torch.ones(2, 3)}, torch.eye(2).repeat(2, 1), torch.zeros(4, dtype=torch.long)
F, DENSE, LAZY = (fisher.fim(f, P, X, R) for R in (fisher.PMatKFAC, fisher.PMatDense, fisher.PMatImplicit))
DATA = {"cross_entropy": (X, CLASSES), "squared_error": (X, f(P, X))}

layer = lambda p, x: nnf.linear(x, p["weight"], p["bias"])
net = lambda p, x: layer(p["b"], torch.tanh(layer(p["a"], x)))
LAYERS = {n: {"weight": torch.eye(2), "bias": torch.ones(2)} for n in ("a", "b")}
ATTENTION = {n: torch.eye(2) for n in "qkvo"}
ROWS, ROLES = {"e": torch.eye(2), "n": torch.ones(2), "r": torch.eye(2)}, {"embeddings": ["e"], "readers": ["r"]}
PAIR = growth.Pair("a", "b", activation=torch.tanh)
STATS = from_rows(*rows(0, 20, 2, 2, 2))
NEW = dataclasses.replace(growth.optimal_neurons(STATS, 1), pair=None)
GRAPH = growth.Graph((growth.Node("x", 2), growth.Node("y", 1)))
CONV = linmaps.FactorizedConv(2, 2, (3,), rank=1)
FACTORIZED = linmaps.Factorized((2, 2), rank=1)
TABLE = growth.Candidates((), GRAPH)


def drawn():
    return torch.Generator().manual_seed(0)


def of_solve(kind):
    """By the representations that have it; none has another."""
    kinds = [fisher.PMatDense(torch.eye(6), F.layout), F, fisher.PMatLowRank({"w": torch.ones(1, 2, 3)}), LAZY]
    found = [R for R in kinds if kind in R.kinds]
    for R in found:
        R.solve(P, 1.0, kind=kind)
    if not found:
        raise ValueError(f"got {kind!r}, expected one of {[k for R in kinds for k in R.kinds]}")


POSTERIOR = fisher.recipes.laplace(f, P, F, 4)

NAMES = [  # an alias, and a call that takes each of its names and refuses all others
    (LikelihoodName, lambda n: fisher.likelihoods.likelihood(n)),
    (Estimator, lambda n: fisher.fim(f, P, (X, CLASSES), estimator=n, generator=drawn() if n == "mc" else None)),
    (Sharing, lambda n: fisher.fim(f, P, X, sharing=n)),
    (Kernel, lambda n: fisher.gram(f, P, X, kind=n)),
    (influences.LossName, lambda n: fisher.recipes.self_influence(f, P, DATA.get(n), DENSE, loss=n, regul=1.0)),
    (
        influences.Aggregate,
        lambda n: fisher.recipes.influence(
            f, P, DATA["cross_entropy"], DENSE, DATA["cross_entropy"], aggregate=n, regul=1.0
        ),
    ),
    (surgeon.Blocks, lambda n: fisher.recipes.surgeon_scores(F, P, blocks=n, regul=1.0)),
    (pruning.Method, lambda n: fisher.recipes.pruning_scores(DENSE, P, method=n, regul=1.0)),
    (Damped, lambda n: fisher.recipes.kfac(f, kind=n)),
    (Kind, of_solve),
    (Over, lambda n: DENSE.pinv(over=n)),
    (Ord, lambda n: DENSE.norm(n)),
    (Reduction, lambda n: F.mapTMmap(fisher.jacobian(f, P, X), n)),
    (Trace, lambda n: LAZY.trace(method=n, generator=None if n == "exact" else drawn())),
    (Diagonal, lambda n: LAZY.get_diag(method=n, generator=None if n == "exact" else drawn())),
    (traces.Estimator, lambda n: traces.trace(lambda Z: Z, torch.ones(6, 6), n)),
    (LossName, lambda n: growth.statistics(net, LAYERS, (X, CLASSES if n == "cross_entropy" else X), PAIR, n)),
    (Taps, lambda n: growth.statistics(net, LAYERS, (X, X), PAIR, "squared_error", taps=n)),
    (Target, lambda n: growth.optimal_neurons(STATS, 1, n)),
    (
        Target,
        lambda n: growth.new_edge(
            growth.graph_statistics(GRAPH, GRAPH.init(drawn()), (X, X[:, :1]), "squared_error"), "x", "y", target=n
        ),
    ),
    (InputMetric, lambda n: growth.optimal_neurons(STATS, 1, input_metric=n)),
    (OutputMetric, lambda n: growth.optimal_neurons(STATS, 1, output_metric=n)),
    (initialization.RuleName, lambda n: growth.initialize(LAYERS, PAIR, 1, fan_in=n, generator=drawn())),
    (normalization.Kind, lambda n: growth.normalize(NEW, None, LAYERS, PAIR, kind=n)),
    (rescaling.Kind, lambda n: growth.rescale(LAYERS, growth.Pair("a", "b"), 1, kind=n)),
    (widening.Method, lambda n: growth.widen(LAYERS, PAIR, 2, n, drawn())),
    (Norm, lambda n: growth.widen_stream(ROWS, ROLES | ({} if n == "none" else {"norms": ["n"]}), 1, drawn(), norm=n)),
    (HeadMethod, lambda n: growth.add_heads(ATTENTION, growth.Heads("q", "k", "v", "o", 2), 1, n, drawn())),
    (
        Choose,
        lambda n: growth.fit_and_grow(
            net, LAYERS, (X, X), [PAIR], order=[CLASSES[:0, None]] * 2, target=3, k=1, loss="squared_error", choose=n
        ),
    ),
    (Of, lambda n: growth.senn_score(STATS, of=n)),
    (LayoutName, lambda n: growth.Pair("a", "b", layout=n)),
    (classes.Rows, lambda n: growth.add_classes(LAYERS, "a", 1, weight=n)),
    (By, lambda n: TABLE.take(1, by=n)),
    (Fill, lambda n: growth.grow_like(LAYERS, LAYERS, LAYERS, fill=n)),
    (OrderName, lambda n: growth.grow_like(LAYERS, LAYERS, LAYERS, order=n)),
    (FactorizationName, lambda n: linmaps.Factorized((2, 2), factorization=n)),
    (ConvFactorization, lambda n: linmaps.FactorizedConv(2, 2, (3,), factorization=n)),
    (Implementation, lambda n: linmaps.Factorized((2, 2), implementation=n)),
    (Implementation, lambda n: linmaps.FactorizedConv(2, 2, (3,), implementation=n)),
    (Side, lambda n: FACTORIZED.transduct(FACTORIZED.init(drawn()), 3, side=n)),
    (Padding, lambda n: CONV.apply_conv(CONV.init(drawn()), torch.ones(1, 2, 5), padding=n)),
    (butterfly.Blocks, lambda n: linmaps.Butterfly(4, blocks=n)),
    (orthogonal.Method, lambda n: linmaps.Orthogonal(4, method=n)),
    (bounded.Norm, lambda n: linmaps.BoundedNorm(4, p=n)),
    (damped.Time, lambda n: linmaps.DampedSkewSymmetric(4, time=n)),
    (gates.Gate, lambda n: linmaps.L0(4, gate=n)),
    (links.Link, lambda n: POSTERIOR.probabilities(X, link=n, generator=drawn() if n == "mc" else None)),
    (tuning.By, lambda n: fisher.recipes.tune_prior_precision(fisher.recipes.laplace(f, P, DENSE, 4), by=n)),
    (positive.Positive, lambda n: linmaps.NonNegative(4, method=n)),
    (positive.Positive, lambda n: linmaps.Split(4, method=n)),
    (doubly_stochastic.Method, lambda n: linmaps.DoublyStochastic(4, method=n)),
    (unit_norm.Axis, lambda n: linmaps.UnitNorm(4, axis=n)),
    (unit_norm.Axis, lambda n: linmaps.WeightNorm(4, axis=n)),
    (triangular.Diagonals, lambda n: linmaps.Triangular(4, diagonal=n)),
    (power_bound.Method, lambda n: linmaps.PowerBound(4, method=n)),
]


@pytest.mark.parametrize(("alias", "call"), NAMES)
def test_a_literal_lists_what_is_taken(alias, call):
    names = typing.get_args(alias)
    for name in names:
        call(name)
    with pytest.raises(ValueError, match=r"\?") as refused:
        call("?")
    words = str(refused.value).partition("expected")[2] or str(refused.value)
    assert {str(name) for name in names} <= set(re.findall(r"-?[\w+]+", words)), words
    for other in set(re.findall(r"""['"]([\w+]+)['"]""", words)) - set(names):
        with pytest.raises((TypeError, ValueError)):
            call(other)
