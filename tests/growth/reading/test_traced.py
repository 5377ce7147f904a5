"""Choices by numbers are refused while a graph is made, or made by what needs none."""

import pytest
import torch

import fisher
import growth
from linmaps import trees
from tests.growth.rows_gated import packed
from tests.laws import close


def test_an_activation_that_is_found_among_numbers_is_asked_for():
    net = packed()
    layers = fisher.LayerCollection.from_function(net.f, net.params, net.x)
    count = lambda pair: trees.compiled(
        lambda p, x: growth.statistics(net.f, p, (x, net.target), pair, layers=layers), backend="eager"
    )
    with pytest.raises(ValueError, match=r"activation is found among numbers.*activation="):
        count(net.pair)(net.params, net.x)


def test_losses_that_mix_examples_and_take_one_are_those_of_one():
    """A loss that takes one example and a batch alike, but mixes examples of a batch: which is meant shows in numbers."""
    p, x = torch.ones(3, dtype=torch.float64), torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    mixes = lambda p, x: (x - x.mean()).square() @ p
    loss = lambda p, x: mixes(p, x)
    want = fisher.example_gradients(loss, p, (x,)).to_torch()
    got = trees.compiled(lambda p, x: fisher.example_gradients(loss, p, (x,)).to_torch(), backend="eager")(p, x)
    close(got, want, 1e-12, "of single examples")


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid])
def test_a_constant_that_nothing_compensates_is_refused_in_a_graph_too(activation):
    f = lambda p, x: activation(x @ p["a"]["weight"].T) @ p["b"]["weight"].T
    p = {"a": {"weight": torch.ones(2, 3)}, "b": {"weight": torch.eye(2)}}
    x, t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 2
    layers = fisher.LayerCollection.from_function(f, p, x)
    count = trees.compiled(
        lambda p, x, t: growth.statistics(f, p, (x, t), growth.Pair("a", "b"), layers=layers), backend="eager"
    )
    if activation is torch.tanh:
        close(
            trees.leaves(count(p, x, t)), trees.leaves(growth.statistics(f, p, (x, t), growth.Pair("a", "b"))), 1e-6, ""
        )
    else:
        with pytest.raises(ValueError, match=r"the activation is 0\.5 at 0"):
            count(p, x, t)
