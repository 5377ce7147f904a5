"""Monarch matrices: the shuffle, the grid of low-rank blocks, the nearest one, default blocks, errors."""

import numpy as np
import pytest
import torch

from linmaps import Monarch
from tests.linmaps.kinds.butterfly import monarch_matrix
from tests.linmaps.zoo import descend, generator, random_params, squared

SPECS = [
    Monarch(16),
    Monarch(8, 4, 2),
    Monarch(4, 12, 4),
    Monarch(6),
    Monarch(12, 18, 6),
    Monarch(5, 3),
    Monarch(6, 6, 6),
]


def matrix(spec, seed=0):
    return torch.randn(spec.in_features, spec.out_features, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_two_block_diagonal_factors_and_a_transposition(spec):
    params = random_params(spec, 0)
    first, second = params["first"], params["second"]
    b, _, q = first.shape
    shuffle = torch.eye(b * q, dtype=torch.float64)[:, torch.arange(b * q).reshape(b, q).T.flatten()]
    want = torch.block_diag(*first) @ shuffle @ torch.block_diag(*second)
    W = spec.effective_W(params)
    assert torch.allclose(W, want, atol=1e-13)
    assert np.allclose(W.numpy(), monarch_matrix(first.numpy(), second.numpy()), atol=1e-13)
    x = matrix(Monarch(3, spec.in_features))
    assert torch.allclose(spec.apply(params, x), x @ want, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "blocks"), [((16,), 4), ((64, 32), 4), ((6,), 2), ((6, 9), 1), ((5,), 1), ((36, 60), 6), ((1, 7), 1)]
)
def test_default_number_of_blocks(sizes, blocks):
    spec = Monarch(*sizes)
    assert spec.n_blocks == blocks
    assert spec.shapes()["first"][0] == blocks


def test_ranks_of_the_blocks():
    spec = Monarch(16, 32)
    W = spec.effective_W(random_params(spec, 0))
    ranks = {int(torch.linalg.matrix_rank(W[i : i + 4, j : j + 8])) for i in range(0, 16, 4) for j in range(0, 32, 8)}
    assert ranks == {1}
    assert torch.linalg.matrix_rank(W) == 16


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_from_matrix_is_the_nearest(spec):
    W = matrix(spec, 3)
    params, distance = spec.from_matrix(W)
    assert distance == pytest.approx(spec.violation(W).item(), abs=1e-12)
    near = spec.effective_W(params)
    assert spec.violation(near) < 1e-12
    # at the nearest member, the residual is orthogonal to all that the factors can change
    slopes = torch.func.grad(lambda p: squared(spec.effective_W(p) - W))(params)
    assert max(t.abs().max() for t in slopes.values()) < 1e-12
    other = descend(spec, lambda V: squared(V - W), 1, 300, 0.05)
    assert squared(spec.effective_W(other) - W) > distance**2 - 1e-9


def test_zero_blocks_can_still_learn():
    spec = Monarch(4)
    params, _ = spec.from_matrix(torch.zeros(4, 4))
    slopes = torch.func.grad(lambda p: (spec.effective_W(p) - 1).square().sum())(params)
    assert slopes["second"].abs().max() > 0.1


def test_one_block_is_any_matrix():
    spec = Monarch(4, 3, 1)
    assert spec.violation(matrix(spec)) == 0
    assert spec.from_matrix(matrix(spec))[1] < 1e-12


def test_fewer_multiplications_than_dense():
    assert Monarch(1024).n_params == 2 * 1024**2 // 32


@pytest.mark.parametrize(
    ("blocks", "error", "text"),
    [
        (4, ValueError, r"Monarch.n_blocks: got 4, expected a divisor of in_features and out_features, \[1, 2, 3, 6\]"),
        (0, ValueError, r"Monarch.n_blocks: got 0, expected a positive int"),
        (2.0, TypeError, r"Monarch.n_blocks: got 2.0, expected a positive int; n_blocks is the third positional"),
        (True, TypeError, r"Monarch.n_blocks: got True, .* bias a keyword"),
    ],
)
def test_blocks_that_do_not_divide(blocks, error, text):
    with pytest.raises(error, match=text):
        Monarch(12, 18, blocks)
