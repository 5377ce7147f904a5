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


def test_a_part_without_leaves_is_parametrized():
    spec = linmaps.Block(((linmaps.Symmetric(2), None), (None, linmaps.Identity(1))))
    layer = linmaps.parametrize(torch.nn.Linear(3, 3, bias=False), "weight", spec)
    assert torch.equal(layer.weight, layer.weight.T)
    assert layer.weight[2, 2] == 1
