"""Influence of measurements, by layer, by token, aggregated, streamed, compressed, of some layers: against dense formulas."""

import weakref

import pytest
import torch
from torch.func import grad, jacrev, vmap

import fisher
from fisher.recipes import influence, self_influence
from fisher.recipes.influences import contracts
from fisher.recipes.influences.gathering import gathered
from linmaps import trees
from tests.laws import close

D = torch.float64
R = 0.1


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def tokens(p, x):
    """A causal mean of embeddings, a scale with its shift, a bottleneck used twice and a head."""
    h = torch.nn.functional.embedding(x, p["e"])
    h = h.cumsum(1) * p["s"] + p["t"]
    h = torch.tanh(torch.nn.functional.linear(h, p["u"]["weight"], p["u"]["bias"]))
    h = torch.tanh(torch.nn.functional.linear(h, p["u"]["weight"], p["u"]["bias"])) + h
    return h @ p["o"]


TOKENS = {
    "e": randn(7, 4),
    "s": randn(4, seed=1),
    "t": randn(4, seed=2),
    "u": {"weight": randn(4, 4, seed=3), "bias": randn(4, seed=4)},
    "o": randn(4, 3, seed=5),
}
X = torch.arange(40).reshape(8, 5) * 3 % 7
Y = torch.arange(40).reshape(8, 5) * 5 % 3


def images(p, x):
    """Convolutions in groups, a leaf without a rule, a head."""
    h = torch.tanh(torch.nn.functional.conv2d(x, p["c"], p["b"], groups=2) * torch.exp(p["q"]))
    return torch.nn.functional.linear(h.flatten(1), p["w"])


IMAGES = {
    "c": randn(4, 1, 2, 2),
    "b": randn(4, seed=1),
    "q": randn(1, seed=2),
    "w": randn(3, 16, seed=3),
}
MODELS = {
    "tokens": (tokens, TOKENS, (X, Y), fisher.Categorical(-1)),
    "images": (images, IMAGES, (randn(8, 2, 3, 3), torch.arange(8) % 3), fisher.Categorical()),
}
over_models = pytest.mark.parametrize("name", MODELS)


def rows(of, p, data):
    """The gradient of each of(p, x, y), `[B, d]`, written out."""
    found = [trees.ravel(grad(of)(p, *(t[b : b + 1] for t in data)))[0] for b in range(len(data[0]))]
    return torch.stack(found)


def case(name, representation):
    """f, params, data, test, likelihood, F, (F + R)^-1, gradients of the data's losses, and of the tests'."""
    f, p, data, likelihood = MODELS[name]
    test, data = tuple(t[:3] for t in data), tuple(t[2:] for t in data)
    F = fisher.fim(f, p, data, representation, likelihood)
    inverse = torch.linalg.inv(F.to_torch() + R * torch.eye(F.size(0), dtype=D))
    loss = lambda p, x, y: -likelihood.log_prob(f(p, x), y).sum()
    return f, p, data, test, likelihood, F, inverse, rows(loss, p, data), rows(loss, p, test)


def places(layers):
    """Which entries of the flat order belong to each layer."""
    ones = trees.map(torch.zeros_like, layers.space.unflatten([torch.zeros(s) for s in layers.space.shapes]))
    found = {}
    for name in layers.names():
        views = {n: torch.full_like(t, float(n == name)) for n, t in layers.views(ones).items()}
        found[name] = trees.ravel(layers.tree(views))[0].bool()
    return found


def split(data, *sizes):
    return list(zip(*(t.split(sizes) for t in data)))


def margin(f):
    """A measurement of one example: the largest output less the mean of all, over positions."""
    return lambda p, x, y=None: (f(p, x[None]).amax(-1) - f(p, x[None]).mean(-1)).sum() * (2.0 if y is None else 1.0)


@over_models
@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDiag])
def test_by_layer_and_of_a_measurement(name, representation):
    f, p, data, test, which, F, inverse, train, own = case(name, representation)
    layers = fisher.LayerCollection.from_function(f, p, data[0])
    run = lambda *args, **options: influence(f, p, *args, loss=which, regul=R, **options)
    want = -own @ inverse @ train.T
    close(run(data, F, test), want, 1e-8, "plain")
    by_layer = run(data, F, test, per_layer=True)
    assert set(by_layer) == set(layers.names())
    for layer, at in places(layers).items():
        close(by_layer[layer], -(own @ inverse)[:, at] @ train[:, at].T, 1e-8, layer)
    close(sum(by_layer.values()), want, 1e-8, "sum over layers")
    theirs = rows(lambda p, x, y: margin(f)(p, x[0], y[0]), p, test)
    close(run(data, F, test, measurement=margin(f)), -theirs @ inverse @ train.T, 1e-8, "of one example")
    batched = lambda p, x, y: (f(p, x).amax(-1) - f(p, x).mean(-1)).reshape(len(x), -1).sum(1)
    close(run(data, F, test, measurement=batched), -theirs @ inverse @ train.T, 1e-8, "of a batch")
    close(run(data, F, test[0], measurement=margin(f)), -2 * theirs @ inverse @ train.T, 1e-8, "without targets")
    of_params = run(data, F, test, measurement=lambda p, x, y: trees.dot(p, p) / 2)
    close(of_params, -torch.stack([trees.ravel(p)[0]] * 3) @ inverse @ train.T, 1e-8, "of the params alone")


@over_models
def test_self_influence_of_a_measurement_and_by_layer(name):
    f, p, data, _, which, F, inverse, train, _ = case(name, fisher.PMatKFAC)
    theirs = rows(lambda p, x, y: margin(f)(p, x[0], y[0]), p, data)
    run = lambda **options: self_influence(f, p, options.pop("data", data), F, loss=which, regul=R, **options)
    close(run(), -(train @ inverse * train).sum(1), 1e-8, "own")
    close(run(measurement=margin(f)), -(theirs @ inverse * train).sum(1), 1e-8, "measurement")
    by_layer = run(measurement=margin(f), per_layer=True)
    for layer, at in places(F.layers).items():
        close(by_layer[layer], -((theirs @ inverse)[:, at] * train[:, at]).sum(1), 1e-8, layer)
    for options in ({"chunk_size": 4}, {"data": split(data, 1, 5)}, {"data": split(data, 1, 5), "chunk_size": 2}):
        close(run(measurement=margin(f), **options), run(measurement=margin(f)), 1e-12, "streamed")


@over_models
@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC])
def test_aggregated_and_streamed(name, representation):
    f, p, data, test, which, F, *_ = case(name, representation)
    run = lambda data=data, test=test, **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    streams = (
        {"data": split(data, 2, 3, 1), "test": split(test, 2, 1)},
        {"data": split(data, 4, 2), "test": split(test, 1, 2), "chunk_size": 1},
        {"test": split(test, 1, 1, 1), "chunk_size": 2},
    )
    for number, extra in enumerate(({}, {"measurement": margin(f)}, {"per_layer": True})):
        want = run(**extra)
        for reduce, options in [
            (lambda t: t, {}),
            (lambda t: t.sum(0), {"aggregate": "test"}),
            (lambda t: t.sum(1), {"aggregate": "data"}),
            (lambda t: t.sum(), {"aggregate": "both"}),
        ]:
            stream = streams[number] if number < 2 else {}
            close(run(**options, **extra, **stream), trees.map(reduce, want), 1e-9, f"{options} {list(stream)}")
    close(run(**streams[2]), run(), 1e-10, "tests in chunks of several batches")


def test_each_chunk_is_one_pass_over_the_data_and_holds_no_more():
    f, p, data, test, which, F, *_ = case("tokens", fisher.PMatKFAC)
    passes, held = [], []

    class Loader:
        def __iter__(self):
            passes.append(1)
            return iter(split(data, 3, 3))

    solved = type(F)._solve_map

    def noted(self, J, n, *args, **options):
        held.append(trees.leaves(J)[0].shape[0])
        return solved(self, J, n, *args, **options)

    type(F)._solve_map = noted
    try:
        want = influence(f, p, Loader(), F, test, loss=which, regul=R)
        assert (len(passes), held) == (1, [3])
        got = influence(f, p, Loader(), F, test, loss=which, regul=R, chunk_size=2)
        assert (len(passes), held) == (3, [3, 2, 1])
    finally:
        type(F)._solve_map = solved
    close(got, want, 1e-10, "chunks")
    with pytest.raises(ValueError, match="exhausted generator"):
        influence(f, p, iter(split(data, 3, 3)), F, test, loss=which, regul=R, chunk_size=2)


def test_tokens_sum_to_the_whole_and_are_the_terms_of_the_gradient():
    f, p, data, test, which, F, inverse, _, own = case("tokens", fisher.PMatKFAC)
    run = lambda **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    got = run(per_token=True)
    assert got.shape == (3, 6, 5)
    close(got.sum(-1), run(), 1e-10, "sum over positions")
    by_layer = run(per_token=True, per_layer=True)
    close(sum(by_layer.values()), got, 1e-10, "sum over layers")

    def shifted(by):
        """f with an own copy of the params at each position of each example: [B, T] of all leaves in front."""
        bmm = lambda h, w: torch.einsum("bti,btoi->bto", h, w)
        h = torch.gather(by["e"], 2, data[0][:, :, None, None].expand(-1, -1, 1, 4))[:, :, 0]
        h = h.cumsum(1) * by["s"] + by["t"]
        h = torch.tanh(bmm(h, by["u"]["weight"]) + by["u"]["bias"])
        h = torch.tanh(bmm(h, by["u"]["weight"]) + by["u"]["bias"]) + h
        return -which.log_prob(torch.einsum("bti,btio->bto", h, by["o"]), data[1]).sum()

    at = grad(shifted)(trees.map(lambda t: t.expand(6, 5, *t.shape), p))
    each = torch.cat([t.flatten(2) for t in trees.leaves(at)], -1)
    want = -torch.einsum("qn,btn->qbt", own @ inverse, each)
    close(got, want, 1e-8, "position by position")
    for layer, here in places(F.layers).items():
        close(by_layer[layer], -torch.einsum("qn,btn->qbt", (own @ inverse)[:, here], each[..., here]), 1e-8, layer)
    close(run(per_token=True, aggregate="test"), want.sum(0), 1e-8, "aggregated")
    close(run(per_token=True, chunk_size=2, rank=4), want, 1e-8, "in chunks, of full rank")
    dense = fisher.PMatDense(F.to_torch(), F.layout)
    close(influence(f, p, data, dense, test, loss=which, regul=R, per_token=True), want, 1e-8, "dense")


def test_own_tokens_are_the_diagonal_of_those_of_all_pairs():
    f, p, data, _, which, F, *_ = case("tokens", fisher.PMatKFAC)
    run = lambda data, **options: self_influence(f, p, data, F, loss=which, regul=R, per_token=True, **options)
    everything = lambda **options: influence(f, p, data, F, data, loss=which, regul=R, per_token=True, **options)
    mine = lambda t: t.diagonal(dim1=0, dim2=1).mT
    got = run(data)
    assert got.shape == (6, 5)
    close(got, mine(everything()), 1e-10, "the diagonal")
    close(got.sum(-1), self_influence(f, p, data, F, loss=which, regul=R), 1e-10, "the sum over positions")
    for layer, t in everything(per_layer=True).items():
        close(run(data, per_layer=True)[layer], mine(t), 1e-10, layer)
    w = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 1.0], dtype=D)
    close(
        run([(*(t[:4] for t in data), w[:4]), (*(t[4:] for t in data), w[4:])], chunk_size=3),
        w[:, None] * got,
        1e-10,
        "w",
    )
    close(run(data, measurement=margin(f)), mine(everything(measurement=margin(f))), 1e-10, "of a measurement")
    members = [trees.scale(c, p) for c in (1.0, 0.5)]
    ours = lambda p: self_influence(f, p, data, F, loss=which, regul=R, per_token=True)
    close(vmap(ours)(trees.stack(members)), torch.stack([ours(p) for p in members]), 1e-9, "ensemble")
    g, q, pictures, _, kind, H, *_ = case("images", fisher.PMatKFAC)
    with pytest.raises(ValueError, match="per_token: q: has an exact block"):
        self_influence(g, q, pictures, H, loss=kind, regul=R, per_token=True)


def test_layers_that_are_no_sum_over_the_positions_are_named_together_and_left_out():
    """A classifier of texts: tokens and mixers at T positions, the pooler and the head at one, a bias for each distance."""
    r = lambda *size, seed: torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=D)
    p = {
        "a_pooler": r(4, 4, seed=0),
        "b_mixer": r(4, 4, seed=1),
        "c_bias": r(11, seed=2),
        "d_tokens": r(9, 4, seed=3),
    }
    p |= {"e_mixer": r(4, 4, seed=4), "f_head": r(3, 4, seed=5)}

    apart = 5 + torch.arange(6)[:, None] - torch.arange(6)  # a bias for each distance

    def f(p, x):
        h = torch.tanh(p["d_tokens"][x] @ p["b_mixer"])
        h = torch.softmax(h @ h.mT + p["c_bias"][apart], -1) @ h @ p["e_mixer"]
        return torch.tanh(h[:, 0] @ p["a_pooler"]) @ p["f_head"].T

    data = torch.arange(24).reshape(4, 6) % 9, torch.arange(4) % 3
    F = fisher.fim(f, p, data)
    run = lambda F, **options: influence(f, p, data, F, data, regul=R, **options)
    with pytest.raises(ValueError) as caught:
        run(F, per_token=True)
    for words in ("a_pooler: is used at 1 positions of an example, expected 6 as most layers", "f_head: is used at 1"):
        assert words in str(caught.value)
    names = ("a_pooler", "c_bias", "f_head")
    assert str(caught.value).endswith(f"leave them out: make F with layers=layers.remove{names}"), caught.value
    some = fisher.fim(f, p, data, layers=F.layers.remove(*names))
    close(run(some, per_token=True).sum(-1), run(some), 1e-10, "what is left")


@over_models
@pytest.mark.parametrize("rank", [1, 2, 3, 50])
def test_a_rank_is_the_best_approximation_and_its_error_is_bounded(name, rank):
    f, p, data, test, which, F, inverse, train, own = case(name, fisher.PMatKFAC)
    run = lambda **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    want, got = run(per_layer=True), run(per_layer=True, rank=rank)
    close(run(rank=rank), sum(got.values()), 1e-10, "sum")
    solved = vmap(F.layers.views)(vmap(F.layout.unravel)(own @ inverse))
    grads = vmap(F.layers.views)(vmap(F.layout.unravel)(train))
    for layer in F.layers:
        V, G = solved[layer.name], grads[layer.name]
        if layer.kronecker and rank * sum(V.shape[-2:]) < V.shape[-2] * V.shape[-1]:
            U, s, W = torch.linalg.svd(V, full_matrices=False)
            V = (U[..., :rank] * s[..., None, :rank]) @ W[..., :rank, :]
            bound = (s[..., rank:] ** 2).flatten(1).sum(1).sqrt()[:, None] * G.flatten(1).norm(dim=1)
            assert ((got[layer.name] - want[layer.name]).abs() <= bound + 1e-10).all()
        close(got[layer.name], -V.flatten(1) @ G.flatten(1).T, 1e-8, layer.name)
    if rank == 50:
        close(got, want, 1e-10, "full rank")
    elif rank == 1:
        assert not torch.allclose(run(rank=rank), run(), rtol=1e-3)


@over_models
def test_tiles_of_any_size_give_the_same(name, monkeypatch):
    f, p, data, test, which, F, *_ = case(name, fisher.PMatKFAC)
    layers = F.layers if name == "tokens" else F.layers.select(["c"])
    F = fisher.fim(f, p, data, fisher.PMatKFAC, which, layers=layers)
    run = lambda **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    kinds = [{}, {"rank": 1}, {"per_token": True}, {"rank": 1, "per_token": True}, {"per_token": True, "chunk_size": 2}]
    want = [run(**options) for options in kinds]
    for tile, many, at_once in ((1, 1, 30), (20, 2, 200), (7, 100, 1000)):
        monkeypatch.setattr(contracts, "IN_CACHE", tile)
        monkeypatch.setattr(contracts, "ROWS", many)
        monkeypatch.setattr(contracts, "AT_ONCE", at_once)
        for options, t in zip(kinds, want):
            close(run(**options), t, 1e-12, f"{tile} {options}")


def test_products_are_multiplied_out_where_that_is_less():
    """A rank r against examples of many positions, as rows or as terms, for few held ones and for many."""
    f, p, data, _, which, F, *_ = case("tokens", fisher.PMatKFAC)
    some = F.layers.select(["u"])
    F = fisher.fim(f, p, data, fisher.PMatKFAC, which, layers=some)
    long = lambda data, n: tuple(t.repeat(1, n) for t in data)
    for n in (1, 40):
        for many in (1, 6):
            test = tuple(t[:many] for t in long(data, n))
            run = lambda n=n, test=test, **o: influence(f, p, long(data, n), F, test, loss=which, regul=R, rank=1, **o)
            close(run(), run(per_token=True).sum(-1), 1e-10, f"{n} times the positions, {many} tests")


def test_a_measurement_of_inputs_that_f_does_not_take():
    """Pairs of inputs, or inputs with weights: the layers are seen on the data, to which f is applied."""
    f, p, data, test, which, F, inverse, train, _ = case("tokens", fisher.PMatKFAC)
    gap = lambda p, x: ((f(p, x[0]) - f(p, x[1])) ** 2).sum((1, 2))
    pairs = (test[0], test[0].flip(0))
    theirs = torch.stack([trees.ravel(grad(lambda p, b=b: gap(p, pairs)[b])(p))[0] for b in range(3)])
    for data_, options in ((data, {}), (data, {"per_token": True}), (split(data, 0, 2, 4), {"per_layer": True})):
        got = influence(f, p, data_, F, (pairs, None), loss=which, regul=R, measurement=gap, **options)
        got = got.sum(-1) if "per_token" in options else sum(got.values()) if "per_layer" in options else got
        close(got, -theirs @ inverse @ train.T, 1e-8, str(options))


def test_batches_of_different_lengths():
    """Tokens in batches that are as long as their longest: zeros behind, which padding to one length gives too."""
    f, p, data, test, which, F, *_ = case("tokens", fisher.PMatKFAC)
    short = lambda data: [tuple(t[:2] for t in data), tuple(t[2:, :3] for t in data)]
    padded = (data[0], torch.where((torch.arange(6)[:, None] > 1) & (torch.arange(5) > 2), -100, data[1]))
    run = lambda data, test=test, **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    want = run(padded, per_token=True)
    assert (want[:, 2:, 3:] == 0).all()
    close(run(short(data), per_token=True), want, 1e-12, "by token")
    close(run(short(data), per_token=True, chunk_size=1), want, 1e-12, "in chunks")
    close(run(short(data)), run(padded), 1e-12, "whole")
    own = lambda data: self_influence(f, p, data, F, loss=which, regul=R, per_token=True)
    close(own(short(data)), own(padded), 1e-12, "own")


def test_results_are_joined_while_they_come():
    alive = []

    def found():
        for k in range(100):
            one = torch.full((2, 1), float(k))
            alive.append(weakref.ref(one))
            yield {"a": one}
            del one
            assert sum(ref() is not None for ref in alive) <= 2  # the last one by itself, and one not yet joined

    close(gathered(found(), 1)["a"], torch.arange(100.0).expand(2, -1), 0.0, "in order")


@over_models
@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag])
def test_some_layers(name, representation):
    """F of some layers, with the params of all: by F's own layers, or those that are given; or with both restricted."""
    f, p, data, test, which, *_ = case(name, representation)
    layers = fisher.LayerCollection.from_function(f, p, data[0])
    some = layers.select(["u", "o"] if name == "tokens" else ["w", "q"])
    F = fisher.fim(f, p, data, representation, which, layers=some)
    inverse = torch.linalg.inv(F.to_torch() + R * torch.eye(F.size(0), dtype=D))
    loss = lambda own, x, y: -which.log_prob(some.restricted(f, p)(own, x), y).sum()
    train, own = (rows(loss, some.restrict(p), part) for part in (data, test))
    run = lambda f, p, **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    want = -own @ inverse @ train.T
    given = {} if representation is fisher.PMatKFAC else {"layers": some}
    close(run(f, p, **given), want, 1e-8, "all params")
    close(run(some.restricted(f, p), some.restrict(p)), want, 1e-8, "restricted")
    by_layer = run(f, p, layers=some, per_layer=True)
    assert set(by_layer) == set(some.names())
    close(sum(by_layer.values()), want, 1e-8, "by layer")
    close(
        sum(run(some.restricted(f, p), some.restrict(p), per_layer=True).values()), want, 1e-8, "by layer, restricted"
    )
    theirs = rows(lambda own, x, y: margin(some.restricted(f, p))(own, x[0], y[0]), some.restrict(p), test)
    close(run(f, p, **given, measurement=margin(f)), -theirs @ inverse @ train.T, 1e-8, "measurement")
    both = self_influence(f, p, data, F, loss=which, regul=R, **given)
    close(both, -(train @ inverse * train).sum(1), 1e-8, "self")
    if name == "tokens":
        close(run(f, p, layers=some, per_token=True).sum(-1), want, 1e-8, "tokens")
    with pytest.raises(ValueError, match=r"layers: is about \[.*expected \["):
        run(f, p, layers=layers)


@over_models
def test_damping_relative_to_each_layer(name):
    """A tenth of the mean eigenvalue of each block."""
    f, p, data, test, which, F, _, train, own = case(name, fisher.PMatKFAC)
    dense, damping = F.to_torch(), F.relative(0.1)
    amounts = torch.zeros(len(dense), dtype=D)
    for layer, at in places(F.layers).items():
        amounts[at] = 0.1 * dense.diagonal()[at].mean()
        close(damping[layer], amounts[at][0], 1e-10, layer)
    inverse = torch.linalg.inv(dense + torch.diag(amounts))
    for options in ({}, {"rank": 50}, {"chunk_size": 2}):
        got = influence(f, p, data, F, test, loss=which, regul=damping, **options)
        close(got, -own @ inverse @ train.T, 1e-8, "influence")
    got = self_influence(f, p, data, F, loss=which, regul=damping)
    close(got, -(train @ inverse * train).sum(1), 1e-8, "self")


def test_another_function_than_the_one_that_F_was_made_of():
    """Layers that are F's own but not f's: gradients one by one, or of the layers that f has."""
    _, p, data, test, which, F, inverse, train, own = case("tokens", fisher.PMatKFAC)
    other = lambda p, x: torch.einsum("bti,io->bto", tokens({**p, "o": p["o"] * 1.0}, x), torch.eye(3, dtype=D))
    got = influence(other, p, data, F, test, loss=which, regul=R)
    close(got, -own @ inverse @ train.T, 1e-8, "the same numbers")
    close(sum(influence(other, p, data, F, test, loss=which, regul=R, per_layer=True).values()), got, 1e-8, "by layer")


def test_ensembles_and_derivatives():
    f, p, data, test, which, *_ = case("tokens", fisher.PMatKFAC)
    layers = fisher.LayerCollection.from_function(f, p, data[0])

    def run(p, **options):
        F = fisher.fim(f, p, data, fisher.PMatKFAC, which, layers=layers)
        return influence(f, p, data, F, test, loss=which, regul=R, **options)

    members = [trees.scale(c, p) for c in (1.0, 0.5)]
    for options in ({"rank": 2}, {"per_token": True}, {"aggregate": "test"}, {"measurement": margin(f)}):
        got = vmap(lambda p, o=options: run(p, **o))(trees.stack(members))
        close(got, torch.stack([run(p, **options) for p in members]), 1e-9, f"ensemble {options}")
        total = lambda c, o=options, p=p: run(trees.scale(c, p), **o).div(100).cos().sum()
        c, h = torch.tensor(0.8, dtype=D), 1e-5
        close(jacrev(total)(c), (total(c + h) - total(c - h)) / (2 * h), 1e-5, f"derivative {options}")


def test_what_does_not_fit_is_refused():
    f, p, data, test, which, F, *_ = case("tokens", fisher.PMatKFAC)
    g, q, pictures, few, kind, H, *_ = case("images", fisher.PMatKFAC)
    run = lambda **options: influence(f, p, data, F, test, loss=which, regul=R, **options)
    for call, message in [
        (lambda: run(aggregate="query"), r"aggregate: got 'query', expected one of \['test', 'data', 'both'\]"),
        (lambda: run(rank=0), "rank: got 0, expected an int >= 1"),
        (lambda: run(rank=2, aggregate="test"), "rank: got it with aggregate='test'"),
        (lambda: run(per_token=True, aggregate="data"), "per_token: got it with aggregate='data'"),
        (lambda: run(chunk_size=0), "chunk_size: got 0"),
        (lambda: influence(f, p, data, F, [], loss=which), "^test: got no batch"),
        (lambda: influence(f, p, data, F, [test, 3], loss=which), "^test: batch 1: got int"),
        (lambda: influence(f, p, data, F, None, loss=which), "^test: got NoneType"),
        (
            lambda: run(measurement=lambda p, x, y: f(p, x)),
            r"measurement\(params, x, y\): of one example .*expected a number",
        ),
        (lambda: run(measurement="margin"), "measurement: got"),
        (
            lambda: influence(f, p, data, F, test[0], loss=which, regul=R),
            "test: batch 0 has no target",
        ),
        (
            lambda: influence(g, q, pictures, H, few, loss=kind, regul=R, per_token=True),
            r"per_token: q: has an exact block .*leave them out.*layers.remove\('q', 'w'\)",
        ),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    layers = fisher.LayerCollection.from_function(g, q, pictures[0]).remove("q")
    H = fisher.fim(g, q, pictures, fisher.PMatKFAC, kind, layers=layers)
    with pytest.raises(ValueError, match=r"per_token: w: is used at 1 positions of an example, expected 4"):
        influence(g, q, pictures, H, few, loss=kind, regul=R, per_token=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_and_empty_batches(dtype):
    f, p, data, test, which, F, *_ = case("tokens", fisher.PMatKFAC)
    less = lambda t: t.to(dtype) if t.is_floating_point() else t
    q, G = trees.map(less, p), trees.map(less, F)
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype]

    def near(got, want):
        assert got.dtype == dtype
        assert (got.to(D) - want).abs().amax() < bound * want.abs().amax()

    for options in ({}, {"rank": 4}, {"rank": 1}, {"rank": 1, "per_layer": True}, {"per_token": True}):
        got, there = (influence(f, *of, test, loss=which, regul=R, **options) for of in ((q, data, G), (p, data, F)))
        for one, other in zip(*(trees.leaves(t) for t in (got, there))):
            near(one, other)
    for options in ({}, {"per_token": True}):
        own = lambda p, F, o=options: self_influence(f, p, data, F, loss=which, regul=R, **o)
        near(own(q, G), own(p, F))
    nothing = tuple(t[:0] for t in data)
    for options, shape in (({}, (3, 0)), ({"per_token": False, "aggregate": "test"}, (0,)), ({"rank": 1}, (3, 0))):
        assert influence(f, p, nothing, F, test, loss=which, regul=R, **options).shape == shape
    assert influence(f, p, data, F, nothing, loss=which, regul=R).shape == (0, 6)
    assert influence(f, p, nothing, F, test, loss=which, regul=R, per_token=True).shape == (3, 0, 0)
    assert self_influence(f, p, nothing, F, loss=which, regul=R, per_token=True).shape == (0, 0)
    for options in ({}, {"rank": 1}, {"per_token": True}):
        run = lambda data, test, o=options: influence(f, p, data, F, test, loss=which, regul=R, **o)
        close(run([nothing, data], [nothing, test, nothing]), run(data, test), 1e-12, f"empty batches {options}")
    assert self_influence(f, p, nothing, F, loss=which, regul=R).shape == (0,)
