"""Effective dimension: the trace of F (F + regul I)^-1 in every representation, and its estimator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import fisher
from fisher.recipes.dimension import effective_dimension
from fisher.strategies import networks
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, start
from tests.laws import close
from tests.zoo import MODELS

REPRESENTATIONS = "Dense Diag BlockDiag QuasiDiag KFAC EKFAC LowRank Eye Mixed".split()  # noqa: SIM905
KINDS = {
    name: lambda f, p, x, name=name: fisher.fim(f, p, x, getattr(fisher.pmat, f"PMat{name}"))
    for name in REPRESENTATIONS
}


def want(F, regul):
    dense = F.to_torch()
    return (dense @ torch.linalg.inv(dense + regul * torch.eye(len(dense), dtype=D))).trace()


def slope(F, regul):
    """-tr F (F + regul I)^-2."""
    dense = F.to_torch()
    inverse = torch.linalg.inv(dense + regul * torch.eye(len(dense), dtype=D))
    return -(dense @ inverse @ inverse).trace()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "bare", "tied"])
def test_equals_the_trace(kind, name):
    m = MODELS[name]
    F = KINDS[kind](m.f, m.params, m.x)
    for regul in (1e-3, 0.1, torch.tensor(10.0, dtype=D)):
        close(effective_dimension(F, regul), want(F, regul), 1e-9, "effective dimension")


@given(networks(), st.floats(1e-4, 10.0))
def test_lies_between_zero_and_the_rank(network, regul):
    F = fisher.fim(network.f, network.params, network.x, fisher.PMatDense, "gaussian")
    found = effective_dimension(F, regul)
    y = network.f(network.params, network.x)
    assert -1e-9 <= found <= min(len(F.to_torch()), y.numel()) + 1e-9
    close(
        grad(lambda s: effective_dimension(F, s.exp()))(torch.tensor(regul, dtype=D).log()).clamp_min(0),
        0 * found,
        1e-9,
        "falls",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimator_on_digits(kind):
    x, _ = digits(60, features=6)
    F = KINDS[kind](mlp, start(6, 4, 10), x)
    exact = want(F, 1e-2)
    got = effective_dimension(F, 1e-2, generator=torch.Generator().manual_seed(0), n_samples=400)
    assert abs(got / exact - 1) < 0.1
    assert 0 < exact < F.size(0)
    again = effective_dimension(F, 1e-2, generator=torch.Generator().manual_seed(0), n_samples=400)
    close(again, got, 0.0, "the generator decides")
    d = F.size(0)
    every = vmap(F.layout.unravel)(torch.eye(d, dtype=D) * d**0.5)
    close(effective_dimension(F, 1e-2, noise=every), exact, 1e-9, "noise that spans the space")


def test_a_matrix_free_one_asks_for_a_generator():
    x, _ = digits(40, features=4)
    p = start(4, 10)
    F = fisher.fim(linear, p, x, fisher.pmat.PMatImplicit)
    with pytest.raises(ValueError, match=r"largest eigenvalues only; use .*generator=torch\.Generator\(\)"):
        effective_dimension(F, 0.1)
    part = fisher.pmat.PMatDense(F.to_torch(), F.layout)
    close(effective_dimension(part, 0.1), want(F, 0.1), 1e-10, "dense")
    every = vmap(F.layout.unravel)(torch.eye(50, dtype=D) * 50**0.5)
    close(effective_dimension(F, 0.1, noise=every), want(F, 0.1), 1e-7, "implicit")


def test_an_ensemble_is_one_vmap():
    x, _ = digits(20, features=3)
    members = [start(3, 4, seed=k) for k in range(3)]
    run = lambda p: effective_dimension(fisher.fim(linear, p, x, fisher.PMatKFAC), 0.1)
    close(vmap(run)(trees.stack(members)), torch.stack([run(p) for p in members]), 1e-10, "ensemble")


def test_errors():
    m = MODELS["mlp"]
    F = KINDS["Dense"](m.f, m.params, m.x)
    with pytest.raises(ValueError, match="regul: got -1"):
        effective_dimension(F, -1)
    noise = trees.map(lambda t: t[None], m.params)
    with pytest.raises(ValueError, match="both a generator and noise"):
        effective_dimension(F, 0.1, generator=torch.Generator(), noise=noise)
    with pytest.raises(ValueError, match="n_samples: got 0"):
        effective_dimension(F, 0.1, generator=torch.Generator(), n_samples=0)


def test_without_damping_it_is_the_rank():
    f, p = lambda p, x: x @ p["w"], {"w": torch.ones(3, 1)}
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    for representation in (fisher.PMatDiag, fisher.PMatDense):
        assert effective_dimension(fisher.fim(f, p, x, representation, "gaussian"), 0.0) == 2
