"""Laws of weights that are used as W and as W': factors of both sides."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import fisher
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

IDS = torch.tensor([[0, 3, 3], [2, 1, 0], [4, 4, 1], [5, 0, 2]])

# name: f of w [6, 4], x
TIED = {
    "embedding and head": (lambda p, x: torch.tanh(F.embedding(x, p["w"])) @ p["w"].T, IDS),
    "lookup and linear": (lambda p, x: F.linear(torch.tanh(p["w"][x]), p["w"], p["b"]), IDS),
    "coder and decoder": (lambda p, x: torch.tanh(x @ p["w"]) @ p["w"].T, randn(5, 6)),
    "linear both ways": (lambda p, x: F.linear(torch.tanh(F.linear(x, p["w"])), p["w"].T), randn(5, 4)),
    "three uses": (lambda p, x: torch.tanh(torch.sin(x @ p["w"]) @ p["w"].T) @ p["w"], randn(5, 2, 6)),
    "lookup and product": (lambda p, x: torch.tanh(p["w"][x] @ p["w"].T) @ p["w"], IDS),
}


def params(name):
    return {"w": randn(6, 4)} | ({"b": randn(6, seed=2)} if "linear" in name and "lookup" in name else {})


def made(name, variance=1.0, **options):
    f, x = TIED[name]
    return fisher.fim(f, params(name), x, likelihood=fisher.Gaussian(variance=variance), **options)


def sides(name):
    """For each use (l, r) with gradient sum of l r': which is an output-gradient, and both as moments over examples."""
    f, x = TIED[name]
    p = params(name)
    layers = fisher.LayerCollection.from_function(f, p, x)
    y = f(p, x)
    columns = torch.eye(y[0].numel(), dtype=y.dtype).reshape(-1, 1, *y.shape[1:]).expand(-1, *y.shape)
    _, io = fisher.layer_io(f, p, x, layers, lambda _: columns)
    found = {}
    for k in layers["w"].uses:
        a, g = io[k]
        a = F.one_hot(a, 6).double() if a.ndim == 2 else a
        out_first = g.shape[-1] == 6
        n, s = found.get(out_first, (0, 0.0)), a.shape[1]
        A, G = torch.einsum("bsi,bsj->ij", a, a) / len(x), torch.einsum("cbsi,cbsj->ij", g, g)
        found[out_first] = (n[0] + s, A + n[1], G + (n[2] if len(n) > 2 else 0))
    return layers, {key: (A, G / (len(x) * s)) for key, (s, A, G) in found.items()}


@pytest.mark.parametrize("name", TIED)
def test_factors_are_the_moments_of_both_sides(name):
    layers, found = sides(name)
    assert layers["w"].kronecker
    A, G = made(name).factors["w"]
    parts = [(g, a) if out_first else (a, g) for out_first, (a, g) in found.items()]  # (side of 6, side of 4)
    t = [(L.trace() * R.trace()).sqrt() for L, R in parts]
    six = sum(L * s / L.trace() for (L, _), s in zip(parts, t))
    four = sum(R * s / R.trace() for (_, R), s in zip(parts, t))
    scale = sum(L.trace() * R.trace() for L, R in parts) / sum(t) ** 2
    first, second = (four, six) if len(A) == 4 else (six, four)
    close(torch.kron(G, A), scale * torch.kron(second, first), 1e-10, name)
    close(G.trace() * A.trace(), sum(L.trace() * R.trace() for L, R in parts), 1e-10, "trace")


@pytest.mark.parametrize("name", TIED)
def test_it_scales_with_the_loss(name):
    """The sums of l l' and of r r' alone would not: an input has not the scale of the loss."""
    one, other = made(name), made(name, 0.25)
    close(other.to_torch(), 4 * one.to_torch(), 1e-10, "scaled")
    _, found = sides(name)
    if len(found) == 2:
        (a, g), (b, h) = found[True], found[False]
        plain = lambda c: torch.kron(c * g + b, a + c * h)
        assert (plain(4.0) - 4 * plain(1.0)).abs().max() > 0.1


@pytest.mark.parametrize("name", TIED)
def test_all_matrices_of_rows_are_exact(name):
    f, x = TIED[name]
    p = params(name)
    layers = fisher.LayerCollection.from_function(f, p, x)
    want = fisher_matrix(f, p, x, "gaussian")
    close(fisher.fim(f, p, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")
    diag = fisher.fim(f, p, x, fisher.PMatDiag, "gaussian", layers=layers).get_diag()
    close(trees.ravel(diag)[0], want.diagonal(), 1e-10, "diagonal")
    E = fisher.fim(f, p, x, fisher.PMatEKFAC, "gaussian", layers=layers)
    close(E.trace(), want.trace(), 1e-10, "corrected")
    again = fisher.fim(f, p, [x[:1], x[1:]], fisher.PMatEKFAC, "gaussian", layers=layers)
    close(again.to_torch(), E.to_torch(), 1e-9, "two passes")
    K = fisher.gram(f, p, x, layers=layers)
    close(K.to_torch(), fisher.gram(f, p, x).to_torch(), 1e-10, "gram")


@pytest.mark.parametrize("name", TIED)
def test_batches_ensembles_and_limits(name):
    f, x = TIED[name]
    p = params(name)
    layers = fisher.LayerCollection.from_function(f, p, x)
    run = lambda p, data=x, **o: fisher.fim(f, p, data, likelihood="gaussian", layers=layers, check_finite=False, **o)
    close(run(p, [x[:1], x[1:]]), run(p), 1e-10, "batches")
    stacked = trees.stack([p, trees.map(torch.sin, p)])
    close(vmap(run)(stacked), trees.stack([run(q) for q in trees.unstack(stacked)]), 1e-10, "ensemble")
    small = run(p, largest_factor=5).factors["w"]
    assert sorted((m.ndim, len(m)) for m in small) == [(1, 6), (2, 4)], "the side of the vocabulary is a diagonal"
    v = trees.map(torch.cos, p)
    F_ = run(p)
    close(F_.mv(F_.solve(v, 0.1)), trees.add(v, trees.scale(-0.1, F_.solve(v, 0.1))), 1e-9, "solve")
