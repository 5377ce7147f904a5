"""Soft permutations: every hard choice, known permutations, the interpolation, training, errors."""

import itertools

import numpy as np
import pytest
import torch
from torch.func import vmap

from linmaps import Permutation
from tests.linmaps.kinds.butterfly import permutation_matrix
from tests.linmaps.zoo import descend, generator, random_params, squared

D = torch.float64


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 64])
def test_the_levels_one_by_one(n):
    spec = Permutation(n)
    params = random_params(spec, 0)
    want = permutation_matrix(params["logits"].sigmoid().numpy(), n)
    assert np.abs(spec.effective_W(params).numpy() - want).max() < 1e-15
    for rows in (1, 300):
        x = torch.randn(rows, n, generator=generator(1), dtype=D)
        assert np.abs(spec.apply(params, x).numpy() - x.numpy() @ want).max() < 1e-13


@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_choice_is_a_permutation_that_saturated_logits_reach(n):
    spec = Permutation(n)
    shape = spec.shapes()["logits"]
    x = torch.randn(3, n, generator=generator(0), dtype=D)
    for signs in itertools.product((-1.0, 1.0), repeat=shape[0] * shape[1]):
        params = {"logits": 60 * torch.tensor(signs, dtype=D).reshape(shape)}
        order = spec.argmax(params)
        assert order.dtype == torch.int64
        assert sorted(order.tolist()) == list(range(n))
        assert torch.allclose(x[..., order], x @ spec.effective_W(params), atol=1e-14)


@pytest.mark.parametrize("n", [4, 8, 32, 256])
def test_bit_reversal(n):
    spec = Permutation(n)
    logits = torch.tensor([1.0, -1.0, -1.0]).expand(spec.shapes()["logits"])
    bits = n.bit_length() - 1
    assert spec.argmax({"logits": logits}).tolist() == [int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)]


def test_no_choice_is_the_identity():
    spec = Permutation(8)
    assert torch.equal(spec.argmax({"logits": torch.zeros(2, 3)}), torch.arange(8))
    assert torch.allclose(spec.effective_W({"logits": torch.full((2, 3), -60.0, dtype=D)}), torch.eye(8, dtype=D))


def test_the_smallest_sizes():
    assert Permutation(1).shapes() == {"logits": (0, 3)}
    assert torch.equal(Permutation(1).effective_W({"logits": torch.zeros(0, 3)}), torch.ones(1, 1))
    assert Permutation(1).argmax({"logits": torch.zeros(0, 3)}).tolist() == [0]
    assert Permutation(2).shapes() == {"logits": (1, 1)}
    assert torch.equal(Permutation(2).effective_W({"logits": torch.zeros(1, 1)}), torch.full((2, 2), 0.5))
    assert Permutation(2).argmax({"logits": torch.ones(1, 1)}).tolist() == [1, 0]
    assert Permutation(16).shapes() == {"logits": (3, 3)}


def test_argmax_of_an_ensemble():
    spec = Permutation(8)
    stacked = {"logits": torch.randn(5, 2, 3, generator=generator(0))}
    orders = vmap(spec.argmax)(stacked)
    assert orders.dtype == torch.int64
    assert all(torch.equal(orders[i], spec.argmax({"logits": stacked["logits"][i]})) for i in range(5))


def test_doubly_stochastic_after_a_thousand_adam_steps():
    spec = Permutation(16)
    target = torch.randn(16, 16, generator=generator(3), dtype=D)
    W = spec.effective_W(descend(spec, lambda W: squared(W - target), 0, 1000, 0.05))
    assert W.min() >= 0
    assert max((W.sum(0) - 1).abs().max(), (W.sum(1) - 1).abs().max()) < 1e-14


def test_training_finds_a_permutation():
    spec = Permutation(8)
    order = spec.argmax(random_params(spec, 7))
    target = torch.eye(8, dtype=D)[:, order]
    found = [spec.argmax(descend(spec, lambda W: squared(W - target), seed, 300, 0.1)) for seed in range(5)]
    assert any(torch.equal(f, order) for f in found)


def test_violation():
    spec = Permutation(2)
    assert spec.violation(torch.tensor([[0.3, 0.7], [0.7, 0.3]])) == pytest.approx(0, abs=1e-6)
    assert spec.violation(torch.tensor([[2.0, -1.0], [-1.0, 2.0]])).item() == pytest.approx(2**0.5)
    assert spec.violation(torch.zeros(2, 2)).item() == pytest.approx(2)


@pytest.mark.parametrize(("n", "nearest"), [(3, "2 and 4"), (6, "4 and 8"), (1000, "512 and 1024")])
def test_sizes_are_powers_of_two(n, nearest):
    with pytest.raises(ValueError, match=f"Permutation.in_features: got {n}, .* a power of two; .* are {nearest}"):
        Permutation(n)


def test_argmax_checks_its_params():
    with pytest.raises(ValueError, match=r"leaf logits has shape \(3, 3\), expected \(2, 3\)"):
        Permutation(8).argmax({"logits": torch.zeros(3, 3)})
