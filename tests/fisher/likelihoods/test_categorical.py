"""Categorical: accurate and differentiable where outputs are extreme, in parts, with masked and ignored classes.  Samples
by quantiles: the frequencies are those of the distribution.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions
from torch.func import grad, hessian, jacfwd, jacrev

from fisher.likelihoods import Bernoulli, Categorical, Poisson, Segmentation, n_columns, root_part
from fisher.likelihoods.poisson import quantile
from tests.fisher.likelihoods.test_likelihoods import logits, outer, targets_of
from tests.laws import close
from tests.oracles import output_fisher

D = torch.float64


@given(st.integers(0, 99), st.integers(1, 5), st.sampled_from([(), (3,), (2, 2)]), st.sampled_from([0.1, 1.0, 30.0]))
def test_categorical_root(seed, classes, positions, scale):
    y = logits(seed, 2, classes, *positions, scale=scale)
    root = Categorical().root(y)
    assert root.shape[1:] == y.shape
    for got, t in zip(outer(root), y):
        close(got, output_fisher(t, "categorical"), 1e-12, "root of H")


@given(st.integers(0, 99), st.integers(2, 4), st.integers(1, 3))
def test_categorical_root_with_classes_last(seed, classes, steps):
    y = logits(seed, 2, steps, classes)
    for got, t in zip(outer(Categorical(class_axis=-1).root(y)), y):
        close(got, output_fisher(t, "categorical", -1), 1e-12, "root of H")


@given(st.integers(0, 99), st.integers(2, 12))
def test_categorical_is_accurate_in_float32_for_confident_outputs(seed, classes):
    """1 - p is never computed as a difference: entries keep their accuracy relative to sqrt(H_ii H_jj)."""
    y = logits(seed, 16, classes, scale=30.0).float()
    got, want = outer(Categorical().root(y)).double(), outer(Categorical().root(y.double()))
    size = want.diagonal(dim1=1, dim2=2).sqrt()
    normal = (size[:, :, None] * size[:, None]) > 1e-30  # above the smallest numbers of float32
    error = (got - want).abs() / (size[:, :, None] * size[:, None]).clamp_min(1e-30)
    assert error[normal].max() <= 1e-4
    t = y.argmax(1)
    single, double = Categorical().score(y, t).double(), Categorical().score(y.double(), t)
    shown = double.abs() > 1e-30
    assert ((single - double).abs() / double.abs().clamp_min(1e-30))[shown].max() <= 1e-4


@pytest.mark.parametrize("which", [Categorical(), Bernoulli()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_derivatives_of_any_order_are_finite_for_extreme_outputs(which, dtype, scale):
    y = logits(0, 4, 5, scale=scale).to(dtype)
    for fn in (lambda y: (which.root(y) ** 2).sum(), lambda y: which.root(y).sum()):
        along = lambda s, fn=fn: fn(y * (1 + s))
        for mode in (jacrev, jacfwd):
            d = along
            for order in range(1, 4):
                d = mode(d)
                assert d(torch.zeros((), dtype=dtype)).isfinite(), f"order {order}"
    assert hessian(lambda y: which.root(y).sum())(y).isfinite().all()


def test_a_masked_class_is_no_class():
    y = torch.tensor([[0.3, -math.inf, 1.0, -math.inf]], dtype=D)
    h = outer(Categorical().root(y))[0]
    kept = torch.tensor([0, 2])
    close(h[kept][:, kept], outer(Categorical().root(y[:, kept]))[0], 1e-14, "the others")
    assert torch.count_nonzero(h) == 4
    assert grad(lambda y: Categorical().root(y).sum())(y).isfinite().all()


def test_a_part_of_the_root_needs_the_memory_of_a_part():
    """1,000 classes at 4,096 positions are 4,092,... columns of 16 MB each: eight of them must not need the rest."""
    y = logits(0, 1, 1000, 64, 64).float()
    assert n_columns(Categorical(), y) == 999 * 4096
    part = root_part(Categorical(), y, 4090, 4098)
    want = Categorical().root(y[:, :, 0, :2])
    assert part.shape == (8, 1, 1000, 64, 64)
    close(part[6][0, :, 0, 0], want[2][0, :, 0], 1e-5, "column 1 of position 0")
    assert torch.count_nonzero(part[6]) == torch.count_nonzero(part[6][0, :, 0, 0])


def test_sampled_classes_have_their_probabilities():
    y, n = logits(0, 1, 4), 100_000
    which = Categorical()
    g = which.sample(y, which.noise((n, 1, 4), torch.Generator().manual_seed(0), y))[:, 0]
    drawn = (g > 0).nonzero()[:, 1]
    close(g, which.score(y.expand(n, 4), drawn), 1e-15, "the score of what was drawn")
    p = torch.softmax(y[0], 0)
    assert ((drawn.bincount() / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_ignored_positions_have_no_score():
    y = logits(0, 2, 3, 4)
    t = targets_of(Categorical(), y)
    t[0, 1] = t[1] = -100
    g = Categorical().score(y, t)
    assert torch.count_nonzero(g[0, :, 1]) == torch.count_nonzero(g[1]) == 0
    assert torch.equal(Categorical().log_prob(y, t)[1], torch.zeros((), dtype=D))
    close(grad(lambda y: Categorical().log_prob(y, t).sum())(y), g, 1e-14, "score")
    other = Segmentation(ignore_index=255)
    close(other.score(y, torch.where(t == -100, 255, t).to(torch.uint8)), g, 0.0, "another index")


# --- sampling by quantiles --------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.sampled_from([-20.0, -2.0, 0.0, 2.0, 5.0, 10.0]))
def test_quantiles_of_counts_invert_their_distribution(seed, lograte):
    """P(T <= t - 1) < u <= P(T <= t), with the probabilities summed term by term."""
    rate = torch.tensor(math.exp(lograte), dtype=D)
    u = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=D)
    t = quantile(rate, u)
    support = torch.arange(int(rate + 20 * rate.sqrt() + 40), dtype=D)
    below = torch.cat([torch.zeros(1, dtype=D), distributions.Poisson(rate).log_prob(support).exp().cumsum(0)])
    assert (t == t.floor()).all()
    assert (below[t.long()] <= u + 1e-9).all()
    assert (u <= below[t.long() + 1] + 1e-9).all()


def test_equal_steps_of_noise_give_the_exact_frequencies():
    """With noise (i + 1/2) / n each target comes n p times, rounded: nothing is left to chance."""
    n = 10_000
    noise = (torch.arange(n, dtype=D).reshape(n, 1, 1) + 0.5) / n
    y = torch.tensor([[0.7]], dtype=D)
    ones = (Bernoulli().sample(y, noise) > 0).sum()
    assert abs(ones - n * torch.sigmoid(y)) <= 1
    counts = (Poisson().sample(y, noise) + y.exp()).round().long().flatten().bincount()
    want = n * distributions.Poisson(y.exp()).log_prob(torch.arange(len(counts), dtype=D)).exp()[0]
    assert ((counts - want).abs() <= 1).all()
