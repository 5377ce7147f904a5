"""What both posteriors have in common: files, copies, samples, densities."""

import copy
import io

import pytest
import torch
from torch.func import jacrev, vmap

import fisher
from fisher.recipes import functional_laplace, laplace, tune_noise
from linmaps import trees
from tests.laws import close

D = torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(6, 3, generator=G, dtype=D)
P = {"v": torch.randn(4, 2, generator=G, dtype=D), "w": torch.randn(3, 4, generator=G, dtype=D)}
T = torch.arange(6) % 2
Y = torch.randn(6, 2, generator=G, dtype=D)
TREE = {"v": torch.rand(4, 2, generator=G, dtype=D) + 0.5, "w": torch.rand(3, 4, generator=G, dtype=D) + 0.5}
PRIORS = {"number": 2.0, "by entry": TREE}


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


F = fisher.fim(f, P, (X, T), fisher.PMatDense)
LAYERS = fisher.LayerCollection.from_function(f, P, X)
MADE = {
    "dense": lambda: laplace(f, P, F, 6),
    "kfac, by layer": lambda: laplace(f, P, fisher.fim(f, P, X), 6, {"v": 1.0, "w": 2.0}, temperature=0.5),
    "last layer": lambda: laplace(f, P, fisher.fim(f, P, X, layers=LAYERS.select(["v"])), 6, TREE, 0.1),
    "noise": lambda: tune_noise(laplace(f, P, fisher.fim(f, P, X, "lowrank", "gaussian"), 6), (X, Y)),
    "function space": lambda: functional_laplace(f, P, (X, T)),
    "function space, noise": lambda: functional_laplace(f, P, X, TREE, likelihood=fisher.Gaussian((0.3, 0.5))),
    "function space, last layer": lambda: functional_laplace(f, P, X, layers=LAYERS.select(["v"])),
}


def through_a_file(posterior):
    file = io.BytesIO()
    torch.save(posterior, file)
    file.seek(0)
    return torch.load(file)  # of default settings: nothing but tensors, numbers and names is trusted


def through_safetensors(posterior, folder):
    trees.save(posterior, folder / "posterior")
    return trees.load(folder / "posterior")


@pytest.mark.parametrize("way", ["torch.save", "trees.save"])
@pytest.mark.parametrize("name", MADE)
def test_saved_and_copied(name, way, tmp_path):
    posterior = MADE[name]()
    loaded = through_a_file(posterior) if way == "torch.save" else through_safetensors(posterior, tmp_path)
    with pytest.raises(ValueError, match=r"f: a posterior is saved without its function.*on_function\(f\)"):
        loaded.predict(X)
    copies = [loaded.on_function(f), copy.copy(posterior), copy.deepcopy(posterior), trees.map(lambda t: t, posterior)]
    for other in copies:
        assert repr(other) == repr(posterior)
        assert other.likelihood == posterior.likelihood
        for got, want in zip(other.predict(X), posterior.predict(X)):
            close(got, want, 0.0, name)
        close(
            other.sample(torch.Generator().manual_seed(1)),
            posterior.sample(torch.Generator().manual_seed(1)),
            0.0,
            name,
        )
        close(other.log_marginal_likelihood(0.0), posterior.log_marginal_likelihood(0.0), 0.0, name)


def test_a_likelihood_of_the_users_own_is_left_out():
    class Own(fisher.Gaussian):
        pass

    Own.__module__ = "elsewhere"
    for posterior in (
        laplace(f, P, fisher.fim(f, P, X, "diag", Own()), 6),
        functional_laplace(f, P, X, likelihood=Own()),
    ):
        assert through_a_file(posterior).likelihood is None


def test_what_is_not_finite_is_refused_where_it_comes_in():
    nan = {**P, "w": P["w"] * torch.nan}
    for make in (lambda p, **mean: laplace(f, p, F, 6, **mean), lambda p, **mean: functional_laplace(f, p, X, **mean)):
        with pytest.raises(ValueError, match=r"params: w: got 12 of 12 entries NaN.*go back to finite parameters"):
            make(nan)
        with pytest.raises(ValueError, match=r"prior_mean: w: got 12 of 12 entries NaN"):
            make(P, prior_mean=nan)
    with pytest.raises(ValueError, match=r"params: w: got 12 of 12 entries NaN"):
        laplace(f, P, F, 6).log_prob(nan)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("again", [False, True])
def test_inputs_that_are_not_finite_are_named(name, again):
    """Of every posterior, the first time and later, and with a cure that predictions have."""
    posterior = MADE[name]()
    if again:
        posterior.predict(X)
    for x, where in ((X * torch.nan, "x"), ([X, X * torch.nan], "x: batch 1")):
        with pytest.raises(ValueError, match=rf"^{where}: got 18 of 18 entries NaN.*clean or drop these examples$"):
            posterior.predict(x)


@pytest.mark.parametrize("names", [["v", "w"], ["v"]])
@pytest.mark.parametrize("kind", ["dense", "diag", "blockdiag", "kfac", "ekfac", "lowrank", "mixed", "function space"])
def test_under_autocast_f_alone_is_cast(kind, names):
    p, x = trees.map(lambda t: t.float(), P), X.float()
    layers = fisher.LayerCollection.from_function(f, p, x).select(names)

    def made():
        if kind == "function space":
            return functional_laplace(f, p, x, layers=layers)
        return laplace(f, p, fisher.fim(f, p, x, kind, layers=layers), 6)

    want = made().predict(x)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made().predict(x)[1]
    assert found.dtype == torch.float32
    close(found, want, 3e-2, kind)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("part", [None, ["v"]])
def test_samples_have_the_covariance_of_parameter_space(likelihood, prior, part):
    layers = None if part is None else LAYERS.select(part)
    posterior = functional_laplace(f, P, X, PRIORS[prior], temperature=0.7, likelihood=likelihood, layers=layers)
    matrix = fisher.fim(f, P, X, fisher.PMatDense, likelihood, layers=layers)
    want = laplace(f, P, matrix, 6, PRIORS[prior], temperature=0.7)
    K, N, _ = posterior.roots.shape
    like = trees.zeros_like(P if layers is None else layers.restrict(P))
    noise = (like, torch.zeros(K, N, dtype=D))
    close(posterior.sample(noise=noise), P, 1e-12, "mean")
    slopes = jacrev(lambda noise: torch.cat([posterior.sample(noise=noise)[k].flatten() for k in part or ("v", "w")]))(
        noise
    )
    L = torch.cat([t.reshape(t.shape[0], -1) if t.ndim < 3 else t.flatten(1) for t in trees.leaves(slopes)], 1)
    amounts = _leafwise(matrix, want.prior_precision)
    diagonal = torch.cat([t.expand(s).flatten() for t, s in zip(amounts, matrix.layout.shapes)])
    exact = torch.linalg.inv(6 / 0.7 * matrix.to_torch() + torch.diag(diagonal))
    close(L @ L.mT, exact, 1e-9, "covariance")


def _leafwise(matrix, P):
    return [P] * len(matrix.layout.shapes) if isinstance(P, torch.Tensor) else trees.leaves(P)


def test_samples_of_an_ensemble():
    run = lambda s, z, e: functional_laplace(f, {**P, "v": s * P["v"]}, X, likelihood="gaussian").sample(noise=(z, e))[
        "w"
    ]
    s = torch.tensor([0.5, 2.0], dtype=D)
    z, e = trees.stack([P, TREE]), torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(1), dtype=D)
    want = torch.stack([run(s[n], trees.unstack(z)[n], e[n]) for n in range(2)])
    close(vmap(run)(s, z, e), want, 1e-10, "vmap")


def test_densities_and_what_is_elsewhere():
    ours, other = functional_laplace(f, P, (X, T)), laplace(f, P, F, 6)
    close(ours.log_likelihood((X, T)), other.log_likelihood([(X[:2], T[:2]), (X[2:], T[2:])]), 1e-12, "log_likelihood")
    for name, cure in (("update", r"functional_laplace\(f, params, \[\*data, \*more\]\)"), ("log_prob", "laplace")):
        with pytest.raises(AttributeError, match=rf"FunctionalLaplace\.{name}: .*{cure}"):
            getattr(ours, name)
        assert not hasattr(ours, name)
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        ours.other  # noqa: B018
    with pytest.raises(ValueError, match=r"noise: got dict, expected a pair: a tree like params, and \(\d, 6\)"):
        ours.sample(noise=P)
    for weight in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match=r"data: \S+: got 6 of 6 entries NaN or infinite"):
            functional_laplace(f, P, (X, None, torch.full((6,), weight)), likelihood="gaussian")
    for wrong in ({}, {"generator": torch.Generator(), "noise": (P, torch.zeros(1, 6, dtype=D))}):
        with pytest.raises(ValueError, match="expected a generator or noise"):
            ours.sample(**wrong)
    with pytest.raises(ValueError, match=r"noise: 1: got shape \(6,\), expected \(1, 6\)"):
        ours.sample(noise=(P, torch.zeros(6, dtype=D)))
