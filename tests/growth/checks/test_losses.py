"""Losses of a sample, their gradient, and what is refused."""

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from growth.checks.losses import cross_entropy, gradient, per_sample, squared_error

G = torch.Generator().manual_seed(0)
Y, T = torch.randn(5, 3, 4, generator=G, dtype=torch.float64), torch.randint(0, 4, (5, 3), generator=G)


def test_cross_entropy_is_that_of_torch():
    want = F.cross_entropy(Y.transpose(1, 2), T, reduction="none").sum(1)
    torch.testing.assert_close(cross_entropy(Y, T), want)
    torch.testing.assert_close(vmap(cross_entropy)(Y[:, None], T[:, None])[:, 0], want)
    torch.testing.assert_close(cross_entropy(Y[:, 0], T[:, 0]), F.cross_entropy(Y[:, 0], T[:, 0], reduction="none"))
    ignored = T.clone()
    ignored[2] = -100
    torch.testing.assert_close(cross_entropy(Y, ignored)[2], torch.zeros((), dtype=torch.float64))


def test_the_gradient_is_that_of_the_sum():
    onehot = F.one_hot(T, 4)
    torch.testing.assert_close(gradient(cross_entropy, T)(Y)[0], Y.softmax(-1) - onehot)
    torch.testing.assert_close(gradient(squared_error, Y + 1)(Y)[0], -torch.ones_like(Y))


@pytest.mark.parametrize(
    ("loss", "y", "t", "message"),
    [
        ("squared_error", Y[:, 0, :1], Y[:, 0, 0], r"target has shape \(5,\), expected that of the output \(5, 1\)"),
        ("squared_error", Y, None, "NoneType"),
        ("cross_entropy", Y, T[:, 0], "expected integer classes"),
        ("cross_entropy", Y, T + 1, "to 4, expected 0 to 3"),
        ("cross_entropy", Y, -T - 1, "expected 0 to 3"),
        (lambda y, t: y, Y, T, r"returned shape \(5, 3, 4\), expected \(5,\)"),
        (lambda y, t: y.sum(), Y, T, "one loss per sample"),
        (lambda y, t: 0.0, Y, T, "returned float"),
    ],
)
def test_refused(loss, y, t, message):
    with pytest.raises(ValueError, match=message):
        per_sample(loss)(y, t)


def test_unknown_losses():
    with pytest.raises(ValueError, match=r"got 'mse', expected one of \['cross_entropy', 'squared_error'\]"):
        per_sample("mse")
    with pytest.raises(TypeError, match="got int"):
        per_sample(3)
