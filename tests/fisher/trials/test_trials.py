"""Laws of trials: what is one number or row per example is taken, what mixes, guesses or sums is refused by its cause."""

import pytest
import torch
from torch.nn import functional as F

from fisher.trials.functions import function
from fisher.trials.means import losses, mean_loss
from fisher.trials.modes import adjoint
from fisher.trials.once import still_sound

D = torch.float64
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=D)
W = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=D)}

FINE = {
    "plain": lambda p, x: torch.tanh(x @ p["w"]),
    "softmax over features": lambda p, x: (x @ p["w"]).softmax(-1),
    "layer norm": lambda p, x: F.layer_norm(x, (3,)) @ p["w"],
    "batch norm in eval": lambda p, x: F.batch_norm(x, torch.zeros(3, dtype=D), torch.ones(3, dtype=D)) @ p["w"],
    "constant": lambda p, x: torch.zeros(len(x), 2, dtype=D) + 0 * p["w"].sum(),
}
MIXED = {
    "mean": lambda p, x: (x - x.mean(0)) @ p["w"],
    "softmax over examples": lambda p, x: (x @ p["w"]).softmax(0),
    "batch norm in train": lambda p, x: F.batch_norm(x, None, None, training=True) @ p["w"],
    "rolled": lambda p, x: x.roll(1, 0) @ p["w"],
    "sorted": lambda p, x: x.sort(0).values @ p["w"],
    "its first example": lambda p, x: (x + x[:1]) @ p["w"],
    "its last example, values alone": lambda p, x: (x + x[-1:].detach()) @ p["w"],
    "whether one is large": lambda p, x: torch.where((x > 1).any(), x, -x) @ p["w"],
}


@pytest.mark.parametrize(
    "name", [*FINE, *(n for n in MIXED if n != "whether one is large")]
)  # which one, one run may miss
def test_one_run_more_tells_those_that_mix_as_all_trials_do(name):
    f = {**FINE, **MIXED}[name]
    run = lambda: still_sound(f, W, X, f(W, X))
    if name in FINE:
        run()
        return
    with pytest.raises(ValueError, match="depends on other examples"):
        run()


@pytest.mark.parametrize("name", FINE)
def test_examples_that_are_apart_are_taken_as_they_are(name):
    assert torch.equal(function(FINE[name], W, X), FINE[name](W, X))


@pytest.mark.parametrize("name", MIXED)
def test_examples_that_mix_are_refused(name):
    with pytest.raises(ValueError, match="the output of one example depends on other examples"):
        function(MIXED[name], W, X)


def test_a_random_function_is_refused():
    with pytest.raises(ValueError, match="is random"):
        function(lambda p, x: F.dropout(x) @ p["w"], W, X)


@pytest.mark.parametrize("f", [lambda p, x: (x @ p["w"]).sum(), lambda p, x: (x @ p["w"])[:2]])
def test_one_row_per_example(f):
    with pytest.raises(ValueError, match="one row per example"):
        function(f, W, X)


def squares(p, x, t):
    return ((x @ p["w"] - t) ** 2).sum(-1)


T = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=D)
MEANS = {
    "of each example": squares,
    "their mean": lambda p, x, t: squares(p, x, t).mean(),
    "of each position too": lambda p, x, t: F.mse_loss(x @ p["w"], t),
}
NO_MEANS = {
    "their sum": lambda p, x, t: squares(p, x, t).sum(),
    "a weighted mean": lambda p, x, t: (squares(p, x, t) * t[:, 0].abs()).sum() / t[:, 0].abs().sum(),
    "a root of the mean": lambda p, x, t: squares(p, x, t).mean().sqrt(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_over_examples_is_taken(name):
    mean_loss(MEANS[name], W, [(X, T)])


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_is_refused(name):
    with pytest.raises(ValueError, match=r"^loss\(params, x, y\): "):
        mean_loss(NO_MEANS[name], W, [(X, T)])


def test_a_loss_of_outputs_is_one_number_for_each_example():
    y = X @ W["w"]
    losses(lambda y, t: ((y - t) ** 2).sum(-1), y, (T,))
    with pytest.raises(ValueError, match=r"expected \[5\], the loss of each example"):
        losses(lambda y, t: ((y - t) ** 2).mean(), y, (T,))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_inner_products_are_compared_at_their_size(size):
    one = torch.tensor(size, dtype=D)
    assert adjoint(one, one * (1 + 1e-12), one)
    assert not adjoint(one, one * 1.01, one)
