"""Laws of reducers: sums over examples and columns are sums, in any parts; the mean is taken once."""

import pytest
import torch

import fisher
from fisher.reducers import REDUCERS
from linmaps.numerics import eigen
from tests.laws import close

D = torch.float64


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


PARAMS = {"w": randn(3, 4, seed=0), "b": randn(4, seed=1), "s": randn(4, seed=2), "v": randn(4, 3, seed=3)}
X = randn(12, 3, seed=4)
over_reducers = pytest.mark.parametrize("representation", REDUCERS, ids=lambda r: r.__name__)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) * p["s"] @ p["v"]


def same(F, G):
    """As matrices, and in the numbers stored where these are unique."""
    close(F.to_torch(), G.to_torch(), 1e-10, "matrix")
    if type(F) is not fisher.PMatLowRank:
        close(F, G, 1e-10, "numbers")


@over_reducers
@pytest.mark.parametrize("sizes", [[12], [5, 7], [1, 10, 1], [4, 0, 8]])
def test_any_cut_into_batches_gives_the_matrix_of_the_whole(representation, sizes):
    same(fisher.fim(f, PARAMS, list(X.split(sizes)), representation), fisher.fim(f, PARAMS, X, representation))


@over_reducers
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_any_cut_of_the_columns_gives_the_matrix_of_the_whole(representation, chunk_size):
    same(fisher.fim(f, PARAMS, X, representation, chunk_size=chunk_size), fisher.fim(f, PARAMS, X, representation))


@over_reducers
def test_examples_twice_change_no_mean(representation):
    F, twice = fisher.fim(f, PARAMS, X, representation), fisher.fim(f, PARAMS, torch.cat([X, X]), representation)
    close(F.to_torch(), twice.to_torch(), 1e-10, "matrix")


@pytest.mark.parametrize("uses", [1, 2])
def test_a_basis_of_few_examples_is_that_of_the_whole_factor(monkeypatch, uses):
    """Where the factor of a wide layer has no more directions than examples, they are found among these alone."""
    p, x = {"w": randn(4, 40, seed=5), "b": randn(4, seed=6), "v": randn(3, 4, seed=7)}, randn(6, 40, seed=8)
    once = lambda p, x: torch.tanh(torch.nn.functional.linear(x, p["w"], p["b"]))
    net = lambda p, x: (once(p, x) + (once(p, x.flip(1)) if uses == 2 else 0)) @ p["v"].T
    F = fisher.fim(net, p, x, fisher.PMatEKFAC)
    monkeypatch.setattr(eigen, "LOW", 10**6)
    G = fisher.fim(net, p, x, fisher.PMatEKFAC)
    close(F.to_torch(), G.to_torch(), 1e-10, "matrix")
    bases = [next(B for B in H.bases.values() if len(B[0]) == 41)[0] for H in (F, G)]
    for U in bases:
        close(U.mT @ U, torch.eye(41, dtype=D), 1e-12, "orthogonal")
    assert not torch.equal(*bases)
    many = torch.func.vmap(lambda x: fisher.fim(net, p, x, fisher.PMatEKFAC, layers=F.layers).to_torch())
    close(many(torch.stack([x, 2 * x]))[0], G.to_torch(), 1e-10, "ensemble")
