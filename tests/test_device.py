"""Everything follows the device of its inputs: on each device there is, the answers are those of the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import fisher
import growth
import linmaps
from linmaps import trees
from tests.laws import close

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
D = torch.float64
MAPS = [
    linmaps.Linear(6, 4, bias=True),
    linmaps.Symmetric(5),
    linmaps.RightStochastic(4, 5),
    linmaps.Orthogonal(6, 4),
    linmaps.Orthogonal(5, method="cayley"),
    linmaps.Orthogonal(5, method="exp"),
    linmaps.Spectral(4, 6),
    linmaps.Butterfly(6, 9),
    linmaps.Butterfly(7, blocks="rotation"),
    linmaps.Monarch(6),
    linmaps.Permutation(8),
    linmaps.PowerBound(4),
    linmaps.PowerBound(4, method="rescale", max_p=0.2),
    linmaps.Hurwitz(4),
    linmaps.StableSplit(4, 3),
    linmaps.Schur(5),
    linmaps.Gershgorin(4),
    linmaps.DiagonallyDominant(4),
    linmaps.Symplectic(4),
    linmaps.Hamiltonian(4),
    linmaps.BlockSkew(4),
    *(linmaps.Factorized((2, 3), (3, 2), factorization=kind, rank=0.7) for kind in linmaps.factorized.kinds.KINDS),
    linmaps.Factorized((4, 2), (2, 3), factorization="cp", rank=3, checkpointing=True),
    linmaps.Block(((linmaps.Orthogonal(3), None), (linmaps.Linear(2, 3), linmaps.Identity(2)))),
    linmaps.Affine(
        linmaps.Product(linmaps.Transpose(linmaps.Spectral(3, 4)), linmaps.Scale(linmaps.Symmetric(3), 2.0))
    ),
]
on_each = pytest.mark.parametrize("device", DEVICES)


def to(tree, device):
    return trees.map(lambda t: t.to(device), tree)


def same(got, want, device, tol=1e-9):
    assert {t.device.type for t in trees.leaves(got)} == {device}
    close(to(got, "cpu"), want, tol, device)


@on_each
@pytest.mark.parametrize("spec", MAPS, ids=repr)
def test_maps(spec, device):
    params = spec.init(torch.Generator().manual_seed(0), dtype=D)
    there = spec.init(torch.Generator().manual_seed(0), dtype=D, device=device)
    same(there, params, device, 0.0)
    x = torch.linspace(-1, 1, 3 * spec.in_features, dtype=D).reshape(3, -1)
    same(spec.effective_W(there), spec.effective_W(params), device)
    same(spec.apply(there, x.to(device)), spec.apply(params, x), device)
    same(spec.violation(spec.effective_W(there)), spec.violation(spec.effective_W(params)), device)
    same(spec.singular_values(there), spec.singular_values(params), device)
    same(spec.reg_error(there), spec.reg_error(params), device)


def network(p, x):
    h = torch.tanh(F.linear(x, p["hidden"]["weight"], p["hidden"]["bias"]))
    return F.linear(h, p["output"]["weight"], p["output"]["bias"]) * p["scale"]


def problem():
    g = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(shape, generator=g, dtype=D)
    params = {"hidden": {"weight": r(4, 3), "bias": r(4)}, "output": {"weight": r(3, 4), "bias": r(3)}, "scale": r(3)}
    return params, r(8, 3), torch.arange(8) % 3


@on_each
@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatDiag, fisher.PMatKFAC])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_fisher(representation, likelihood, device):
    params, x, _ = problem()
    want = fisher.fim(network, params, x, representation, likelihood)
    got = fisher.fim(network, to(params, device), x.to(device), representation, likelihood)
    same(got, want, device)
    v = trees.map(torch.cos, params)
    for method in ("mv", "solve", "vTMv"):
        args = (0.1,) if method == "solve" else ()
        same(getattr(got, method)(to(v, device), *args), getattr(want, method)(v, *args), device)
    for method in ("trace", "get_diag", "to_torch", "frobenius_norm"):
        same(getattr(got, method)(), getattr(want, method)(), device)
    same(got.inverse(0.1).to_torch(), want.inverse(0.1).to_torch(), device)
    same((got + got).solve(to(v, device), 0.1), (want + want).solve(v, 0.1), device)


@on_each
def test_sampling_follows_the_generator_and_lands_on_the_device(device):
    params, x, _ = problem()
    options = {"representation": fisher.PMatDense, "estimator": "mc", "n_samples": 4}
    want = fisher.fim(network, params, x, generator=torch.Generator().manual_seed(0), **options)
    got = fisher.fim(network, to(params, device), x.to(device), generator=torch.Generator().manual_seed(0), **options)
    same(got, want, device)


@on_each
def test_growth_of_an_ensemble(device):
    params, x, t = problem()
    pair = growth.Pair(before="hidden", after="output")

    def run(p, x, t):
        f = lambda p, x: F.linear(
            torch.tanh(F.linear(x, p["hidden"]["weight"], p["hidden"]["bias"])),
            p["output"]["weight"],
            p["output"]["bias"],
        )
        stats = growth.statistics(f, p, (x, t), pair)
        delta = growth.optimal_delta(stats)
        new = growth.choose_sign(f, p, (x, t), pair, growth.optimal_neurons(stats, k=2, delta=delta))
        return growth.grow(p, pair, new, delta=delta, scale=0.1), new.gain, delta.decrease

    dense = {k: v for k, v in params.items() if k != "scale"}
    stacked = trees.stack([dense, trees.scale(0.5, dense)])
    want = vmap(lambda p: run(p, x, t))(stacked)
    got = vmap(lambda p: run(p, x.to(device), t.to(device)))(to(stacked, device))
    same(got, want, device, 1e-8)
    state = growth.grow_like(to(stacked, device), to(stacked, device), got[0])
    assert state["hidden"]["weight"].shape == (2, 6, 3)


@on_each
def test_growth_of_convolutions_and_what_surrounds_it(device):
    from tests.growth.test_convolution import net

    n = net("stride", torch.relu)

    def run(params, x, t):
        data, like = (x, t), params["first"]["weight"]
        stats = growth.with_fisher(growth.statistics(n.f, params, data, n.pair), n.f, params, data, n.pair)
        delta = growth.optimal_delta(stats, output_metric="fisher", shrinkage=0.1)
        new = growth.optimal_neurons(stats, 2, delta=delta, output_metric="fisher", shrinkage=0.1)
        new = growth.choose_sign(n.f, params, data, n.pair, new)
        found = growth.line_search(n.f, params, data, n.pair, new, delta)
        grown = growth.grow(params, n.pair, new, delta=delta, scale=found.scale)
        wide = growth.widen(grown, n.pair, 2)
        scores = growth.unit_scores(wide, n.pair, stats=growth.statistics(n.f, wide, data, n.pair))
        small = growth.prune(wide, n.pair, growth.weakest_units(scores, keep=4))
        draws = torch.linspace(-1, 1, 2 * sum(stats.M_prev.shape), dtype=D, device=like.device).reshape(2, -1)
        return {
            "loss": found.loss,
            "small": small,
            "norms": growth.gradient_norms(stats, growth.gradmax(stats, 2, draws=draws)),
            "floor": growth.noise_floor(stats),
            "senn": growth.senn_score(stats, 0.1),
            "start": growth.initialize(
                params, n.pair, 2, draws=draws[:, : stats.M_prev.shape[0] + stats.M_prev.shape[1]]
            ),
        }

    same(run(to(n.params, device), n.x.to(device), n.t.to(device)), run(n.params, n.x, n.t), device, 1e-7)


@on_each
def test_growth_of_graphs_and_ranks(device):
    params, x, t = problem()
    nodes = (growth.Node("x", 3), growth.Node("h", 2, torch.tanh), growth.Node("y", 3))
    graph = growth.Graph(nodes, ("x->h", "h->y"))
    params = graph.init(torch.Generator().manual_seed(0), dtype=D)

    def run(params, x, t):
        stats = growth.graph_statistics(graph, params, (x, t))
        items = [growth.node_delta(stats, "y"), growth.new_edge(stats, "x", "y"), growth.wider_node(stats, "h", 2)]
        return growth.grow_graph(graph, params, items, scale=0.1)[1]

    same(run(to(params, device), x.to(device), t.to(device)), run(params, x, t), device, 1e-8)
    spec = linmaps.Factorized((2, 3), (3, 2), factorization="tucker", rank=2)
    leaves = spec.init(torch.Generator().manual_seed(0), dtype=D)
    larger, want = growth.grow_rank(spec, leaves, 1, gradient=torch.ones(6, 6, dtype=D))
    _, got = growth.grow_rank(spec, to(leaves, device), 1, gradient=torch.ones(6, 6, dtype=D, device=device))
    same(larger.effective_W(got), larger.effective_W(want), device)
