"""Averages of matrices are matrices of averages, whatever a matrix keeps: Mean, ema, + against those of to_torch."""

import collections

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.strategies import REPRESENTATIONS
from linmaps import trees
from tests.laws import close

D = torch.float64


def randn(seed, *shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


P = {"a": {"weight": randn(0, 3, 2), "bias": randn(1, 3)}, "scale": randn(2, 3), "v": randn(3, 3, 2)}


def f(p, x):
    return torch.tanh(x @ p["a"]["weight"].T + p["a"]["bias"]) * p["scale"] @ p["v"]


LAYERS = fisher.LayerCollection.from_function(f, P, randn(4, 6, 2))
V = trees.map(torch.cos, P)


def made(representation, seed, dtype=D, n=6):
    p = trees.map(lambda t: t.to(dtype), P)
    return fisher.fim(f, p, randn(5 + seed, n, 2, dtype=dtype), representation, "gaussian", layers=LAYERS)


def pulled(seed):
    return fisher.pullback(made(fisher.PMatDiag, seed), lambda t: trees.map(torch.sin, t), P)


KINDS = {
    **{r.__name__: lambda s, r=r: made(r, s) for r in REPRESENTATIONS if r not in (fisher.PMatKFAC, fisher.PMatMixed)},
    "low rank, many rows": lambda s: made(fisher.PMatLowRank, s, n=9),
    "low rank, weighted": lambda s: made(fisher.PMatLowRank, s) * torch.tensor(-0.5, dtype=D),
    "low rank, inverse": lambda s: made(fisher.PMatLowRank, s, n=3).inverse(0.1),
    "low rank, eigenbasis": lambda s: made(fisher.PMatLowRank, s, n=3).eigendecomposition(),
    "KFAC, inverse": lambda s: made(fisher.PMatKFAC, s).inverse(0.1),
    "KFAC, power": lambda s: made(fisher.PMatKFAC, s) ** 0.5,
    "KFAC, pinv": lambda s: made(fisher.PMatKFAC, s).pinv(),
    "KFAC, product": lambda s: made(fisher.PMatKFAC, s) @ made(fisher.PMatKFAC, s + 9),
    "dense, inverse": lambda s: made(fisher.PMatDense, s).inverse(0.1),
    "dense, eigenbasis": lambda s: made(fisher.PMatDense, s).eigendecomposition(),
    "blocks, eigenbasis": lambda s: made(fisher.PMatBlockDiag, s).eigendecomposition(),
    "quasi-diagonal, inverse": lambda s: made(fisher.PMatQuasiDiag, s).inverse(0.1),
    "mixed": lambda s: fisher.fim(
        f, P, randn(5 + s, 6, 2), fisher.PMatMixed, "gaussian", layers=LAYERS, layers_to={"a": fisher.PMatEKFAC}
    ),
    "sum": lambda s: made(fisher.PMatEKFAC, s) + made(fisher.PMatDiag, s),
    "pullback": pulled,
}
every = pytest.mark.parametrize("kind", KINDS)


def is_matrix(F, want):
    """F has the entries `want`, and products, traces, diagonals and solves of its own that agree."""
    close(F.to_torch(), want, 1e-11, "matrix")
    v = trees.ravel(V)[0]
    close(trees.ravel(F.mv(V))[0], want @ v, 1e-11, "mv")
    close(F.trace(), want.trace(), 1e-11, "trace")
    close(trees.ravel(F.get_diag())[0], want.diagonal(), 1e-11, "get_diag")


@every
def test_averages_are_those_of_the_matrices(kind):
    F, G, H = (KINDS[kind](s) for s in range(3))
    A, B, C = (M.to_torch() for M in (F, G, H))
    is_matrix(fisher.ema(F, G, 0.75), 0.75 * A + 0.25 * B)
    is_matrix(fisher.ema(F, G, torch.tensor(0.75, dtype=D)), 0.75 * A + 0.25 * B)
    is_matrix(fisher.ema(fisher.ema(F, G, 0.5), H, 0.5), (A + B + 2 * C) / 4)
    one = fisher.Mean().add(F, 6).add(G, torch.tensor(3.0))
    is_matrix(one.value(), (2 * A + B) / 3)
    want = (6 * A + 3 * B + 11 * C) / 20
    is_matrix(one.add(H, 11).value(), want)
    is_matrix(one.merge(fisher.Mean().add(H, 11)).value(), want)
    is_matrix(fisher.Mean().add(H, 11).merge(one).value(), want)
    nested = fisher.Mean().add({"m": [F], "t": V}, 6).add({"m": [G], "t": V}, 3).value()
    is_matrix(nested["m"][0], (2 * A + B) / 3)
    close(nested["t"], V, 1e-14, "beside it")
    is_matrix(F + G, A + B)
    is_matrix(F - G, A - B)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("PMatImplicit", "pullback", "KFAC, product")])
def test_solves_of_averages_invert_them(kind):
    """Damped by as much as makes all of them positive definite."""
    F, G = KINDS[kind](0), KINDS[kind](1)
    T = (F.to_torch() + 2 * G.to_torch()) / 3
    regul = T.norm() / 2 if "weighted" in kind else 0.3
    want = torch.linalg.solve(T + regul * torch.eye(len(T), dtype=D), trees.ravel(V)[0])
    for M in (fisher.ema(F, G, 1 / 3), fisher.Mean().add(F, 1).add(G, 2).value(), (F + 2 * G) / 3):
        close(trees.ravel(M.solve(V, regul))[0], want, 1e-9, "solve")


KRONECKER = ["PMatEKFAC", "PMatLowRank", "KFAC, power", "low rank, inverse", "blocks, eigenbasis", "mixed", "PMatDiag"]


@pytest.mark.parametrize("kind", KRONECKER)
def test_averages_of_ensembles_and_their_derivatives(kind):
    """Under vmap no tensor is known to be that of another: the matrix is the same, whatever represents it."""
    F, G = ([KINDS[kind](s) for s in seeds] for seeds in ((0, 1), (2, 3)))
    average = lambda F, G, n: (fisher.ema(F, G, n / 4).to_torch(), fisher.Mean().add(F, 1).add(G, n).value().mv(V))
    n = torch.tensor([1.0, 3.0], dtype=D)
    want = trees.stack([average(*member) for member in zip(F, G, n)])
    close(vmap(average)(trees.stack(F), trees.stack(G), n), want, 1e-10, "ensemble")
    line = lambda n: trees.dot(fisher.Mean().add(F[0], 1).add(G[0], n).value().mv(V), V)
    a, b = trees.dot(F[0].mv(V), V), trees.dot(G[0].mv(V), V)
    close(grad(line)(n[1]), (b - a) / 16, 1e-10, "in the number of examples")


def test_the_mean_of_kronecker_factors_is_that_of_their_moments():
    """By convention, as fim over batches has it; so in PMatMixed.  What is no moment is averaged as a matrix."""
    batches = [randn(20, 5, 2), randn(21, 7, 2)]
    for representation in (fisher.PMatKFAC, fisher.PMatMixed):
        one = lambda x, r=representation: fisher.fim(f, P, x, r, "gaussian", layers=LAYERS)
        F, G = map(one, batches)
        assert F.linear
        assert not F.eigendecomposition().linear
        got = fisher.Mean().add(F, 5).add(G, 7).value()
        assert type(got) is representation
        close(got, one(batches), 1e-12, "mean")
        close(fisher.ema(F, G, 5 / 12), got, 1e-12, "ema")
    F = made(fisher.PMatKFAC, 0)
    assert not (F**2).linear
    assert not F.pinv().linear
    assert not (F @ F).linear


def test_matrices_that_share_factors_or_bases_add_in_them():
    F = made(fisher.PMatKFAC, 0)
    E = F.eigendecomposition()
    blocks = made(fisher.PMatBlockDiag, 0).eigendecomposition()
    for G in (F + F, 3.0 * F - F, F * 0.0 + F, F - F):
        assert type(G) is fisher.PMatKFAC
    for A, B in ((F, F), (F, 2 * F), (E, E.inverse(0.1)), (E, E**2), (blocks, blocks.inverse(0.3))):
        assert type(A + B) is type(A)
        is_matrix(A + B, A.to_torch() + B.to_torch())
    new = E.update_diag(f, P, randn(30, 4, 2), "gaussian")
    G = fisher.ema(E, new, 0.9)
    assert type(G) is fisher.PMatEKFAC
    is_matrix(G, 0.9 * E.to_torch() + 0.1 * new.to_torch())


@pytest.mark.parametrize("kind", ["PMatEKFAC", "PMatLowRank", "low rank, inverse", "dense, eigenbasis", "mixed", "sum"])
def test_averages_of_many_do_not_outgrow_the_dense_matrix(kind):
    F = [KINDS[kind](s) for s in range(3)]
    mean, average, T = fisher.Mean(), F[0], [M.to_torch() for M in F]
    want = T[0]
    for n in range(40):
        mean, average, want = mean.add(F[n % 3], 1), fisher.ema(average, F[n % 3], 0.9), 0.9 * want + 0.1 * T[n % 3]
    d = LAYERS.space.numel
    for M in (mean.value(), average):
        assert sum(t.numel() for t in trees.leaves(M)) <= 2 * d**2
    is_matrix(mean.value(), (14 * T[0] + 13 * T[1] + 13 * T[2]) / 40)
    is_matrix(average, want)


HALVES = {"w": randn(0, 3, 4, dtype=torch.bfloat16), "v": randn(1, 4, 2, dtype=torch.bfloat16)}
SINGLES = list(randn(2, 320, 3, dtype=torch.bfloat16).split(1))
wide = lambda tree: trees.map(lambda t: t.double(), tree)
g = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]


@pytest.mark.parametrize("kind", [fisher.PMatDiag, fisher.PMatKFAC])
def test_half_precision_is_summed_in_single(kind):
    """Over batches of one example, where a sum in half precision stops to grow."""
    layers = fisher.LayerCollection.from_function(g, HALVES, SINGLES[0])
    F = fisher.fim(g, HALVES, SINGLES, kind, "gaussian", layers=layers)
    assert F.dtype == torch.bfloat16
    want = fisher.fim(g, wide(HALVES), wide(torch.cat(SINGLES)), kind, "gaussian").trace()
    assert abs(F.trace().double() / want - 1) < 0.03
    some = [fisher.fim(g, HALVES, x, kind, "gaussian", layers=layers) for x in SINGLES[:5]]
    mean, average, exact = fisher.Mean(), some[0], wide(some[0])
    for n in range(600):
        F = some[n % 5]
        mean, average, exact = mean.add(F, 1), fisher.ema(average, F, 0.999), fisher.ema(exact, wide(F), 0.999)
    assert mean.value().dtype == torch.bfloat16
    close(wide(mean.value()), trees.scale(0.2, trees.map(lambda *t: sum(t), *map(wide, some))), 0.01, "mean")
    close(wide(average), exact, 1e-4, "ema")


def test_products_over_many_batches_are_summed_in_single():
    F = fisher.fim(g, HALVES, SINGLES, fisher.PMatImplicit, "gaussian")
    G = fisher.fim(g, wide(HALVES), wide(torch.cat(SINGLES)), fisher.PMatImplicit, "gaussian")
    got, want = wide(F.mv(HALVES)), G.mv(wide(HALVES))
    assert trees.norm(trees.sub(got, want)) < 0.03 * trees.norm(want)
    assert abs(F.trace().double() / G.trace() - 1) < 0.03


def test_parameters_of_a_module_are_taken_as_they_are_now():
    """Detached, so that no graph grows, and copied, so that a later step of an optimizer does not move the mean."""
    net = torch.nn.Linear(2, 1)
    before = net.weight.detach().clone()
    mean = fisher.Mean().add(dict(net.named_parameters()), 1)
    average = fisher.ema(dict(net.named_parameters()), dict(net.named_parameters()), 0.5)
    with torch.no_grad():
        net.weight += 1
    mean = mean.add(dict(net.named_parameters()), 1)
    close(mean.value()["weight"], before + 0.5, 1e-6, "mean")
    assert not any(t.requires_grad for t in trees.leaves((mean, average)))
    w = torch.ones(2, requires_grad=True)
    assert fisher.Mean().add({"w": w}, 1).value()["w"].requires_grad


@pytest.mark.parametrize(
    "n", [-1, -0.5, torch.tensor(-3.0), float("inf"), float("nan"), torch.tensor(torch.inf), torch.ones(2)]
)
def test_numbers_of_examples_are_checked(n):
    with pytest.raises(ValueError, match=r"n: got .*expected a finite number >= 0"):
        fisher.Mean().add({"a": torch.ones(2)}, n)


@pytest.mark.parametrize(
    "decay", [-0.1, 1.5, torch.tensor(1.5), float("nan"), torch.tensor(-1.0), torch.full((2,), 0.5)]
)
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match=r"decay: got .*expected a finite number >= 0 and <= 1"):
        fisher.ema({"a": torch.ones(2)}, {"a": torch.ones(2)}, decay)


def test_matrices_of_other_params_are_refused():
    F, other = made(fisher.PMatLowRank, 0), fisher.PMatLowRank({"w": torch.ones(2, 3, dtype=D)})
    for call in (lambda: fisher.ema(F, other, 0.5), lambda: fisher.Mean().add(F, 1).add(other, 1)):
        with pytest.raises(ValueError, match=r"layouts differ.*matrices of the same params"):
            call()
    with pytest.raises(ValueError, match="missing"):
        fisher.ema({"F": F, "t": V}, {"F": F}, 0.5)
    with pytest.raises(ValueError, match="leaf t has shape"):
        fisher.ema({"F": F, "t": torch.ones(2)}, {"F": F, "t": torch.ones(3)}, 0.5)
    for new, message in (
        ({"a": torch.ones(2, dtype=D)}, "got torch.float64 on cpu, expected torch.float32 on cpu"),
        ({"a": torch.ones(2, device="meta")}, "got torch.float32 on meta, expected torch.float32 on cpu"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "a: got torch.int64, expected a floating tensor"),
        ({"a": torch.eye(2).to_sparse()}, "a: got torch.float32 in a sparse layout, expected a floating tensor"),
        ({"a": "text"}, "a: got str, expected a floating tensor"),
        ({}, "the new tree: got dict without a tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            fisher.ema({"a": torch.ones(2)}, new, 0.5)
    with pytest.raises(TypeError, match="decay: got a tensor on meta, expected one on cpu"):
        fisher.ema({"a": torch.ones(2)}, {"a": torch.ones(2)}, torch.ones((), device="meta"))
    with pytest.raises(TypeError, match="merge: got dict, expected a Mean"):
        fisher.Mean().merge({})
    with pytest.raises(TypeError, match=r"got dtype=torch.int32, expected a floating dtype"):
        fisher.Mean(dtype=torch.int32)


def test_mappings_of_other_kinds_and_orders_are_one():
    """A state dict is an OrderedDict in the order of the modules."""
    a = {"b": torch.ones(2), "a": torch.zeros(2)}
    b = collections.OrderedDict(a=torch.ones(2), b=torch.zeros(2))
    for got in (fisher.ema(a, b, 0.5), fisher.Mean().add(a, 1).add(b, 1).value()):
        close(got, {"a": torch.full((2,), 0.5), "b": torch.full((2,), 0.5)}, 1e-7, "mean")
    close(fisher.ema(b, a, 0.75)["b"], torch.full((2,), 0.25), 1e-7, "the old one's order")
