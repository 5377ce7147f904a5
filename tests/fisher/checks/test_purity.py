"""Purity: a random function is found by two runs on a few examples, as few as it takes."""

import pytest
import torch

from fisher.checks.purity import steady


@pytest.mark.parametrize(("size", "count"), [(1, 16), (255, 16), (512, 8), (5000, 4)])
def test_of_large_examples_few_are_run(size, count):
    seen = []

    def f(p, x):
        seen.append(len(x))
        return x * p

    steady(f, torch.ones(()), torch.ones(20, size))
    assert seen == [count, count]


def test_fewer_examples_than_that_are_all_run():
    steady(lambda p, x: x["a"] * p, torch.ones(()), {"a": torch.ones(2, 9000), "b": torch.ones(2)})
    steady(lambda p, x: x * p, torch.ones(()), torch.ones(0, 3))


@pytest.mark.parametrize("size", [1, 10000])
def test_noise_of_any_generator_is_found(size):
    own = torch.Generator().manual_seed(0)
    for draw in (torch.rand_like, lambda x: torch.rand(x.shape, generator=own)):
        with pytest.raises(ValueError, match="is random"):
            steady(lambda p, x, draw=draw: x * p + draw(x), torch.ones(()), torch.ones(20, size))
