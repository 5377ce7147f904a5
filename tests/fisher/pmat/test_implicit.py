"""PMatImplicit: products, solves and spectra against the dense matrix of the brute-force sum."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import fisher
from fisher.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, Segmentation
from fisher.pmat.matrix_free.curvature import fisher_vector
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.whole.lowrank import PMatLowRank
from fisher.pmat.whole.range import PMatRange
from fisher.strategies import networks, vectors
from linmaps import trees
from tests.laws import close, noise_like, perturbed

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"]


P = {"w": randn(2, 3), "b": randn(3, seed=1), "v": randn(3, 4, seed=2)}
X = randn(5, 2, seed=3)
V = noise_like(P, 4)
v, unravel = trees.ravel(V)
d = v.numel()
EYE = torch.eye(d, dtype=D)
SMALL = {"w": randn(2, 2), "b": randn(2, seed=1), "v": randn(2, 3, seed=2)}
U, DIRECTION = noise_like(SMALL, 5), noise_like(SMALL, 6)


def dense(f, params, x, likelihood):
    """Written out: 1/B sum over b of J_b' (sum over K of r r') J_b."""
    vector, back = trees.ravel(params)
    J = jacrev(lambda w: f(back(w), x))(vector).flatten(1, -2)  # [B, C, d]
    r = likelihood.root(f(params, x)).flatten(2)  # [K, B, C]
    rows = torch.einsum("kbc,bcd->kbd", r, J).flatten(0, 1)
    return rows.T @ rows / x.shape[0]


LIKELIHOODS = [Categorical(), Gaussian(), Gaussian(variance=3.0), Bernoulli(), Poisson(), HeteroscedasticGaussian()]
LIKELIHOODS += [
    Gaussian(covariance=((2.0, 1.0, 0.0, 0.0), (1.0, 2.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.5, 1.0)))
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_products(likelihood):
    G = PMatImplicit.of(f, P, X, likelihood)
    T = dense(f, P, X, likelihood)
    close(G.to_torch(), T, 1e-12, "to_torch")
    close(G.to_torch(chunk_size=4), T, 1e-12, "chunks")
    close(G.mv(V), unravel(T @ v), 1e-12, "mv")
    close(G @ V, unravel(T @ v), 1e-12, "@")
    close(G.vTMv(V), v @ T @ v, 1e-12, "vTMv")
    close(G.trace(), T.trace(), 1e-12, "trace")
    close(G.trace(chunk_size=2), T.trace(), 1e-12, "trace")
    close(G.get_diag(), unravel(T.diagonal()), 1e-12, "diag")
    close(G.get_diag(chunk_size=3), unravel(T.diagonal()), 1e-12, "diag")
    close(G.frobenius_norm(), T.norm(), 1e-12, "norm")
    close((-2.5 * G).to_torch(), -2.5 * T, 1e-12, "scaled")


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [(Categorical(), (3, 4)), (Categorical(-1), (2, 3, 4)), (Segmentation(), (2, 3, 2, 2)), (Bernoulli(), (3, 2, 2)),
     (Poisson(), (3,)), (Gaussian(2.0), (3, 2)), (Gaussian(variance=(1.0, 2.0)), (3, 2, 2)), (HeteroscedasticGaussian(), (3, 4))],
    ids=str,
)  # fmt: skip
def test_output_fisher_in_closed_form_is_that_of_the_root(likelihood, shape):
    y, u = randn(*shape), randn(*shape, seed=1)
    r = likelihood.root(y)
    want = sum(c * (c * u).reshape(shape[0], -1).sum(1).reshape(-1, *[1] * (len(shape) - 1)) for c in r)
    close(fisher_vector(likelihood, y, u), want, 1e-12, "H u")


def test_a_likelihood_of_the_user_goes_by_its_root():
    class Twice:
        root = lambda self, y: 2**0.5 * Categorical().root(y)
        noise = sample = lambda self, *args: None

    close(PMatImplicit.of(f, P, X, Twice()).to_torch(), 2 * dense(f, P, X, Categorical()), 1e-12, "root")


def test_batches_are_weighed_by_their_examples():
    whole = PMatImplicit.of(f, P, X)
    parts = PMatImplicit.of(f, P, [X[:3], X[3:], X[:0]])
    close(parts.to_torch(), whole.to_torch(), 1e-13, "mv")
    close(parts.trace(), whole.trace(), 1e-13, "trace")
    close(parts.get_diag(), whole.get_diag(), 1e-13, "diag")


def test_columns_are_drawn_once():
    """A matrix of sampled columns is one fixed matrix."""
    calls = []

    def columns(y, target):
        calls.append(target)
        return randn(2, *y.shape, seed=len(calls))

    G = PMatImplicit.of(f, P, [(X[:3], X[:3, 0]), (X[3:], X[3:, 0])], columns=columns)
    T = G.to_torch()
    assert len(calls) == 2
    vector, back = trees.ravel(P)
    J = jacrev(lambda w: f(back(w), X))(vector)
    r = torch.cat([randn(2, 3, 4, seed=1), randn(2, 2, 4, seed=2)], 1)
    rows = torch.einsum("kbc,bcd->kbd", r, J).flatten(0, 1)
    close(T, rows.T @ rows / 5, 1e-12, "columns")
    close(G.trace(), T.trace(), 1e-12, "trace")
    close(G.get_diag(), unravel(T.diagonal()), 1e-12, "diag")
    given_ = PMatImplicit.of(f, P, [X[:3], X[3:]], columns=[r[:, :3], r[:, 3:]])
    close(given_.to_torch(), T, 1e-13, "given")
    with pytest.raises(ValueError, match="columns: got 1, expected one per batch, of which there are 2"):
        PMatImplicit.of(f, P, [X[:3], X[3:]], columns=[r])


@given(networks(max_batch=4, min_outputs=2), st.data(), st.floats(1e-3, 10.0))
def test_solve_inverts_on_random_networks(network, data, regul):
    w = data.draw(vectors(network.params))
    G = PMatImplicit.of(network.f, network.params, network.x, "gaussian")
    x, report = G.solve(w, regul, report=True)
    close(trees.axpy(regul, x, G.mv(x)), w, 1e-11, "solve")
    assert report.converged


def test_solve_options():
    G = PMatImplicit.of(f, P, X)
    T = G.to_torch()
    want = unravel(torch.linalg.solve(T + 1e-3 * EYE, v))
    plain, report = G.solve(V, 1e-3, report=True)
    close(plain, want, 1e-9, "solve")
    factor = torch.linalg.cholesky(T + 1e-12 * EYE).T
    exact = PMatLowRank(vmap(unravel)(factor))
    x, one = G.solve(V, 1e-3, preconditioner=exact, rtol=1e-6, report=True)
    assert one.iterations == 1 < report.iterations
    close(x, want, 1e-5, "a perfect preconditioner")
    x, none = G.solve(V, 1e-3, x0=want, rtol=1e-9, report=True)
    assert none.iterations == 0
    x = G.solve(V, 1e-3, preconditioner=lambda r: trees.scale(0.5, r))
    close(x, want, 1e-9, "a callable")
    _, cut = G.solve(V, 1e-3, max_iter=2, report=True)
    assert (int(cut.iterations), bool(cut.converged)) == (2, False)
    top = G.eigendecomposition(8)
    assert isinstance(top, PMatRange)
    _, helped = G.solve(V, 1e-3, preconditioner=top, report=True)
    assert helped.converged
    assert helped.iterations < report.iterations
    with pytest.raises(ValueError, match="kind='svd', expected 'default' or 'cg'"):
        G.solve(V, kind="svd")


def test_maps_are_solved_at_once():
    G = PMatImplicit.of(f, P, X)
    J = trees.map(lambda t: torch.stack([t, 2 * t, -t.flip(0)]).expand(2, 3, *t.shape), V)
    flat = lambda t: torch.cat([s.flatten(2) for s in trees.leaves(t)], -1)
    T = G.to_torch()
    close(flat(G.mmap(J)), flat(J) @ T, 1e-12, "mmap")
    x, report = G.solve(J, 0.1, report=True)
    close(flat(x), flat(J) @ torch.linalg.inv(T + 0.1 * EYE), 1e-10, "solve")
    assert report.iterations.shape == (2, 3)
    assert report.converged.all()
    again, report = G.solve(J, 0.1, x0=x, rtol=1e-9, report=True)
    assert report.iterations.sum() == 0
    close(again, x, 0.0, "x0")
    with pytest.raises(ValueError, match="x0: leading axes differ"):
        G.solve(J, 0.1, x0=V)


def test_spectrum():
    G = PMatImplicit.of(f, P, X)
    T = G.to_torch()
    lam, U = torch.linalg.eigh(T)
    top = G.eigendecomposition(4, steps=d)
    close(top.get_eigenvalues(), lam[-4:], 1e-10, "values")
    close(top.to_torch(), U[:, -4:] @ torch.diag(lam[-4:]) @ U[:, -4:].T, 1e-9, "rank 4")
    for options in ({"start": V}, {"generator": torch.Generator().manual_seed(1)}):
        close(G.eigendecomposition(2, steps=d, **options).core, lam[-2:], 1e-10, "start")
    close(G.norm(2), lam[-1], 1e-10, "norm 2")
    close((-G).norm(2), lam[-1], 1e-10, "norm 2")
    close(G.norm(), T.norm(), 1e-12, "fro")
    complete = vmap(unravel)(d**0.5 * EYE)
    close(G.logdet(0.1, probes=complete), torch.linalg.slogdet(T + 0.1 * EYE).logabsdet, 1e-10, "logdet")
    estimate = G.logdet(0.1, generator=torch.Generator().manual_seed(0), n_probes=200)
    assert (estimate - torch.linalg.slogdet(T + 0.1 * EYE).logabsdet).abs() < 2.0


def test_estimates():
    G = PMatImplicit.of(f, P, X)
    for method in ("hutchinson", "hutch++", "xtrace"):
        rough = G.trace(method=method, generator=torch.Generator().manual_seed(0), n_probes=300)
        assert (rough / G.trace() - 1).abs() < 0.1, method
        assert G.trace(method=method, probes=vmap(unravel)(randn(12, d))).shape == ()
    signs = vmap(unravel)(torch.tensor([[1.0], [-1.0]], dtype=D).expand(2, d))
    close(G.trace(method="hutchinson", probes=signs), G.to_torch().sum(), 1e-12, "given probes")
    close(G.get_diag(method="hutchinson", probes=signs), unravel(G.to_torch().sum(1)), 1e-12, "diagonal")


def test_samples_have_the_covariance():
    G = PMatImplicit.of(f, P, [X[:3], X[3:]])

    def sample(e):  # [d + 3 (3 + 2)], all the noise of one sample
        noise = unravel(e[:d]), (e[d : d + 9].reshape(3, 3), e[d + 9 :].reshape(3, 2))
        return trees.ravel(G.sample(noise=noise, regul=0.3))[0]

    R = vmap(sample)(torch.eye(d + 15, dtype=D))
    close(R.T @ R, torch.linalg.inv(G.to_torch() + 0.3 * EYE), 1e-9, "covariance")
    assert G.sample(torch.Generator().manual_seed(0), 0.3)["w"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"sample: .*expected finite noise and F \+ regul I positive definite"):
        (-1.0 * G).sample(torch.Generator().manual_seed(0), 0.3)
    z, e = V, (randn(3, 3), randn(3, 2))
    G.sample(noise=(z, e), regul=0.3)
    for noise, message in [
        (
            z,
            r"noise: got dict, expected a pair \(z, e\) .* for PMatImplicit: z a tree like params, e one tensor \[K, B\]",
        ),
        ((e, z), "noise: z: leaves do not match"),
        ((z, z), r"noise: e: expected 2 tensors \[K, B\] in a tuple"),
        ((z, e[::-1]), r"noise: e: 0: got \(3, 2\), expected a tensor \(3, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            G.sample(noise=noise, regul=0.3)


def test_ensemble_equals_the_loop():
    members = [perturbed(P, k) for k in range(3)]

    def run(p):
        G = PMatImplicit.of(f, p, X)
        x, report = G.solve(V, 0.1, report=True)
        return (
            G.mv(V),
            G.vTMv(V),
            x,
            report.iterations,
            G.trace(),
            G.get_diag(),
            G.norm(2),
            G.eigendecomposition(2).core,
        )

    got = vmap(run)(trees.stack(members))
    close(got, trees.stack([run(p) for p in members]), 1e-10, "ensemble")
    stacked = vmap(lambda p: PMatImplicit.of(f, p, X))(trees.stack(members))
    assert isinstance(stacked, PMatImplicit)
    close(vmap(lambda G: G.mv(V))(stacked), got[0], 1e-12, "as a record")
    with pytest.raises(ValueError, match="v: leaf b has shape"):
        stacked.mv(V)


@pytest.mark.parametrize(
    "method",
    [
        lambda G: G.mv(U),
        lambda G: G.vTMv(U),
        lambda G: G.solve(U, 0.3),
        lambda G: G.solve(U, 0.3, preconditioner=G.eigendecomposition(3)),
        lambda G: G.trace(),
        lambda G: G.get_diag(),
    ],
    ids=["mv", "vTMv", "solve", "preconditioned", "trace", "diag"],
)
def test_derivatives_are_those_of_differences(method):
    out = lambda r: trees.dot(r, U) if isinstance(r, dict) else r
    line = lambda t: out(method(PMatImplicit.of(f, trees.axpy(t, DIRECTION, SMALL), X[:3])))
    zero, h = torch.zeros((), dtype=D), 1e-3
    at = vmap(line)(h * torch.arange(-3.0, 4.0, dtype=D))
    close(
        jacfwd(line)(zero), at @ torch.tensor([-1, 9, -45, 0, 45, -9, 1], dtype=D) / (60 * h), 1e-8, "first derivative"
    )
    second = at @ torch.tensor([2, -27, 270, -490, 270, -27, 2], dtype=D) / (180 * h * h)
    close(jacrev(line)(zero), jacfwd(line)(zero), 1e-9, "jacrev")
    for mode in (jacfwd, jacrev):
        for other in (jacfwd, jacrev):
            close(mode(other(line))(zero), second, 1e-5, f"{mode.__name__}({other.__name__})")
    members = torch.tensor([0.0, 0.1], dtype=D)
    close(vmap(grad(line))(members)[0], grad(line)(zero), 1e-9, "vmap(grad)")


def test_one_call_of_f_for_any_number_of_outputs():
    calls = []

    def wide(p, x):
        calls.append(1)
        return F.linear(x, p)

    G = PMatImplicit.of(wide, randn(1000, 2), X, "gaussian")
    calls.clear()
    G.mv(randn(1000, 2, seed=1))
    assert len(calls) == 1


def test_integer_inputs_and_float32():
    embed = lambda p, x: F.embedding(x, p["e"]).sum(1)
    p, x = {"e": torch.randn(6, 3, generator=torch.Generator().manual_seed(0))}, torch.tensor([[0, 1], [2, 2], [5, 0]])
    G = PMatImplicit.of(embed, p, x, "categorical")
    w = noise_like(p, 1)
    got = G.solve(w, 0.1)
    assert got["e"].dtype == torch.float32
    close(trees.axpy(0.1, got, G.mv(got)), w, 1e-4, "solve")
    slope = grad(lambda p: PMatImplicit.of(embed, p, x).solve(w, 0.1)["e"].sum())(p)["e"]
    p64, w64 = trees.map(lambda t: t.double(), p), trees.map(lambda t: t.double(), w)
    close(
        slope.double(), grad(lambda p: PMatImplicit.of(embed, p, x).solve(w64, 0.1)["e"].sum())(p64)["e"], 1e-4, "grad"
    )


def test_errors():
    G = PMatImplicit.of(f, P, X)
    for call, message in (
        (lambda: G.inverse(0.1), r"PMatImplicit.inverse: .*use F.solve"),
        (lambda: G.pow(0.5), "PMatImplicit.pow: .*PMatDense"),
        (lambda: G.norm(-2), r"PMatImplicit.norm: .*norm\('fro'\)"),
        (lambda: G.trace(method="hutchpp"), "PMatImplicit: got neither, expected a generator or probes"),
        (lambda: G.trace(method="hutchpp", probes=trees.map(lambda t: t[None], V)), "method='hutchpp'"),
        (lambda: G.get_diag(method="xtrace"), "get_diag: got method='xtrace'"),
        (lambda: G.logdet(0.1), "expected a generator or probes"),
        (lambda: G.trace(method="hutchinson", probes=V), "probes: got 0 leading axes"),
        (lambda: G.to_torch(chunk_size=0), "chunk_size: got 0"),
        (lambda: G.trace(chunk_size=0), "chunk_size: got 0"),
        (lambda: G.sample(), "sample: got neither"),
        (lambda: PMatImplicit.of(f, P, X[:0]), "data: got no example"),
        (lambda: G.mv({"w": P["w"]}), r"v: leaves do not match.*missing \['b', 'v'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_centred_implicit_matrix_is_solved_by_products(monkeypatch):
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    g = torch.Generator().manual_seed(4)
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    p, x, t = {"w": normal(3, 4), "v": normal(4, 3)}, normal(9, 3), torch.randint(0, 3, (9,), generator=g)
    fim = lambda kind: fisher.fim(f, p, (x, t), kind, estimator="gradient_covariance", centered=True)
    v, dense = {"w": normal(3, 4), "v": normal(4, 3)}, fim(fisher.PMatDense)
    whole = fim(fisher.PMatImplicit)
    monkeypatch.setattr(type(whole), "to_torch", None)
    monkeypatch.setattr(type(whole), "dense", None)
    solution, report = whole.solve(v, 0.1, kind="cg", report=True)
    for got in (solution, whole.solve(v, 0.1)):
        for a, b in zip(trees.leaves(got), trees.leaves(dense.solve(v, 0.1))):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert report.iterations.max() <= 24
