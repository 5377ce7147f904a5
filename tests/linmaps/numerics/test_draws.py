"""Numbers that are hashes of their places."""

import torch
from torch.func import vmap

from linmaps.numerics.draws import hashed_normal

CPU = torch.device("cpu")


def test_hashed_numbers_are_normal_and_do_not_depend_on_each_other():
    x = torch.stack([hashed_normal(seed, (200, 50), CPU) for seed in range(10)]).reshape(10, -1)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * (variance / x.numel()) ** 0.5
    between = x @ x.mT / x.shape[1] - torch.eye(10)
    assert between.abs().max() < 0.05, "seeds are independent"
    for shift in (1, 2, 50, 5000):
        assert (x[:, shift:] * x[:, :-shift]).mean().abs() < 0.02, "places are"


def test_a_seed_means_the_same_numbers_everywhere():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = hashed_normal(3, (4, 5), CPU)
    assert torch.equal(first, hashed_normal(3, (4, 5), CPU))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(vmap(lambda t: t + hashed_normal(3, (4, 5), t.device))(torch.zeros(1, 1).double())[0], first)
    largest = 2**31 - 1
    assert not torch.equal(hashed_normal(largest, (4, 5), CPU), hashed_normal(largest - 1, (4, 5), CPU))
