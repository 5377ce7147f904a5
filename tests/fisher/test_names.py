"""Leaves whose dotted names are equal have blocks of their own in every representation."""

import pytest
import torch

import fisher
import growth
from linmaps import trees


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = randn(5, 3, seed=9)
MODELS = {
    "a flat key with a dot and nested keys": (
        lambda p, x: x @ p["a.b"] + torch.tanh(x @ p["a"]["b"]),
        {"a.b": randn(3, 2, seed=0), "a": {"b": randn(3, 2, seed=1)}},
    ),
    "a number and its string": (
        lambda p, x: x @ p["n"][1] + torch.tanh(x @ p["n"]["1"]),
        {"n": {1: randn(3, 2, seed=0), "1": randn(3, 2, seed=1)}},
    ),
    "a layer and a leaf": (
        lambda p, x: x @ p["h"] + torch.tanh(torch.nn.functional.linear(x, p["h.weight"], p["h.bias"])),
        {"h": randn(3, 2, seed=0), "h.weight": randn(2, 3, seed=1), "h.bias": randn(2, seed=2)},
    ),
}
KINDS = [
    "PMatDiag",
    "PMatBlockDiag",
    "PMatQuasiDiag",
    "PMatKFAC",
    "PMatEKFAC",
    "PMatMixed",
    "PMatLowRank",
    "PMatImplicit",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_has_its_own_block(name, kind):
    f, params = MODELS[name]
    layers = fisher.LayerCollection.from_function(f, params, X)
    assert len({layer.name for layer in layers}) == len(layers)
    F = fisher.fim(f, params, X, getattr(fisher, kind), likelihood="gaussian")
    dense = fisher.fim(f, params, X, fisher.PMatDense, likelihood="gaussian")
    assert F.size() == dense.size()
    assert F.trace() > 0
    if kind in ("PMatDiag", "PMatBlockDiag", "PMatQuasiDiag", "PMatEKFAC", "PMatLowRank"):
        assert torch.allclose(F.trace(), dense.trace())
    if kind in ("PMatDiag", "PMatBlockDiag", "PMatQuasiDiag", "PMatLowRank"):
        assert torch.allclose(trees.ravel(F.get_diag())[0], dense.to_torch().diagonal())
    v = trees.map(torch.sin, params)
    assert torch.allclose(
        trees.ravel(F.mv(F.solve(v, regul=1.0)))[0] + trees.ravel(F.solve(v, regul=1.0))[0], trees.ravel(v)[0]
    )


def test_growth_names_the_layers_that_it_can_tell_apart():
    params = {"a.weight": randn(3, 2, seed=0), "a": {"weight": randn(3, 2, seed=1)}, "b.weight": randn(1, 3, seed=2)}
    with pytest.raises(ValueError, match=r"a: 2 leaves of params are a.weight, at the keys \[.*\('a', 'weight'\)"):
        growth.widen(params, growth.Pair("a", "b"), 1)
