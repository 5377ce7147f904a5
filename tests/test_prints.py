"""What records print: a line of at most 140 characters for each, of an ensemble too; tables where there are rows."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
import linmaps
from fisher.recipes import Damping, compiled_step, functional_laplace, laplace, natural_gradient_step
from fisher.recipes import kfac as kfac_optimizer
from linmaps import trees

G = torch.Generator().manual_seed(0)
X, T = torch.randn(12, 5, generator=G), torch.arange(12) % 3
MODEL = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
F, PARAMS = fisher.functional(MODEL)
PAIR = growth.Pair("0", "2")
GRAPH = growth.Graph((growth.Node("x", 5), growth.Node("h", 2, torch.tanh), growth.Node("y", 3)), ("x->h", "h->y"))
GRAPH_PARAMS = GRAPH.init(G)


def loss(params):
    return nn.functional.cross_entropy(F(params, X), T)


def statistics(params=PARAMS):
    return growth.statistics(F, params, (X, T), PAIR)


def graph_statistics():
    return growth.graph_statistics(GRAPH, GRAPH_PARAMS, (X, T))


def kfac():
    return fisher.fim(F, PARAMS, X)


LINES = {
    "Compiled": lambda: trees.compiled(loss, PARAMS, backend="eager"),
    "CompiledGraph": lambda: trees.compiled(loss, PARAMS, backend="eager").graphs[0],
    "Statistics": statistics,
    "Delta": lambda: growth.optimal_delta(statistics(), 0.1),
    "Neurons": lambda: growth.optimal_neurons(statistics(), 2),
    "Removed": lambda: growth.cut(PARAMS, PAIR, [0])[1],
    "StandardErrors": lambda: growth.standard_errors([statistics(), statistics()]),
    "Step": lambda: growth.fit_and_grow(
        F, PARAMS, (X, T), PAIR, order=growth.shuffles(12, [1, 1], 6, generator=G), target=5, k=1
    ).steps[1],
    "GrowthStep": lambda: growth.step(F, PARAMS, (X, T), PAIR, 2),
    "GraphStatistics": graph_statistics,
    "NodeDelta": lambda: growth.node_delta(graph_statistics(), "y"),
    "NewEdge": lambda: growth.new_edge(graph_statistics(), "x", "y"),
    "NewUnits": lambda: growth.wider_node(graph_statistics(), "h", 2),
    "Pair": lambda: str(growth.Pair("net.0", ("net", 2), norm="net.1")),
    "Gated": lambda: str(growth.Gated("net.gate", ("net", "up"), "net.down")),
    "Gated of a packed layer": lambda: str(growth.Gated(None, None, "net.down", packed="net.gate_up", order="up_gate")),
    "Reading": lambda: growth.Reading.from_function(F, PARAMS, X, PAIR),
    "Laplace": lambda: laplace(F, PARAMS, kfac(), 12),
    "FunctionalLaplace": lambda: functional_laplace(F, PARAMS, X, temperature=0.5),
    "NaturalStep": lambda: natural_gradient_step(loss, PARAMS, kfac(), PARAMS, Damping(torch.tensor(0.1))),
    "Damping": lambda: Damping(torch.tensor(0.1)),
    "CompiledStep": lambda: compiled_step(loss, kfac_optimizer(F), backend="eager"),
    "KFACState": lambda: kfac_optimizer(F, estimator="exact").init(PARAMS, (X, T)),
    "Mean": lambda: fisher.Mean().add(PARAMS, 4),
    "Mean of a matrix": lambda: fisher.Mean().add(kfac(), 4),
    "PMatKFAC": kfac,
    "PFMapDense": lambda: fisher.jacobian(F, PARAMS, X),
    "FMatDense": lambda: fisher.gram(F, PARAMS, X),
    "Factorization": lambda: linmaps.factorize(MODEL[0], rank=2),
}
TABLES = {
    "Fit": lambda: growth.fit_and_grow(
        F, PARAMS, (X, T), PAIR, order=growth.shuffles(12, [1, 1], 6, generator=G), target=5, k=1
    ),
    "Search": lambda: growth.line_search(F, PARAMS, (X, T), PAIR, growth.optimal_neurons(statistics(), 2), None),
    "Comparison": lambda: growth.compare([PAIR], None, [growth.optimal_delta(statistics(), 0.1)]),
    "Candidates": lambda: growth.candidates(graph_statistics(), 2, torch.tanh),
    "LayerCollection": lambda: fisher.LayerCollection.from_function(F, PARAMS, X),
}


@pytest.mark.parametrize("name", LINES)
def test_a_record_is_a_line(name):
    made = LINES[name]()
    text = made if isinstance(made, str) else repr(made)
    assert "\n" not in text
    assert len(text) <= 140
    assert "tensor(" not in text
    assert "<function" not in text
    assert text.startswith(name.split()[0]) or name == "Factorization"


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_a_table(name):
    lines = repr(TABLES[name]()).split("\n")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 120
    assert "tensor(" not in "\n".join(lines)


def test_every_public_record_of_tensors_is_listed():
    """A record without a print of its own would show all its tensors."""
    public = {
        thing for p in (fisher, growth, fisher.recipes) for n in p.__all__ if isinstance(thing := getattr(p, n), type)
    }
    records = {
        c for c in public if dataclasses.is_dataclass(c) and any("Tensor" in str(f.type) for f in dataclasses.fields(c))
    }
    shown = {type(make()).__name__ for make in (*LINES.values(), *TABLES.values())}
    covered = {c for c in records if c.__name__ in shown or issubclass(c, fisher.PMat)}
    assert {c.__name__ for c in records - covered} <= {"PFMapImplicit"}


def test_of_an_ensemble_and_inside_of_transforms():
    both = trees.stack([PARAMS, trees.map(lambda t: 2 * t, PARAMS)])
    stats = vmap(statistics)(both)
    new = vmap(lambda s: growth.optimal_neurons(s, 2))(stats)
    delta = vmap(lambda s: growth.optimal_delta(s, 0.1))(stats)
    assert "2 of 2 units" in repr(new)
    assert "2 of 3 x 4 + bias" in repr(delta)
    assert "±" in repr(new)
    seen = []
    vmap(lambda p: seen.append(repr(growth.optimal_delta(statistics(p), 0.1))) or p["0.bias"])(both)
    torch.func.grad(lambda p: seen.append(repr(statistics(p))) or loss(p))(PARAMS)
    assert all("\n" not in text and "tensor(" not in text for text in seen)


def test_placeholders_do_not_break_it():
    """pytrees put other things than tensors into records."""
    for make in (LINES["Delta"], LINES["Neurons"], LINES["Statistics"], LINES["Laplace"], LINES["FunctionalLaplace"]):
        leaves, treedef = trees.flatten(make())
        assert repr(treedef.unflatten(range(len(leaves))))
