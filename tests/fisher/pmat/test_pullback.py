"""pullback: the metric of theta where weights = effective(theta) is the Fisher of f after effective."""

import pickle

import pytest
import torch
from torch.func import grad, jacrev, vmap

import linmaps
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.matrix_free.pulled_back import PMatPullback, pullback
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.pmat.whole.lowrank import PMatLowRank
from linmaps import trees
from tests.laws import close, noise_like, perturbed

D = torch.float64
SPECS = {
    "orthogonal": linmaps.Orthogonal(3, bias=False),
    "spectral": linmaps.Spectral(3, 4, bias=False),
}


def case(name):
    spec = SPECS[name]
    theta = {
        "map": spec.init(torch.Generator().manual_seed(0), dtype=D),
        "out": torch.randn(spec.out_features, 2, generator=torch.Generator().manual_seed(1), dtype=D),
    }
    effective = lambda p: {"w": spec.effective_W(p["map"]), "v": p["out"]}
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=D)
    return f, effective, theta, x


def written_out(F, effective, theta):
    vector, unravel = trees.ravel(theta)
    J = jacrev(lambda t: trees.ravel(effective(unravel(t)))[0])(vector)
    return J.T @ F.to_torch() @ J


@pytest.mark.parametrize(("name", "form"), [("orthogonal", "implicit"), ("spectral", "dense")])
def test_is_the_fisher_of_the_composition(name, form):
    f, effective, theta, x = case(name)
    F = PMatImplicit.of(f, effective(theta), x)
    if form == "dense":
        F = PMatDense(F.to_torch(), F.layout)
    G = pullback(F, effective, theta)
    assert isinstance(G, PMatPullback)
    direct = PMatImplicit.of(lambda p, x: f(effective(p), x), theta, x)
    T = direct.to_torch()
    v = noise_like(theta, 3)
    vector, unravel = trees.ravel(v)
    eye = torch.eye(len(T), dtype=D)
    close(T, written_out(F, effective, theta), 1e-11, "J'F J")
    close(G.to_torch(), T, 1e-11, "to_torch")
    close(G.to_torch(chunk_size=3), T, 1e-11, "chunks")
    close(G.mv(v), direct.mv(v), 1e-11, "mv")
    close(G.vTMv(v), direct.vTMv(v), 1e-11, "vTMv")
    close(G.trace(), T.trace(), 1e-11, "trace")
    close(G.get_diag(), unravel(T.diagonal()), 1e-11, "diag")
    close((2.0 * G).to_torch(), 2 * T, 1e-11, "scaled")
    want = unravel(torch.linalg.solve(T + 0.1 * eye, vector))
    x_, report = G.solve(v, 0.1, preconditioner=PMatDiag(G.get_diag(), G.layout), report=True)
    close(x_, want, 1e-9, "solve")
    assert report.converged
    J = trees.map(lambda t: torch.stack([t, -t])[None], v)
    close(trees.map(lambda t: t[0, 1], G.solve(J, 0.1)), trees.scale(-1.0, want), 1e-9, "solve of a map")
    close(G.norm(2), torch.linalg.eigvalsh(T)[-1], 1e-9, "norm")


def test_samples_have_the_covariance():
    f, effective, theta, x = case("spectral")
    F = PMatImplicit.of(f, effective(theta), x)
    T = pullback(F, effective, theta).to_torch()
    G = pullback(PMatDense(F.to_torch(), F.layout), effective, theta)
    d, unravel, unravel_w = len(T), G.layout.unravel, F.layout.unravel
    sample = lambda e: trees.ravel(G.sample(noise=(unravel(e[:d]), unravel_w(e[d:])), regul=0.3))[0]
    R = vmap(sample)(torch.eye(d + F.size(0), dtype=D))
    close(R.T @ R, torch.linalg.inv(T + 0.3 * torch.eye(d, dtype=D)), 1e-8, "covariance")
    for H in (G, pullback(F, effective, theta)):
        assert H.sample(torch.Generator().manual_seed(0), 0.3)["out"].shape == theta["out"].shape
        with pytest.raises(ValueError, match=r"noise: got dict, expected a pair \(z, e\) .* for PMatPullback"):
            H.sample(noise=theta, regul=0.3)
    with pytest.raises(ValueError, match="noise: e: "):
        G.sample(noise=(theta, torch.zeros(())), regul=0.3)


def test_ensemble_and_derivatives():
    f, effective, theta, x = case("orthogonal")
    v = noise_like(theta, 3)

    def run(p):
        G = pullback(PMatImplicit.of(f, effective(p), x), effective, p)
        return G.mv(v), G.solve(v, 0.2), G.trace()

    members = [perturbed(theta, k) for k in range(3)]
    close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-9, "ensemble")
    direct = lambda p: PMatImplicit.of(lambda p, x: f(effective(p), x), p, x)
    line = lambda t: trees.dot(run(trees.axpy(t, v, theta))[1], v)
    want = lambda t: trees.dot(direct(trees.axpy(t, v, theta)).solve(v, 0.2), v)
    zero = torch.zeros((), dtype=D)
    close(grad(line)(zero), grad(want)(zero), 1e-8, "grad")
    stacked = vmap(lambda p: pullback(PMatImplicit.of(f, effective(p), x), effective, p))(trees.stack(members))
    close(vmap(lambda G: G.trace())(stacked)[1], run(members[1])[2], 1e-10, "as a record")


def effective_of_exp(p):
    return {"w": torch.exp(p)}


def test_pickles_with_a_function_that_does():
    G = pullback(PMatLowRank({"w": torch.tensor([[1.0, 2.0]])}), effective_of_exp, torch.zeros(2))
    close(pickle.loads(pickle.dumps(G)).to_torch(), G.to_torch(), 0.0, "pickle")


def test_errors():
    F = PMatLowRank({"w": torch.tensor([[1.0, 2.0]])})
    with pytest.raises(ValueError, match=r"effective\(params\): leaf w has shape \(3,\), expected \(2,\)"):
        pullback(F, effective_of_exp, torch.zeros(3))
    with pytest.raises(TypeError, match="pullback: got Tensor, expected a PMat"):
        pullback(torch.eye(2), effective_of_exp, torch.zeros(2))
    G = pullback(F, effective_of_exp, torch.zeros(2))
    with pytest.raises(ValueError, match=r"PMatPullback.inverse: .*use F.solve"):
        G.inverse(0.1)
    with pytest.raises(ValueError, match="sample: got neither"):
        G.sample()
