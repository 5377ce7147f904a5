"""Jacobians: equal to one autograd.grad per entry, exact for linear models, adjoint, composable."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import fisher
from fisher.function_space.implicit import PFMapImplicit
from fisher.function_space.jacobians import jacobian
from fisher.function_space.pfmap import PFMapDense
from fisher.strategies import networks, vectors
from linmaps import trees
from tests.laws import close, noise_like
from tests.oracles import jacobians
from tests.zoo import MODELS, perturbed

D = torch.float64
NO_FORWARD_MODE = ["attention"]  # torch's fused attention
SMOOTH = ["mlp", "tied", "bare", "sequence"]


@pytest.mark.parametrize("name", MODELS)
def test_equals_brute_force(name):
    m = MODELS[name]
    want = jacobians(m.f, m.params, m.x)
    J = jacobian(m.f, m.params, m.x)
    close(J.to_torch(), want, 1e-12, "rows by vjp")
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    close(jacobian(m.f, m.params, m.x, layers=layers).to_torch(), want, 1e-12, "rows by layers")
    v, u = noise_like(m.params, 0), noise_like(want[..., 0], 1)
    vector, unravel = trees.ravel(v)
    implicit = jacobian(m.f, m.params, m.x, PFMapImplicit)
    for K in (J, implicit):
        if K is J or name not in NO_FORWARD_MODE:
            close(K.jvp(v), want @ vector, 1e-12, "jvp")
            close(K @ v, want @ vector, 1e-12, "@")
        close(K.vjp(u), unravel(torch.einsum("bcd,bc->d", want, u)), 1e-12, "vjp")
        assert K.size() == tuple(want.shape)
        assert K.size(-1) == K.size(2) == want.shape[2]
    close(implicit.to_torch(), want, 1e-12, "dense of implicit")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_chunks_and_batches_change_nothing(size):
    m = MODELS["mlp"]
    J = jacobian(m.f, m.params, m.x)
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    close(jacobian(m.f, m.params, m.x, chunk_size=size).jacobian, J.jacobian, 1e-14, "chunks")
    close(jacobian(m.f, m.params, m.x, chunk_size=size, layers=layers).jacobian, J.jacobian, 1e-14, "columns")
    parts = list(m.x.split(size))
    close(jacobian(m.f, m.params, parts).jacobian, J.jacobian, 1e-14, "batches")
    v = noise_like(m.params, 0)
    close(jacobian(m.f, m.params, parts, PFMapImplicit).jvp(v), J.jvp(v), 1e-14, "batches, implicit")


@given(networks(max_layers=1), st.data())
def test_linear_models_move_by_their_jacobian(network, data):
    v = data.draw(vectors(network.params))
    moved = network.f(trees.add(network.params, v), network.x) - network.f(network.params, network.x)
    for representation in (PFMapDense, PFMapImplicit):
        close(jacobian(network.f, network.params, network.x, representation).jvp(v), moved, 1e-12, "J v")


@pytest.mark.parametrize("name", SMOOTH)
def test_small_steps_move_by_the_jacobian(name):
    m = MODELS[name]
    v = trees.scale(1e-5, noise_like(m.params, 3))
    moved = (m.f(trees.add(m.params, v), m.x) - m.f(trees.sub(m.params, v), m.x)) / 2
    J = jacobian(m.f, m.params, m.x)
    assert (J.jvp(v) - moved.reshape(len(m.x), -1)).norm() <= 1e-7 * moved.norm()


@given(networks(sequence=True), st.data())
def test_adjoint(network, data):
    v = data.draw(vectors(network.params))
    for representation in (PFMapDense, PFMapImplicit):
        J = jacobian(network.f, network.params, network.x, representation)
        Jv = J.jvp(v)
        u = noise_like(Jv, 4)
        close(trees.dot(v, J.vjp(u)), (u * Jv).sum(), 1e-10, "<v, J'u> = <Jv, u>")
        close(trees.dot(v, J.vjp(Jv)), (Jv**2).sum(), 1e-10, "<v, J'Jv> = |Jv|^2")


def test_algebra():
    m = MODELS["bare"]
    J, K = (jacobian(m.f, p, m.x) for p in (m.params, perturbed(m.params, 1)))
    S, T = J.to_torch(), K.to_torch()
    close((J + K).to_torch(), S + T, 1e-14, "+")
    close((J - K).to_torch(), S - T, 1e-14, "-")
    close((-J).to_torch(), -S, 0.0, "negation")
    for made in (J * 0.3, 0.3 * J, J * torch.tensor(0.3, dtype=D), J / (1 / 0.3)):
        close(made.to_torch(), 0.3 * S, 1e-14, "scalar")
    close(J.norm(), S.norm(), 1e-13, "norm")
    close(J.centered().to_torch(), S - S.mean(0), 1e-14, "centered")
    assert repr(J) == "PFMapDense(B = 5, C = 4, d = 21)"
    for again in (pickle.loads(pickle.dumps(J)), copy.deepcopy(J)):
        close(again.jvp(m.params), J.jvp(m.params), 0.0, "persistence")


@pytest.mark.parametrize("with_layers", [False, True])
def test_ensembles_and_derivatives(with_layers):
    m = MODELS["mlp"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x) if with_layers else None
    J = lambda p: jacobian(m.f, p, m.x, layers=layers)
    members = [perturbed(m.params, k) for k in range(3)]
    stacked = vmap(J)(trees.stack(members))
    close(stacked.jacobian, trees.stack([J(p).jacobian for p in members]), 1e-12, "ensemble")
    v = noise_like(m.params, 9)
    close(vmap(lambda J: J.jvp(v))(stacked), torch.stack([J(p).jvp(v) for p in members]), 1e-12, "jvp of an ensemble")
    with pytest.raises(ValueError, match=r"torch\.func\.vmap"):
        stacked.jvp(v)
    line = lambda t: J(trees.axpy(t, v, m.params)).norm()
    zero, h = torch.zeros((), dtype=D), 1e-4
    slope = (8 * (line(zero + h) - line(zero - h)) - (line(zero + 2 * h) - line(zero - 2 * h))) / (12 * h)
    close(grad(line)(zero), slope, 1e-9, "grad")
    close(jacfwd(line)(zero), slope, 1e-9, "jacfwd")
    close(jacfwd(jacrev(line))(zero), jacrev(jacfwd(line))(zero), 1e-9, "nested")


def test_implicit_maps_over_an_ensemble():
    m = MODELS["mlp"]
    members = [perturbed(m.params, k) for k in range(3)]
    v, u = noise_like(m.params, 0), noise_like(m.f(m.params, m.x), 1)
    both = lambda p: (lambda J: (J.jvp(v), J.vjp(u)))(PFMapImplicit(m.f, p, m.x))
    close(vmap(both)(trees.stack(members)), trees.stack([both(p) for p in members]), 1e-12, "ensemble")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_data(dtype):
    m = MODELS["bare"]
    p, x = trees.map(lambda t: t.to(dtype), m.params), m.x.to(dtype)
    layers = fisher.LayerCollection.from_function(m.f, p, x)
    for J in (jacobian(m.f, p, x), jacobian(m.f, p, x, layers=layers)):
        assert {t.dtype for t in trees.leaves(J)} == {dtype}
        close(J.to_torch().double(), jacobians(m.f, m.params, m.x), 1e-5, "rows")


def test_no_example():
    m = MODELS["mlp"]
    J = jacobian(m.f, m.params, m.x[:0])
    assert J.size() == (0, 3, 31)
    assert not any(t.any() for t in trees.leaves(J.vjp(torch.zeros(0, 3, dtype=D))))


def test_errors():
    m = MODELS["mlp"]
    J = jacobian(m.f, m.params, m.x)
    with pytest.raises(ValueError, match="leaves do not match"):
        J.jvp({"a": torch.ones(1)})
    for K in (J, PFMapImplicit(m.f, m.params, m.x)):
        with pytest.raises(ValueError, match=r"vjp: got u of shape \(2, 3\), expected \(5, 3\)"):
            K.vjp(torch.ones(2, 3, dtype=D))
    with pytest.raises(ValueError, match=r"output of one example depends on other examples.*eval"):
        jacobian(lambda p, x: m.f(p, x - x.mean(0)), m.params, m.x)
    with pytest.raises(ValueError, match=r"f\(params, x\): got shape \(\), expected a tensor \[5, ...\]"):
        jacobian(lambda p, x: m.f(p, x).sum(), m.params, m.x)
    with pytest.raises(TypeError, match=r"w: got dtype torch\.int64"):
        jacobian(lambda p, x: x @ p["w"].double(), {"w": torch.ones(3, 2, dtype=torch.long)}, m.x)
    with pytest.raises(ValueError, match=r"representation: got .*expected PFMapDense or PFMapImplicit"):
        jacobian(m.f, m.params, m.x, fisher.PMatDense)
    with pytest.raises(TypeError, match="PFMapDense \\+ int"):
        J + 1
    with pytest.raises(TypeError, match="PFMapDense \\* str"):
        J * "2"
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        jacobian(m.f, m.params, m.x, chunk_size=0)
