"""Rotations and their logarithms, where angles repeat, sum up to anything, or are nearly or exactly pi."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vjp, vmap

import linmaps
from linmaps.numerics.orthogonal.exponential import DOUBLE, orthonormal_part
from linmaps.numerics.orthogonal.rotations import log_rotation, rotation
from linmaps.numerics.packing import skew
from tests.linmaps.zoo import generator

DTYPES = (torch.float32, torch.float64)


def turned(angles, n, seed):
    """The rotation of n dimensions by these angles in random planes, in float64."""
    B = np.eye(n)
    for k, a in enumerate(angles):
        B[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]
    P = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return torch.tensor(P @ B @ P.T)


def exponential(S):
    """exp of a skew matrix by its spectrum: no code of the map, nor torch's polynomial."""
    values, P = np.linalg.eigh(S.double().numpy() / 1j)
    return torch.tensor((P * np.exp(1j * values) @ P.conj().T).real)


def haar(n, seed):
    Q, R = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    Q = Q * np.sign(np.diag(R))
    Q[:, -1] *= np.linalg.det(Q)
    return torch.tensor(Q)


CORNERS = {
    "none": lambda rng, m: np.zeros(m),
    "all half turns": lambda rng, m: np.full(m, math.pi),
    "near half turns": lambda rng, m: math.pi - 10 ** rng.uniform(-17, 0, m),
    "a cluster near pi": lambda rng, m: math.pi - 1e-3 + 1e-10 * rng.standard_normal(m),
    "tiny": lambda rng, m: 10 ** rng.uniform(-17, 0, m),
    "that sum up to 2": lambda rng, m: np.where(np.arange(m) % 2, 0.5, 1.5) + 10.0 ** rng.integers(-17, -1, m),
    "that sum up to pi": lambda rng, m: np.where(np.arange(m) % 2, 0.7, math.pi - 0.7) + 1e-16 * rng.integers(-9, 9, m),
    "two thirds of pi": lambda rng, m: rng.choice([1, -1], m) * (2 * math.pi / 3 + 10 ** rng.uniform(-17, -2, m)),
    "near right angles": lambda rng, m: math.pi / 2 + rng.choice([1, -1], m) * 10 ** rng.uniform(-17, -1, m),
    "of the corners": lambda rng, m: rng.choice([0, 1, math.pi, math.pi / 2, math.pi - 1e-8, math.pi - 1, 1e-8], m),
    "uniform": lambda rng, m: rng.uniform(-math.pi, math.pi, m),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_the_logarithm_of_any_rotation_is_right_to_rounding(corner):
    for n in (1, 2, 3, 4, 5, 8):
        for seed in range(3):
            Q = turned(CORNERS[corner](np.random.default_rng(seed), n // 2), n, seed)
            for dtype in DTYPES:
                S = log_rotation(Q.to(dtype))
                assert torch.equal(S, -S.mT)
                assert S.dtype == dtype
                assert torch.linalg.matrix_norm(S.double(), 2) <= math.pi * (1 + 8 * torch.finfo(dtype).eps)
                assert torch.linalg.matrix_norm(exponential(S) - Q) <= 16 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_from_matrix_of_uniform_rotations_in_float32(n):
    """Of every method; a Cayley transform has the digits that its params keep at an angle near pi."""
    specs = [linmaps.Orthogonal(n, method=method, det=1) for method in ("exp", "cayley", "householder")]
    specs.append(linmaps.DampedSkewSymmetric(n, time="discrete", sigma_min=0.5, sigma_max=2.0))
    eps = torch.finfo(torch.float32).eps
    for seed in range(40 if n < 16 else 3):
        Q = haar(n, seed)
        edge = (torch.linalg.eigvals(Q) + 1).abs().min().clamp(min=eps**0.5)
        for spec in specs:
            params, distance = spec.from_matrix(Q.float())
            assert spec.effective_W(params).dtype == torch.float32
            lost = 1 / edge if getattr(spec, "method", "") == "cayley" else 1.0
            assert distance <= 16 * n * eps * max(1.0, float(lost)), (spec, seed)


@pytest.mark.parametrize("method", ["exp", "cayley"])
def test_the_logarithm_maps_and_has_derivatives_where_angles_repeat(method):
    """The derivative of `rotation` after it is that of the identity along rotations."""
    Qs = torch.stack([turned(angles, 5, 0) for angles in ((0.5, 1.5), (1.0, 1.0), (2.5, 2.5), (0.0, 0.3))])
    assert torch.allclose(
        vmap(lambda Q: log_rotation(Q, method))(Qs), torch.stack([log_rotation(Q, method) for Q in Qs])
    )
    A = torch.randn(5, 5, generator=generator(0), dtype=torch.float64)
    A = A - A.mT
    for Q in Qs:
        back = lambda t, Q=Q: rotation(log_rotation(Q @ torch.linalg.matrix_exp(t * A), method), method)
        along = lambda t, Q=Q: Q @ torch.linalg.matrix_exp(t * A)
        zero = torch.zeros((), dtype=torch.float64)
        for derivative in (jacfwd, jacrev):
            assert torch.allclose(derivative(back)(zero), derivative(along)(zero), atol=1e-9)
        assert torch.allclose(jacfwd(jacrev(back))(zero), jacfwd(jacrev(along))(zero), atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exponential_is_right_at_any_size(dtype):
    """Also where torch.linalg.matrix_exp is not."""
    for size in 10.0 ** np.arange(-6, 2, 0.25):
        for n in (2, 5):
            A = torch.randn(n, n, generator=generator(n), dtype=dtype)
            S = (A - A.mT) * size / torch.linalg.matrix_norm(A - A.mT, 2)
            error = torch.linalg.matrix_norm(rotation(S) - exponential(S))
            assert error <= 16 * n * torch.finfo(dtype).eps * max(1.0, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, DOUBLE + 1])
def test_members_of_all_sizes_are_those_that_they_are_alone(n, dtype):
    """Each is squared as often as its own size asks."""
    A = torch.randn(6, n, n, generator=generator(n), dtype=dtype)
    A = (A - A.mT) / torch.linalg.matrix_norm(A - A.mT, 2, keepdim=True)
    S = A * torch.tensor([0.0, 1e-6, 0.9, 3.0, 40.0, 1e6], dtype=dtype)[:, None, None]
    eps = torch.finfo(dtype).eps
    for member, W, slope in zip(S, vmap(rotation)(S), vmap(grad(lambda S: rotation(S).sin().sum()))(S)):
        alone = rotation(member)
        bound = 16 * n * eps * max(1.0, float(torch.linalg.matrix_norm(member, 2)))
        assert torch.linalg.matrix_norm(W - alone) <= bound
        of_alone = grad(lambda S: rotation(S).sin().sum())(member)
        assert torch.linalg.matrix_norm(slope - of_alone) <= bound * n
    assert vmap(rotation)(S[:0]).shape == (0, n, n)
    assert rotation(S[1] * torch.nan).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["exp", "cayley"])
def test_a_rotation_is_orthonormal_however_large_its_skew_matrix(method, dtype):
    for size in (1.0, 1e2, 1e5):
        for n in (2, 3, 16):
            A = size * torch.randn(n, n, generator=generator(n), dtype=dtype)
            W = rotation(A - A.mT, method)
            assert torch.linalg.matrix_norm(W.mT @ W - torch.eye(n, dtype=dtype)) <= 4 * n * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["exp", "cayley"])
@pytest.mark.parametrize("size", [1e-36, 1e-20, 1e20, 1e34, 1e37])
def test_a_derivative_is_linear_in_what_comes_from_above(size, method):
    A, G = (torch.randn(5, 5, generator=generator(k)) for k in (0, 1))
    back = vjp(lambda S: rotation(S, method), A - A.mT)[1]
    assert relative(back(size * G)[0] / size, back(G)[0]) <= 1e-4


@pytest.mark.parametrize("order", [lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacrev(f))])
def test_second_derivatives_of_cayley_lose_no_more_digits_than_first_ones(order):
    n, errors = 5, []
    for size in (1e2, 1e3, 1e4):
        p, G = size * torch.randn(10, generator=generator(0)), torch.randn(n, n, generator=generator(1))
        f = lambda p, G=G: (rotation(skew(p, n), "cayley") * G.to(p.dtype)).sum()
        errors += [relative(order(f)(p), order(f)(p.double())) / size]
    assert max(errors) <= 4 * torch.finfo(torch.float32).eps


def relative(got, want):
    return float((got - want).norm() / want.norm())


def test_what_rounding_left_is_taken_out():
    Q = haar(4, 0)
    near = Q + 1e-5 * torch.randn(4, 4, generator=generator(0), dtype=torch.float64)
    W = orthonormal_part(near)
    assert (W - near).abs().max() < 1e-4
    assert torch.linalg.matrix_norm(W.mT @ W - torch.eye(4)) < 1e-14


def of_series(S, method):
    eye = torch.eye(len(S), dtype=S.dtype)
    if method == "cayley":
        return 2 * torch.linalg.inv(eye + S) - eye
    total = eye
    for k in range(22, 0, -1):
        total = eye + (S / (8 * k)) @ total
    for _ in range(3):
        total = total @ total
    return total


ORDERS = {
    "reverse": jacrev,
    "forward": jacfwd,
    "reverse twice": lambda f: jacrev(jacrev(f)),
    "forward twice": lambda f: jacfwd(jacfwd(f)),
    "forward over reverse": lambda f: jacfwd(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "reverse over forward over reverse": lambda f: jacrev(jacfwd(jacrev(f))),
    "forward over reverse over forward": lambda f: jacfwd(jacrev(jacfwd(f))),
    "forward over forward over forward": lambda f: jacfwd(jacfwd(jacfwd(f))),
}


@pytest.mark.parametrize("method", ["exp", "cayley"])
@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_are_those_of_the_series(order, method):
    """Where planes turn alike, and by as much as nothing."""
    n, derivative = 4, ORDERS[order]
    A = torch.randn(n, n, generator=generator(1), dtype=torch.float64)
    J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    members = [A - A.mT, torch.block_diag(2 * J, 2 * J), torch.block_diag(J, 1e-9 * J)]
    at = torch.tensor([[0, 1, 2], [1, 2, 3]])
    for S in members:
        along = lambda f, S=S: lambda t: f(S + skew(torch.cat([t, t.new_zeros(3)]), n))
        got = derivative(along(lambda T: rotation(T, method)))(S.new_zeros(3))
        expected = derivative(along(lambda T: of_series(T, method)))(S.new_zeros(3))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
        if order.count("over") == 2:
            continue
        every = vmap(derivative(lambda S: rotation(S, method)[tuple(at)]))(torch.stack([S, S]))
        torch.testing.assert_close(
            every[0], derivative(lambda S: rotation(S, method)[tuple(at)])(S), rtol=0, atol=1e-12
        )
