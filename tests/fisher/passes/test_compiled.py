"""Fisher matrices in graphs, and of functions that are compiled."""

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
from linmaps import trees
from tests.laws import close, noise_like

_r = torch.Generator().manual_seed(0)
R = lambda *shape: torch.randn(*shape, generator=_r, dtype=torch.float64)
P, X, T = {"w": R(3, 4), "b": R(4), "v": R(2, 4), "scale": R(2)}, R(5, 3), torch.arange(5) % 2
V = noise_like(P, 1)
NOISE = noise_like(P, 2)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T * p["scale"]


LAYERS = fisher.LayerCollection.from_function(f, P, X)
KINDS = {
    "dense": {}, "blockdiag": {}, "kfac": {}, "diag": {}, "quasidiag": {}, "ekfac": {}, "lowrank": {}, "implicit": {},
    "mixed": {"layers_to": {"w": "diag"}}, "eye": {},
}  # fmt: skip
METHODS = {
    "mv": lambda F, v: F.mv(v),
    "vTMv": lambda F, v: F.vTMv(v),
    "solve": lambda F, v: F.solve(v, 0.3),
    "trace": lambda F, v: F.trace(),
    "get_diag": lambda F, v: F.get_diag(),
    "logdet": lambda F, v: F.logdet(0.3),
    "sample": lambda F, v: F.sample(noise=NOISE, regul=0.3),
    "inverse": lambda F, v: F.inverse(0.3).mv(v),
    "pow": lambda F, v: F.pow(0.5, 0.3).mv(v),
    "eigendecomposition": lambda F, v: F.eigendecomposition().solve(v, 0.3),
}
KFAC = fisher.recipes.kfac(f, estimator="exact", layers=LAYERS)
PAIR = growth.Pair("l1", "l2")
MLP = {"l1": {"weight": R(4, 3), "bias": R(4)}, "l2": {"weight": R(2, 4), "bias": R(2)}}


def g(p, x):
    linear = torch.nn.functional.linear
    return linear(torch.tanh(linear(x, p["l1"]["weight"], p["l1"]["bias"])), p["l2"]["weight"], p["l2"]["bias"])


AROUND = {  # (params, x) -> numbers
    "fim": lambda p, x: fisher.fim(f, p, x, layers=LAYERS).factors["w"][0] * 2,
    "solve": lambda p, x: fisher.fim(f, p, x, layers=LAYERS).solve(V, 0.3),
    "fim without layers": lambda p, x: fisher.fim(f, p, x.sin(), "diag").get_diag(),
    "hessian": lambda p, x: fisher.hessian(lambda q, x: f(q, x).square().sum(1), p, x).get_diag(),
    "jacobian": lambda p, x: fisher.jacobian(f, p, x).jvp(V),
    "gram": lambda p, x: fisher.gram(f, p, x).to_torch() * 2,
    "statistics": lambda p, x: (
        growth.optimal_delta(growth.statistics(g, trees.scale(2.0, MLP), [(x, T)], PAIR), 0.1).weight
    ),
    "a step": lambda p, x: KFAC.update(V, KFAC.init(p, (x, T)), p, batch=(x, T))[0],
    "implicit": lambda p, x: fisher.fim(f, p, x, "implicit", layers=LAYERS).mv(V),
}
KINDS_OF = {kind: fisher.fim(f, P, X, kind, layers=LAYERS, **options) for kind, options in KINDS.items()}


def plain(F, method):
    """What the method gives, None where this kind has none of it (or asks for more)."""
    try:
        return METHODS[method](F, V)
    except (ValueError, TypeError, AttributeError, NotImplementedError, LookupError):
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_made_in_a_graph_and_its_methods_are(kind):
    make = trees.compiled(lambda p, x: fisher.fim(f, p, x, kind, layers=LAYERS, **KINDS[kind]), backend="eager")
    F, other = make(P, X), trees.map(torch.sin, P)
    if kind != "implicit":  # it keeps f and the data, and computes nothing yet
        close(make(other, X).mv(V), fisher.fim(f, other, X, kind, layers=LAYERS, **KINDS[kind]).mv(V), 1e-11, kind)
    close(F.mv(V), KINDS_OF[kind].mv(V), 1e-11, kind)
    names = [m for m in METHODS if plain(KINDS_OF[kind], m) is not None]
    if kind == "implicit":  # the others run all steps of conjugate gradients in a graph
        names = [m for m in names if m in ("mv", "vTMv", "trace")]
    assert {"mv", "vTMv", "trace"} <= set(names)
    whole = lambda F, v: {m: METHODS[m](F, v) for m in names}
    close(trees.compiled(whole, backend="eager")(KINDS_OF[kind], V), whole(KINDS_OF[kind], V), 1e-11, kind)


def test_an_ensemble_in_one_graph():
    many = trees.stack([P, trees.map(torch.sin, P)])
    step = lambda p: fisher.fim(f, p, X, layers=LAYERS).solve(V, 0.3)
    close(trees.compiled(lambda p: vmap(step)(p), backend="eager")(many), vmap(step)(many), 1e-11, "vmap inside")


@pytest.mark.parametrize("compiled", [trees.compiled, torch.compile])
def test_a_function_that_is_compiled_is_seen_through(compiled):
    fast, slow = compiled(f, backend="eager"), compiled(g, backend="eager")
    F = fisher.fim(fast, P, X)
    assert repr(F) == repr(fisher.fim(f, P, X))
    close(F.mv(V), fisher.fim(f, P, X).mv(V), 1e-12, "compiled f")
    close(fisher.fim(fast, P, X, layers=LAYERS).mv(V), F.mv(V), 1e-12, "layers given")
    close(fisher.gram(fast, P, X).to_torch(), fisher.gram(f, P, X).to_torch(), 1e-12, "gram")
    laplace = lambda f: fisher.recipes.laplace(f, P, F, n_examples=5).probabilities(X)
    close(laplace(fast), laplace(f), 1e-12, "laplace")
    statistics = lambda g: growth.statistics(g, MLP, (X, T), PAIR)
    close(trees.leaves(statistics(slow)), trees.leaves(statistics(g)), 1e-12, "statistics")


def sequential():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def of_parts():
    model = sequential()
    model[0] = torch.compile(model[0], backend="eager")
    return model


def in_place():
    model = sequential()
    model.compile(backend="eager")
    return model


class Decorated(nn.Sequential):
    @torch.compile(backend="eager")
    def forward(self, x):
        return self[2](torch.tanh(self[0](x)))


MODULES = {
    "whole": lambda: torch.compile(sequential(), backend="eager"),
    "parts": of_parts,
    "in place": in_place,
    "forward": lambda: Decorated(*sequential()),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_compiled_is_seen_through(name):
    module = MODULES[name]()
    with torch.no_grad():
        y = module(X)
    h, params = fisher.functional(module)
    assert list(params) == [n for n, _ in module.named_parameters()]
    close(h(params, X), y, 1e-12, name)
    assert len(fisher.fim(h, params, X).factors) == 2
    before, after = (n.removesuffix(".weight") for n in params if n.endswith("weight"))
    grown = growth.step(h, params, (X, T), growth.Pair(before, after), k=2).params
    with torch.no_grad():
        close(growth.into_module(module, grown)(X), h(grown, X), 1e-12, name)
        close(module(X), y, 1e-12, "the old module is as it was")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [(name, "aot_eager" if name == "solve" else "eager") for name in AROUND])
def test_torch_compile_around(name, backend):
    """What watches f stays out of graphs, so numbers are right; all in one graph is `trees.compiled`."""
    torch._dynamo.reset()
    step = AROUND[name]
    try:
        close(torch.compile(step, backend=backend)(P, X), step(P, X), 1e-11, name)
    finally:
        torch._dynamo.reset()
