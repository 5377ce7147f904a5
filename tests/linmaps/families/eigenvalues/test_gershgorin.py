"""Maps by absolute row sums: the discs, what they reach, errors."""

import math

import numpy as np
import pytest
import torch

from linmaps import DiagonallyDominant, Gershgorin, trees
from linmaps.numerics.packing import weave
from linmaps.strategies import ADVERSARIES
from tests.linmaps.families.eigenvalues.test_stable import operations
from tests.linmaps.zoo import descend, generator, random_params


def disc(W):
    d = np.diag(W)
    return d, np.abs(W - np.diag(d)).sum(1)


def test_disc_form_is_the_formula():
    spec = Gershgorin(3, sigma_min=-1.0, sigma_max=2.0, real=False)
    params = random_params(spec, 0)
    a, t = 1 / (1 + np.exp(-params["budget"].numpy())), np.tanh(params["center"].numpy())
    s = weave(torch.zeros(3, dtype=torch.float64), params["off"]).numpy()
    want = 1.5 * a[:, None] * s / np.abs(s).sum(1, keepdims=True) + np.diag(0.5 + 1.5 * (1 - a) * t)
    assert np.allclose(spec.effective_W(params).numpy(), want, atol=1e-15)


def test_real_form_is_the_formula():
    spec = Gershgorin(4, sigma_min=1.0, sigma_max=2.0)
    params = random_params(spec, 0)
    a, t = 1 / (1 + np.exp(-params["budget"].numpy())), np.tanh(params["center"].numpy())
    s = np.zeros((4, 4))
    s[np.triu_indices(4, 1)] = params["off"].numpy()
    s = s + s.T
    q = 0.5 * a / np.abs(s).sum(1)
    want = s * np.minimum(q[:, None], q) + np.diag(1.5 + 0.5 * (1 - a) * t)
    W = spec.effective_W(params)
    assert np.allclose(W.numpy(), want, atol=1e-15)
    assert torch.equal(W, W.T)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("kind", ADVERSARIES)
def test_discs_lie_in_the_promised_one(real, kind):
    for n in (2, 5, 30):
        for seed in range(5):
            spec, g = Gershgorin(n, sigma_min=-3.0, sigma_max=-1.0, real=real), generator(seed)
            params = trees.map(
                lambda t: ADVERSARIES[kind](torch.randn(t.shape, generator=g, dtype=t.dtype)),  # noqa: B023
                random_params(spec, 0),
            )
            d, r = disc(spec.effective_W(params).numpy())
            assert (np.abs(d + 2) + r).max() <= 1 + 1e-13
            gradients = torch.func.grad(lambda p: spec.effective_W(p).sum())(params)  # noqa: B023
            assert all(torch.isfinite(t).all() for t in trees.leaves(gradients))


def test_both_ends_of_the_interval_are_reached_by_a_full_matrix():
    spec = Gershgorin(2, sigma_min=-1.0, sigma_max=3.0)
    ends = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    params, distance = spec.from_matrix(ends)
    assert distance < 1e-5
    assert torch.allclose(spec.eig(params), torch.tensor([-1.0, 3.0], dtype=torch.float64), atol=1e-5)


def test_both_ends_of_the_interval_are_reached_by_ascent():
    spec = Gershgorin(4, sigma_min=-1.0, sigma_max=3.0)
    for sign, end in ((1, -1.0), (-1, 3.0)):
        params = descend(spec, lambda W: sign * torch.linalg.eigvalsh(W).sum(), 0, 500, 0.1)  # noqa: B023
        assert (spec.eig(params) - end).abs().max() < 0.05


def test_a_disc_around_zero_has_complex_eigenvalues_up_to_its_rim():
    spec = Gershgorin(3, sigma_min=-0.9, sigma_max=0.9, real=False)
    turn = 0.9 * torch.eye(3, dtype=torch.float64).roll(1, 0)
    params, distance = spec.from_matrix(turn)
    assert distance < 1e-5
    assert torch.allclose(spec.eig(params).abs(), torch.full((3,), 0.9, dtype=torch.float64), atol=1e-5)


def test_from_matrix_takes_the_nearest_rows():
    spec = Gershgorin(2, sigma_min=-1.0, sigma_max=1.0, real=False)
    W = torch.tensor([[3.0, 2.5], [0.1, 0.2]], dtype=torch.float64)
    got = spec.effective_W(spec.from_matrix(W)[0])
    assert torch.allclose(got, torch.tensor([[0.75, 0.25], [0.1, 0.2]], dtype=torch.float64), atol=1e-5)


def test_one_by_one_has_a_center_alone():
    for real in (True, False):
        spec = Gershgorin(1, sigma_min=-1.0, sigma_max=3.0, real=real)
        assert spec.shapes() == {"center": (1,)}
        assert spec.effective_W({"center": torch.zeros(1)}).item() == 1.0


def test_violation_of_the_interval_and_of_the_disc():
    W = torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)
    assert Gershgorin(2, sigma_min=-1.0, real=False).violation(W).item() == pytest.approx(math.sqrt(2))
    assert Gershgorin(2, sigma_min=-1.0).violation(W).item() == pytest.approx(np.linalg.norm(W - W.T))
    assert Gershgorin(2).violation(torch.diag(torch.tensor([4.0, -4.0]))).item() == pytest.approx(5)


def test_dominance_is_the_formula():
    spec = DiagonallyDominant(3, margin=0.5)
    params = random_params(spec, 0)
    d, r = disc(spec.effective_W(params).numpy())
    assert np.allclose(d - r, 0.5 + np.log1p(np.exp(params["diagonal"].numpy())), atol=1e-15)
    W = weave(torch.zeros(3, dtype=torch.float64), params["off"])
    assert np.array_equal(disc(W.numpy())[1] > 0, [True] * 3)


@pytest.mark.parametrize("margin", [0.01, 0.1, 0.4, 0.5])
@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_dominance_at_init_has_the_variance_it_says(n, margin):
    spec = DiagonallyDominant(n, margin=margin)
    got = np.mean(
        [spec.effective_W(random_params(spec, seed)).square().sum().item() / n for seed in range(800 // n + 5)]
    )
    assert got == pytest.approx(1 / 3, rel=0.06)


def test_dominance_bounds_the_inverse_and_the_spectrum():
    spec = DiagonallyDominant(6, margin=0.25)
    for seed in range(10):
        params = random_params(spec, seed)
        assert spec.inverse(params).abs().sum(1).max() <= 4 + 1e-9
        assert spec.eig(params).real.min() >= 0.25


def test_from_matrix_raises_the_diagonal_and_keeps_the_rest():
    spec = DiagonallyDominant(3, margin=0.5)
    W = torch.tensor([[1.0, 2.0, -3.0], [0.0, 9.0, 4.0], [0.0, 0.0, -7.0]], dtype=torch.float64)
    params, distance = spec.from_matrix(W)
    want = W.clone()
    want[0, 0], want[2, 2] = 5.5, 0.5
    assert torch.allclose(spec.effective_W(params), want, atol=2e-6)
    assert distance.item() == pytest.approx(math.hypot(4.5, 7.5), rel=1e-5)
    assert spec.violation(W).item() == pytest.approx(math.hypot(4.5, 7.5))


@pytest.mark.parametrize(
    "spec", [Gershgorin(6), Gershgorin(6, real=False, sigma_min=-1.0), DiagonallyDominant(6)], ids=lambda s: s.name
)
def test_promise_after_a_thousand_adam_steps(spec):
    target = 2 * torch.randn(6, 6, generator=generator(5), dtype=torch.float64)
    loss = lambda W: (W - target).square().sum()
    W = spec.effective_W(descend(spec, loss, 0, 1000, 0.02))
    assert spec.violation(W) <= 1e-11
    assert loss(W) < 0.99 * loss(spec.effective_W(random_params(spec, 0)))


@pytest.mark.parametrize(
    "make", [Gershgorin, lambda n: Gershgorin(n, real=False), DiagonallyDominant], ids=["real", "complex", "dominant"]
)
def test_cost_is_a_handful_of_operations(make):
    assert operations(make(40)) == operations(make(8)) < 150


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Gershgorin(3, sigma_min=1.0),
            ValueError,
            r"Gershgorin.sigma_min: got 1.0, expected less than sigma_max",
        ),
        (lambda: Gershgorin(3, sigma_max=math.inf), ValueError, r"sigma_max: got inf, expected a finite number"),
        (lambda: Gershgorin(3, sigma_max="1"), TypeError, r"sigma_max: got '1', expected a number"),
        (lambda: Gershgorin(3, real=0), TypeError, r"real: got 0, expected a bool"),
        (lambda: DiagonallyDominant(3, margin=0.0), ValueError, r"margin: got 0.0, expected a positive number"),
        (lambda: DiagonallyDominant(3, margin=math.nan), ValueError, r"margin: got nan, expected a finite number"),
    ],
)
def test_options_that_contradict(make, error, text):
    with pytest.raises(error, match=text):
        make()
