"""What the packages do together: maps inside f, growth of the network that a Fisher matrix describes, all at once by vmap."""

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

import fisher
import growth
import linmaps
from linmaps import trees
from tests.laws import close
from tests.oracles import fisher_matrix

D = torch.float64
SPEC = linmaps.Orthogonal(in_features=5, out_features=3)
X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=D)
T = torch.tensor([0, 1, 0, 1, 1, 0, 1])
PAIR = growth.Pair(before="hidden", after="output")


def network(p, x):
    h = torch.tanh(SPEC.apply(p["map"], x))
    h = torch.tanh(F.linear(h, p["hidden"]["weight"], p["hidden"]["bias"]))
    return F.linear(h, p["output"]["weight"], p["output"]["bias"])


def member(seed):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(shape, generator=g, dtype=D)
    return {
        "map": SPEC.init(g, dtype=D),
        "hidden": {"weight": r(4, 3), "bias": r(4)},
        "output": {"weight": r(2, 4), "bias": r(2)},
    }


MEMBERS = [member(k) for k in range(3)]


def test_fisher_of_a_structured_map_in_its_own_coordinates():
    p = MEMBERS[0]
    want = fisher_matrix(network, p, X, "categorical")
    close(fisher.fim(network, p, X, fisher.PMatDense).matrix, want, 1e-10, "dense")
    kfac = fisher.fim(network, p, X)
    assert {layer.name.split(".")[0]: layer.kind for layer in kfac.layers} == {
        "map": "orthogonal", "hidden": "linear", "output": "linear",
    }  # fmt: skip
    start = 0
    for path, size in zip(kfac.layout.paths, kfac.layout.sizes):
        if path[0] == "map":
            assert kfac.get_block("map").shape == want[start : start + size, start : start + size].shape
        start += size


def test_kfac_in_effective_coordinates():
    """With W as the leaf the same layer has Kronecker factors."""
    effective = lambda p: {**p, "map": SPEC.effective_W(p["map"])}

    def f(p, x):
        h = torch.tanh(x @ p["map"])
        h = torch.tanh(F.linear(h, p["hidden"]["weight"], p["hidden"]["bias"]))
        return F.linear(h, p["output"]["weight"], p["output"]["bias"])

    kfac = fisher.fim(f, effective(MEMBERS[0]), X)
    assert kfac.layers["map"].kind == "matmul"
    close(kfac.factors["map"][0], X.T @ X / len(X), 1e-12, "input factor")


def natural_step(p):
    gradient = grad(lambda p: F.cross_entropy(network(p, X), T))(p)
    return trees.axpy(-0.2, fisher.fim(network, p, X).solve(gradient, regul=0.5), p)


def grow_step(p):
    stats = growth.statistics(network, p, (X, T), PAIR)
    delta = growth.optimal_delta(stats)
    new = growth.optimal_neurons(stats, k=1, delta=delta)
    return growth.grow(p, PAIR, new, delta=delta, scale=0.1)


def test_an_ensemble_takes_every_step_at_once():
    """Natural gradient, growth, natural gradient of the grown net, the promise measured: one vmap, equal to the loop."""

    def run(p):
        grown = natural_step(grow_step(natural_step(p)))
        return grown, SPEC.violation(SPEC.effective_W(grown["map"])), F.cross_entropy(network(grown, X), T)

    got = vmap(run)(trees.stack(MEMBERS))
    close(got, trees.stack([run(p) for p in MEMBERS]), 1e-9, "ensemble")
    assert got[0]["hidden"]["weight"].shape == (3, 5, 3)
    assert got[1].max() < 1e-13
    start = torch.stack([F.cross_entropy(network(p, X), T) for p in MEMBERS])
    assert (got[2] < start).all()


def test_a_growth_step_decided_by_the_fisher_is_differentiable():
    """d (loss after growth) / d (parameters before) agrees with finite differences."""

    def after(p):
        return F.cross_entropy(network(grow_step(p), X), T)

    p = MEMBERS[1]
    direction = trees.map(lambda t: torch.cos(torch.arange(t.numel(), dtype=D)).reshape(t.shape), p)
    h = 1e-5
    at = lambda s: after(trees.axpy(s, direction, p))
    want = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    close(trees.dot(grad(after)(p), direction), want, 1e-7, "derivative through growth")


def test_statistics_and_fisher_share_one_collection():
    layers = fisher.LayerCollection.from_function(network, MEMBERS[0], X)
    one = growth.statistics(network, MEMBERS[0], (X, T), PAIR, layers=layers)
    close(one.S_prev, fisher.fim(network, MEMBERS[0], X, layers=layers).factors["hidden"][0], 1e-12, "S_prev is A")
