"""PMatLowRank and PMatRange: every method against the dense matrix, derivatives, accuracy, cost in products."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.lowrank import PMatLowRank
from fisher.pmat.whole.range import PMatRange
from linmaps import trees
from tests.laws import close, noise_like

D = torch.float64
LIKE = {"b": torch.zeros((), dtype=D), "u": torch.zeros(0, 2, dtype=D), "w": torch.zeros(2, 3, dtype=D)}  # d = 7


def rows(n, seed=0, dtype=D):
    g = torch.Generator().manual_seed(seed)
    return trees.map(lambda t: torch.randn(n, *t.shape, generator=g, dtype=D).to(dtype), LIKE)


def member(kind):
    if kind == "repeated":  # a row twice and a zero row: rank 2 of 4
        return PMatLowRank(trees.map(lambda t: torch.cat([t, t[:1], 0 * t[:1]]), rows(2)))
    n = {"thin": 3, "square": 7, "tall": 9, "signed": 4, "negative": 3, "empty": 0}[kind]
    weights = {"signed": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=D), "negative": -torch.ones(3, dtype=D)}.get(kind)
    return PMatLowRank(rows(n), weights)


KINDS = ["thin", "repeated", "signed", "negative", "square", "tall", "empty"]
every = pytest.mark.parametrize("kind", KINDS)
V = noise_like(LIKE, 1)
v, unravel = trees.ravel(V)
EYE = torch.eye(7, dtype=D)


@every
@pytest.mark.parametrize("view", ["lowrank", "range"])
def test_methods_equal_those_of_the_dense_matrix(kind, view):
    F = member(kind)
    T = F.to_torch()
    if view == "range":
        F = F._on_range()
    R = torch.cat([t.reshape(t.shape[0], math.prod(t.shape[1:])) for t in trees.leaves(member(kind).rows)], 1)
    w = torch.ones(len(R), dtype=D) if member(kind).weights is None else member(kind).weights
    close(F.to_torch(), R.T @ torch.diag(w) @ R, 1e-11, "to_torch")
    close(F.mv(V), unravel(T @ v), 1e-11, "mv")
    close(F.vTMv(V), v @ T @ v, 1e-11, "vTMv")
    close(F.trace(), T.trace(), 1e-11, "trace")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-11, "diag")
    close(F.frobenius_norm(), T.norm(), 1e-11, "fro")
    values = torch.linalg.eigvalsh(T)
    close(F.norm(2), values.abs().max(), 1e-11, "norm 2")
    close(F.norm(-2), values.abs().min() if kind in ("square", "tall") else 0.0 * T[0, 0], 1e-11, "norm -2")
    for regul in (5.0 if kind in ("signed", "negative") else 1e-2, torch.tensor(20.0, dtype=D)):
        damped = T + regul * EYE
        close(F.solve(V, regul), unravel(torch.linalg.solve(damped, v)), 1e-9, "solve")
        inverse = F.inverse(regul)
        close(inverse.to_torch(), torch.linalg.inv(damped), 1e-9, "inverse")
        close(inverse.mv(V), F.solve(V, regul), 1e-9, "inverse.mv")
        close(inverse.trace(), torch.linalg.inv(damped).trace(), 1e-9, "inverse.trace")
        close(trees.ravel(inverse.get_diag())[0], torch.linalg.inv(damped).diagonal(), 1e-9, "inverse.get_diag")
        close(inverse.solve(V, 0.0), unravel(damped @ v), 1e-9, "inverse.solve")
        close(F.logdet(regul), torch.linalg.slogdet(damped).logabsdet, 1e-10, "logdet")
    plus = torch.linalg.pinv(T, hermitian=True, rtol=1e-12)
    close(F.pinv().to_torch(), plus, 1e-9, "pinv")
    close(F.solve(V, kind="lstsq"), unravel(plus @ v), 1e-9, "lstsq")
    E = F.eigendecomposition()
    lam, coordinates = E.get_eigenvalues(), E.project_to_diag(V)
    close(E.to_torch(), T, 1e-10, "eigendecomposition")
    close(E.project_from_diag(lam * coordinates), F.mv(V), 1e-10, "project")
    close(E.solve(V, 30.0), F.solve(V, 30.0), 1e-10, "solve in the eigenbasis")
    close(F.scaled(-0.3).to_torch(), -0.3 * T, 1e-12, "scaled")
    close(F.scaled(torch.tensor(0.3, dtype=D)).to_torch(), 0.3 * T, 1e-12, "scaled")
    close((F * 2.0).to_torch(), 2 * T, 1e-12, "scaled")


@every
def test_maps_have_one_product_for_all(kind):
    F = member(kind)
    J = trees.map(lambda t: torch.stack([t, 2 * t, -t]).expand(2, 3, *t.shape), V)
    T = F.to_torch()
    flat = lambda t: torch.cat([x.reshape(2, 3, math.prod(x.shape[2:])) for x in trees.leaves(t)], -1)
    close(flat(F.mmap(J)), flat(J) @ T, 1e-11, "mmap")
    close(F.mapTMmap(J, "diag"), ((flat(J) @ T) * flat(J)).sum(-1), 1e-11, "mapTMmap")
    close(F.mapTMmap(J), ((flat(J) @ T) * flat(J)).sum((-1, -2)), 1e-11, "mapTMmap")
    close(flat(F.solve(J, 30.0)), flat(J) @ torch.linalg.inv(T + 30 * EYE), 1e-11, "solve")


@pytest.mark.parametrize("kind", ["thin", "repeated", "tall", "square"])
@pytest.mark.parametrize("p", [1, 2, 0.5, 1.7, 3])
def test_powers(kind, p):
    F = member(kind)
    lam, U = torch.linalg.eigh(F.to_torch())
    clean = lam.clamp_min(0) * (lam > 1e-10)
    close((F**p).to_torch(), U @ torch.diag(clean**p) @ U.T, 1e-9, "pow")
    for q in (p, -p):
        close(F.pow(q, 0.3).to_torch(), U @ torch.diag((clean + 0.3) ** q) @ U.T, 1e-9, "pow with regul")
    assert isinstance(F**p, PMatLowRank) == (p >= 1 and kind not in ("tall", "square"))


def test_power_zero_and_null_space():
    F = member("thin")
    close((F**0).to_torch(), EYE, 1e-12, "identity")
    with pytest.raises(ValueError, match=r"PMatLowRank.pow: got p=-1 and regul=0, but 3 rows leave a null space of 7"):
        F**-1


@pytest.mark.parametrize("kind", ["thin", "repeated", "tall"])
def test_range_solve_is_the_projected_one(kind):
    F = member(kind)
    lam, U = torch.linalg.eigh(F.to_torch())
    inside = torch.where(lam > 1e-10, 1 / (lam + 0.1), 0.0)
    close(F.solve(V, 0.1, kind="range"), unravel(U @ (inside * (U.T @ v))), 1e-10, "range")
    in_range = F.mv(V)
    close(F.solve(in_range, 0.1, kind="range"), F.solve(in_range, 0.1), 1e-10, "equal there")
    close(F.solve(V, 0.0, kind="range"), F.solve(V, kind="lstsq"), 1e-9, "regul = 0")


@pytest.mark.parametrize("kind", ["thin", "repeated", "tall", "square", "empty"])
def test_samples_have_the_covariance(kind):
    F = member(kind)
    for G in (F, F._on_range()):
        R = vmap(lambda e, G=G: trees.ravel(G.sample(noise=unravel(e), regul=0.2))[0])(EYE)
        close(R.T @ R, torch.linalg.inv(F.to_torch() + 0.2 * EYE), 1e-9, "covariance")
    g = torch.Generator().manual_seed(0)
    assert F.sample(g, 0.2)["w"].shape == (2, 3)


def test_algebra():
    F, G, S = member("thin"), PMatLowRank(rows(2, 5)), member("signed")
    for A, B in ((F, G), (F, S), (S, F)):
        for got, want in ((A + B, A.to_torch() + B.to_torch()), (A - B, A.to_torch() - B.to_torch())):
            assert isinstance(got, PMatLowRank)
            close(got.to_torch(), want, 1e-12, "sum")
            close(got.solve(V, 40.0), unravel(torch.linalg.solve(want + 40 * EYE, v)), 1e-10, "solve of the sum")
    assert (F + G).weights is None
    close((F - F).to_torch(), 0 * EYE, 1e-13, "F - F")
    assert isinstance(F + PMatDense(EYE, F.layout), PMatDense)


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(1e-8, 10.0))
def test_solve_inverts(seed, n, regul):
    F = PMatLowRank(rows(n, seed))
    x = F.solve(V, regul)
    lam, U = torch.linalg.eigh(F.to_torch())
    lam = torch.where(lam > 1e-12 * lam.max(), lam, 0.0)
    want = lambda b: unravel(U @ ((U.T @ b) / (lam + regul)))
    close(trees.scale(regul, x), trees.scale(regul, want(v)), 1e-11, "solve, relative to its norm v / regul")
    inside = U @ (lam * (U.T @ v))
    close(F.solve(unravel(inside), regul), want(inside), max(1e-10, 1e-13 / regul), "in the span, to the rounding of b")


def test_small_regul_in_float32():
    """What Woodbury's formula as it stands loses: the span, where (v - R'(...)R v) / regul cancels."""
    F = PMatLowRank(rows(3))
    single = PMatLowRank(trees.map(lambda t: t.float(), F.rows))
    inside = F.mv(V)
    want = F.solve(inside, 1e-4)
    got = single.solve(trees.map(lambda t: t.float(), inside), 1e-4)
    close(trees.map(lambda t: t.double(), got), want, 2e-2, "float32")
    got = single.solve(trees.map(lambda t: t.float(), V), 1e-4)
    want = F.solve(V, 1e-4)
    size = trees.norm(want).item()
    close(trees.scale(1 / size, trees.map(lambda t: t.double(), got)), trees.scale(1 / size, want), 1e-5, "float32")
    assert got["w"].dtype == torch.float32


METHODS = {
    "solve": lambda F: F.solve(V, 0.5),
    "range": lambda F: F.solve(V, 0.5, kind="range"),
    "lstsq": lambda F: F.solve(V, kind="lstsq"),
    "inverse": lambda F: F.inverse(0.5).mv(V),
    "inverse.solve": lambda F: F.inverse(0.5).solve(V, 0.1),
    "pow": lambda F: F.pow(1.6).mv(V),
    "root": lambda F: F.pow(-0.5, 0.3).mv(V),
    "logdet": lambda F: F.logdet(0.5),
    "sample": lambda F: F.sample(noise=V, regul=0.5),
    "trace": lambda F: F.trace(),
    "norm": lambda F: F.frobenius_norm(),
    "spectral": lambda F: F.eigendecomposition().mv(V),
}


NO_EIGENVECTORS = {("spectral", "orthonormal")}  # eigenvectors have no derivative at repeated eigenvalues


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in METHODS for k in ("thin", "orthonormal", "weights", "tall") if (n, k) not in NO_EIGENVECTORS],
)
def test_derivatives(name, kind):
    """Along a line on which the eigenvalues of K are all equal at 0 for "orthonormal"."""
    start = rows(3)
    if kind == "orthonormal":
        q = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=D)).Q
        start = vmap(unravel)(q.T)
    if kind == "tall":
        start = rows(9)
    direction = rows(9 if kind == "tall" else 3, 8)
    weights = torch.tensor([1.0, -0.2, 0.5], dtype=D) if kind == "weights" else None
    if weights is not None and name in ("pow", "root", "sample"):
        weights = weights.abs()
    ones = trees.map(lambda t: torch.linspace(1, 2, t.numel(), dtype=D).reshape(t.shape), V)

    def line(t):
        out = METHODS[name](
            PMatLowRank(trees.axpy(t, direction, start), None if weights is None else weights + 0.1 * t)
        )
        return trees.dot(out, ones) if isinstance(out, dict) else out

    zero, h = torch.zeros((), dtype=D), 1e-3
    at = [line(zero + k * h) for k in (-3, -2, -1, 1, 2, 3)]
    first = (at[5] - 9 * at[4] + 45 * at[3] - 45 * at[2] + 9 * at[1] - at[0]) / (60 * h)
    second = (2 * at[5] - 27 * at[4] + 270 * at[3] - 490 * line(zero) + 270 * at[2] - 27 * at[1] + 2 * at[0]) / (
        180 * h * h
    )
    for mode in (jacfwd, jacrev):
        close(mode(line)(zero), first, 1e-8, f"{mode.__name__}")
        for other in (jacfwd, jacrev):
            close(mode(other(line))(zero), second, 1e-5, f"{mode.__name__}({other.__name__})")


def test_solve_is_differentiable_in_regul_and_v():
    F = member("thin")
    g = lambda r, w: trees.dot(F.solve(w, r), V)
    r = torch.tensor(0.3, dtype=D)
    close(grad(g)(r, V), (g(r + 1e-5, V) - g(r - 1e-5, V)) / 2e-5, 1e-8, "regul")
    close(grad(g, 1)(r, V), F.solve(V, r), 1e-12, "v")


def test_ensemble_equals_the_loop():
    members = [PMatLowRank(rows(3, k)) for k in range(3)]
    stacked = PMatLowRank(trees.stack([m.rows for m in members]))
    run = lambda F: (F.mv(V), F.solve(V, 0.1), F.inverse(0.1).mv(V), F.logdet(0.1), F.pow(0.5).mv(V), F.norm(2))
    close(vmap(run)(stacked), trees.stack([run(m) for m in members]), 1e-10, "ensemble")
    made = vmap(lambda R: PMatLowRank(R).inverse(0.1))(stacked.rows)
    assert isinstance(made, PMatRange)
    close(made.basis["w"][1], members[1].inverse(0.1).basis["w"], 1e-10, "records")


def test_errors():
    F = member("thin")
    with pytest.raises(ValueError, match=r"v: leaf w has shape \(2, 2\), expected \(2, 3\)"):
        F.mv(V | {"w": torch.ones(2, 2, dtype=D)})
    with pytest.raises(ValueError, match="kind='svd', expected 'default' or 'range' or 'lstsq'"):
        F.solve(V, kind="svd")
    with pytest.raises(ValueError, match="PMatLowRank"):
        F.mm(F)
