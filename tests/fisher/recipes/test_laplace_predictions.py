"""Predictions of a posterior: links against formulas written out, loaders, sub-collections, function space, more data."""

import copy
import pickle

import pytest
import torch
from torch.func import jacrev, vmap
from torch.utils.data import DataLoader, TensorDataset

import fisher
from fisher.likelihoods import probabilities
from fisher.recipes import functional_laplace, laplace
from linmaps import trees
from tests.fisher.digits import D
from tests.fisher.recipes.test_laplace_priors import ENTRIES, MEAN, TEST, N, P, X, f, randn, spread
from tests.laws import close

PRIORS = {"number": 0.7, "layers": {"a": 0.5, "b": 2.0}, "entries": ENTRIES}
OUTPUTS = {  # likelihood, shape of the output of one example
    "labels": ("bernoulli", (4,)),
    "classes": ("categorical", (4,)),
    "two classes": ("categorical", (2,)),
    "tokens": (fisher.Categorical(class_axis=-1), (3, 4)),
    "positions": ("categorical", (4, 3)),
    "pixels": ("segmentation", (3, 2, 2)),
}
W = randn(3, 12)


def posterior_of(name):
    likelihood, shape = OUTPUTS[name]
    size = torch.Size(shape).numel()
    g = lambda p, x: (x @ p["w"]).reshape(len(x), *shape)
    p = {"w": W[:, :size]}
    return laplace(g, p, fisher.fim(g, p, X, fisher.PMatDense, likelihood), N, 0.5), shape


@pytest.mark.parametrize("name", OUTPUTS)
def test_monte_carlo_is_the_mean_over_samples_of_the_logits(name):
    posterior, shape = posterior_of(name)
    mean, S = posterior.predict(TEST)
    noise = randn(7, 5, mean.shape[1])
    values, U = torch.linalg.eigh(S)
    root = U @ torch.diag_embed(values.clamp_min(0).sqrt()) @ U.mT
    z = (mean + torch.einsum("bck,nbk->nbc", root, noise)).reshape(7, 5, *shape)
    zero = torch.zeros_like(z[0])
    want = torch.stack([probabilities(posterior.likelihood, one, zero) for one in z]).mean(0)
    close(posterior.probabilities(TEST, link="mc", noise=noise), want, 1e-10, "by noise")
    drawn = [posterior.probabilities(TEST, link="mc", generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    close(drawn[0], drawn[1], 0.0, "the generator decides")
    assert (drawn[0] != drawn[2]).any()
    many = posterior.probabilities(TEST, link="mc", generator=torch.Generator().manual_seed(0), n_samples=20_000)
    assert (many - posterior.probabilities(TEST)).abs().max() < 0.06  # the probit is near, and not the same


def bridge(m, S):
    """The Laplace bridge of one example and position, m `[C]` and S `[C, C]`, by its formulas."""
    C, total = len(m), S.sum()
    m, S = m - S.sum(-1) * m.sum() / total, S - torch.outer(S.sum(-1), S.sum(-2)) / total
    alpha = (1 - 2 / C + m.exp() / C**2 * (-m).exp().sum()) / S.diagonal()
    return alpha / alpha.sum()


@pytest.mark.parametrize("name", ["classes", "two classes", "tokens", "positions", "pixels"])
def test_the_bridge_is_that_of_each_position(name):
    posterior, shape = posterior_of(name)
    axis = posterior.likelihood.class_axis
    mean, S = posterior.predict(TEST)
    got = posterior.probabilities(TEST, link="bridge").movedim(axis, -1).reshape(5, -1, shape[axis - (axis > 0)])
    number = torch.arange(mean.shape[1]).reshape(shape).movedim(axis - (axis > 0), -1).reshape(got.shape[1:])
    for b in range(5):
        for s, own in enumerate(number):
            close(got[b, s], bridge(mean[b, own], S[b][own][:, own]), 1e-9, "bridge")


def test_links_are_refused_by_name():
    posterior, _ = posterior_of("labels")
    with pytest.raises(ValueError, match=r"link: got '\?', expected one of \['probit', 'bridge', 'mc'\]"):
        posterior.probabilities(TEST, link="?")
    with pytest.raises(ValueError, match="link: got 'bridge' for Bernoulli"):
        posterior.probabilities(TEST, link="bridge")
    with pytest.raises(ValueError, match="'mc' with neither, expected a generator or noise"):
        posterior.probabilities(TEST, link="mc")
    with pytest.raises(ValueError, match="expected neither; they are of link='mc'"):
        posterior.probabilities(TEST, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"noise: got shape \(3, 2\), expected \[n, 5, 4\]"):
        posterior.probabilities(TEST, link="mc", noise=torch.ones(3, 2, dtype=D))


def test_a_loader_is_its_batches_in_order():
    posterior = laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC), N)
    want, joint = posterior.predict(X), posterior.predict(X, joint=True)
    chances, sampled = posterior.probabilities(X), torch.Generator().manual_seed(0)
    drawn = posterior.probabilities(X, link="mc", generator=torch.Generator().manual_seed(0))
    targets = torch.arange(N) % 2
    for data in (
        [X[:5], X[5:6], X[6:]],
        [(X[:5], targets[:5]), (X[5:], targets[5:])],
        DataLoader(TensorDataset(X, targets), batch_size=5),
    ):
        close(posterior.predict(data), want, 1e-12, "moments")
        close(posterior.predict(data, joint=True), joint, 1e-12, "joint")
        close(posterior.probabilities(data), chances, 1e-12, "probabilities")
    close(posterior.probabilities([X[:5], X[5:]], link="mc", generator=sampled), drawn, 1e-12, "samples")
    assert posterior.predict(X[:0])[1].shape == (0, 2, 2)
    with pytest.raises(ValueError, match="got no batch"):
        posterior.predict(x for x in ())


# --- some layers alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Dense", "Diag", "BlockDiag", "KFAC", "EKFAC", "LowRank", "Implicit"])
@pytest.mark.parametrize("which", ["b", "a"])
def test_of_some_layers_the_others_are_fixed(name, which):
    """A last layer, or a first one: the dense formula with the Jacobian of its leaves."""
    layers = fisher.LayerCollection.from_function(f, P, X).select([which])
    F = fisher.fim(f, P, X, getattr(fisher, f"PMat{name}"), layers=layers)
    own = lambda q, x: f({**P, which: q}, x)
    J = torch.cat([t.reshape(5, 2, -1) for t in trees.leaves(jacrev(lambda q: own(q, TEST))(P[which]))], -1)
    for prior in (0.7, {which: 0.7}, ENTRIES):
        posterior = laplace(f, P, F, N, prior, MEAN)
        diag = spread(ENTRIES[which], P[which]) if prior is ENTRIES else torch.full((J.shape[-1],), 0.7, dtype=D)
        want = torch.linalg.inv(N * F.to_torch() + torch.diag(diag))
        mean, covariance = posterior.predict(TEST)
        close(mean, f(P, TEST), 1e-12, "mean")
        close(covariance, J @ want @ J.mT, 1e-8, "covariance")
        assert posterior.probabilities(TEST).shape == (5, 2)
        if name == "Implicit":
            continue
        v = trees.ravel(trees.sub(P[which], MEAN[which]))[0]
        evidence = -(diag * v**2).sum() / 2 + (diag.log().sum() + torch.linalg.slogdet(want)[1]) / 2
        close(posterior.log_marginal_likelihood(0.0), evidence, 1e-8, "evidence")
        drawn = posterior.sample(torch.Generator().manual_seed(0))
        assert trees.paths(drawn) == trees.paths(P)
        other = "a" if which == "b" else "b"
        close(drawn[other], P[other], 0.0, "fixed leaves")
        assert (drawn[which]["bias"] != P[which]["bias"]).all()
        zeros = trees.map(lambda t: t.new_zeros(3, *t.shape), P)
        assert posterior.sample(noise=zeros)[other]["bias"].shape == (3, len(P[other]["bias"]))
    tuned = fisher.recipes.tune_prior_precision(laplace(f, P, F, N)) if name != "Implicit" else None
    assert tuned is None or tuned.prior_precision > 0


# --- function space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian", "poisson"])
def test_function_space_is_parameter_space_with_the_exact_matrix(likelihood, prior):
    given = fisher.Gaussian((0.3, 0.5)) if likelihood == "gaussian" else likelihood
    F = fisher.fim(f, P, X, fisher.PMatDense, given)
    want = laplace(f, P, F, N, PRIORS[prior], MEAN, 0.6)
    got = functional_laplace(f, P, [X[:7], X[7:]], PRIORS[prior], MEAN, 0.6, given)
    close(got.predict(TEST), want.predict(TEST), 1e-8, "moments")
    close(got.predict(TEST, joint=True), want.predict(TEST, joint=True), 1e-8, "joint")
    close(got.predict([TEST[:2], TEST[2:]]), want.predict(TEST), 1e-8, "loader")
    close(got.log_marginal_likelihood(-2.0), want.log_marginal_likelihood(-2.0), 1e-8, "evidence")
    if likelihood in ("categorical", "bernoulli"):
        close(got.probabilities(TEST), want.probabilities(TEST), 1e-8, "probabilities")
        noise = randn(3, 5, 2)
        close(
            got.probabilities(TEST, link="mc", noise=noise),
            want.probabilities(TEST, link="mc", noise=noise),
            1e-8,
            "mc",
        )
    assert got.predict(TEST[:0])[1].shape == (0, 2, 2)
    assert "\n" not in repr(got)


def test_function_space_counts_targets_and_weights_as_fim_does():
    target = torch.tensor([0, 1, -100, 1] * 3)
    weight = torch.linspace(0.1, 2.0, N, dtype=D)
    want = laplace(f, P, fisher.fim(f, P, (X, target, weight), fisher.PMatDense), N, 0.5)
    got = functional_laplace(f, P, [(X[:5], target[:5], weight[:5]), (X[5:], target[5:], weight[5:])], 0.5)
    close(got.predict(TEST), want.predict(TEST), 1e-8, "moments")


def test_function_space_of_a_last_layer_and_of_an_ensemble():
    layers = fisher.LayerCollection.from_function(f, P, X)
    last = layers.select(["b"])
    want = laplace(f, P, fisher.fim(f, P, X, fisher.PMatDense, layers=last), N, 0.7, MEAN)
    got = functional_laplace(f, P, X, 0.7, MEAN, layers=last)
    close(got.predict(TEST), want.predict(TEST), 1e-8, "last layer")
    close(got.log_marginal_likelihood(0.0), want.log_marginal_likelihood(0.0), 1e-8, "evidence")
    members = trees.stack([P, trees.map(lambda t: 1.1 * t, P)])
    run = lambda p: functional_laplace(f, p, X, {"a": 0.5, "b": 2.0}, layers=layers).predict(TEST)
    close(vmap(run)(members), trees.stack([run(p) for p in trees.unstack(members)]), 1e-9, "ensemble")
    with pytest.raises(ValueError, match="a kernel needs a prior"):
        functional_laplace(f, P, X, 0.0)


# --- more data ----------------------------------------------------------------------------------------------------------


def test_tasks_one_after_the_other_are_all_data_at_once():
    """Linear regression: the second task trained under the density of the first posterior, then joined to it."""
    g = lambda p, x: torch.nn.functional.linear(x, p["w"], p["b"])
    start, y = {"w": randn(2, 3), "b": randn(2)}, randn(N, 2)
    noise, prior = fisher.Gaussian(0.3), {"w": 0.8}

    def mode(objective):
        """Of a quadratic objective, by one Newton step."""
        flat, unravel = trees.ravel(start)
        value = lambda v: objective(unravel(v))
        step = torch.linalg.solve(torch.func.hessian(value)(flat), torch.func.grad(value)(flat))
        return unravel(flat - step)

    fit = lambda p, part: noise.log_prob(g(p, X[part]), y[part]).sum()
    before = lambda p: -0.4 * trees.dot(p, p)
    one, two = slice(0, 5), slice(5, N)
    fim = lambda p, part: fisher.fim(g, p, X[part], fisher.PMatDense, noise)
    first = mode(lambda p: fit(p, one) + before(p))
    posterior = laplace(g, first, fim(first, one), 5, prior)
    second = mode(lambda p: fit(p, two) + posterior.log_prob(p))
    updated = posterior.update(fim(second, two), N - 5, second)
    whole = mode(lambda p: fit(p, slice(0, N)) + before(p))
    want = laplace(g, whole, fim(whole, slice(0, N)), N, prior)
    close(updated.params, whole, 1e-10, "mode")
    close(updated.predict(TEST), want.predict(TEST), 1e-10, "predictions")
    close(updated.log_prob(start), want.log_prob(start), 1e-9, "density")
    kept = posterior.update(fim(first, two), N - 5)
    close(kept.params, first, 0.0, "params")
    assert kept.n_examples == N


@pytest.mark.parametrize("name", ["Dense", "Diag", "BlockDiag", "KFAC", "EKFAC", "LowRank"])
def test_an_update_is_the_mean_matrix_of_both_tasks(name):
    fim = lambda x: fisher.fim(f, P, x, getattr(fisher, f"PMat{name}"))
    posterior = laplace(f, P, fim(X[:5]), 5, {"a": 0.5, "b": 2.0}, MEAN, 0.6).update(fim(X[5:]), N - 5)
    if name == "KFAC":
        want = fim([X[:5], X[5:]]).to_torch()
    else:
        want = (5 * fim(X[:5]).to_torch() + (N - 5) * fim(X[5:]).to_torch()) / N
    close(posterior.F.to_torch(), want, 1e-10, "mean")
    precision = N * want / 0.6 + torch.diag(spread({"a": 0.5, "b": 2.0}))
    J = torch.cat([t.reshape(5, 2, -1) for t in trees.leaves(jacrev(lambda p: f(p, TEST))(P))], -1)
    close(posterior.predict(TEST)[1], J @ torch.linalg.inv(precision) @ J.mT, 1e-8, "covariance")


def test_prints_are_a_line():
    F = fisher.fim(f, P, X, fisher.PMatKFAC)
    assert repr(laplace(f, P, F, N, {"a": 1.0, "b": 2.0}, MEAN, 0.5)).endswith(
        "N = 12, prior_precision = by layer, prior_mean, temperature = 0.5, Categorical)"
    )
    assert "by entry" in repr(laplace(f, P, F, N, ENTRIES))


# --- layer by layer -----------------------------------------------------------------------------------------------------

KERNELS = {
    "table": randn(5, 4), "kernel": randn(4, 2, 3), "scale": randn(4), "shift": randn(4), "w": randn(2, 4), "b": randn(2),
}  # fmt: skip
TOKENS = torch.tensor([[0, 1, 1, 4], [2, 2, 2, 3], [4, 0, 3, 1], [1, 1, 0, 0], [3, 2, 4, 4]])


def network(p, x):
    """A lookup of several positions, a grouped convolution, a scale with its shift, a linear layer."""
    z = torch.nn.functional.embedding(x, p["table"]).mT
    z = torch.nn.functional.conv1d(z, p["kernel"], padding=1, groups=2)
    z = torch.tanh(z.mean(-1)) * p["scale"] + p["shift"]
    return torch.nn.functional.linear(z, p["w"], p["b"])


@pytest.mark.parametrize("name", ["KFAC", "EKFAC", "BlockDiag", "QuasiDiag"])
def test_layer_by_layer_is_the_dense_formula_for_every_family(name):
    layers = fisher.LayerCollection.from_function(network, KERNELS, TOKENS)
    F = fisher.fim(network, KERNELS, TOKENS, getattr(fisher, f"PMat{name}"), layers=layers)
    J = jacrev(lambda p: network(p, TOKENS[:3]))(KERNELS)
    J = torch.cat([t.reshape(3, 2, -1) for t in trees.leaves(J)], -1)
    numbers = {layer: 0.3 + k for k, layer in enumerate(layers.names())}
    entries = layers.tree({n: torch.full_like(t, numbers[n]) for n, t in layers.views(KERNELS).items()})
    for prior in (0.7, numbers):
        posterior = laplace(network, KERNELS, F, 5, prior)
        diag = spread(0.7, KERNELS) if prior == 0.7 else trees.ravel(entries)[0]
        want = torch.linalg.inv(5 * F.to_torch() + torch.diag(diag))
        close(posterior.predict(TOKENS[:3])[1], J @ want @ J.mT, 1e-9, "covariance")
        flat = J.flatten(0, 1)
        close(posterior.predict(TOKENS[:3], joint=True)[1], flat @ want @ flat.T, 1e-9, "joint")


def test_layers_of_another_function_are_noticed():
    F = fisher.fim(f, P, X, fisher.PMatKFAC)
    other = lambda p, x: f(p, x) + torch.nn.functional.linear(x, p["a"]["weight"])[:, :2]
    with pytest.raises(ValueError, match=r"layers|uses|expected"):
        laplace(other, P, F, N).predict(TEST)


# --- what later predictions cost, and what they still see ---------------------------------------------------------------


def counting(f):
    """f, and a list that is one longer after each call."""
    calls = []
    return (lambda p, x: (calls.append(1), f(p, x))[1]), calls


@pytest.mark.parametrize("which", [["a", "b"], ["b"]])
def test_a_function_is_tried_once_for_each_kind_of_input(which):
    g, calls = counting(f)
    layers = fisher.LayerCollection.from_function(f, P, X)
    posterior = laplace(g, P, fisher.fim(g, P, X, fisher.PMatKFAC, layers=layers.select(which)), N)
    spent = []
    for x in (TEST, TEST[:3], X, TEST.float(), TEST[:3].float()):
        before = len(calls)
        posterior.predict(x.to(D))
        spent.append(len(calls) - before)
    assert spent[0] > 6
    assert spent[1:] == [2] * 4
    again = laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC, layers=layers.select(which)), N)
    for got, want in zip(posterior.predict(TEST), again.predict(TEST)):
        close(got, want, 1e-13, "the same numbers")


@pytest.mark.parametrize("which", [["a", "b"], ["b"]])
@pytest.mark.parametrize("cause", ["is random", "depends on other examples"])
@pytest.mark.parametrize("n", [1, 4])
def test_a_function_that_changes_after_its_trial_is_noticed(which, cause, n):
    mode = ["fine"]

    def g(p, x):
        y = f(p, x)
        if mode[0] == "is random":
            return y * (1 + 0.1 * torch.rand(len(x), 1, dtype=D))
        return y if mode[0] == "fine" else y + x.mean()

    layers = fisher.LayerCollection.from_function(f, P, X).select(which)
    posterior = laplace(g, P, fisher.fim(g, P, X, fisher.PMatKFAC, layers=layers), N)
    posterior.predict(X[:n])
    mode[0] = cause
    if n == 1 and cause != "is random":  # a single example has no others
        posterior.predict(X[:n])
        return
    with pytest.raises(ValueError, match=cause):
        posterior.predict(X[:n])


def test_a_last_layer_needs_no_backward_and_gives_the_same_rows():
    """Of outputs with positions, of an output in another shape, and of a layer that something follows."""
    x = randn(5, 3, 3)
    p = {"u": randn(4, 3), "w": randn(2, 4), "b": randn(2)}
    inner = lambda p, x: torch.nn.functional.linear(torch.tanh(x @ p["u"].T), p["w"], p["b"])
    for g in (inner, lambda p, x: inner(p, x).flatten(1), lambda p, x: inner(p, x).sin(), lambda p, x: 2 * inner(p, x)):
        layers = fisher.LayerCollection.from_function(g, p, x)
        last = layers.select([layers.names()[-1]])
        J = fisher.jacobian(g, p, x, layers=last)
        want = jacrev(lambda own, g=g: g(p | own, x))({k: p[k] for k in ("w", "b")})
        for key, t in J.jacobian.items():
            close(t, want[key].reshape(t.shape), 1e-12, key)
        K = fisher.gram(g, p, x, layers=last).kernel
        close(K.flatten(2).flatten(0, 1), J.to_torch().flatten(0, 1) @ J.to_torch().flatten(0, 1).T, 1e-11, "kernel")
        members = torch.stack([x, 2 * x])
        run = lambda x, g=g, last=last: fisher.gram(g, p, x, layers=last).kernel
        close(torch.func.vmap(run)(members), torch.stack([run(x), run(2 * x)]), 1e-11, "ensemble")
        c, h = torch.tensor(0.7, dtype=D), 1e-6
        total = lambda c, g=g, last=last: fisher.gram(g, p | {"u": c * p["u"]}, x, layers=last).kernel.sum()
        close(jacrev(total)(c), (total(c + h) - total(c - h)) / (2 * h), 1e-5, "derivative")


def test_what_is_found_of_layers_is_no_part_of_them():
    layers = fisher.LayerCollection.from_function(f, P, X)
    fresh = copy.copy(layers)
    assert layers.space is layers.space
    assert layers.view_shapes
    assert fresh == layers
    assert hash(fresh) == hash(layers)
    assert pickle.dumps(fresh) == pickle.dumps(layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex128, torch.int64])
def test_params_of_another_dtype_than_the_matrix_are_refused(dtype):
    F = fisher.fim(f, P, X, fisher.PMatKFAC)
    posterior, other = laplace(f, P, F, N), trees.map(lambda t: t.to(dtype), P)
    some = fisher.fim(f, P, X, layers=fisher.LayerCollection.from_function(f, P, X).select(["b"]))
    for call in (
        lambda: laplace(f, other, F, N),
        lambda: laplace(f, other, some, N),
        lambda: posterior.update(F, N, other),
        lambda: posterior.log_prob(other),
    ):
        with pytest.raises(TypeError, match=f"params: .*got (dtype )?{dtype}, expected"):
            call()
