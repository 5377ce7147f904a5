"""Products of reflections against a loop over the reflectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linmaps.numerics.orthogonal.householder import (
    _panels,
    costs,
    default_reflectors,
    flip_last,
    frame,
    from_frame,
    haar,
    offset,
    rows_times_frame_t,
    times_frame,
    times_frame_t,
    wrong_component,
)
from tests.linmaps.zoo import generator


def product(V):
    """H_0 H_1 ... as written; a zero row reflects nothing."""
    n = V.shape[1]
    Q = np.eye(n)
    for v in V[np.abs(V).max(1) > 0]:
        Q = Q @ (np.eye(n) - 2 * np.outer(v, v) / (v @ v))
    return Q


@given(n=st.integers(1, 9), data=st.data())
def test_frame_is_the_product_of_reflections(n, data):
    k, r = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    V = torch.randn(k, n, generator=generator(data.draw(st.integers(0, 99))), dtype=torch.float64)
    V = V * torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 1.0, 50.0]), min_size=k, max_size=k)))[:, None]
    Q = product(V.numpy())
    assert np.abs(frame(V, r).numpy() - Q[:, :r]).max() < 1e-13
    x = torch.randn(3, n, generator=generator(1), dtype=torch.float64)
    assert np.abs(times_frame(x, V, r).numpy() - x.numpy() @ Q[:, :r]).max() < 1e-12
    assert np.abs(times_frame_t(x[:, :r], V, r).numpy() - x.numpy()[:, :r] @ Q[:, :r].T).max() < 1e-12


@pytest.mark.parametrize("det", [1, -1])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_sign_goes_to_the_last_column(k, det):
    V = torch.randn(k, 4, generator=generator(0), dtype=torch.float64)
    Q = frame(V, 4, det=det)
    assert abs(np.linalg.det(Q.numpy()) - det) < 1e-12
    assert torch.allclose(Q[:, :3], frame(V, 4)[:, :3], rtol=0, atol=1e-15)
    x = torch.randn(5, 4, generator=generator(1), dtype=torch.float64)
    assert torch.allclose(times_frame(x, V, 4, det=det), x @ Q, rtol=0, atol=1e-13)
    assert torch.allclose(times_frame_t(x, V, 4, det=det), x @ Q.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("zero", [(), (0,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("det", [1, -1])
def test_the_sign_holds_where_rows_reflect_nothing(zero, det):
    V = torch.randn(4, 5, generator=generator(0), dtype=torch.float64)
    V[list(zero)] = 0.0
    Q = frame(V, 5, det=det)
    assert abs(np.linalg.det(Q.numpy()) - det) < 1e-12
    x = torch.randn(2, 5, generator=generator(1), dtype=torch.float64)
    assert torch.allclose(times_frame(x, V, 5, det=det), x @ Q, rtol=0, atol=1e-13)
    assert torch.allclose(times_frame_t(x, V, 5, det=det), x @ Q.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_at_any_scale_of_the_rows(dtype):
    info = torch.finfo(dtype)
    V = torch.randn(6, 6, generator=generator(0), dtype=dtype)
    for scale in (0.0, info.tiny, info.tiny**0.75, info.tiny**0.5, info.tiny**0.45, info.tiny**0.3, 1.0, info.max**0.4):
        Q = frame(V * scale, 6)
        assert (Q.T @ Q - torch.eye(6, dtype=dtype)).abs().max() < 20 * info.eps, scale


def test_orthogonal_for_equal_and_nearly_equal_reflectors():
    v = torch.randn(1, 30, generator=generator(0), dtype=torch.float64)
    wiggle = torch.randn(29, 30, generator=generator(1), dtype=torch.float64)
    for size in (0.0, 1e-12, 1e-6, 1e-2):
        Q = frame(v + size * wiggle, 30)
        assert (Q.T @ Q - torch.eye(30, dtype=torch.float64)).abs().max() < 1e-13


def test_zero_parameters_are_an_ordinary_point():
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    assert np.array_equal(product(offset(zeros).numpy()), np.diag([-1.0, -1, -1, 1]))
    slope = torch.func.grad(lambda p: (frame(offset(p), 4) * torch.arange(16.0).reshape(4, 4)).sum())(zeros)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 1
    torch.autograd.gradcheck(lambda p: frame(offset(p), 4), zeros.requires_grad_())


def test_gradients_are_finite_where_a_reflector_vanishes():
    slope = torch.func.grad(lambda p: frame(p, 4).square().sum())(torch.zeros(3, 4))
    assert torch.isfinite(slope).all()


def test_fewest_reflectors():
    assert [default_reflectors(n, r) for n, r in ((5, 2), (5, 5), (1, 1), (2, 1))] == [2, 4, 0, 1]


@pytest.mark.parametrize("k", [3, 4])
def test_init_is_haar_on_one_component(k):
    draws = torch.stack([frame(offset(haar(generator(s), 4, k, torch.float64)), 4, det=1) for s in range(1500)])
    check_haar(draws.numpy())


def check_haar(Q):
    """Moments of the uniform law on n x r frames, each within 4.5 standard errors."""
    samples, n, r = Q.shape
    flat = Q.reshape(samples, n * r)
    assert np.abs(flat.mean(0)).max() < 4.5 / np.sqrt(n * samples)
    products = (flat[:, :, None] * flat[:, None, :]).mean(0)
    assert np.abs(products - np.eye(n * r) / n).max() < 4.5 / np.sqrt(samples) * np.sqrt(3) / n
    if n == r and n >= 3:
        trace = np.trace(Q, axis1=1, axis2=2)
        assert abs(trace.mean()) < 4 / np.sqrt(samples)
        assert abs((trace**2).mean() - 1) < 4 * np.std(trace**2) / np.sqrt(samples)


def test_component_of_a_matrix():
    for n in (1, 2, 5):
        for seed in range(10):
            W = torch.randn(n, n, generator=generator(seed), dtype=torch.float64)
            for det in (1, -1):
                assert wrong_component(W, det).item() == (np.linalg.det(W.numpy()) * det < 0)
    assert not wrong_component(torch.ones(2, 3), None)


def test_costs_break_even_between_few_and_many_rows():
    form, once, per_row = costs(64, 63, 64)
    assert once + per_row < form + 64 * 64
    assert once + 6400 * per_row > form + 6400 * 64 * 64


@pytest.mark.parametrize(
    ("n", "r", "k"), [(5, 5, 4), (5, 5, 5), (6, 3, 3), (6, 3, 5), (1, 1, 0), (4, 1, 1), (40, 40, 39)]
)
def test_reflectors_of_a_frame(n, r, k):
    g = torch.Generator().manual_seed(n + r)
    W = torch.linalg.qr(torch.randn(n, r, generator=g, dtype=torch.float64)).Q
    if n == r:
        W = flip_last(W, wrong_component(W, 1))
    V = from_frame(W, k)
    assert V.shape == (k, n)
    got = frame(offset(V), r, det=1 if n == r else None)
    assert (got - W).abs().max() < 1e-13
    assert torch.isfinite(V).all()


@pytest.mark.parametrize("tiny", [0.0, 1e-300, 1e-12, 1e-8, 1e-5])
def test_reflectors_of_a_frame_near_the_identity(tiny):
    S = tiny * torch.ones(4, 4, dtype=torch.float64).triu(1)
    W = torch.linalg.matrix_exp(S - S.T)
    V = from_frame(W, 3)
    got = frame(offset(V), 4, det=1)
    assert (got - W).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("n", "k", "r"), [(140, 129, 140), (300, 299, 300), (300, 299, 7), (520, 519, 520), (200, 200, 150)]
)
@pytest.mark.parametrize("det", [None, 1, -1])
def test_many_reflectors_in_panels(n, k, r, det):
    det = det if r == n else None
    V = torch.randn(k, n, generator=generator(0), dtype=torch.float64)
    want = np.eye(n)
    for v in V.numpy():
        want = want - 2 * np.outer(want @ v, v) / (v @ v)
    if det is not None and det != (-1) ** k:
        want[:, -1] *= -1
    want = torch.tensor(want[:, :r])
    x, y = (torch.randn(3, m, generator=generator(1), dtype=torch.float64) for m in (n, r))
    assert (frame(V, r, det=det) - want).abs().max() < 1e-12
    assert (times_frame(x, V, r, det=det) - x @ want).abs().max() < 1e-11
    assert (times_frame_t(y, V, r, det=det) - y @ want.T).abs().max() < 1e-11
    assert (rows_times_frame_t(y, V, r, det=det) - y @ want.T).abs().max() < 1e-11


def test_panels_are_few_whatever_the_size():
    for k in (0, 1, 128, 129, 513, 5000):
        panels = _panels(torch.empty(k, 2))
        assert len(panels) <= 4
        assert sum(len(P) for P, _, _ in panels) == k
