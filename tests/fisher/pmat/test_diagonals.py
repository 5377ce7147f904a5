"""regul by layer and by entry: every method of every matrix is that of F + diag(regul), or says what to use instead."""

import pytest
import torch
from torch.func import grad, jacfwd, vmap

import fisher
from fisher import recipes
from linmaps import trees
from tests.fisher.fakes import LAYERS as FAKES
from tests.fisher.pmat.test_regul import MATRICES, P, X, f
from tests.laws import close

D = torch.float64
_r = torch.Generator().manual_seed(1)
every = pytest.mark.parametrize("kind", MATRICES)
LAYERS = fisher.LayerCollection.from_function(f, P, X)
NO_POWER = {"implicit", "pullback"}
BY_ENTRY = {"dense", "diag", "blockdiag", "quasidiag", "implicit", "pullback", "sum of kfacs", "kfac + diag"}
BY_LAYER = {"kfac", "ekfac", "eigen by layers", "kfac + eye", "mixed"}


def holds(kind, method, what):
    """Whether a matrix is exact with a regul of this form."""
    if kind == "eye" or kind == "low rank":
        return method in ("solve", "logdet", "sample")
    if kind == "mixed":  # its layers are leaves
        return what != "entries"
    return kind in BY_ENTRY or (kind in BY_LAYER and what.startswith("layers"))


def layers_of(F):
    if F.known_layers is not None:
        return F.known_layers
    return FAKES if F.layout == FAKES.space else LAYERS


def reguls(F):
    """{what: (regul, its diagonal)} of each form."""
    layout, layers = F.layout, layers_of(F)
    draw = lambda shape: torch.rand(shape, generator=_r, dtype=D) + 0.05
    names = [layer.name for layer in layers] if F.known_layers is not None else [".".join(p) for p in layout.paths]
    numbers = {n: 0.1 * (k + 1) for k, n in enumerate(names)}
    if F.known_layers is not None:
        shapes = {
            n: t.shape for n, t in layers.views(layout.unflatten([torch.zeros(s) for s in layout.shapes])).items()
        }
        spread = layers.tree({n: torch.full(shapes[n], r, dtype=D) for n, r in numbers.items()})
    else:
        spread = layout.unflatten([torch.full(s, r, dtype=D) for s, r in zip(layout.shapes, numbers.values())])
    leaves = [0.2 + 0.1 * k for k in range(len(layout.shapes))]
    by_leaf = layout.unflatten([torch.full(s, r, dtype=D) for s, r in zip(layout.shapes, leaves)])
    entries = layout.unflatten([draw(s) for s in layout.shapes])
    return {
        "layers": (numbers, spread),
        "leaves": (layout.unflatten(leaves), by_leaf),
        "layers as entries": (spread, spread),
        "entries": (entries, entries),
    }


def root_of(F, regul):
    """R of the samples R z, `[d, d]`."""
    noise = vmap(F.layout.unravel)(torch.eye(F.layout.numel, dtype=D))
    return vmap(lambda v: trees.ravel(v)[0])(F.sample(noise=noise, regul=regul)).mT


def compare(method, F, regul, T, v):
    """A method against the dense T = F + diag(regul)."""
    inverse = None if T is None else torch.linalg.inv(T)
    flat = lambda tree: trees.ravel(tree)[0]
    if method == "solve":
        tol = 1e-7 if isinstance(F, (fisher.PMatImplicit, fisher.PMatPullback)) else 1e-10
        found = flat(F.solve(v, regul))
        close(found, inverse @ flat(v), tol, "solve")
        two = trees.stack([v, trees.scale(2.0, v)])
        close(F.solve(two, regul), trees.stack([F.solve(v, regul), F.solve(trees.scale(2.0, v), regul)]), tol, "map")
    elif method == "logdet":
        found = F.logdet(regul)
        close(found, torch.linalg.slogdet(T)[1], 1e-10, "logdet")
    elif method == "inverse":
        found = flat(F.inverse(regul).mv(v))
        close(found, inverse @ flat(v), 1e-9, "inverse")
    elif method == "pow":
        half = F.pow(-0.5, regul).to_torch()
        close(half @ half, inverse, 1e-9, "pow")
    else:
        R = root_of(F, regul)
        close(R @ R.T, inverse, 1e-9, "sample")


HAS = [  # those in NO_POWER have no such function but solve, or an estimate
    (kind, method)
    for kind in MATRICES
    for method in ("solve", "logdet", "sample", "inverse", "pow")
    if method == "solve" or kind not in NO_POWER
]


@pytest.mark.parametrize(("kind", "method"), HAS)
def test_methods_are_those_of_the_dense_sum(kind, method):
    F = MATRICES[kind]()
    v = F.layout.unflatten([torch.randn(s, generator=_r, dtype=D) for s in F.layout.shapes])
    for what, (regul, diagonal) in reguls(F).items():
        if not holds(kind, method, what):
            with pytest.raises(ValueError, match=r"regul: .* several numbers, expected one.*(PMatD|F\.solve)"):
                compare(method, F, regul, None, v)
            continue
        compare(method, F, regul, F.to_torch() + torch.diag(trees.ravel(diagonal)[0]), v)


@pytest.mark.parametrize("representation", [
    fisher.PMatDense, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatBlockDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
    fisher.PMatLowRank, fisher.PMatEye, fisher.PMatMixed, fisher.PMatImplicit,
], ids=lambda r: r.__name__)  # fmt: skip
def test_layers_by_name_in_every_representation_of_fim(representation):
    """A layer of a weight and a bias, one of a weight, one of a scale; all matrices of fim know their names."""
    net = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"] * p["s"]
    params = P | {"b": torch.zeros(4, dtype=D)}
    layers = fisher.LayerCollection.from_function(net, params, X)
    assert set(layers.names()) == {"w", "v", "s"}
    regul = {"w": 0.1, "v": torch.tensor(0.5), "s": 2}
    diagonal = {"w": 0.1, "b": 0.1, "v": 0.5, "s": 2.0}
    v = trees.map(torch.cos, params)
    for made in (fisher.fim(net, params, X, representation, "gaussian", layers=layers),
                 fisher.fim(net, params, X, representation, "gaussian")):  # fmt: skip
        d = trees.ravel({n: torch.full(params[n].shape, r, dtype=D) for n, r in diagonal.items()})[0]
        T = made.to_torch() + torch.diag(d)
        close(trees.ravel(made.solve(v, regul))[0], torch.linalg.solve(T, trees.ravel(v)[0]), 1e-7, "solve")
        if representation is not fisher.PMatImplicit:
            close(made.logdet(regul), torch.linalg.slogdet(T)[1], 1e-10, "logdet")
        relative = made.relative(0.1)
        views = layers.views(made.get_diag())
        assert set(relative) == set(layers.names())
        for name, t in views.items():
            close(relative[name], 0.1 * t.mean(), 1e-12, "relative")
        d = layers.tree({n: torch.full_like(t, float(relative[n])) for n, t in views.items()})
        T = made.to_torch() + torch.diag(trees.ravel(d)[0])
        close(trees.ravel(made.solve(v, relative))[0], torch.linalg.solve(T, trees.ravel(v)[0]), 1e-6, "relative")


def test_ensembles_and_derivatives():
    F = fisher.fim(f, P, X, fisher.PMatKFAC, "gaussian")
    v = trees.map(torch.cos, P)
    for G in (
        F,
        fisher.fim(f, P, X, fisher.PMatDense, "gaussian"),
        fisher.fim(f, P, X, fisher.PMatLowRank, "gaussian"),
    ):
        run = lambda r, G=G: trees.ravel(G.solve(v, {"w": r[0], "v": r[1], "s": r[2]}))[0]
        many = torch.rand(3, 3, generator=_r, dtype=D) + 0.1
        close(vmap(run)(many), torch.stack([run(r) for r in many]), 1e-10, "ensemble")
        logdet = lambda r, G=G: G.logdet({"w": r[0], "v": r[1], "s": r[2]})
        r, h = many[0], 1e-6
        want = torch.stack([(logdet(r + h * e) - logdet(r - h * e)) / (2 * h) for e in torch.eye(3, dtype=D)])
        close(grad(logdet)(r), want, 1e-6, "reverse")
        close(jacfwd(logdet)(r), want, 1e-6, "forward")
        with pytest.raises(ValueError, match=r"regul: s: got -1\.0"):
            vmap(run)(-torch.ones(2, 3, dtype=D))
    at = lambda p: trees.ravel(
        fisher.fim(f, p, X, fisher.PMatKFAC, "gaussian").solve(v, {"w": 0.1, "v": 0.2, "s": 0.3})
    )[0]
    members = [P, trees.scale(0.5, P)]
    close(vmap(at)(trees.stack(members)), torch.stack([at(p) for p in members]), 1e-10, "matrices of an ensemble")


def test_sums_and_sub_collections():
    K, E = (fisher.fim(f, P, X, r, "gaussian") for r in (fisher.PMatKFAC, fisher.PMatDiag))
    v, regul = trees.map(torch.cos, P), {"w": 0.1, "v": 0.2, "s": 0.3}
    entries = trees.map(lambda t: t.cos() ** 2 + 0.1, P)
    for F in (
        K + E,
        K + fisher.PMatEye(torch.tensor(0.5, dtype=D), K.layout),
        fisher.fim(f, P, X, fisher.PMatImplicit, "gaussian") + E,
    ):
        for r in (regul, entries):
            d = trees.ravel(trees.map(lambda s, t: torch.as_tensor(s).to(D).expand(t.shape), r, P))[0]
            want = torch.linalg.solve(F.to_torch() + torch.diag(d), trees.ravel(v)[0])
            if r is entries and isinstance(F.terms[-1], fisher.PMatEye):
                with pytest.raises(ValueError, match="several numbers"):
                    F.solve(v, r)
                continue
            close(trees.ravel(F.solve(v, r))[0], want, 1e-7, "sum")
    sub = LAYERS.select(["w"])
    for representation in (fisher.PMatKFAC, fisher.PMatDense):
        F = fisher.fim(f, P, X, representation, "gaussian", layers=sub)
        got = F.solve({"w": P["w"]}, {"w": 0.3})
        close(got, F.solve({"w": P["w"]}, 0.3), 1e-12, "a sub-collection")


def test_recipes():
    K = fisher.fim(f, P, X, fisher.PMatKFAC, "gaussian")
    regul = {"w": 0.1, "v": 0.2, "s": 0.3}
    d = trees.ravel(trees.map(lambda s, t: torch.full_like(t, s), regul, P))[0]
    T = K.to_torch()
    inverse = torch.linalg.inv(T + torch.diag(d))
    close(recipes.effective_dimension(K, regul), torch.trace(T @ inverse), 1e-10, "dimension")
    close(recipes.effective_dimension(K, 0.3), recipes.effective_dimension(K, dict.fromkeys(regul, 0.3)), 1e-10, "one")
    obs = trees.ravel(recipes.pruning_scores(K, P, method="obs", regul=regul))[0]
    close(obs, trees.ravel(P)[0] ** 2 / inverse.diagonal() / 2, 1e-10, "pruning")
    v = trees.map(torch.cos, P)
    step = trees.ravel(recipes.best_step(K, v, trees.stack([v]), regul))[0]
    g = trees.ravel(v)[0]
    close(step, -(g @ g) / (g @ (T + torch.diag(d)) @ g) * g, 1e-10, "step")
    t = torch.zeros(6, 2, dtype=D)
    J = fisher.example_gradients(lambda p, x, y: (f(p, x) - y).square().sum(-1) / 2, P, (X, t)).to_torch()[:, 0]
    found = recipes.self_influence(f, P, (X, t), K, loss="squared_error", regul=regul)
    close(found, -torch.einsum("bi,ij,bj->b", J, inverse, J), 1e-9, "influence")


def test_parts_of_one_leaf_have_numbers_of_their_own():
    """The projections of an attention are layers of one leaf."""
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()
    g, params = fisher.functional(module)
    net = lambda p, x: g(p, (x, x, x))[0]
    x = torch.randn(3, 2, 4, generator=_r, dtype=D)
    layers = fisher.LayerCollection.from_function(net, params, x)
    regul = {n: 0.1 * (k + 1) for k, n in enumerate(layers.names())}
    v = trees.map(torch.cos, params)
    diagonal = layers.tree({n: torch.full_like(t, regul[n]) for n, t in layers.views(v).items()})
    for representation in (fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatBlockDiag, fisher.PMatDense, fisher.PMatMixed):
        F = fisher.fim(net, params, x, representation, "gaussian", layers=layers)
        T = F.to_torch() + torch.diag(trees.ravel(diagonal)[0])
        close(
            trees.ravel(F.solve(v, regul))[0], torch.linalg.solve(T, trees.ravel(v)[0]), 1e-9, representation.__name__
        )


def test_single_and_half_precision():
    for dtype, tol in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        p = trees.map(lambda t, dtype=dtype: t.to(dtype), P)
        v = trees.map(torch.cos, p)
        kinds = [fisher.PMatDense, fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatLowRank]
        for representation in kinds + [fisher.PMatImplicit] * (dtype == torch.float32):
            F = fisher.fim(f, p, X.to(dtype), representation, "gaussian")
            entries = trees.map(lambda t: t.float().cos() ** 2 + 0.2, p)
            for r in ({"w": 0.3, "v": 0.2, "s": 0.3},) + (() if representation is fisher.PMatKFAC else (entries,)):
                x = F.solve(v, r)
                assert {t.dtype for t in trees.leaves(x)} == {dtype}
                d = trees.ravel(trees.map(lambda s, t: torch.as_tensor(s).to(D).expand(t.shape), r, P))[0]
                want = torch.linalg.solve(F.to_torch().to(D) + torch.diag(d), trees.ravel(v)[0].to(D))
                close(trees.ravel(x)[0].to(D), want, tol, representation.__name__)


WRONG = {
    "unknown": ({"w": 0.1, "v": 0.2, "t": 0.3}, ValueError, r"regul: got the layer 't', expected one of 3, as"),
    "missing": ({"w": 0.1, "v": 0.2}, ValueError, r"regul: .*no number for.*s"),
    "negative": ({"w": 0.1, "v": -0.2, "s": 0.3}, ValueError, r"regul: v: got -0\.2, expected a finite number >= 0"),
    "text": ({"w": 0.1, "v": "0.2", "s": 0.3}, TypeError, "regul: v: got str"),
    "shape": (
        {"w": torch.ones(4), "v": 0.2, "s": 0.3},
        ValueError,
        r"regul: w: got a tensor of shape \(4,\), expected \(3, 4\)",
    ),
    "negative entry": (P | {"s": -torch.ones(2)}, ValueError, r"expected finite numbers >= 0|got -"),
    "nan entry": (trees.map(lambda t: t * torch.nan, P), ValueError, "got nan"),
    "a list": ([0.1, 0.2, 0.3], ValueError, "regul: got list of 3"),
    "boolean": (trees.map(lambda t: t > 0, P), TypeError, "got a tensor of torch.bool"),
    "nothing": ({}, ValueError, "no number for"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatDense, fisher.PMatImplicit])
def test_what_is_refused(what, representation):
    regul, error, message = WRONG[what]
    F = fisher.fim(f, P, X, representation, "gaussian")
    with pytest.raises(error, match=message):
        F.solve(P, regul)


def test_names_of_a_matrix_that_forgot_its_layers():
    """Those of leaves, or of what holds them; the words say so."""
    net = {"hidden": {"weight": torch.eye(2, dtype=D), "bias": torch.ones(2, dtype=D)}, "out": torch.ones(2, dtype=D)}
    F = fisher.PMatDense(torch.eye(8, dtype=D), trees.Layout.of(net))
    got = F.solve(net, {"hidden": 1.0, "out": 3.0})
    close(got, {"hidden": trees.scale(0.5, net["hidden"]), "out": net["out"] / 4}, 1e-12, "by prefix")
    assert set(F.relative(0.1)) == {"hidden.weight", "hidden.bias", "out"}
    close(F.solve(net, F.relative(1.0)), trees.scale(0.5, net), 1e-12, "relative")
    for regul, message in (
        (
            {"hidden": 1.0},
            "out: got no number for it, expected one for each leaf; this matrix does not know its layers",
        ),
        ({"hidden": 1.0, "hidden.weight": 2.0, "out": 1.0}, "which name it twice"),
        ({"hiden": 1.0, "out": 1.0}, r"got the layer 'hiden'.*hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            F.solve(net, regul)
