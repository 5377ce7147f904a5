"""Products with tensorized matrices against einsum on the whole tensor; norms without it; no einsum, any number of modes."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

from linmaps.factorized.tensors.chains import (
    blocktt_apply,
    blocktt_matrix,
    cp_apply,
    cp_matrix,
    tt_apply,
    tt_matrix,
    tucker_apply,
    tucker_matrix,
)
from linmaps.factorized.tensors.norms import cp_inner, tt_inner, tucker_inner

D = torch.float64
SHAPES = [((3, 2), (2, 4)), ((5,), (3,)), ((2, 3, 2), (4,)), ((2,), (3, 1, 2)), ((1, 4), (2, 2, 3))]
LETTERS = "abcdefgh"


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cp(outs, ins, dtype):
    factors = [randn(s, 3, seed=k, dtype=dtype) for k, s in enumerate((*outs, *ins))]
    p, weights = len(outs), randn(3, seed=50, dtype=dtype)
    letters = LETTERS[: len(factors)]
    T = np.einsum(
        ",".join(["r", *(f"{c}r" for c in letters)]) + "->" + letters, weights.numpy(), *(U.numpy() for U in factors)
    )
    args = (weights, factors[:p], factors[p:])
    return T, lambda x: cp_apply(x, *args), cp_matrix(*args), cp_inner(weights, factors, weights, factors).real


def tucker(outs, ins, dtype):
    ranks = [min(s, 2) for s in (*outs, *ins)]
    core = randn(*ranks, seed=50, dtype=dtype)
    factors = [randn(s, r, seed=k, dtype=dtype) for k, (s, r) in enumerate(zip((*outs, *ins), ranks))]
    p, n = len(outs), len(factors)
    subscripts = LETTERS[:n].upper() + "," + ",".join(a + a.upper() for a in LETTERS[:n]) + "->" + LETTERS[:n]
    T = np.einsum(subscripts, core.numpy(), *(U.numpy() for U in factors))
    args = (core, factors[:p], factors[p:])
    return T, lambda x: tucker_apply(x, *args), tucker_matrix(*args), tucker_inner(core, factors, core, factors).real


def tt(outs, ins, dtype):
    sizes = (*outs, *ins)
    ranks = [1, *(k % 3 + 1 for k in range(1, len(sizes))), 1]
    cores = [randn(ranks[k], s, ranks[k + 1], seed=k, dtype=dtype) for k, s in enumerate(sizes)]
    T = np.ones((1, 1), dtype=cores[0].numpy().dtype)
    for core in cores:
        T = np.tensordot(T, core.numpy(), axes=(-1, 0))
    T = T.reshape(sizes)
    args = (cores[: len(outs)], cores[len(outs) :])
    return T, lambda x: tt_apply(x, *args), tt_matrix(*args), tt_inner(cores, cores).real


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize(("outs", "ins"), SHAPES)
@pytest.mark.parametrize("build", [cp, tucker, tt])
def test_against_the_whole_tensor(build, outs, ins, dtype):
    T, apply, W, squared = build(outs, ins, dtype)
    want = T.reshape(math.prod(outs), math.prod(ins)).T
    assert np.abs(W.numpy() - want).max() < 1e-13
    assert squared.item() == pytest.approx(np.abs(T**2).sum(), rel=1e-12)
    for rows in (0, 1, 4):
        x = randn(rows, math.prod(ins), seed=9, dtype=dtype)
        y = apply(x)
        assert y.shape == (rows, math.prod(outs))
        assert torch.allclose(y, x @ W, atol=1e-12)
    xs = randn(3, 2, math.prod(ins), seed=8, dtype=dtype)
    assert torch.allclose(vmap(apply)(xs), xs @ W, atol=1e-12)


@pytest.mark.parametrize("dtype", [D, torch.complex128])
@pytest.mark.parametrize(
    ("outs", "ins"), [((3, 2), (2, 4)), ((5,), (3,)), ((2, 3, 2), (4, 1, 3)), ((2,) * 4, (3,) * 4)]
)
def test_block_trains(outs, ins, dtype):
    d = len(outs)
    ranks = [1, *(k % 3 + 1 for k in range(1, d)), 1]
    cores = [randn(ranks[k], outs[k], ins[k], ranks[k + 1], seed=k, dtype=dtype) for k in range(d)]
    T = np.ones((1, 1), dtype=cores[0].numpy().dtype)
    for core in cores:
        T = np.tensordot(T, core.numpy(), axes=(-1, 0))
    T = T.reshape([s for pair in zip(outs, ins) for s in pair])
    want = T.transpose([2 * k + 1 for k in range(d)] + [2 * k for k in range(d)]).reshape(
        math.prod(ins), math.prod(outs)
    )
    W = blocktt_matrix(cores)
    assert np.abs(W.numpy() - want).max() < 1e-12
    assert tt_inner(cores, cores).real.item() == pytest.approx(np.abs(T**2).sum(), rel=1e-12)
    for rows in (0, 1, 4):
        x = randn(rows, math.prod(ins), seed=9, dtype=dtype)
        assert torch.allclose(blocktt_apply(x, cores), x @ W, atol=1e-12)


def test_more_modes_than_an_einsum_has_letters():
    n = 30
    x = randn(2, 1)
    factors = [randn(1, 2, seed=k) for k in range(2 * n)]
    want = x * (torch.stack(factors).prod(0).sum())
    assert torch.allclose(cp_apply(x, torch.ones(2, dtype=D), factors[:n], factors[n:]), want)
    cores = [randn(1 if k == 0 else 2, 1, 1, 1 if k == 59 else 2, seed=k) / 2 for k in range(60)]
    assert torch.allclose(blocktt_apply(x, cores), x @ blocktt_matrix(cores))


def test_inner_products():
    a, b = [[randn(s, r, seed=s + r, dtype=torch.complex128) for s in (2, 3, 4)] for r in (2, 3)]
    wa, wb = randn(2, dtype=torch.complex128), randn(3, seed=1, dtype=torch.complex128)
    Ta = np.einsum("r,ar,br,cr->abc", wa, *(t.numpy() for t in a))
    Tb = np.einsum("r,ar,br,cr->abc", wb, *(t.numpy() for t in b))
    assert cp_inner(wa, a, wb, b).item() == pytest.approx((Ta.conj() * Tb).sum())
    left, right = [[randn(1, 2, r), randn(r, 3, 1, seed=r)] for r in (2, 3)]
    Tl, Tr = [np.tensordot(c[0].numpy(), c[1].numpy(), axes=(-1, 0)) for c in (left, right)]
    assert tt_inner(left, right).item() == pytest.approx((Tl * Tr).sum())
