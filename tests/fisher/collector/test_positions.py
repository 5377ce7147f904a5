"""Laws of tables of positions: rows that are added to every example have the factors of a lookup."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import fisher
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

IDS = torch.arange(6)[None]  # a buffer that f closes over
# name: (x with its positions, shape of the table); x [B, T, D] = [5, 3, 4]
ADDED = {
    "x + P": (lambda p, x: x + p, (3, 4)),
    "P + x": (lambda p, x: p + x, (3, 4)),
    "torch.add": (lambda p, x: torch.add(x, p), (3, 4)),
    "the first rows": (lambda p, x: x + p[: x.shape[1]], (6, 4)),
    "rows from the middle": (lambda p, x: x + p[2:5], (6, 4)),
    "narrow": (lambda p, x: x + p.narrow(0, 1, 3), (6, 4)),
    "P[None]": (lambda p, x: x + p[None], (3, 4)),
    "unsqueeze": (lambda p, x: x + p.unsqueeze(0), (3, 4)),
    "a leaf [1, T, D]": (lambda p, x: x + p, (1, 3, 4)),
    "a leaf [1, T, D], its first rows": (lambda p, x: x + p[:, : x.shape[1]], (1, 6, 4)),
    "a leaf [1, T, D], some rows": (lambda p, x: x + p[:, 1:4, :], (1, 6, 4)),
    "embedding of arange": (lambda p, x: x + F.embedding(torch.arange(x.shape[1]), p), (6, 4)),
    "embedding of a buffer": (lambda p, x: x + F.embedding(IDS[:, : x.shape[1]], p), (6, 4)),
    "P[arange]": (lambda p, x: x + p[torch.arange(x.shape[1])], (6, 4)),
    "embedding, then rows of it": (lambda p, x: x + F.embedding(IDS[0], p)[: x.shape[1]], (6, 4)),
    "embedding, another shape": (lambda p, x: x + F.embedding(IDS[0, :3], p).view(1, 3, 4), (6, 4)),
    "positions from the end": (lambda p, x: x + p[torch.tensor([2, 1, 0])], (3, 4)),
    "the same row twice": (lambda p, x: x + p[torch.tensor([0, 1, 1])], (3, 4)),
    "steps first": (lambda p, x: (x.transpose(0, 1) + p[:, None]).transpose(0, 1), (3, 4)),
    "twice": (lambda p, x: torch.sin(x + p) + p, (3, 4)),
}
over_tables = pytest.mark.parametrize("name", ADDED)


def network(name):
    add, shape = ADDED[name]
    f = lambda p, x: torch.tanh(add(p["pos"], x)) @ p["w"]
    return f, {"pos": randn(*shape, seed=1), "w": randn(4, 2, seed=2)}


@over_tables
@pytest.mark.parametrize("batch", [5, 3, 1])
def test_a_table_of_positions_has_factors(name, batch):
    """As many examples as positions too."""
    f, params = network(name)
    x = randn(batch, 3, 4, seed=3)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert [(l.kind, l.family, l.note) for l in layers] == [("positions", "product", ""), ("matmul", "product", "")]
    want = fisher_matrix(f, params, x, "gaussian")
    made = lambda kind: fisher.fim(f, params, x, kind, "gaussian", layers=layers)
    close(made(fisher.PMatDense).matrix, want, 1e-10, "dense")
    close(trees.ravel(made(fisher.PMatDiag).get_diag())[0], want.diagonal(), 1e-10, "diagonal")
    K, E, v = made(fisher.PMatKFAC), made(fisher.PMatEKFAC), trees.map(torch.cos, params)
    close(E.trace(), want.trace(), 1e-10, "the corrected eigenvalues keep the trace")
    close(trees.axpy(0.1, K.solve(v, regul=0.1), K.mv(K.solve(v, regul=0.1))), v, 1e-9, "solve")
    A, G = K.factors["pos"]
    assert A.ndim == 1
    rows = params["pos"].shape[-2]
    close(A.sum(), torch.tensor(3.0, dtype=A.dtype) * (2 if name == "twice" else 1), 1e-12, "each position once")
    assert (len(A), *G.shape) == (rows, 4, 4)
    close(layers.tree(layers.views(v)), v, 0.0, "there and back")


@over_tables
def test_an_ensemble_and_function_space(name):
    f, params = network(name)
    x = randn(5, 3, 4, seed=3)
    layers = fisher.LayerCollection.from_function(f, params, x)
    J = fisher.jacobian(f, params, x, layers=layers)
    close(J.to_torch(), fisher.jacobian(f, params, x).to_torch(), 1e-10, "rows")
    kfac = lambda p: fisher.fim(f, p, x, likelihood="gaussian", layers=layers, check_finite=False).factors
    stacked = trees.stack([params, trees.map(torch.sin, params)])
    close(vmap(kfac)(stacked), trees.stack([kfac(p) for p in trees.unstack(stacked)]), 1e-10, name)


NOT_POSITIONS = {
    "an index made of data": (lambda p, x: x + p[(x[:, :, 0] > 0).long()], (3, 4), "embedding"),
    "one number per feature": (lambda p, x: x + p, (4,), "bias"),
    "a number for each entry of a map": (lambda p, x: (x.unflatten(1, (3, 1)) + p).flatten(1, 2), (3, 1, 4), "shift"),
    "a matrix of rows in another order": (lambda p, x: x @ p[torch.tensor([2, 0, 1, 3])], (4, 4), "getitem"),
    "one column": (lambda p, x: x + p, (3, 1), "shift"),
}


@pytest.mark.parametrize("name", NOT_POSITIONS)
def test_what_is_no_table_of_positions_is_what_it_was(name):
    add, shape, kind = NOT_POSITIONS[name]
    f, params, x = (
        lambda p, x: torch.tanh(add(p["pos"], x)) @ p["w"],
        {"pos": randn(*shape), "w": randn(4, 2)},
        randn(5, 3, 4),
    )
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert layers["pos"].kind == kind
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")
