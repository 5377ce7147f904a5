"""hessian and ggn: against torch's own hessian of the mean loss, weights of batches, representations, links to the Fisher."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jacrev, vmap
from torch.func import hessian as full

from fisher.collector.collection import LayerCollection
from fisher.passes.second_order import ggn, hessian
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.layered.kfac import PMatKFAC
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from linmaps import trees
from tests.laws import close, noise_like, perturbed

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def f(p, x):
    return F.linear(torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])), p["b"]["weight"])


def cross_entropy(y, t):
    return F.cross_entropy(y, t, reduction="none")


def loss(p, x, t):
    return cross_entropy(f(p, x), t).mean()


P = {"a": {"weight": randn(3, 2), "bias": randn(3, seed=1)}, "b": {"weight": randn(4, 3, seed=2)}}
X, T = randn(7, 2, seed=3), torch.tensor([0, 1, 2, 3, 0, 2, 2])
V = noise_like(P, 4)
v, unravel = trees.ravel(V)
WANT = full(lambda w: loss(unravel(w), X, T))(trees.ravel(P)[0])
BATCHES = [(X[:3], T[:3]), (X[3:4], T[3:4]), (X[4:], T[4:])]


@pytest.mark.parametrize("data", [(X, T), BATCHES], ids=["whole", "batches"])
def test_hessian_is_that_of_the_mean_loss_whatever_the_batches(data):
    H = hessian(loss, P, data)
    assert isinstance(H, PMatDense)
    close(H.to_torch(), WANT, 1e-12, "dense")
    close(hessian(loss, P, data, chunk_size=5).to_torch(), WANT, 1e-12, "chunks")
    diag = hessian(loss, P, data, PMatDiag)
    assert isinstance(diag, PMatDiag)
    close(diag.get_diag(), unravel(WANT.diagonal()), 1e-12, "diag")
    implicit = hessian(loss, P, data, PMatImplicit)
    assert isinstance(implicit, PMatImplicit)
    close(implicit.mv(V), unravel(WANT @ v), 1e-12, "mv")
    close(implicit.vTMv(V), v @ WANT @ v, 1e-12, "vTMv")
    close(implicit.trace(), WANT.trace(), 1e-12, "trace")
    close(implicit.get_diag(), unravel(WANT.diagonal()), 1e-12, "diag")
    close(implicit.norm(2), torch.linalg.eigvalsh(WANT).abs().max(), 1e-10, "norm")
    solved = implicit.solve(V, 5.0)
    close(solved, unravel(torch.linalg.solve(WANT + 5 * torch.eye(len(WANT), dtype=D), v)), 1e-10, "solve")


def test_product_is_the_change_of_the_gradient():
    h = 1e-5
    change = trees.sub(grad(loss)(trees.axpy(h, V, P), X, T), grad(loss)(trees.axpy(-h, V, P), X, T))
    close(hessian(loss, P, BATCHES, PMatImplicit).mv(V), trees.scale(0.5 / h, change), 1e-8, "difference")


def test_blocks_of_layers():
    layers = LayerCollection.from_function(f, P, X)
    H = hessian(loss, P, BATCHES, PMatBlockDiag, layers=layers)
    view = lambda w, name: layers.views(unravel(w))[name].flatten()
    for layer in layers:
        rows = jacrev(lambda w, name=layer.name: view(w, name))(v)  # the selection of the view from the flat order
        close(H.blocks[layer.name], rows @ WANT @ rows.T, 1e-12, layer.name)
    G = ggn(f, cross_entropy, P, BATCHES, PMatBlockDiag, layers=layers)
    dense = ggn(f, cross_entropy, P, BATCHES).to_torch()
    rows = jacrev(lambda w: view(w, "a"))(v)
    close(G.blocks["a"], rows @ dense @ rows.T, 1e-12, "ggn")
    with pytest.raises(ValueError, match="layers: got None, expected a LayerCollection"):
        hessian(loss, P, BATCHES, PMatBlockDiag)


def test_ggn_is_the_fisher_of_the_natural_parameters():
    G = ggn(f, cross_entropy, P, BATCHES)
    close(G.to_torch(), PMatImplicit.of(f, P, X).to_torch(), 1e-12, "cross entropy")
    half = lambda y, t: 0.5 * ((y - t) ** 2).sum(1)
    G = ggn(f, half, P, (X, randn(7, 4)), PMatImplicit)
    Z = PMatImplicit.of(f, P, X, "gaussian")
    close(G.mv(V), Z.mv(V), 1e-12, "squares")
    close(G.vTMv(V), Z.vTMv(V), 1e-12, "vTMv")
    close(G.trace(), Z.trace(), 1e-12, "trace")
    close(ggn(f, half, P, (X, randn(7, 4)), PMatDiag).get_diag(), Z.get_diag(), 1e-12, "diag")


def test_ggn_of_a_loss_that_is_no_likelihood():
    cubic = lambda y, t: ((y - t[:, None]) ** 4).sum(1)
    t = randn(7)
    J = jacrev(lambda w: f(unravel(w), X))(trees.ravel(P)[0])
    H = torch.diag_embed(12 * (f(P, X) - t[:, None]) ** 2)
    want = torch.einsum("bci,bcd,bdj->ij", J, H, J) / 7
    close(ggn(f, cubic, P, [(X[:2], t[:2]), (X[2:], t[2:])]).to_torch(), want, 1e-12, "ggn")


def test_hessian_is_the_fisher_of_a_model_linear_in_its_params():
    linear = lambda p, x: x @ p["w"] + p["b"]
    p = {"w": randn(2, 4), "b": randn(4, seed=1)}
    H = hessian(lambda p, x, t: cross_entropy(linear(p, x), t).mean(), p, BATCHES)
    close(H.to_torch(), PMatImplicit.of(linear, p, X).to_torch(), 1e-12, "Fisher")


def test_data_without_targets():
    H = hessian(lambda p, x: (f(p, x) ** 2).mean(), P, [X[:3], X[3:]])
    want = full(lambda w: (f(unravel(w), X) ** 2).mean())(trees.ravel(P)[0])
    close(H.to_torch(), want, 1e-12, "no targets")


def test_ensemble_derivatives_and_float32():
    members = [perturbed(P, k) for k in range(3)]
    for make in (lambda p, r: hessian(loss, p, BATCHES, r), lambda p, r: ggn(f, cross_entropy, p, BATCHES, r)):
        run = lambda p, make=make: (
            make(p, PMatDense).solve(V, 5.0),
            make(p, PMatImplicit).solve(V, 5.0),
            make(p, PMatDiag).trace(),
        )
        close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-10, "ensemble")
        line = lambda r, make=make: lambda t: make(trees.axpy(t, V, P), r).solve(V, 5.0)["a"]["bias"].sum()
        zero = torch.zeros((), dtype=D)
        close(grad(line(PMatImplicit))(zero), grad(line(PMatDense))(zero), 1e-9, "implicit against dense")
    single = hessian(loss, trees.map(lambda t: t.float(), P), (X.float(), T))
    assert single.to_torch().dtype == torch.float32
    close(single.to_torch().double(), WANT, 1e-5, "float32")


def test_errors():
    with pytest.raises(ValueError, match=r"loss\(params, x, y\): got a result of shape \(7, 4\), expected a scalar"):
        hessian(lambda p, x, t: f(p, x), P, (X, T))
    with pytest.raises(ValueError, match="representation: got PMatKFAC, expected PMatDense, PMatDiag, PMatBlockDiag"):
        hessian(loss, P, (X, T), PMatKFAC)
    with pytest.raises(ValueError, match="a Hessian has no root"):
        hessian(loss, P, (X, T), PMatImplicit).sample(torch.Generator(), 1.0)
