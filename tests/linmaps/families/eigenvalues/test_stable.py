"""Stable maps: closed forms, what they reach, long training, errors."""

import math

import numpy as np
import pytest
import torch

from linmaps import Hurwitz, PowerBound, StableSplit, trees
from linmaps.numerics.eigen import eigvals
from linmaps.numerics.excess import radius_excess
from linmaps.numerics.nearest import onto_l1_ball
from linmaps.strategies import ADVERSARIES
from tests.linmaps.zoo import descend, generator, random_params

JORDAN = torch.tensor([[0.5, 10.0, 0.0], [0.0, 0.5, 10.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
METHODS = ["lmi", "rescale"]


def radius(W):
    return np.abs(np.linalg.eigvals(W.detach().double().numpy())).max()


def operations(spec):
    params = random_params(spec, 0)
    spec.effective_W(params)  # tables of places are made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        spec.effective_W(params)
    return sum(event.count for event in profile.key_averages())


def adversary(spec, kind, seed, dtype=torch.float64):
    g = generator(seed)
    return trees.map(
        lambda t: ADVERSARIES[kind](torch.randn(t.shape, generator=g, dtype=dtype)), random_params(spec, 0)
    )


def strict_upper(packed, n):
    K = np.zeros((n, n))
    K[np.triu_indices(n, 1)] = packed.numpy()
    return K


def test_lmi_is_the_formula():
    g, n = 0.8, 4
    spec = PowerBound(n, max_p=g)
    params = trees.map(lambda t: torch.randn(t.shape, generator=generator(1), dtype=t.dtype), random_params(spec, 0))
    V, K = params["V"].numpy(), strict_upper(params["skew"], n)
    s = (V**2).sum() / (2 * n)
    S = V.T @ V + 1e-8 * s * np.eye(2 * n)
    G = (S[:n, :n] / g**2 + S[n:, n:]) / 2 + s * (K - K.T)
    assert np.allclose(spec.effective_W(params).numpy(), S[:n, n:] @ np.linalg.inv(G), atol=1e-12)


def test_lmi_does_not_see_the_scale_of_V():
    spec = PowerBound(4)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    for factor in (1e-20, 1e20):
        assert torch.allclose(spec.effective_W(params | {"V": factor * params["V"]}), W, rtol=1e-9)
    zero = spec.effective_W(trees.map(torch.zeros_like, params))
    assert torch.equal(zero, torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_radius_at_outlying_params(method, kind, dtype):
    for n in (1, 3, 8, 24):
        spec = PowerBound(n, max_p=0.7, method=method)
        for seed in range(5):
            slack = 1e-10 if dtype == torch.float64 else 1e-4
            assert radius(spec.effective_W(adversary(spec, kind, seed, dtype))) <= 0.7 * (1 + slack)


@pytest.mark.parametrize("method", METHODS)
def test_matrices_that_grow_before_they_decay_are_reached(method):
    spec = PowerBound(3, method=method)
    params, distance = spec.from_matrix(JORDAN)
    assert distance < 1e-7
    powers = torch.stack([torch.linalg.matrix_power(spec.effective_W(params), k) for k in range(10)])
    assert powers.abs().amax() > 100
    assert powers[-1].abs().amax() < 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", [0.5, 0.99, 0.9999])
def test_the_bound_is_approached(method, share):
    spec = PowerBound(5, max_p=0.7, method=method)
    F = torch.randn(5, 5, generator=generator(0), dtype=torch.float64)
    W = F * (0.7 * share / radius(F))
    params, distance = spec.from_matrix(W)
    assert distance < 1e-4 * (1 - share) + 1e-9 * (method == "lmi") + 1e-12
    assert radius(spec.effective_W(params)) == pytest.approx(0.7 * share, rel=1e-6)


def test_from_matrix_of_an_unstable_one_shrinks_it():
    F = torch.randn(4, 4, generator=generator(3), dtype=torch.float64)
    for method in METHODS:
        spec = PowerBound(4, max_p=0.3, method=method)
        W = spec.effective_W(spec.from_matrix(F)[0])
        assert torch.allclose(W, F * (0.3 / radius(F)), atol=1e-4)
    params, distance = PowerBound(4, max_p=0.3, method="soft").from_matrix(F)
    assert distance == 0
    assert torch.equal(params["W"], F)


def test_rescaling_leaves_a_stable_matrix_alone():
    spec = PowerBound(3, method="rescale")
    W = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.9]], dtype=torch.float64)
    assert torch.equal(spec.effective_W({"W": W}), W)
    jacobian = torch.func.jacrev(spec.effective_W)({"W": JORDAN})["W"]
    assert torch.equal(jacobian.reshape(9, 9), torch.eye(9, dtype=torch.float64)), "defective and stable: no NaN"
    assert torch.allclose(spec.effective_W({"W": 4 * torch.eye(3)}), torch.eye(3))


def test_soft_penalty_is_the_squared_excess():
    spec = PowerBound(2, max_p=0.5, method="soft")
    assert not spec.guaranteed
    assert PowerBound(2).guaranteed
    for value, want in ((2.0, 2.25), (0.4, 0.0)):
        W = torch.tensor([[0.0, value], [-value, 0.0]], dtype=torch.float64)
        assert spec.reg_error({"W": W}).item() == pytest.approx(want)
        assert spec.violation(W).item() == pytest.approx(math.sqrt(want))


def test_init_has_the_radius_it_says():
    for n, low, high in ((3, 0.05, 0.9), (100, 0.5, 0.7)):
        for seed in range(10):
            spec = PowerBound(n, max_p=2.0)
            assert 2 * low < radius(spec.effective_W(random_params(spec, seed))) < 2 * high + 1e-6


@pytest.mark.parametrize(
    "spec",
    [PowerBound(6, max_p=0.8), PowerBound(6, max_p=0.8, method="rescale"), Hurwitz(6, margin=0.2), StableSplit(6, 6)],
    ids=lambda s: s.name + getattr(s, "method", ""),
)
def test_promise_after_a_thousand_adam_steps(spec):
    target = 2 * torch.randn(6, 6, generator=generator(5), dtype=torch.float64)
    loss = lambda W: (W - target).square().sum()
    W = spec.effective_W(descend(spec, loss, 0, 1000, 0.02))
    assert spec.violation(W) <= 1e-11
    assert loss(W) < 0.95 * loss(spec.effective_W(random_params(spec, 0)))


def test_hurwitz_is_the_formula():
    spec = Hurwitz(3, margin=0.4)
    params = trees.map(lambda t: torch.randn(t.shape, generator=generator(2), dtype=t.dtype), random_params(spec, 0))
    A, B, U = params["A"].numpy(), params["B"].numpy(), strict_upper(params["skew"], 3)
    Q = B.T @ B + 1e-6 * (1 + (B**2).sum() / 3) * np.eye(3)
    want = (U - U.T - A.T @ A) @ Q - 0.4 * np.eye(3)
    assert np.allclose(spec.effective_W(params).numpy(), want, atol=1e-13)
    assert torch.allclose(spec.effective_W(trees.map(torch.zeros_like, params)), -0.4 * torch.eye(3).double())


def test_hurwitz_takes_stable_matrices_back():
    """By Lyapunov's equation; others are moved no further than the edge of their spectrum is off."""
    for n, margin in ((1, 0.1), (4, 0.0), (9, 0.1), (9, 2.0)):
        spec, eye = Hurwitz(n, margin=margin), torch.eye(n, dtype=torch.float64)
        W = torch.randn(n, n, generator=generator(n), dtype=torch.float64)
        edge = eigvals(W).real.amax()
        member = W - (edge + margin + 0.3) * eye
        for matrix, limit in ((member, 1e-11), (member.float(), 1e-4)):
            params, distance = spec.from_matrix(matrix)
            assert distance < limit * n
            assert (spec.effective_W(params) - matrix).abs().max() < limit * n
        beyond = W - (edge + margin - 0.5) * eye
        params, distance = spec.from_matrix(beyond)
        assert spec.violation(spec.effective_W(params)) == 0
        assert distance / n**0.5 < 0.6


def test_hurwitz_flows_decay():
    spec = Hurwitz(5, margin=0.5)
    W = spec.effective_W(random_params(spec, 0))
    late = torch.linalg.matrix_exp(40 * W)
    assert torch.linalg.matrix_norm(late) < 1e-6
    assert spec.violation(W) == 0
    assert spec.violation(W + 3 * torch.eye(5)) == pytest.approx(
        3 + spec.eig({**random_params(spec, 0)}).real.max() + 0.5
    )


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.45, 0.6, 3.0])
def test_hurwitz_init_has_the_variance_it_says(margin):
    spec = Hurwitz(60, margin=margin)
    got = np.mean([spec.effective_W(random_params(spec, seed)).square().sum().item() / 60 for seed in range(5)])
    assert got == pytest.approx(max(1 / 3, 25 / 16 * margin**2), rel=0.05)


def test_split_is_the_formula():
    spec = StableSplit(2, 3, sigma_min=0.5, sigma_max=2.0)
    params = random_params(spec, 1)
    s = lambda t: 1 / (1 + np.exp(-t.numpy()))
    tau, t = 0.5 + 1.5 * s(params["budget"]), s(params["share"])
    softmax = lambda L: (e := np.exp(np.column_stack([np.zeros(2), L.numpy()]))) / e.sum(1, keepdims=True)
    B, C = (tau * t)[:, None] * softmax(params["B"]), (tau * (1 - t))[:, None] * softmax(params["C"])
    got = spec.parts(params)
    assert np.allclose(got[0].numpy(), B, atol=1e-15)
    assert np.allclose(got[1].numpy(), C, atol=1e-15)
    assert np.allclose(spec.effective_W(params).numpy(), B - C, atol=1e-15)
    assert np.allclose(got[0].sum(1) + got[1].sum(1), tau)


def test_no_ascent_takes_a_split_map_over_its_bound():
    spec = StableSplit(4)
    params = descend(spec, lambda W: -W.abs().sum(1).sum() - torch.linalg.matrix_norm(W, 2), 0, 300, 0.1)
    W = spec.effective_W(params)
    assert 0.99 < W.abs().sum(1).max() <= 1 + 1e-12
    assert radius(W) <= 1 + 1e-12


def test_split_takes_the_nearest_rows():
    spec = StableSplit(2, 3)
    W = torch.tensor([[3.0, 0.0, -0.5], [0.2, -0.3, 0.1]], dtype=torch.float64)
    params, distance = spec.from_matrix(W)
    want = torch.tensor([[1.0, 0.0, 0.0], [0.2, -0.3, 0.1]], dtype=torch.float64)
    assert torch.allclose(spec.effective_W(params), want, atol=1e-5)
    assert distance.item() == pytest.approx(math.hypot(2, 0.5), rel=1e-5)


def test_equal_bounds_leave_no_dead_budget():
    assert set(StableSplit(3, sigma_min=1.0).shapes()) == {"B", "C", "share"}


def test_nearest_point_of_the_l1_ball_against_bisection():
    rows = torch.randn(20, 5, generator=generator(0), dtype=torch.float64)
    for row, got in zip(rows.numpy(), onto_l1_ball(rows, 1.5).numpy()):
        low, high = 0.0, np.abs(row).max()
        for _ in range(100):
            mid = (low + high) / 2
            low, high = (mid, high) if np.maximum(np.abs(row) - mid, 0).sum() > 1.5 else (low, mid)
        level = high if np.abs(row).sum() > 1.5 else 0.0
        assert np.allclose(got, np.sign(row) * np.maximum(np.abs(row) - level, 0), atol=1e-12)


@pytest.mark.parametrize("n", [20, 26, 48, 58])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_spectrum_of_constant_matrices(n, dtype):
    """LAPACK alone gives up on some of these."""
    W = torch.full((n, n), 50.0, dtype=dtype)
    assert abs(radius_excess(W, 1.0) - (50 * n - 1)) < 1e-5 * 50 * n
    assert radius(PowerBound(n, method="rescale").effective_W({"W": W})) <= 1 + 1e-5


def test_spectrum_of_a_triangle_stays_exact():
    W = torch.ones(30, 30, dtype=torch.float64).triu(1)
    assert eigvals(W).abs().max() < 1e-13


@pytest.mark.parametrize(
    "make",
    [PowerBound, Hurwitz, StableSplit, lambda n: PowerBound(n, method="rescale")],
    ids=["lmi", "hurwitz", "split", "rescale"],
)
def test_cost_is_a_handful_of_operations(make):
    assert operations(make(40)) == operations(make(8)) < 300


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: PowerBound(3, max_p=0.0), ValueError, r"PowerBound.max_p: got 0.0, expected a positive number"),
        (lambda: PowerBound(3, max_p=math.inf), ValueError, r"max_p: got inf, expected a finite number"),
        (lambda: PowerBound(3, max_p=True), TypeError, r"max_p: got True, expected a number"),
        (lambda: PowerBound(3, method="hard"), ValueError, r"method: got 'hard', expected one of \('lmi'"),
        (
            lambda: PowerBound(3, 4),
            ValueError,
            r"out_features: got 4, expected in_features=3, since this map is square",
        ),
        (lambda: Hurwitz(3, margin=-1), ValueError, r"Hurwitz.margin: got -1, expected a finite number >= 0"),
        (lambda: Hurwitz(3, margin="1"), TypeError, r"margin: got '1', expected a number"),
        (
            lambda: StableSplit(3, sigma_min=2.0),
            ValueError,
            r"StableSplit.sigma_min: got 2.0, expected at most sigma_max",
        ),
    ],
)
def test_options_that_contradict(make, error, text):
    with pytest.raises(error, match=text):
        make()


NEAR = {  # matrices on the edge or beside it, and how far from_matrix may be, relative to W: float64, float32
    "edge": (lambda F: F / radius(F), 1e-5, 1e-3),
    "rotation": (lambda F: torch.linalg.qr(F)[0], 1e-5, 1e-4),
    "growth": (lambda F: F.triu() / F.diagonal().abs().max(), 1e-2, 5e-2),
    "block of Jordan": (lambda F: torch.eye(len(F), dtype=F.dtype) + 0.3 * F.new_ones(len(F) - 1).diag(1), 0.3, 0.3),
}


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("n", [2, 3, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_power_bound_is_near_matrices_at_the_edge(kind, n, dtype):
    make, *bounds = NEAR[kind]
    W = make(torch.randn(n, n, generator=generator(1), dtype=torch.float64)).to(dtype)
    params, distance = PowerBound(n).from_matrix(W)
    assert distance <= bounds[dtype == torch.float32] * W.norm()
    assert radius(PowerBound(n).effective_W(params)) <= 1 + 1e-6


DISSIPATIVE = {
    "the margin": lambda F: 0 * F,
    "skew": lambda F: F - F.mT,
    "symmetric": lambda F: -F @ F.mT,
    "of rank 1": lambda F: F - F.mT - F[:, :1] @ F[:, :1].mT,
}


@pytest.mark.parametrize("kind", DISSIPATIVE)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hurwitz_takes_dissipative_matrices_back(kind, n, dtype):
    F = torch.randn(n, n, generator=generator(1), dtype=torch.float64)
    W = (DISSIPATIVE[kind](F) - 0.1 * torch.eye(n, dtype=F.dtype)).to(dtype)
    params, distance = Hurwitz(n).from_matrix(W)
    assert distance <= 3e-6 * W.norm()
    assert Hurwitz(n).violation(Hurwitz(n).effective_W(params)) <= 1e-6 * W.norm()


@pytest.mark.parametrize("n", [2, 8, 17, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hurwitz_is_no_further_than_the_symmetric_part(n, dtype):
    """A block of Jordan has a Q that no dtype holds; the matrix without the positive part of W + W' is always there."""
    W = (torch.ones(n - 1, dtype=torch.float64).diag(1) - 0.2 * torch.eye(n, dtype=torch.float64)).to(dtype)
    beyond = torch.linalg.eigvalsh((W + W.mT) / 2 + 0.1 * torch.eye(n, dtype=dtype)).clamp(min=0).norm()
    assert Hurwitz(n).from_matrix(W)[1] <= beyond + 1e-5 * W.norm()
