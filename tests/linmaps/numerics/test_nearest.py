"""Nearest points: derivatives are those of the differences, where one entry is left, where more are, and far away."""

import pytest
import torch
from torch.func import jvp, vmap

from linmaps.numerics.nearest import onto_l1_ball, simplex

NEAREST = {"l1 ball": lambda W: onto_l1_ball(W, 1.5), "simplex": simplex, "simplex of 0.7": lambda W: simplex(W, 0.7)}
ROWS = [[3.0, 0.2, -0.1], [3.0, -2.8, 0.1], [0.5, 0.4, 0.3], [1.2, 1.1, 0.0], [1.5, 0.1, 0.0], [-0.4, -0.9, -3.0]]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("name", NEAREST)
def test_derivatives_are_those_of_the_differences(name, row):
    at, nearest = torch.tensor([row], dtype=torch.float64) + 1e-3, NEAREST[name]
    moved = lambda along: (nearest(at + 1e-6 * along) - nearest(at - 1e-6 * along)) / 2e-6
    for along in torch.eye(3, dtype=torch.float64)[:, None]:
        torch.testing.assert_close(jvp(nearest, (at,), (along,))[1], moved(along), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NEAREST)
def test_no_neighbour_in_the_set_is_nearer(name):
    g = torch.Generator().manual_seed(0)
    W = 2 * torch.randn(20, 5, generator=g, dtype=torch.float64)
    X, total = NEAREST[name](W), 0.7 if name.endswith("0.7") else 1.0
    others = vmap(NEAREST[name])(2 * torch.randn(200, 20, 5, generator=g, dtype=torch.float64))
    away = lambda Y: (W / total - Y).square().sum(-1) if name.startswith("simplex") else (W - Y).square().sum(-1)
    assert (away(X) <= away(others) + 1e-12).all()
