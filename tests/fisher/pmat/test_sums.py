"""Sums of matrices stay sums: memory of their terms, solves by conjugate gradients as exact as those of the dense matrix."""

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import fisher
from fisher.pmat import PMatSum
from fisher.pmat.algebra import sumblocks, sums
from linmaps import trees
from tests.fisher.fakes import LAYERS, MAKE, kfac, rows, vector
from tests.laws import close

D = torch.float64


@pytest.fixture
def never_dense(monkeypatch):
    """All sums as if they were large."""
    monkeypatch.setattr(sumblocks, "DIRECT", -1)
    monkeypatch.setattr(sums, "DIRECT", -1)


def ekfac(*a, **k):
    return kfac(*a, **k).eigendecomposition()


SUMS = {
    "2 kfacs": lambda **k: kfac(**k) + kfac(**k | {"seed": 7}),
    "5 kfacs": lambda **k: sum((kfac(**k | {"seed": s}) for s in (2, 3, 4, 5)), kfac(**k)),
    "kfac + ekfac": lambda **k: kfac(**k) + ekfac(**k | {"seed": 8}),
    "2 ekfacs": lambda **k: ekfac(**k) + ekfac(**k | {"seed": 9}),
    "kfac + diag": lambda **k: kfac(**k) + MAKE["diag"](**k),
    "kfac + quasidiag": lambda **k: kfac(**k) + MAKE["quasidiag"](**k),
    "2 kfacs + eye": lambda **k: kfac(**k) + kfac(**k | {"seed": 7}) + MAKE["eye"](**k),
    "kfac + eigen by layers": lambda **k: kfac(**k) + MAKE["eigen by layers"](**k | {"seed": 4}),
    "eigen + diag": lambda **k: MAKE["eigen"](**k) + MAKE["diag"](**k),
    "kfac + eigen": lambda **k: kfac(**k) + MAKE["eigen"](**k),
}
every = pytest.mark.parametrize("kind", SUMS)


@every
@pytest.mark.parametrize("data", ["full", "deficient"])
def test_iterated_solves_equal_those_of_the_dense_matrix(kind, data, never_dense):
    F, v, J = SUMS[kind](data=data), vector(1), vector(2, lead=(3, 2))
    T = F.to_torch()
    regul = torch.tensor(0.1, dtype=D)
    inverse = torch.linalg.inv(T + regul * torch.eye(len(T), dtype=D))
    close(trees.ravel(F.solve(v, regul))[0], inverse @ trees.ravel(v)[0], 1e-9, "solve")
    close(rows(F.solve(J, regul), 2), rows(J, 2) @ inverse, 1e-9, "solve of a map")
    assert trees.leaves(F.solve(vector(2, lead=(0, 3)), 0.1))[0].shape[:2] == (0, 3)


@every
def test_iterated_solves_in_single_precision(kind, never_dense):
    F, v = SUMS[kind](dtype=torch.float32), vector(1, torch.float32)
    wide = lambda tree: trees.map(lambda t: t.double(), tree)
    got = F.solve(v, 1e-2)
    assert {t.dtype for t in trees.leaves(got)} == {torch.float32}
    want = torch.linalg.solve(
        wide(F).to_torch() + 1e-2 * torch.eye(LAYERS.space.numel, dtype=D), trees.ravel(wide(v))[0]
    )
    assert (trees.ravel(wide(got))[0] - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("kind", ["2 kfacs", "kfac + eigen"])
def test_iterated_solves_transform(kind, never_dense):
    v = vector(1)
    members = [SUMS[kind](seed=s) for s in (0, 1)]
    want = trees.stack([F.solve(v, 0.1) for F in members])
    close(vmap(lambda F: F.solve(v, 0.1))(trees.stack(members)), want, 1e-9, "ensemble")
    F, G = members
    line = lambda t: trees.dot(trees.map(lambda a, b: a + t * b, F, G).solve(v, 0.1 + t), v)
    zero, h = torch.zeros((), dtype=D), 1e-4
    central = (8 * (line(zero + h) - line(zero - h)) - (line(zero + 2 * h) - line(zero - 2 * h))) / (12 * h)
    for mode in (grad, jacfwd, jacrev):
        close(mode(line)(zero), central, 1e-6, mode.__name__)
    close(jacfwd(grad(line))(zero), jacrev(jacrev(line))(zero), 1e-6, "second derivative")


@every
def test_norms_are_made_of_the_parts(kind):
    F = SUMS[kind]()
    close(F.frobenius_norm(), F.to_torch().norm(), 1e-11, "frobenius")


def test_a_solve_that_does_not_converge_is_refused(never_dense):
    """With a regul of 0 on a null space."""
    F, v = kfac(), vector(1)
    for G, regul in ((kfac("deficient") + kfac("deficient", seed=1), 0.0), (0.0 * F + 0.0 * kfac(seed=1), 0.0)):
        with pytest.raises(ValueError, match=r"conjugate gradients left a residual.*larger regul, or use F.dense\(\)"):
            G.solve(v, regul)


def test_a_sum_of_kronecker_factors_stores_its_factors():
    """Six matrices of a layer whose dense block would have a thousand times the numbers."""
    p = {"w": torch.linspace(-3, 3, 6400).reshape(100, 64).cos() / 10}
    f = lambda p, x: torch.tanh(x @ p["w"])
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(6, 12, 100, generator=generator).unbind(0)
    layers = fisher.LayerCollection.from_function(f, p, batches[0])
    F = [fisher.fim(f, p, x, fisher.PMatKFAC, "gaussian", layers=layers) for x in batches]
    total = sum(F[1:], F[0])
    assert type(total) is PMatSum
    assert sum(t.numel() for t in trees.leaves(total)) == 6 * (100**2 + 64**2)
    regul = 0.1 * total.trace() / 6400
    x = total.solve(p, regul)
    close(trees.axpy(regul, x, total.mv(x)), p, 1e-5, "solve")
    close(total.trace(), sum(G.trace() for G in F), 1e-5, "trace")
    assert total.frobenius_norm() <= sum(G.frobenius_norm() for G in F) * (1 + 1e-5)
