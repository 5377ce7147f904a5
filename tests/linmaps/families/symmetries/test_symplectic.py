"""Maps of phase space: the symplectic identity in figures, closed forms, flows, errors."""

import math

import numpy as np
import pytest
import torch

from linmaps import BlockSkew, Hamiltonian, Symplectic, trees
from linmaps.strategies import ADVERSARIES
from tests.linmaps.families.eigenvalues.test_stable import operations
from tests.linmaps.kinds.symplectic import J
from tests.linmaps.zoo import descend, generator, random_params


def factors(spec, scale, seed):
    return {"factors": scale(torch.randn(spec.shapes()["factors"], generator=generator(seed), dtype=torch.float64))}


def test_against_the_factors_written_out():
    spec, m = Symplectic(4, n_factors=3), 2
    params = factors(spec, lambda t: t, 0)
    want, eye, zero = np.eye(4), np.eye(m), np.zeros((m, m))
    for i, (a, b, c) in enumerate(params["factors"].tolist()):
        S = np.array([[a, b], [b, c]])
        A = S * np.arcsinh(np.linalg.norm(S)) / np.linalg.norm(S)
        want = want @ (np.block([[eye, zero], [A, eye]]) if i % 2 == 0 else np.block([[eye, A], [zero, eye]]))
    assert np.allclose(spec.effective_W(params).numpy(), want, atol=1e-14)


@pytest.mark.parametrize("n", [2, 4, 8, 20, 40])
@pytest.mark.parametrize("kind", ["tame", *ADVERSARIES])
def test_absolute_residual(n, kind):
    """Largest measured: 1e-14 at N(0, 1), and at all 50 (entries of W up to 2500) 2e-10 up to n = 8, 1e-9 beyond."""
    spec = Symplectic(n)
    for seed in range(10):
        W = spec.effective_W(factors(spec, ADVERSARIES.get(kind, lambda t: t), seed)).numpy()
        assert np.abs(W.T @ J(n) @ W - J(n)).max() <= (1e-12 if kind == "tame" else 1e-10) * n


def test_zero_params_are_the_identity_with_finite_derivatives():
    spec = Symplectic(6)
    zero = trees.map(torch.zeros_like, random_params(spec, 0))
    assert torch.equal(spec.effective_W(zero), torch.eye(6, dtype=torch.float64))
    jacobian = torch.func.jacrev(spec.effective_W)(zero)["factors"]
    assert set(jacobian.unique().tolist()) == {0.0, 1.0}
    assert torch.isfinite(torch.func.jacfwd(torch.func.jacrev(spec.effective_W))(zero)["factors"]["factors"]).all()


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_inverse_and_solve_undo_the_factors(k):
    spec = Symplectic(6, n_factors=k)
    params = factors(spec, lambda t: t, 1)
    W = spec.effective_W(params)
    assert torch.allclose(W @ spec.inverse(params), torch.eye(6, dtype=torch.float64), atol=1e-10)
    x = torch.randn(3, 6, generator=generator(0), dtype=torch.float64)
    assert torch.allclose(spec.solve(params, spec.apply(params, x)), x, atol=1e-10)
    assert spec.logabsdet(params) == 0
    assert np.linalg.det(W.numpy()) == pytest.approx(1.0)


def test_apply_is_the_same_for_few_and_for_many_rows():
    spec = Symplectic(8, n_factors=7)
    params, x = random_params(spec, 0), torch.randn(500, 8, generator=generator(0), dtype=torch.float64)
    few = torch.cat([spec.apply(params, row) for row in x.split(1)])
    assert torch.allclose(few, spec.apply(params, x), rtol=0, atol=1e-12)


def test_violation_is_relative_to_the_size():
    spec = Symplectic(2)
    assert spec.violation(torch.eye(2)) == 0
    assert spec.violation(2 * torch.eye(2)).item() == pytest.approx(3 * math.sqrt(2) / 8)
    assert spec.violation(torch.diag(torch.tensor([1e6, 1e-6], dtype=torch.float64))) < 1e-20


@pytest.mark.parametrize("n", [4, 64, 256])
def test_init_stays_near_unit_variance(n):
    spec = Symplectic(n)
    W = torch.stack([spec.effective_W(random_params(spec, seed)) for seed in range(20)])
    assert 1 <= W.square().sum(2).mean().item() <= 1 + 2 / n


def test_symplectic_after_a_thousand_adam_steps():
    spec = Symplectic(6)
    target = 2 * torch.randn(6, 6, generator=generator(5), dtype=torch.float64)
    loss = lambda W: (W - target).square().sum()
    W = spec.effective_W(descend(spec, loss, 0, 1000, 0.02))
    assert np.abs(W.numpy().T @ J(6) @ W.numpy() - J(6)).max() < 1e-10
    assert loss(W) < 0.9 * loss(spec.effective_W(random_params(spec, 0)))


def test_hamiltonian_generates_symplectic_flows():
    spec = Hamiltonian(6)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    flow = torch.linalg.matrix_exp(0.7 * W).numpy()
    assert np.abs(flow.T @ J(6) @ flow - J(6)).max() < 1e-13
    JW = torch.tensor(J(6)) @ W
    assert torch.equal(JW, JW.T)
    assert np.array_equal(JW.numpy()[np.triu_indices(6)], params["upper"].numpy())


def test_block_skew_against_its_blocks():
    A = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    spec, zero = BlockSkew(4), np.zeros((2, 2))
    W = spec.effective_W({"A": A})
    assert np.array_equal(W.numpy(), np.block([[zero, A.numpy()], [-A.T.numpy(), zero]]))
    assert torch.equal(W, -W.T)
    s = torch.linalg.svdvals(A)
    assert torch.equal(spec.eig({"A": A}).real, torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(spec.eig({"A": A}).imag.sort().values, torch.cat([s, -s]).sort().values)
    assert spec.logabsdet({"A": A}).item() == pytest.approx(2 * math.log(2))


def test_block_skew_vectors_are_orthonormal():
    _, V = BlockSkew(6).eig(random_params(BlockSkew(6), 0), vectors=True)
    assert torch.allclose(V.mH @ V, torch.eye(6, dtype=V.dtype), atol=1e-14)


def test_projections_are_the_nearest():
    W = torch.randn(4, 4, generator=generator(0), dtype=torch.float64)
    for spec in (Hamiltonian(4), BlockSkew(4)):
        params, distance = spec.from_matrix(W)
        near = spec.effective_W(params)
        directions = [spec.effective_W(random_params(spec, seed)) for seed in range(30)]
        assert max(abs(((W - near) * d).sum()) for d in directions) < 1e-14, "the rest is orthogonal to the set"
        assert torch.allclose(spec.violation(near), torch.zeros((), dtype=torch.float64))
    assert torch.allclose(distance, BlockSkew(4).violation(W))


def test_cost_grows_with_the_number_of_factors_alone():
    assert operations(Symplectic(40)) == operations(Symplectic(8)) < 350


@pytest.mark.parametrize("cls", [Symplectic, Hamiltonian, BlockSkew])
def test_odd_sizes_are_refused(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__}.in_features: got 5, expected an even number.*use 4 or 6"):
        cls(5)
    assert cls._of_size(7, 7).in_features == 6
    assert cls._of_size(1, 1).in_features == 2


def test_number_of_factors():
    with pytest.raises(ValueError, match=r"n_factors: got 0, expected a positive int"):
        Symplectic(4, n_factors=0)
    with pytest.raises(TypeError, match=r"n_factors: got 2.5, expected a positive int"):
        Symplectic(4, n_factors=2.5)
