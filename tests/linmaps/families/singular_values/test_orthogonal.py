"""Orthogonal maps: the methods against closed forms, uniform init, long training, errors."""

import math

import numpy as np
import pytest
import torch

import linmaps
from linmaps import Orthogonal
from linmaps.families.singular_values.orthogonal import METHODS
from tests.linmaps.numerics.orthogonal.test_householder import check_haar
from tests.linmaps.zoo import descend, generator, random_params

ANGLE = 0.7


@pytest.mark.parametrize(("method", "entry"), [("exp", ANGLE), ("cayley", math.tan(ANGLE / 2))])
def test_rotations_of_the_plane(method, entry):
    spec = Orthogonal(2, method=method)
    W = spec.effective_W({"skew": torch.tensor([entry], dtype=torch.float64)})
    want = [[math.cos(ANGLE), math.sin(ANGLE)], [-math.sin(ANGLE), math.cos(ANGLE)]]
    # exp(S) with S = [[0, a], [-a, 0]]; (I - S)(I + S)^-1 turns the other way
    assert np.allclose(W.numpy(), want if method == "exp" else np.transpose(want), atol=1e-15)


@pytest.mark.parametrize("options", [{"method": m, "det": d} for m in METHODS for d in (1, -1)], ids=str)
def test_init_is_haar_on_square_matrices(options):
    spec = Orthogonal(3, **options)
    draws = torch.stack([spec.effective_W(random_params(spec, seed)) for seed in range(1200)]).numpy()
    assert np.abs(np.linalg.det(draws) - options["det"]).max() < 1e-12
    check_haar(draws)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(5, 2), (2, 5)])
def test_init_is_haar_on_frames(method, sizes):
    spec = Orthogonal(*sizes, method=method)
    draws = torch.stack([spec.effective_W(random_params(spec, seed)) for seed in range(1200)]).numpy()
    check_haar(draws if sizes[0] > sizes[1] else draws.swapaxes(1, 2))


def test_trace_at_init_does_not_lean_to_the_identity():
    spec = Orthogonal(64)
    traces = [spec.effective_W(random_params(spec, seed)).trace().item() for seed in range(200)]
    assert abs(np.mean(traces)) < 4 / math.sqrt(200)
    assert 0.7 < np.std(traces) < 1.4


@pytest.mark.parametrize(
    "spec", [Orthogonal(32), Orthogonal(48, 8), Orthogonal(16, method="cayley"), Orthogonal(16, method="exp")], ids=str
)
def test_orthogonal_after_a_thousand_adam_steps(spec):
    target = torch.randn(spec.in_features, spec.out_features, generator=generator(5), dtype=torch.float64)
    loss = lambda W: (W - target).square().sum()
    params = descend(spec, loss, 0, 1000, 0.01)
    W = spec.effective_W(params)
    eye = torch.eye(spec.out_features, dtype=W.dtype)
    assert torch.linalg.matrix_norm(W.T @ W - eye) < 1e-12 * spec.in_features
    # the nearest orthogonal matrix is the polar factor: training got somewhere
    U, _, V = torch.linalg.svd(target, full_matrices=False)
    start = loss(spec.effective_W(random_params(spec, 0)))
    assert loss(W) < loss(U @ V) + 0.25 * (start - loss(U @ V))


def special(name):
    eye = torch.eye(6, dtype=torch.float64)
    return {
        "identity": eye,
        "minus identity": -eye,
        "permutation": eye[[1, 2, 0, 4, 3, 5]],
        "half turns": torch.diag(torch.tensor([1.0, -1, -1, 1, -1, -1], dtype=torch.float64)),
        "tiny rotation": torch.matrix_exp(
            1e-9 * torch.ones(6, 6, dtype=torch.float64).triu(1).sub(torch.ones(6, 6).tril(-1))
        ),
        "repeated angles": torch.block_diag(*[torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)] * 3),
    }[name]


@pytest.mark.parametrize(
    "name", ["identity", "minus identity", "permutation", "half turns", "tiny rotation", "repeated angles"]
)
@pytest.mark.parametrize("method", METHODS)
def test_from_special_matrices(name, method):
    """Where logarithms and reflections have their corners."""
    W = special(name)
    spec = Orthogonal(6, method=method, det=round(np.linalg.det(W.numpy())))
    params, distance = spec.from_matrix(W)
    assert abs(distance - torch.linalg.matrix_norm(spec.effective_W(params) - W)) < 1e-14
    half_turn = method == "cayley" and (torch.linalg.eigvals(W) + 1).abs().min() < 1e-9
    assert distance < (1e-5 if half_turn else 1e-12), "an eigenvalue -1 is the Cayley transform of infinity"


def test_from_matrix_is_the_polar_factor_of_the_covered_component():
    W = torch.randn(5, 5, generator=generator(1), dtype=torch.float64)
    U, s, V = torch.linalg.svd(W)
    nearest = ((s - 1) ** 2).sum().sqrt()
    other = ((s - torch.tensor([1.0, 1, 1, 1, -1])) ** 2).sum().sqrt()
    component = round(np.linalg.det((U @ V).numpy()))
    for method in METHODS:
        assert torch.allclose(Orthogonal(5, method=method, det=component).from_matrix(W)[1], nearest, rtol=1e-9)
        assert torch.allclose(Orthogonal(5, method=method, det=-component).from_matrix(W)[1], other, rtol=1e-9)


def test_from_matrix_needs_enough_reflectors():
    with pytest.raises(
        ValueError, match=r"from_matrix: no closed form takes a matrix to these params; fit them by descent"
    ):
        Orthogonal(5, n_reflectors=2).from_matrix(torch.eye(5))


def test_solve_of_few_rows_does_not_form_the_matrix():
    spec = Orthogonal(200, n_reflectors=3)
    params, y = random_params(spec, 0), torch.randn(2, 200, generator=generator(1), dtype=torch.float64)
    assert torch.allclose(spec.apply(params, spec.solve(params, y)), y, atol=1e-12)
    assert torch.equal(spec.inverse(params), spec.effective_W(params).T)
    assert spec.logabsdet(params) == 0


def test_fewer_reflectors_change_few_directions():
    spec = Orthogonal(8, n_reflectors=2, det=1)
    W = spec.effective_W(random_params(spec, 0))
    assert np.linalg.matrix_rank((W - torch.eye(8)).numpy(), tol=1e-10) == 2
    assert spec.n_params == 16


def test_singular_values_are_ones():
    spec = Orthogonal(4, 6)
    assert torch.equal(spec.singular_values(random_params(spec, 0)), torch.ones(4, dtype=torch.float64))


def test_inputs_keep_their_length():
    spec = Orthogonal(4, 6)
    x = torch.randn(10, 4, generator=generator(0), dtype=torch.float64)
    assert torch.allclose(spec.apply(random_params(spec, 0), x).norm(dim=1), x.norm(dim=1))


def test_violation_knows_the_component():
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    assert Orthogonal(3, det=-1).violation(flip) == 0
    assert Orthogonal(3, det=1).violation(flip) == 2
    assert Orthogonal(3).violation(flip) == 0, "without a given determinant both components keep the promise"
    assert Orthogonal(3, 2).violation(flip[:, 1:]) == 0
    assert Orthogonal(2).violation(2 * torch.eye(2)).item() == pytest.approx(3 * math.sqrt(2))


def test_no_loop_over_reflectors():
    """Cost is a handful of operations whatever the number of reflectors."""

    def operations(n):
        spec = linmaps.Orthogonal(n)
        params = random_params(spec, 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            spec.effective_W(params)
        return sum(event.count for event in profile.key_averages())

    assert operations(40) == operations(8) < 120


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((4,), {"method": "qr"}, ValueError, r"Orthogonal.method: got 'qr', expected one of \('householder'"),
        ((4,), {"n_reflectors": 0}, ValueError, r"n_reflectors: got 0, expected an int from 1 to 4, or None"),
        ((4, 2), {"n_reflectors": 5}, ValueError, r"n_reflectors: got 5, expected an int from 1 to 4"),
        ((4,), {"n_reflectors": 1.5}, TypeError, r"n_reflectors: got 1.5, expected a positive int"),
        ((1,), {"n_reflectors": 1}, ValueError, r"n_reflectors: got 1, expected None, since a 1 x 1"),
        ((4,), {"n_reflectors": 2, "method": "exp"}, ValueError, r"expected None unless method='householder'"),
        ((4,), {"det": 0}, ValueError, r"det: got 0, expected 1, -1 or None"),
        ((4, 3), {"det": 1}, ValueError, r"det: got 1, expected None, since a rectangular map has no determinant"),
    ],
)
def test_options_that_contradict(arguments, options, error, text):
    with pytest.raises(error, match=text):
        Orthogonal(*arguments, **options)
