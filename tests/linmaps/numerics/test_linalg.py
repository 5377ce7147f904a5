"""pinv and eigh: the values of torch's, and derivatives that exist without full rank and at equal eigenvalues."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vmap

from linmaps.numerics.eigen import constant_eigh, cutoff, denoised, eigh, pinv, plain_eigh
from linmaps.numerics.linalg import inv, logabsdet, negative_determinant, solve
from tests.growth.oracle import close
from tests.laws import close as near

ZERO = torch.zeros((), dtype=torch.float64)
WEIGHTS = torch.cos(torch.arange(36.0, dtype=torch.float64)).reshape(6, 6)
MODES = [jacfwd, jacrev]
A, B = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def factor(kind: str, t):
    x = A + t * B
    if kind == "full":
        return x
    if kind == "ill":
        return x * torch.logspace(0, -3, 6, dtype=torch.float64)  # condition of x'x about 1e7
    if kind == "rank 3":
        return torch.cat([x[:, :3], x[:, :3]], 1)
    if kind == "zero column":
        return torch.cat([x[:, :5], 0 * x[:, :1]], 1)
    raise ValueError(kind)


def high_precision(kind):
    """Derivatives by central differences of values that come from the pseudo-inverse of the factor x itself."""

    def value(t):
        p = torch.linalg.pinv(factor(kind, t), rtol=1e-9)
        return (p @ p.mT * WEIGHTS).sum()

    def first(h):
        return (8 * (value(ZERO + h) - value(ZERO - h)) - (value(ZERO + 2 * h) - value(ZERO - 2 * h))) / (12 * h)

    def second(h):
        near, far = value(ZERO + h) + value(ZERO - h), value(ZERO + 2 * h) + value(ZERO - 2 * h)
        return (16 * near - far - 30 * value(ZERO)) / (12 * h * h)

    return first(1e-4), second(1e-3)


@pytest.mark.parametrize("kind", ["full", "ill", "rank 3", "zero column"])
def test_pinv_and_its_derivatives(kind):
    def value(t):
        x = factor(kind, t)
        return (pinv(x.mT @ x, rtol=1e-12) * WEIGHTS).sum()

    x = factor(kind, ZERO)
    want = torch.linalg.pinv(x, rtol=1e-9)
    close(pinv(x.mT @ x, rtol=1e-12) / want.norm() ** 2, want @ want.mT / want.norm() ** 2, 1e-9)
    first, second = high_precision(kind)
    for outer in MODES:
        close(outer(value)(ZERO) / first, torch.ones_like(first), 1e-5)
        for inner in MODES:
            close(outer(inner(value))(ZERO) / second, torch.ones_like(second), 1e-3)
    third = {(a, b, c): a(b(c(value)))(ZERO) for a in MODES[:1] for b in MODES for c in MODES}
    reference = next(iter(third.values()))
    for v in third.values():
        close(v / reference, torch.ones_like(v), 1e-5)


def test_pinv_options():
    a = torch.diag(torch.tensor([4.0, 1e-3, 0.0], dtype=torch.float64))
    close(pinv(a).diagonal(), torch.tensor([0.25, 1e3, 0.0], dtype=torch.float64), 1e-12)
    close(pinv(a, rtol=1e-2).diagonal(), torch.tensor([0.25, 0.0, 0.0], dtype=torch.float64), 1e-12)
    close(pinv(a, ridge=1.0).diagonal(), 1 / torch.tensor([5.0, 1.001, 1.0], dtype=torch.float64), 1e-12)
    close(pinv(a, rtol=1e-2, size=ZERO + 1000.0), torch.zeros(3, 3, dtype=torch.float64), 0)
    assert pinv(torch.zeros(0, 0)).shape == (0, 0)
    assert (pinv(torch.zeros(2, 2)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(500, 8), (4096, 120), (60, 100)])
def test_the_default_threshold_finds_the_rank(dtype, n, d):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).relu().to(dtype)
    x = torch.cat([x, x[:, : d // 2]], 1)
    s = x.mT @ x / n
    rank = (pinv(s) @ s).trace().item()
    assert abs(rank - min(n, d)) < 0.1


@pytest.mark.parametrize("kind", ["full", "rank 3", "zero column"])
def test_eigh_derivatives(kind):
    def with_(fn):
        def value(t):
            x = factor(kind, t)
            values, vectors = fn(x.mT @ x)
            top = vectors[:, -2:]
            return (
                (top @ top.mT * WEIGHTS).sum()
                + values[-1] * values[-2]
                + (vectors[:, -2].outer(vectors[:, -2]) * WEIGHTS).sum()
            )

        return value

    value = with_(eigh)
    plain = with_(torch.linalg.eigh)
    h = 1e-3
    v = {i: plain(ZERO + i * h) for i in (-2, -1, 0, 1, 2)}
    first = (8 * (v[1] - v[-1]) - (v[2] - v[-2])) / (12 * h)
    second = (16 * (v[1] + v[-1]) - (v[2] + v[-2]) - 30 * v[0]) / (12 * h * h)
    for outer in MODES:
        close(outer(value)(ZERO), first, 1e-7)
        for inner in MODES:
            close(outer(inner(value))(ZERO), second, 1e-6)


def test_eigh_at_equal_eigenvalues():
    """Of the identity plus t D only what is symmetric in the eigenvectors is smooth: here the trace of the square."""
    d = WEIGHTS + WEIGHTS.mT

    def value(t):
        values, vectors = eigh(torch.eye(6, dtype=torch.float64) + t * d)
        return (vectors @ torch.diag(values**2) @ vectors.mT).trace()

    for outer in MODES:
        close(outer(value)(ZERO), 2 * d.trace(), 1e-12)


def symmetric(seed, n, rank=None):
    b = torch.randn(n, rank or n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return b @ b.T


@pytest.mark.parametrize("n", [1, 2, 5])
def test_numbers_are_torchs(n):
    m = symmetric(0, n)
    values, vectors = eigh(m)
    near(values, torch.linalg.eigvalsh(m), 1e-14, "eigenvalues")
    near(vectors * values @ vectors.T, m, 1e-13, "decomposition")


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_sign_of_the_determinant(n):
    m = torch.randn(20, n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    want = torch.tensor([torch.linalg.det(a) < 0 for a in m])
    assert torch.equal(vmap(negative_determinant)(m), want)
    assert not negative_determinant(torch.eye(n))


@pytest.mark.parametrize("n", [3, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solve_and_inverse_hold_for_batches_on_two_threads(n, dtype):
    """Batched LU, hence torch's own inv and solve under vmap, is wrong here for n > 150."""
    a = torch.randn(4, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (a + 2 * n**0.5 * torch.eye(n, dtype=torch.float64)).to(dtype)  # not symmetric
    b = torch.ones(4, n, dtype=dtype)
    eps = 2e3 * torch.finfo(dtype).eps
    near((a @ vmap(solve)(a, b)[..., None])[..., 0], b, eps, "solve")
    near(a @ vmap(inv)(a), torch.eye(n, dtype=dtype).expand(4, n, n), eps, "inverse")
    near(vmap(solve)(a, a), torch.eye(n, dtype=dtype).expand(4, n, n), eps, "solve for a matrix")


@pytest.mark.parametrize("fn", ["solve", "inv"])
def test_second_derivatives_of_solves(fn):
    a, d = A + 4 * torch.eye(6, dtype=torch.float64), B
    f = {
        "solve": lambda t: (solve(a + t * d, WEIGHTS[0]) * WEIGHTS[1]).sum(),
        "inv": lambda t: (inv(a + t * d) * WEIGHTS).sum(),
    }[fn]
    x = torch.linalg.inv(a)
    y = x @ d @ x
    first, second = (-y, 2 * y @ d @ x)
    pick = (lambda m: WEIGHTS[1] @ m @ WEIGHTS[0]) if fn == "solve" else (lambda m: (m * WEIGHTS).sum())
    for outer in MODES:
        near(outer(f)(ZERO), pick(first), 1e-12, "first")
        for inner in MODES:
            near(outer(inner(f))(ZERO), pick(second), 1e-11, "second")


def test_rounding_of_a_null_space_is_told_apart():
    m = symmetric(0, 6, rank=2).float()
    values = denoised(constant_eigh(m)[0], cutoff(6, m.dtype))
    assert (values[:4] == 0).all()
    assert (values[4:] > 0).all()
    assert (denoised(constant_eigh(m.double())[0]) != 0).sum() > 2  # float64 resolves what float32 left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigh_converges_where_rows_are_zero(dtype):
    """In float32 that of LAPACK does not, for most of these."""
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(1 + seed % 4, 150, generator=g, dtype=dtype).abs() * (torch.rand(150, generator=g) < 0.5)
        m = x.mT @ x
        for values, U in (plain_eigh(m), eigh(m)):
            near((U * values) @ U.mT, m, 2e4 * torch.finfo(dtype).eps, "decomposition")


def test_second_derivatives_agree_in_all_modes():
    a, b = symmetric(0, 4), symmetric(1, 4)

    def g(t):
        values, vectors = eigh(a + t * b)
        return (vectors * (1 / (values + 0.3)) @ vectors.T)[0, 1]

    zero, h = torch.zeros((), dtype=torch.float64), 1e-4
    want = (16 * (g(zero + h) + g(zero - h)) - (g(zero + 2 * h) + g(zero - 2 * h)) - 30 * g(zero)) / (12 * h**2)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            near(outer(inner(g))(zero), want, 1e-6, f"{outer.__name__}({inner.__name__})")


def test_derivatives_are_finite_at_repeated_eigenvalues():
    def total(m):
        values, vectors = eigh(m)
        return (vectors * values.exp() @ vectors.T).sum()

    assert jacrev(total)(torch.eye(3, dtype=torch.float64)).isfinite().all()
    low = torch.linspace(0, 1, 8, dtype=torch.float64).reshape(4, 2)
    rank_two = lambda b: total(b @ b.T)
    got = jacrev(rank_two)(low)
    assert got.isfinite().all()
    exact = jacrev(lambda b: torch.linalg.matrix_exp(b @ b.T).sum())(low)
    near(got, exact, 1e-9, "a null space of a second moment has an exact first derivative")


def test_maps_and_half_precision():
    stack = torch.stack([symmetric(0, 3), symmetric(1, 3)])
    assert (eigh(torch.zeros(3, 3))[0] == 0).all()
    assert eigh(torch.zeros(0, 0))[1].shape == (0, 0)
    near(vmap(eigh)(stack)[0], torch.linalg.eigvalsh(stack), 1e-14, "vmap")
    assert eigh(stack[0].bfloat16())[1].dtype == torch.bfloat16


def test_complex_systems():
    g = torch.Generator().manual_seed(0)
    m, b = (torch.randn(5, k, generator=g, dtype=torch.complex128) for k in (5, 2))
    assert torch.allclose(m @ solve(m, b), b, atol=1e-12)
    assert torch.allclose(m @ inv(m), torch.eye(5, dtype=m.dtype), atol=1e-12)
    assert torch.allclose(logabsdet(m), torch.linalg.slogdet(m).logabsdet, atol=1e-12)


@pytest.mark.parametrize("fn", [lambda m: solve(m, m[:, :2].detach()), inv, lambda m: eigh(m)[0], pinv, logabsdet])
def test_tangents_of_torch_autograd_are_those_of_jvp(fn):
    g = torch.Generator().manual_seed(0)
    root, direction = (torch.randn(4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    a, d = root @ root.T + torch.eye(4, dtype=torch.float64), direction + direction.T
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(fn(forward_ad.make_dual(a, d))).tangent
    close(got, jvp(fn, (a,), (d,))[1], 1e-12)
