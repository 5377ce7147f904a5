"""Laws of singular vectors: the best product of a rank, and its derivatives beside those of the whole decomposition."""

import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

from linmaps.numerics.singular import svd, truncated

D = torch.float64
SHAPES = [(4, 5, 2), (5, 4, 1), (4, 4, 3), (3, 6, 3), (6, 2, 1), (1, 3, 1)]


def randn(*shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def product(M, rank):
    left, right = truncated(M, rank)
    return left @ right


def cut(M, rank):
    U, s, Vh = svd(M)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.complex128])
@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_the_best_product_of_a_rank(m, n, rank, dtype):
    M = randn(m, n, dtype=dtype)
    left, right = truncated(M, rank)
    assert (left.shape, right.shape) == ((m, rank), (rank, n))
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    want = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    assert (left @ right - want).norm() < 32 * torch.finfo(dtype).eps * s[0]
    for size in (1e-30, 1e30):
        assert (product(size * M, rank) / size - want).norm() < 32 * torch.finfo(dtype).eps * s[0]


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_derivatives_to_the_second_order(m, n, rank):
    M = randn(m, n)
    for derivative in (jacrev, jacfwd):
        got, want = (derivative(lambda M, fn=fn: fn(M, rank))(M) for fn in (product, cut))
        assert torch.allclose(got, want, atol=1e-11)
    got, want = (hessian(lambda M, fn=fn: fn(M, rank).sin().sum())(M) for fn in (product, cut))
    assert torch.allclose(got, want, atol=1e-10)


def test_ensembles_and_equal_singular_values():
    Ms = randn(3, 4, 5)
    assert torch.allclose(vmap(lambda M: product(M, 2))(Ms), torch.stack([product(M, 2) for M in Ms]), atol=1e-13)
    for M in (torch.eye(3, dtype=D), torch.zeros(3, 4, dtype=D)):
        assert jacrev(lambda M: product(M, 2))(M).isfinite().all()
