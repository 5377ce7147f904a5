"""Self-influences by factors are those of whole gradients, in all representations, of layers of every kind."""

import pytest
import torch
from torch.func import grad, jacrev, vmap
from torch.nn.functional import conv2d, cross_entropy, embedding, linear

import fisher
from fisher.recipes import self_influence
from fisher.recipes.influences import forms
from linmaps import trees
from tests.laws import close

D = torch.float64
R = 0.1


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def mlp(p, x):
    """One position; a layer with a bias, one whose bias is left out once, one without."""
    h = torch.tanh(linear(x, p["u"]["weight"], p["u"]["bias"]))
    h = torch.tanh(linear(h, p["v"]["weight"], p["v"]["bias"])) + linear(h, p["v"]["weight"])
    return h @ p["o"]


def pictures(p, x):
    """Convolutions with many positions and few, in groups, a scale, a leaf without a rule."""
    h = torch.tanh(conv2d(x, p["c"], p["b"]))
    h = torch.tanh(conv2d(h, p["g"], groups=2, stride=3) * torch.exp(p["q"])) * p["s"][:, None, None]
    return h.flatten(1) @ p["o"]


def text(p, x):
    """A table that is read at a few of its entries, with repetitions and padding, one of few entries, a layer used twice,
    a narrow one."""
    h = embedding(x, p["e"], padding_idx=0) + embedding(x % 2, p["m"])
    h = h.cumsum(1)
    for _ in range(2):
        h = torch.tanh(linear(h, p["u"]["weight"], p["u"]["bias"]))
    return torch.tanh(h @ p["n"]).sum(1) @ p["o"]


def tied(p, x):
    """A table that is the head too, and a weight made of leaves."""
    h = embedding(x, p["e"]).cumsum(1)
    w = p["d"] * p["w"] / p["w"].norm(dim=1, keepdim=True)
    return (torch.tanh(h @ w.T) @ p["e"].T).sum(1)


LABELS = torch.arange(7) % 3
INDEX = torch.arange(35).reshape(7, 5) * 3 % 8
MODELS = {
    "mlp": (
        mlp,
        {
            "u": {"weight": randn(4, 6), "bias": randn(4, seed=1)},
            "v": {"weight": randn(4, 4, seed=2), "bias": randn(4, seed=3)},
            "o": randn(4, 3, seed=4),
        },
        (randn(7, 6, seed=9), LABELS),
    ),
    "pictures": (
        pictures,
        {
            "c": randn(4, 2, 2, 2),
            "b": randn(4, seed=1),
            "g": randn(4, 2, 2, 2, seed=2),
            "q": randn(1, seed=3),
            "s": randn(4, seed=4),
            "o": randn(4, 3, seed=5),
        },
        (randn(7, 2, 4, 4, seed=9), LABELS),
    ),
    "text": (
        text,
        {
            "e": randn(8, 12),
            "m": randn(2, 12, seed=1),
            "u": {"weight": randn(12, 12, seed=2) / 2, "bias": randn(12, seed=3)},
            "n": randn(12, 2, seed=5) / 2,
            "o": randn(2, 3, seed=4),
        },
        (INDEX, LABELS),
    ),
    "tied": (
        tied,
        {"e": randn(8, 4), "d": randn(4, 1, seed=1), "w": randn(4, 4, seed=2)},
        (INDEX, INDEX[:, 0]),
    ),
}


def sums(*args, **options):
    return fisher.fim(*args, fisher.PMatKFAC, **options) + fisher.fim(*args, fisher.PMatDiag, **options)


def of(representation):
    return lambda *args, **options: fisher.fim(*args, representation, **options)


REPRESENTATIONS = {
    **{
        name: of(getattr(fisher, name))
        for name in (
            "PMatDense",
            "PMatBlockDiag",
            "PMatKFAC",
            "PMatEKFAC",
            "PMatQuasiDiag",
            "PMatDiag",
            "PMatMixed",
            "PMatLowRank",
        )
    },
    "PMatEigen": lambda *args, **options: fisher.fim(*args, fisher.PMatBlockDiag, **options).eigendecomposition(),
    "PMatEye": lambda f, p, x, layers: fisher.PMatEye(torch.tensor(0.3, dtype=D), layers.space).on_layers(layers),
    "PMatSum": sums,
}
over_models = pytest.mark.parametrize("model", MODELS)


def margin(f):
    return lambda p, x, y: f(p, x[None]).amax() - f(p, x[None]).mean()


def made(model, representation):
    """f, params, data, F and its layers, and the gradients of the losses, a tree with leaves `[B, *leaf]`."""
    f, p, data = MODELS[model]
    layers = fisher.LayerCollection.from_function(f, p, data[0])
    F = REPRESENTATIONS[representation](f, p, data[0], layers=layers)
    return f, p, data, F, layers, rows(lambda p, x, y: cross_entropy(f(p, x[None]), y[None]), p, data)


def rows(of, p, data):
    return trees.stack([grad(of)(p, *(t[b] for t in data)) for b in range(len(data[0]))])


def whole(F, layers, left, right, regul):
    """By layer, from the solve of whole gradients."""
    solved, beside = (vmap(layers.views)(t) for t in (F.solve(left, regul), right))
    return {name: -(t * beside[name]).flatten(1).sum(1) for name, t in solved.items()}


@over_models
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_factors_give_what_whole_gradients_give(model, representation, monkeypatch):
    f, p, data, F, layers, g = made(model, representation)
    theirs = rows(margin(f), p, data)
    names = layers.names()
    reguls = [R, {name: R * (1 + k) for k, name in enumerate(names)}]
    if representation in ("PMatDiag", "PMatEye", "PMatDense", "PMatBlockDiag", "PMatQuasiDiag"):
        reguls.append(trees.map(lambda t: t**2 + R, p))
    for regul in reguls:
        want = whole(F, layers, g, g, regul)
        got = self_influence(f, p, data, F, regul=regul, layers=layers, per_layer=True)
        assert list(got) == list(want)
        for name in want:
            close(got[name], want[name], 1e-10, name)
    monkeypatch.setattr(forms, "AT_ONCE", 30)
    run = lambda **options: self_influence(f, p, data, F, regul=R, layers=layers, **options)
    close(run(chunk_size=5), sum(whole(F, layers, g, g, R).values()), 1e-10, "in parts")
    close(run(measurement=margin(f)), sum(whole(F, layers, theirs, g, R).values()), 1e-10, "measurement")


@pytest.mark.parametrize("representation", [name for name in REPRESENTATIONS if name != "PMatEye"])
def test_terms_of_positions_are_those_of_whole_gradients(representation, monkeypatch):
    """The diagonal of the influences by token of the data on themselves."""
    f, p, data = MODELS["text"]
    layers = fisher.LayerCollection.from_function(f, p, data[0]).remove("o")
    F = REPRESENTATIONS[representation](f, p, data[0], layers=layers)
    solves = lambda **options: self_influence(f, p, data, F, regul=R, layers=layers, **options)
    for options in ({}, {"measurement": margin(f)}):
        got = solves(per_token=True, per_layer=True, **options)
        want = fisher.recipes.influence(
            f, p, data, F, data, regul=R, layers=layers, per_token=True, per_layer=True, **options
        )
        for name in layers.names():
            assert got[name].shape == (7, 5)
            close(got[name], torch.stack([want[name][b, b] for b in range(7)]), 1e-10, name)
        close(sum(got.values()).sum(-1), solves(**options), 1e-10, "summed")
        with monkeypatch.context() as few:
            few.setattr(forms, "AT_ONCE", 30)
            close(solves(per_token=True, **options), sum(got.values()), 1e-10, "in parts")


@over_models
@pytest.mark.parametrize("representation", ["PMatKFAC", "PMatEKFAC", "PMatDiag"])
def test_ensembles_and_derivatives(model, representation):
    """In params and regul, of an F that is given and of one that is made at the params; against the formula by solves."""
    f, p, data, F, layers, _ = made(model, representation)
    members = trees.stack([trees.scale(c, p) for c in (1.0, 0.7)])

    def by_solves(p, r, F):
        g = vmap(lambda x, y: grad(lambda p: cross_entropy(f(p, x[None]), y[None]))(p))(*data)
        return sum(whole(F, layers, g, g, r).values())

    def run(p, r, F):
        return self_influence(f, p, data, F, regul=r, layers=layers)

    here = lambda p: REPRESENTATIONS[representation](f, p, data[0], layers=layers)
    r, c = torch.tensor(R, dtype=D), torch.tensor([0.9, 1.1], dtype=D)

    def check(F_of):
        got, want = (vmap(lambda p, fn=fn: fn(p, r, F_of(p)))(members) for fn in (run, by_solves))
        close(got, want, 1e-9, "ensemble")
        at = lambda c: trees.scale(c, p)
        one, other = (lambda c, fn=fn: fn(at(c[0]), c[1] * R, F_of(at(c[0]))).sum() for fn in (run, by_solves))
        close(jacrev(one)(c), jacrev(other)(c), 1e-8, "first derivative")
        close(jacrev(jacrev(one))(c), jacrev(jacrev(other))(c), 1e-7, "second derivative")

    check(lambda p: F)
    if representation != "PMatEKFAC":  # whose bases have derivatives where eigenvalues differ alone
        check(here)


@pytest.mark.parametrize("representation", ["PMatKFAC", "PMatEKFAC", "PMatDiag"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_other_precisions(representation, dtype):
    f, p, data, F, *_ = made("mlp", representation)
    less = lambda t: t.to(dtype) if t.is_floating_point() else t
    got = self_influence(f, trees.map(less, p), tuple(map(less, data)), trees.map(less, F), regul=R)
    want = self_influence(f, p, data, F, regul=R)
    assert got.dtype == dtype
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert (got.to(D) - want).abs().amax() < bound * want.abs().amax()
    with pytest.raises(TypeError, match="params"):
        self_influence(f, p, data, trees.map(less, F), regul=R)
