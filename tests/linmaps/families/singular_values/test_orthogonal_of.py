"""Orthogonal.of and base points: every rotation and frame by every method, both dtypes."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

from linmaps import Orthogonal
from linmaps.families.singular_values.orthogonal import METHODS
from linmaps.numerics.orthogonal.rotations import haar_rotation
from tests.linmaps.numerics.orthogonal.test_householder import check_haar
from tests.linmaps.numerics.orthogonal.test_rotations import CORNERS, haar, turned
from tests.linmaps.zoo import generator

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("method", METHODS)
def test_any_orthogonal_matrix_is_reached_to_rounding(method, n):
    """Haar ones of both signs, those with angles at and near pi and tied ones, tall and wide frames of them."""
    found = [haar(n, seed) for seed in range(2)]
    found += [turned(corner(np.random.default_rng(3), n // 2), n, 3) for corner in CORNERS.values()]
    if n == 33:
        found = found[::6]
    for k, Q in enumerate(found):
        Q = Q * torch.where(torch.arange(n) == 0, (-1.0) ** k, 1.0)
        part = Q[:, : max(1, n // 2)]
        for W in (Q, part, part.mT.contiguous()) if k < 2 else (Q,):
            for dtype in DTYPES:
                spec, params = Orthogonal.of(W.to(dtype), method=method)
                got = spec.effective_W(params)
                assert got.dtype == dtype
                assert spec.method == method
                assert torch.linalg.matrix_norm(got - W.to(dtype)) <= 16 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["exp", "cayley"])
def test_from_matrix_with_a_base(method):
    """Right wherever W B' has no angle near pi."""
    for n in (1, 2, 3, 8):
        spec = Orthogonal(n, method=method, base=5)
        B = haar_rotation(5, torch.empty(n, n, dtype=torch.float64))
        angles = 2.5 * np.random.default_rng(n).uniform(-1, 1, n // 2)
        W = turned(angles, n, n) @ B
        for dtype in DTYPES:
            assert spec.from_matrix(W.to(dtype))[1] <= 32 * n * torch.finfo(dtype).eps
        zeros = {"skew": torch.zeros(n * (n - 1) // 2, dtype=torch.float64)}
        assert torch.allclose(spec.effective_W(zeros), B, atol=1e-14)


def test_bases_are_uniform_rotations():
    draws = torch.stack([haar_rotation(seed, torch.empty(3, 3, dtype=torch.float64)) for seed in range(1200)]).numpy()
    assert np.abs(np.linalg.det(draws) - 1).max() < 1e-12
    check_haar(draws)


def test_a_base_is_no_random_call():
    spec = Orthogonal(3, method="exp", base=1)
    params = {"skew": torch.zeros(4, 3)}
    assert torch.allclose(vmap(spec.effective_W)(params)[2], haar_rotation(1, torch.empty(3, 3)), atol=1e-6)


def test_a_cayley_descent_passes_what_was_out_of_reach():
    """With a base from `of`, minus the identity is a point like any other."""
    spec, params = Orthogonal.of(-torch.eye(4, dtype=torch.float64), method="cayley")
    assert spec.base is not None
    assert params["skew"].abs().max() < 100
    assert Orthogonal(4, method="cayley").from_matrix(-torch.eye(4, dtype=torch.float64))[1] > 1e-9


def test_of_matrices_that_are_not_orthogonal():
    W = torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    spec, params = Orthogonal.of(W)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    assert torch.allclose(spec.effective_W(params), U @ Vh)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Orthogonal(4, base=3), ValueError, r"base: got 3, expected None with method='householder'"),
        (lambda: Orthogonal(4, method="exp", base=-1), ValueError, r"base: got -1, expected an int from 0"),
        (lambda: Orthogonal(4, method="exp", base=1.5), TypeError, r"base: got 1.5"),
        (lambda: Orthogonal.of([[1.0]]), TypeError, r"Orthogonal.of: W is list, expected a tensor \[in, out\]"),
        (lambda: Orthogonal.of(torch.eye(2).long()), TypeError, r"is torch.int64, expected a floating dtype"),
        (lambda: Orthogonal.of(torch.eye(2) + 0j), TypeError, r"expected real numbers; use Unitary\(n\).from_matrix"),
        (lambda: Orthogonal.of(torch.ones(3)), ValueError, r"has shape \(3,\), expected a matrix \[in, out\]"),
        (lambda: Orthogonal.of(torch.eye(2), method="qr"), ValueError, r"method: got 'qr', expected one of"),
        (lambda: Orthogonal.of(torch.eye(2, device="meta")), ValueError, r"W has no values"),
        (lambda: vmap(lambda W: Orthogonal.of(W)[1])(torch.eye(2)[None]), ValueError, r"call it outside of vmap"),
    ],
)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_angle_of_a_plane():
    spec, params = Orthogonal.of(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), method="exp")
    assert spec == Orthogonal(2, method="exp", det=1)
    assert params["skew"].item() == pytest.approx(math.pi / 2)
