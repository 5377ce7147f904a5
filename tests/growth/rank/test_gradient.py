"""Directions by gradient: against brute force, against random ones; scores, in the metric of a Fisher too; reduction."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacrev

import fisher
import growth
import linmaps
from growth.rank import matrices, tucker
from linmaps import trees
from linmaps.factorized.kinds.base import listed, tensor
from linmaps.factorized.tensors.multilinear import times
from tests.growth.kinds_rank import EXAMPLES, D, F, corner, difference, gen, randn, ranks
from tests.growth.oracle import close

METRICS = ("none", "pair", "matrix")


def spd(n: int, seed: int) -> torch.Tensor:
    A = randn(n + 2, n, seed=seed)
    return A.mT @ A / n + 0.1 * torch.eye(n, dtype=D)


def orthonormal(M: torch.Tensor) -> torch.Tensor:
    U, s, _ = torch.linalg.svd(M, full_matrices=False)
    return U[:, s > 1e-10 * s.max()] if s.max() > 0 else U[:, :0]


def off(M: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
    return M - orthonormal(Q) @ (orthonormal(Q).mT @ M)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6))
def test_low_rank_directions_are_the_best(n, m, r, k, seed):
    r = min(r, min(n, m) - 1)
    k = min(k, min(n, m) - r)
    spec = linmaps.LowRank(n, m, r)
    params, G = spec.init(gen(seed), dtype=D), randn(n, m, seed=seed + 1)
    _, grown = growth.grow_rank(spec, params, k, gradient=G)
    new = orthonormal(grown["U"][:, r:])
    N = off(off(G, params["U"]).mT, params["V"].mT).mT
    best = torch.linalg.svdvals(N)[:k].square().sum()
    close((new.mT @ N).square().sum(), best, 1e-9)
    for s in range(3):
        other = orthonormal(off(randn(n, k, seed=seed + 5 + s), params["U"]))
        assert (other.mT @ N).square().sum() <= best + 1e-9
    # they are what a full gradient step of the zero side moves along
    close(grad(lambda p: ((p["U"] @ p["V"]) * G).sum())(grown)["V"][r:], grown["U"][:, r:].mT @ G, 1e-12)


@pytest.mark.parametrize("name", ["lowrank", "tucker", "tt", "blocktt"])
def test_all_kinds_agree_on_matrices(name):
    shapes = ((6, 1), (1, 5)) if name == "blocktt" else ((6,), (5,))
    low = linmaps.LowRank(6, 5, 2)
    low_params, G = low.init(gen(), dtype=D), randn(6, 5, seed=1)
    spec = F(*shapes, factorization=name, rank=2, bias=False)
    params, distance = spec.from_matrix(low.effective_W(low_params))
    assert distance < 1e-12
    larger, grown = growth.grow_rank(spec, params, 2, gradient=G)
    _, expected = growth.grow_rank(low, low_params, 2, gradient=G)
    rows = {"lowrank": "U", "tucker": "U1", "tt": "A1", "blocktt": "A0"}[name]
    N = off(off(G, low_params["U"]).mT, low_params["V"].mT).mT
    u, _, vh = torch.linalg.svd(N)
    close(torch.linalg.svdvals(u[:, :2].mT @ expected["U"][:, 2:]), column(expected["U"][:, 2:]), 1e-9)
    if name in ("lowrank", "tucker"):
        new = grown[rows][:, 2:]
        close(orthonormal(new) @ orthonormal(new).mT, u[:, :2] @ u[:, :2].mT, 1e-9)
    else:  # the train's first core belongs to out, the block train's to in
        new = grown["A0"][..., 2:].reshape(-1, 2)
        side = vh[:2].mT if name == "tt" else u[:, :2]
        close(orthonormal(new) @ orthonormal(new).mT, side @ side.mT, 1e-9)
    assert ranks(larger)[0] == 4


def column(M):
    return M.norm(dim=0).sort(descending=True).values


def test_tucker_residual_is_off_the_tangent_space():
    spec = F((2, 3), (4, 3), rank=(2, 3, 2, 2), bias=False)
    params, G = spec.init(gen(), dtype=D), randn(6, 12, seed=1)
    J = jacrev(spec.effective_W)(params)
    columns = torch.cat([t.reshape(72, -1) for t in trees.leaves(J)], 1)
    want = off(G.reshape(72, 1), columns).reshape(6, 12)
    factors = listed(params, "U")
    bases = [orthonormal(U) for U in factors]
    core = params["core"]
    for k, (Q, U) in enumerate(zip(bases, factors)):
        core = times(core, Q.mT @ U, k)
    got = tucker.residual(tensor(G, 1, (4, 3), (2, 3)), core, bases)
    close(got, tensor(want, 1, (4, 3), (2, 3)), 1e-10)
    low = linmaps.LowRank(6, 5, 2)
    params, G = low.init(gen(), dtype=D), randn(6, 5, seed=1)
    columns = torch.cat([t.reshape(30, -1) for t in trees.leaves(jacrev(low.effective_W)(params))], 1)
    close(matrices.residual(G, params["U"], params["V"]), off(G.reshape(30, 1), columns).reshape(6, 5), 1e-10)


def test_middle_bond_of_a_train_is_a_matrix():
    spec = F((3, 2), (2, 3), factorization="tt", rank=(1, 2, 2, 2, 1), bias=False)  # outer ranks are full
    params, G = spec.init(gen(), dtype=D), randn(6, 6, seed=1)
    larger, grown = growth.grow_rank(spec, params, (0, 2, 0), gradient=G)
    W, M = (tensor(t, 1, (2, 3), (3, 2)).reshape(6, 6) for t in (spec.effective_W(params), G))
    u = torch.linalg.svd(off(off(M, W).mT, W.mT).mT)[0][:, :2]
    interface = torch.einsum("xar,rbs->xabs", grown["A0"], grown["A1"])[0].reshape(6, 4)
    new = orthonormal(interface[:, 2:])
    close(new @ new.mT, u @ u.mT, 1e-9)
    assert ranks(larger) == (2, 4, 2)


def test_rank_one_terms_of_a_gradient():
    spec = F((4,), (4, 3), factorization="cp", rank=1, bias=False)
    params = spec.init(gen(), dtype=D)
    bases = [torch.linalg.qr(randn(s, 3, seed=s + i)).Q for i, s in enumerate((4, 3, 4))]
    T = torch.einsum("r,ar,br,cr->abc", torch.tensor([1.0, 5.0, 3.0], dtype=D), *bases)
    G = T.reshape(12, 4).mT
    scores = growth.rank_scores(spec, params, G, 2)["r"]
    close(scores, torch.tensor([25.0, 9.0], dtype=D), 1e-6)
    _, grown = growth.grow_rank(spec, params, 3, gradient=G)
    found = (grown["U1"][:, 1:].mT @ bases[1]).abs()
    assert found.argmax(1).tolist() == [1, 2, 0]


def bonds_of(spec):
    return len(ranks(spec))


def reached(spec, params, G):
    """Squared norm of the part of G along which some change of params moves W."""
    J = jacrev(spec.effective_W)(dict(params))
    columns = torch.cat([t.reshape(G.numel(), -1) for n, t in J.items() if n != "bias"], 1)
    return (orthonormal(columns).mT @ G.reshape(-1)).square().sum()


@pytest.mark.parametrize("spec", EXAMPLES, ids=str)
def test_gradient_beats_chance(spec):
    k = (2, 0) if isinstance(spec, linmaps.Spectral) else 1
    larger_than_best = []
    for seed in range(2):
        params = spec.init(gen(seed), dtype=D)
        G = randn(*spec.effective_W(params).shape, seed=seed + 2)
        larger, grown = growth.grow_rank(spec, params, k, gradient=G)
        gain = reached(larger, grown, G)
        chance = torch.stack([reached(larger, growth.grow_rank(spec, params, k, gen(s))[1], G) for s in range(3)])
        larger_than_best.append(gain >= chance.max() - 1e-9)
        assert gain >= chance.mean() - 1e-9
    assert any(larger_than_best)


@pytest.mark.parametrize(("spec", "metric"), [(s, m) for s in EXAMPLES for m in METRICS], ids=str)
def test_scores_by_brute_force(spec, metric):
    params = spec.init(gen(), dtype=D)
    shape = spec.effective_W(params).shape
    if metric == "matrix" and len(shape) == 3:
        shape = shape[1:]
        spec, params = spec.select(params, 0)
    G = randn(*shape, seed=1)
    k = (2, 0) if isinstance(spec, linmaps.Spectral) else 1
    ridge = 1e-3
    A, B = spd(spec.in_features, 2), spd(spec.out_features, 3)
    damp = lambda M: M + ridge * M.diagonal().mean() * torch.eye(len(M), dtype=D)
    if metric == "none":
        option, mv = None, lambda V: V
    elif metric == "pair":
        option, A, B = (A, B), damp(A), damp(B)
        mv = lambda V: A @ V @ B
    else:
        M = spd(G.numel(), 4)
        option = fisher.PMatDense(M, trees.Layout.of({"W": G}))
        M = damp(M)
        mv = lambda V: (M @ V.reshape(-1)).reshape(shape)
    k = k if bonds_of(spec) < 2 or k != 1 else (1,) + (0,) * (bonds_of(spec) - 1)
    early, scores = (growth.rank_scores(spec, params, G, k, fisher=option, ridge=ridge, n_steps=n) for n in (2, 40))
    larger, grown = growth.grow_rank(spec, params, k, gradient=G, fisher=option, ridge=ridge)
    zero = {"lowrank": ("V", -2), "cp": ("U0", -1), "tucker": ("core", 0), "tt": ("A1", 0), "blocktt": ("A1", 0)}
    name, axis = zero.get(getattr(spec, "factorization", "lowrank"), ("V", -2))
    if isinstance(spec, linmaps.Spectral):
        name, axis = "U", 0
    at, bond = params[name].shape[axis], next(iter(scores))
    J = jacrev(lambda t: larger.effective_W({**grown, name: t}))(grown[name])
    J = J.movedim(axis + (len(shape) if axis >= 0 else 0), 0)
    for j in range(len(scores[bond])):
        block = J[at + j].reshape(*shape, -1).movedim(-1, 0)
        g = (block * G).flatten(1).sum(1)
        H = torch.stack([(block * mv(V)).flatten(1).sum(1) for V in block])
        want = g @ torch.linalg.pinv(H, hermitian=True) @ g
        close(scores[bond][j], want, 1e-7)
        assert 0.3 * want <= early[bond][j] <= want * (1 + 1e-9)
    assert {b: len(s) for b, s in scores.items()} == dict(zip(scores, difference(larger, spec)))


@given(st.integers(1, 3), st.integers(0, 10**6))
def test_directions_in_a_metric_are_the_best(k, seed):
    spec = linmaps.LowRank(5, 4, 1)
    params, G, A, B = spec.init(gen(seed), dtype=D), randn(5, 4, seed=seed + 1), spd(5, seed + 2), spd(4, seed + 3)
    _, grown = growth.grow_rank(spec, params, k, gradient=G, fisher=(A, B), ridge=0.0)
    root = lambda M, p: (lambda e: e[1] * e[0] ** p @ e[1].mT)(torch.linalg.eigh(M))
    white = root(A, -0.5) @ G @ root(B, -0.5)
    N = off(off(white, root(A, 0.5) @ params["U"]).mT, root(B, 0.5) @ params["V"].mT).mT
    new = orthonormal(root(A, 0.5) @ grown["U"][:, 1:])
    close((new.mT @ N).square().sum(), torch.linalg.svdvals(N)[:k].square().sum(), 1e-8)
    with_bias = torch.nn.functional.pad(A, (0, 1, 0, 1), value=7.0)
    _, same = growth.grow_rank(spec, params, k, gradient=G, fisher=(with_bias, B), ridge=0.0)
    assert torch.equal(same["U"], grown["U"])


def test_a_score_is_twice_the_decrease_of_the_quadratic_model():
    spec = linmaps.LowRank(5, 4, 1)
    params, A, B = trees.zeros_like(spec.init(gen(), dtype=D)), spd(5, 2), spd(4, 3)
    G = randn(5, 4, seed=1)
    scores = growth.rank_scores(spec, params, G, 3, fisher=(A, B), ridge=0.0)["r"]
    root = lambda M: torch.linalg.cholesky(torch.linalg.inv(M))
    close(scores, torch.linalg.svdvals(root(A).mT @ G @ root(B))[:3].square(), 1e-9)
    best = -torch.linalg.inv(A) @ G @ torch.linalg.inv(B)
    model = (G * best).sum() + (best * (A @ best @ B)).sum() / 2
    wide, more = linmaps.LowRank(5, 5, 1), torch.nn.functional.pad(G, (0, 1))
    C = torch.block_diag(B, torch.ones(1, 1, dtype=D))
    full = growth.rank_scores(wide, trees.zeros_like(wide.init(gen(), dtype=D)), more, 4, fisher=(A, C), ridge=0.0)["r"]
    close(full.sum() / 2, -model, 1e-9)


@pytest.mark.parametrize("spec", EXAMPLES, ids=str)
def test_where_the_gradient_says_nothing_directions_are_generic(spec):
    params = spec.init(gen(), dtype=D)
    W = spec.effective_W(params)
    slopes = [torch.zeros_like(W), grad(lambda V: (V * W).sum())(W) * 0 + torch.ones_like(W)]
    for G in slopes:
        larger, grown = growth.grow_rank(spec, params, 2, gradient=G)
        close(larger.effective_W(grown), W, 1e-12)
        other = grad(lambda p, s=larger: (s.effective_W(p) * randn(*W.shape, seed=8)).sum())(grown)
        for n, t in params.items():
            if n in ("V", "core", "A1") and other[n].shape != t.shape:
                assert (other[n].abs().sum() - corner(other[n], t).abs().sum()) > 1e-6
        assert all(t.isfinite().all() for t in grown.values())


# --- reduction -------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
def test_low_rank_reduction_is_the_nearest(n, m, seed):
    spec = linmaps.LowRank(n, m, min(n, m), bias=True)
    params = spec.init(gen(seed), dtype=D)
    W = spec.effective_W(params)
    for k in range(1, min(n, m)):
        small, reduced, error = growth.reduce_rank(spec, params, k)
        s = torch.linalg.svdvals(W)
        close((small.effective_W(reduced) - W).norm(), s[small.rank :].norm(), 1e-10)
        close(error, s[small.rank :].norm() / s.norm(), 1e-10)
        assert reduced["bias"] is params["bias"]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", ["lowrank", "cp", "tucker", "tt", "blocktt"])
def test_reported_errors_are_true_and_near_the_best(name, layers):
    spec = F((2, 3), (3, 2), factorization=name, rank=6 if name == "lowrank" else 4, n_layers=layers)
    params = spec.init(gen(), dtype=D)
    W = spec.effective_W(params)
    small, reduced, error = growth.reduce_rank(spec, params, 1)
    close(error, (small.effective_W(reduced) - W).norm() / W.norm(), 1e-10)
    assert {n: tuple(t.shape) for n, t in reduced.items()} == small.shapes()
    best, distance = small.from_matrix(W)
    assert error <= 1.5 * distance / W.norm() + 1e-12
    if name != "cp":
        assert error >= small.violation(W) / W.norm() / math.sqrt(8) - 1e-12
    assert best.keys() == reduced.keys()


def test_terms_are_fitted_again():
    spec = F((4, 3), (3, 4), factorization="cp", rank=4, bias=False)
    better = 0
    for seed in range(5):
        params = spec.init(gen(seed), dtype=D)
        W = spec.effective_W(params)
        sizes = params["weights"].abs() * torch.stack([params[f"U{k}"].norm(dim=0) for k in range(4)]).prod(0)
        kept = sizes.argsort(descending=True)[:3]
        dropped = {n: t[..., kept] for n, t in params.items()}
        small, _, error = growth.reduce_rank(spec, params, 1)
        plain = (small.effective_W(dropped) - W).norm() / W.norm()
        assert error <= plain + 1e-9
        better += bool(error < 0.98 * plain)
    assert better >= 3


def test_reduction_by_more_than_one_bond():
    spec = F((3, 3), (3, 3), factorization="tt", rank=(1, 3, 4, 3, 1), bias=False)
    params = spec.init(gen(), dtype=D)
    for k in itertools.product((0, 1), (0, 2), (0, 1)):
        small, reduced, error = growth.reduce_rank(spec, params, k)
        assert ranks(small) == tuple(a - b for a, b in zip((3, 4, 3), k))
        W = spec.effective_W(params)
        close(error, (small.effective_W(reduced) - W).norm() / W.norm(), 1e-12)
    with pytest.raises(ValueError, match="leave one of each"):
        growth.reduce_rank(spec, params, (3, 0, 0))
    assert ranks(growth.reduce_rank(spec, params, 9)[0]) == (1, 1, 1)
