"""A layer whose weight is made of a map is compiled in one graph."""

import pytest
import torch

import linmaps
from tests.linmaps import zoo

PLACES = [
    e
    for e in zoo.ENTRIES
    if e.spec.n_params and e.spec.in_features == e.spec.out_features and not e.spec.bias and not e.spec.complex_W
]
FIRST = [*{(e.spec.name, e.spec.complex_W): e for e in zoo.ENTRIES}.values()]


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in PLACES if zoo.closed_form(e.spec)], ids=zoo.label)
def test_a_parametrized_layer_compiles_without_a_break(entry):
    n = entry.spec.in_features
    layer = linmaps.parametrize(torch.nn.Linear(n, n, bias=False), "weight", entry.spec)
    x = torch.randn(2, n, generator=zoo.generator(0))
    torch._dynamo.reset()
    try:
        compiled = torch.compile(layer, backend="eager", fullgraph=True)(x)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(compiled, layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apply", "solve"])
@pytest.mark.parametrize("entry", FIRST, ids=zoo.label)
def test_a_method_of_a_map_compiles_without_a_break(entry, name):
    """One graph, complex maps too."""
    spec = entry.spec
    if name == "solve" and (spec.in_features != spec.out_features or zoo.KINDS[spec.name].singular(spec)):
        return
    x = torch.randn(2, spec.in_features, generator=zoo.generator(0), dtype=torch.float64)
    params = zoo.random_params(spec, 0)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(getattr(spec, name), backend="eager", fullgraph=True)(params, x)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(compiled, getattr(spec, name)(params, x))


def test_a_part_without_leaves_is_parametrized():
    spec = linmaps.Block(((linmaps.Symmetric(2), None), (None, linmaps.Identity(1))))
    layer = linmaps.parametrize(torch.nn.Linear(3, 3, bias=False), "weight", spec)
    assert torch.equal(layer.weight, layer.weight.T)
    assert layer.weight[2, 2] == 1
