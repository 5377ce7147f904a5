"""Laws of bags: by a lookup and a sum they are torch's own, and their table has factors."""

import pytest
import torch
import torch.nn.functional as F

import fisher
from fisher.collector.calls.bags import embedding_bag
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

INDEX = torch.tensor([[0, 2, 2], [3, 0, 0], [1, 4, 3], [0, 0, 0]])
OPTIONS = {
    "mean": {},
    "sum": {"mode": "sum"},
    "padding": {"padding_idx": 0},
    "padding from the end": {"padding_idx": -5, "mode": "sum"},
    "weighted": {"mode": "sum", "per_sample_weights": randn(4, 3, seed=3)},
    "weighted, padding": {"mode": "sum", "per_sample_weights": randn(4, 3, seed=3), "padding_idx": 0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bag_is_torchs_own(name):
    w = randn(5, 2)
    close(embedding_bag(INDEX, w, **OPTIONS[name]), F.embedding_bag(INDEX, w, **OPTIONS[name]), 1e-12, name)


@pytest.mark.parametrize("options", [{"mode": "max"}, {"max_norm": 1.0}])
def test_what_is_no_sum_is_left_to_torch(options):
    assert embedding_bag(INDEX, randn(5, 2), **options) is None


@pytest.mark.parametrize("name", ["mean", "sum", "padding", "padding from the end"])
def test_the_table_of_a_bag_has_factors(name):
    f = lambda p, x: torch.tanh(F.embedding_bag(x, p["w"], **OPTIONS[name])) @ p["v"]
    params = {"w": randn(5, 2, seed=1), "v": randn(2, 3, seed=2)}
    layers = fisher.LayerCollection.from_function(f, params, INDEX)
    assert [(l.name, l.kind) for l in layers] == [("v", "matmul"), ("w", "embedding")]
    want = fisher_matrix(f, params, INDEX, "gaussian")
    made = fisher.fim(f, params, INDEX, fisher.PMatDense, "gaussian", layers=layers)
    close(made.matrix, want, 1e-10, "dense")
    diagonal = fisher.fim(f, params, INDEX, fisher.PMatDiag, "gaussian", layers=layers).get_diag()
    close(trees.ravel(diagonal)[0], want.diagonal(), 1e-10, "diagonal")
