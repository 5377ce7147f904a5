"""Gram matrices: Theta = J J' by brute force, whatever the layers, the batches and the kind; methods against dense."""

import pytest
import torch
from hypothesis import given
from torch.func import grad, jacfwd, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

import fisher
from fisher.function_space.fmat import FMatDense
from fisher.function_space.jacobians import jacobian
from fisher.function_space.kernels import gram
from fisher.strategies import networks
from linmaps import trees
from tests.laws import close, noise_like
from tests.oracles import jacobians
from tests.zoo import MODELS, perturbed

D = torch.float64
KINDS = ["full", "outputs", "trace"]


def want(J, K, kind):
    """From J [B, C, d] and K [B2, C, d]."""
    full = torch.einsum("bcd,xyd->bcxy", J, K)
    return {
        "full": full,
        "outputs": full.diagonal(dim1=1, dim2=3).movedim(-1, 0),
        "trace": full.diagonal(dim1=1, dim2=3).sum(-1),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_is_the_product_of_jacobians(name, kind):
    m = MODELS[name]
    J = jacobians(m.f, m.params, m.x)
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    for options in ({}, {"layers": layers}, {"layers": layers, "chunk_size": 2}):
        close(gram(m.f, m.params, m.x, kind=kind, **options).kernel, want(J, J, kind), 1e-11, "kernel")
    x2 = m.x.flip(0)[:3] * (0.7 if m.x.is_floating_point() else 1)
    cross = gram(m.f, m.params, m.x, x2, kind=kind)
    close(cross.kernel, want(J, jacobians(m.f, m.params, x2), kind), 1e-11, "two sets")
    close(gram(m.f, m.params, x2, m.x, kind=kind).kernel, cross.transpose().kernel, 1e-12, "transpose")
    parts = [m.x[:2], m.x[2:3], m.x[3:]]
    close(gram(m.f, m.params, parts, kind=kind, layers=layers).kernel, want(J, J, kind), 1e-11, "batches")
    blocks = gram(m.f, m.params, parts, [x2[:1], x2[1:]], kind=kind, layers=layers)
    close(blocks.kernel, cross.kernel, 1e-11, "batches of two sets")
    C = J - J.mean(0)
    close(gram(m.f, m.params, m.x, kind=kind, centered=True).kernel, want(C, C, kind), 1e-11, "centered")


@pytest.mark.parametrize("kind", KINDS)
def test_lookups_need_no_table(kind):
    """Repeated entries, an entry that counts for nothing, and a table far larger than memory for its rows."""
    r = torch.Generator().manual_seed(0)
    F = torch.nn.functional
    f = lambda p, x: torch.tanh(F.embedding(x, p["table"], padding_idx=2)).cumsum(1).flatten(1) @ p["w"]
    p = {"table": torch.randn(6, 3, generator=r, dtype=D), "w": torch.randn(12, 2, generator=r, dtype=D)}
    x = torch.tensor([[0, 1, 1, 2], [1, 2, 5, 0], [3, 3, 3, 3]])
    J = jacobians(f, p, x)
    close(gram(f, p, x, kind=kind).kernel, want(J, J, kind), 1e-12, "kernel")
    close(gram(f, p, x, [x[1:], x[:1]], kind=kind).kernel, want(J, J[[1, 2, 0]], kind), 1e-12, "two sets")
    large = p | {"table": torch.nn.functional.pad(p["table"], (0, 0, 0, 1_000_000))}
    layers = fisher.LayerCollection.from_function(f, large, x, check=False)
    close(gram(f, large, x, kind=kind, layers=layers).kernel, want(J, J, kind), 1e-12, "large table")


@given(networks(sequence=False))
def test_symmetric_and_positive_semi_definite(network):
    K = gram(network.f, network.params, network.x)
    M = K.to_torch()
    close(M, M.mT, 1e-13, "symmetric")
    assert torch.linalg.eigvalsh(M).min() >= -1e-12 * M.trace()
    u = noise_like(network.f(network.params, network.x), 3)
    pulled = jacobian(network.f, network.params, network.x).vjp(u)
    close(K.vTMv(u), trees.dot(pulled, pulled), 1e-10 * (1 + M.trace().item()), "u'Theta u = |J'u|^2")


def pair(kind):
    """A kernel and the one dense matrix [n, n] that it stands for, with the flattening of its vectors."""
    m = MODELS["mlp"]
    K = gram(m.f, m.params, m.x, kind=kind)
    if kind == "outputs":
        return K, torch.block_diag(*K.to_torch()), lambda u: u.mT.reshape(-1), lambda w: w.reshape(3, 5).mT
    shape = (5, 3) if kind == "full" else (5,)
    return K, K.to_torch(), lambda u: u.reshape(-1), lambda w: w.reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_equal_those_of_the_dense_matrix(kind):
    K, M, flat, back = pair(kind)
    n, eye = len(M), torch.eye(len(M), dtype=D)
    u = back(noise_like(torch.zeros(n, dtype=D), 1))
    close(K.mv(u), back(M @ flat(u)), 1e-12, "mv")
    close(K @ u, K.mv(u), 0.0, "@")
    close(K.vTMv(u), flat(u) @ M @ flat(u), 1e-11, "vTMv")
    close(K.trace(), M.trace(), 1e-12, "trace")
    close(flat(K.diag()), M.diagonal(), 1e-12, "diag")
    for regul in (0.1, torch.tensor(1e-3, dtype=D)):
        close(K.solve(u, regul), back(torch.linalg.solve(M + regul * eye, flat(u))), 1e-9, "solve")
        close(K.logdet(regul), torch.linalg.slogdet(M + regul * eye)[1], 1e-10, "logdet")
    s = torch.linalg.svdvals(M)
    for ord, norm in ((None, M.norm()), ("fro", M.norm()), (2, s[0]), (-2, s[-1])):
        close(K.norm(ord), norm, 1e-11, f"norm {ord}")
    values, vectors = K.eigendecomposition()
    close(vectors @ (values[..., None] * vectors.mT), K.to_torch(), 1e-11, "eigendecomposition")
    close(values.flatten().sort()[0], torch.linalg.eigvalsh(M), 1e-11, "eigenvalues")
    low = K.centered()  # of no full rank
    x = low.solve(u, 0.0, kind="lstsq")
    close(low.mv(low.solve(low.mv(u), 0.0, kind="lstsq")), low.mv(u), 1e-9, "M M+ M = M")
    close(low.solve(low.mv(x), 0.0, kind="lstsq"), x, 1e-9, "M+ M M+ = M+")
    assert K.size() == tuple(K.to_torch().shape)
    assert K.size(-1) == K.size()[-1]
    close((K + K.centered()).to_torch(), K.to_torch() + K.centered().to_torch(), 0.0, "+")
    close((K - K / 4).to_torch(), 0.75 * K.to_torch(), 1e-14, "- and /")
    close((-K * torch.tensor(0.3, dtype=D)).to_torch(), -0.3 * K.to_torch(), 1e-14, "scalar")
    assert (K + K).symmetric
    assert repr(K).startswith(f"FMatDense({kind}, ")


def test_columns_of_the_trace_kernel():
    K, M, _, _ = pair("trace")
    u = noise_like(torch.zeros(5, 2, dtype=D), 2)
    close(K.mv(u), M @ u, 1e-12, "mv")
    close(K.solve(u, 0.1), torch.linalg.solve(M + 0.1 * torch.eye(5, dtype=D), u), 1e-10, "solve")
    close(K.vTMv(u), (u * (M @ u)).sum(), 1e-11, "vTMv")


def test_product_of_two_sets():
    m = MODELS["mlp"]
    for kind in KINDS:
        K = gram(m.f, m.params, m.x, m.x[:2], kind=kind)
        u = noise_like(torch.zeros((2,) if kind == "trace" else (2, 3), dtype=D), 0)
        w = noise_like(torch.zeros((5,) if kind == "trace" else (5, 3), dtype=D), 1)
        close((w * K.mv(u)).sum(), (K.transpose().mv(w) * u).sum(), 1e-11, "adjoint")
        assert K.size(-1) < K.size(-2)
    J, J2 = (jacobian(m.f, m.params, x) for x in (m.x, m.x[:2]))
    u = noise_like(torch.zeros(2, 3, dtype=D), 0)
    close(gram(m.f, m.params, m.x, m.x[:2]).mv(u), J.jvp(J2.vjp(u)), 1e-11, "J (J2' u)")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "bare"])
def test_ensembles_and_derivatives(kind, name):
    m = MODELS[name]
    K = lambda p: gram(m.f, p, m.x, kind=kind)
    members = [perturbed(m.params, k) for k in range(3)]
    stacked = vmap(K)(trees.stack(members))
    close(stacked.kernel, torch.stack([K(p).kernel for p in members]), 1e-11, "ensemble")
    u = noise_like(K(m.params).diag(), 0)
    close(vmap(lambda K: K.solve(u, 0.5))(stacked), torch.stack([K(p).solve(u, 0.5) for p in members]), 1e-9, "solve")
    with pytest.raises(ValueError, match=r"torch\.func\.vmap"):
        stacked.mv(u)
    v = noise_like(m.params, 9)

    def line(t):
        kernel = K(trees.axpy(t, v, m.params))
        return kernel.logdet(0.5) + kernel.vTMv(kernel.solve(u, 0.5))

    zero, h = torch.zeros((), dtype=D), 1e-4
    slope = (8 * (line(zero + h) - line(zero - h)) - (line(zero + 2 * h) - line(zero - 2 * h))) / (12 * h)
    close(grad(line)(zero), slope, 1e-6, "grad")
    close(jacfwd(line)(zero), grad(line)(zero), 1e-9, "jacfwd")
    close(jacfwd(jacrev(line))(zero), jacrev(jacfwd(line))(zero), 1e-7, "nested")


def test_float32():
    m = MODELS["bare"]
    K = gram(m.f, trees.map(lambda t: t.float(), m.params), m.x.float())
    assert K.kernel.dtype == torch.float32
    J = jacobians(m.f, m.params, m.x)
    close(K.kernel.double(), want(J, J, "full"), 1e-4, "kernel")


def test_kernel_regression_is_the_ridge_solution_of_a_linear_model():
    """Theta(x2, x) (Theta + regul I)^-1 y = x2 (X'X + regul I)^-1 X'y."""
    r = torch.Generator().manual_seed(0)
    X, X2, y = (torch.randn(*s, generator=r, dtype=D) for s in ((8, 3), (4, 3), (8, 2)))
    f, p = lambda p, x: x @ p["w"], {"w": torch.zeros(3, 2, dtype=D)}
    ridge = X2 @ torch.linalg.solve(X.T @ X + 0.3 * torch.eye(3, dtype=D), X.T @ y)
    close(gram(f, p, X2, X).mv(gram(f, p, X).solve(y, 0.3)), ridge, 1e-10, "full")
    outputs = gram(f, p, X, kind="outputs").solve(y, 0.3)
    close(gram(f, p, X2, X, kind="outputs").mv(outputs), ridge, 1e-10, "outputs")


def test_no_leaf_is_used():
    with pytest.warns(UserWarning, match="no leaf of params moves its output"):
        K = gram(lambda p, x: x * 1.0, {"w": torch.ones(2, dtype=D)}, torch.ones(3, 2, dtype=D))
    close(K.kernel, torch.zeros(3, 2, 3, 2, dtype=D), 0.0, "zero")


def test_errors():
    m = MODELS["mlp"]
    K, two = gram(m.f, m.params, m.x), gram(m.f, m.params, m.x, m.x[:2])
    u = torch.ones(2, 3, dtype=D)
    for method in (two.vTMv, two.solve):
        with pytest.raises(ValueError, match="kernel of 15 rows and 6 columns, expected a square one; make it by gram"):
            method(u)
    for method in (two.logdet, two.trace, two.diag):
        with pytest.raises(ValueError, match="expected a square one"):
            method()
    with pytest.raises(ValueError, match="expected a symmetric one"):
        gram(m.f, m.params, m.x, 2 * m.x).eigendecomposition()
    with pytest.raises(ValueError, match=r"mv: got u of shape \(2, 3\), expected \(5, 3\)"):
        K.mv(u)
    with pytest.raises(ValueError, match="kind: got 'sum'"):
        gram(m.f, m.params, m.x, kind="sum")
    with pytest.raises(ValueError, match="got ord=1"):
        K.norm(1)
    with pytest.raises(ValueError, match="regul: got -1"):
        K.solve(torch.ones(5, 3, dtype=D), -1)
    with pytest.raises(ValueError, match="add kernels of one kind"):
        K + two
    with pytest.raises(TypeError, match="FMatDense \\+ int"):
        K + 1
    with pytest.raises(TypeError, match="FMatDense \\* str"):
        K * "2"
    with pytest.raises(ValueError, match="solve: got kind='cg'"):
        K.solve(torch.ones(5, 3, dtype=D), kind="cg")
    with pytest.raises(ValueError, match="depends on other examples"):
        gram(lambda p, x: m.f(p, x - x.mean(0)), m.params, m.x)
    assert isinstance(two, FMatDense)


def test_cheaper_than_the_product_of_jacobians():
    """30 examples, 10 outputs: less than a tenth of the multiplications of vmap(jacrev) and J J'."""
    r = torch.Generator().manual_seed(0)
    shapes = {"a": (64, 64), "b": (64, 64), "c": (10, 64)}
    p = {k: {"weight": torch.randn(s, generator=r) / 8, "bias": torch.zeros(s[0])} for k, s in shapes.items()}
    x = torch.randn(30, 64, generator=r)

    def f(p, x):
        for k in "abc":
            x = torch.nn.functional.linear(x if k == "a" else torch.tanh(x), p[k]["weight"], p[k]["bias"])
        return x

    def product():
        J = vmap(jacrev(lambda p, x: f(p, x[None])[0]), (None, 0))(p, x)
        rows = torch.cat([t.reshape(300, -1) for t in trees.leaves(J)], 1)
        return rows @ rows.T

    layers = fisher.LayerCollection.from_function(f, p, x)
    kernel = lambda: gram(f, p, x, layers=layers).to_torch()
    close(kernel(), product(), 1e-4, "the same")
    assert 0 < _multiplications(kernel) < 0.1 * _multiplications(product)


def _multiplications(fn):
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()
