"""regul: one door for every function of every matrix: a finite number >= 0, or a tensor of one without axes."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher import recipes
from fisher.pmat.whole.range import PMatRange
from linmaps import trees
from tests.fisher.fakes import MAKE, PARAMS

D = torch.float64
_r = torch.Generator().manual_seed(0)
_randn = lambda *shape: torch.randn(shape, generator=_r, dtype=D)
P, X = {"w": _randn(3, 4), "v": _randn(4, 2), "s": _randn(2)}, _randn(6, 3)


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"] * p["s"]


def made(representation, **options):
    return lambda: fisher.fim(f, P, X, representation, "gaussian", **options)


MATRICES = dict(MAKE) | {
    "low rank": made(fisher.PMatLowRank),
    "range": lambda: made(fisher.PMatLowRank)().inverse(0.3),
    "mixed": made(fisher.PMatMixed, layers_to={"w": fisher.PMatDiag}),
    "implicit": made(fisher.PMatImplicit),
    "pullback": lambda: fisher.pullback(made(fisher.PMatDense)(), lambda q: trees.map(torch.sin, q), P),
}
every = pytest.mark.parametrize("kind", MATRICES)
METHODS = {
    "solve": lambda F, v, r: F.solve(v, r),
    "lstsq": lambda F, v, r: F.solve(v, r, kind="lstsq"),
    "inverse": lambda F, v, r: F.inverse(r),
    "pow": lambda F, v, r: F.pow(0.5, r),
    "logdet": lambda F, v, r: F.logdet(r),
    "sample": lambda F, v, r: F.sample(noise=v, regul=r),
    "effective_dimension": lambda F, v, r: recipes.effective_dimension(F, r),
    "pruning_scores": lambda F, v, r: recipes.pruning_scores(F, v, method="obs", regul=r),
    "best_step": lambda F, v, r: recipes.best_step(F, v, trees.stack([v, v]), r),
    "laplace": lambda F, v, r: recipes.laplace(f, v, F, 3, r),
    "natural_gradient_step": lambda F, v, r: recipes.natural_gradient_step(lambda p: 0.0, v, F, v, recipes.Damping(r)),
}
WRONG = {
    "four numbers": (torch.ones(4), ValueError, r"got a tensor of shape \(4,\), expected a finite number >= 0"),
    "one number with an axis": (torch.ones(1), ValueError, r"got a tensor of shape \(1,\)"),
    "negative": (-1e-3, ValueError, "got -0.001, expected a finite number >= 0"),
    "negative tensor": (torch.tensor(-1.0), ValueError, "got -1.0, expected a finite number >= 0"),
    "nan": (float("nan"), ValueError, "got nan"),
    "infinite tensor": (torch.tensor(torch.inf), ValueError, "got inf"),
    "words": ("0.1", TypeError, "got str"),
    "none": (None, TypeError, "got NoneType"),
    "complex": (torch.tensor(1j), TypeError, "got a tensor of torch.complex64"),
}


@every
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_regul_is_refused(kind, method):
    F = MATRICES[kind]()
    v = trees.map(lambda t: torch.ones_like(t, dtype=D), PARAMS if kind in MAKE else P)
    for regul, error, message in WRONG.values():
        with pytest.raises(error, match=message):
            METHODS[method](F, v, regul)


@every
def test_numbers_and_tensors_without_axes_are_the_same(kind):
    F = MATRICES[kind]()
    v = trees.map(lambda t: torch.ones_like(t, dtype=D), PARAMS if kind in MAKE else P)
    want = F.solve(v, 0.5)
    for regul in (torch.tensor(0.5, dtype=D), torch.tensor(0.5), torch.nn.Parameter(torch.tensor(0.5))):
        got = F.solve(v, regul)
        for s, t in zip(trees.leaves(got), trees.leaves(want), strict=True):
            assert s.dtype == t.dtype
            assert torch.allclose(s, t)
    many = vmap(lambda r: F.solve(v, r))(torch.tensor([0.5, 1.0], dtype=D))
    assert all(torch.allclose(s[0], t) for s, t in zip(trees.leaves(many), trees.leaves(want)))
    with pytest.raises(ValueError, match=r"regul: got -1\.0"):
        vmap(lambda r: F.solve(v, r))(torch.tensor([0.5, -1.0], dtype=D))
    with pytest.raises(ValueError, match=r"regul: got -1\.0"):
        grad(lambda r: trees.dot(F.solve(v, r), v))(torch.tensor(-1.0, dtype=D))


def test_a_multiple_of_the_identity_may_be_taken_away():
    """Its shift is no regul of the user's: F - alpha I need not be positive."""
    F = MAKE["kfac"]()
    eye = fisher.PMatEye(torch.tensor(0.5, dtype=D), F.layout)
    G, v = F - eye, trees.map(lambda t: torch.ones_like(t, dtype=D), PARAMS)
    T = F.to_torch() - 0.5 * torch.eye(F.layout.numel, dtype=D)
    want = torch.linalg.solve(T + 0.1 * torch.eye(len(T), dtype=D), trees.ravel(v)[0])
    assert torch.allclose(trees.ravel(G.solve(v, 0.1))[0], want)
    assert torch.allclose(G.logdet(0.1), torch.linalg.slogdet(T + 0.1 * torch.eye(len(T), dtype=D))[1])


def test_prior_of_the_evidence_is_checked():
    posterior = recipes.laplace(f, P, made(fisher.PMatKFAC)(), 6, 2.0)
    assert torch.allclose(posterior.log_marginal_likelihood(0.0, 2.0), posterior.log_marginal_likelihood(0.0))
    with pytest.raises(ValueError, match=r"prior_precision: got a tensor of shape \(2,\)"):
        posterior.log_marginal_likelihood(0.0, torch.ones(2))


def test_ranges_keep_their_rest():
    F = PMatRange(torch.tensor([4.0]), {"w": torch.tensor([[1.0, 0.0]])}, torch.tensor(0.5))
    assert F.pinv().rest == 2.0
    assert F.pinv(atol=1.0).rest == 0.0


def test_pseudo_inverses_of_direct_sums_and_ranges():
    for kind in ("mixed", "range", "low rank"):
        F = MATRICES[kind]()
        v, T = trees.map(torch.ones_like, P), F.to_torch()
        want = torch.linalg.pinv(T, hermitian=True, rtol=0.1)
        for got in (F.pinv(0.1, over="matrix").mv(v), F.solve(v, kind="lstsq", rtol=0.1, over="matrix")):
            assert torch.allclose(trees.ravel(got)[0], want @ trees.ravel(v)[0])
        with pytest.raises(ValueError, match="rtol: got nan"):
            F.pinv(float("nan"))
