"""Packed matrices against loops; places kept between calls outlive the transform in which they were made."""

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, vmap

from linmaps.numerics import packing
from linmaps.numerics.packing import pack_upper, skew, symmetric, unpack_upper, unweave, weave


def filled(packed, n, diagonal, below):
    W = torch.zeros(n, n, dtype=packed.dtype)
    values = iter(packed.tolist())
    for i in range(n):
        for j in range(i + diagonal, n):
            W[i, j] = next(values)
            W[j, i] = W[i, j] if i == j else below * W[i, j]
    return W


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
def test_against_a_loop(n):
    full, strict = torch.arange(1.0, n * (n + 1) // 2 + 1), torch.arange(1.0, n * (n - 1) // 2 + 1)
    assert torch.equal(symmetric(full, n), filled(full, n, 0, 1.0))
    assert torch.equal(symmetric(strict, n, diagonal=False), filled(strict, n, 1, 1.0))
    assert torch.equal(skew(strict, n), filled(strict, n, 1, -1.0))
    assert torch.equal(skew(strict, n, diagonal=torch.tensor(-2.0)), filled(strict, n, 1, -1.0) - 2 * torch.eye(n))
    for packed, diagonal in ((full, 0), (strict, 1)):
        assert torch.equal(unpack_upper(packed, n, diagonal=diagonal), filled(packed, n, diagonal, 0.0))
        assert torch.equal(pack_upper(filled(packed, n, diagonal, 7.0), diagonal=diagonal), packed)


def test_places_made_inside_a_transform_are_good_outside_of_it():
    packing._kept.cache_clear()
    p = torch.arange(6.0)
    nested = vmap(grad(lambda p: jacfwd(lambda q: symmetric(q, 3).sin())(p).sum()))(p[None])
    assert torch.equal(symmetric(p, 3), filled(p, 3, 0, 1.0))
    assert torch.equal(vmap(grad(lambda p: jacfwd(lambda q: symmetric(q, 3).sin())(p).sum()))(p[None]), nested)
    assert packing._kept.cache_info().currsize == 1


def test_places_are_not_kept_where_tensors_are_only_traced_or_large():
    from torch._subclasses.fake_tensor import FakeTensorMode

    packing._kept.cache_clear()
    with FakeTensorMode():
        assert symmetric(torch.zeros(6), 3).shape == (3, 3)
    n = packing.KEPT_SIZE + 1
    symmetric(torch.zeros(n * (n + 1) // 2), n)
    assert packing._kept.cache_info().currsize == 0
    compiled = torch.compile(lambda p: symmetric(p, 3) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.arange(6.0)), 2 * symmetric(torch.arange(6.0), 3))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_weaving_against_a_loop(n):
    diagonal, off = -torch.arange(1.0, n + 1), torch.arange(1.0, n * (n - 1) + 1).reshape(n, n - 1)
    want = np.zeros((n, n))
    for i in range(n):
        rest = iter(off[i].tolist())
        for j in range(n):
            want[i, j] = diagonal[i] if i == j else next(rest)
    W = weave(diagonal, off)
    assert np.array_equal(W.numpy(), want)
    assert all(torch.equal(a, b) for a, b in zip(unweave(W), (diagonal, off)))
