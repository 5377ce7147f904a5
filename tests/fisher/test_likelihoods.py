"""Likelihoods: columns are a root of the output Fisher, also where logits are extreme; samples are unbiased."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad

from fisher.columns import chunks, estimator
from fisher.likelihoods import Categorical, Gaussian, likelihood
from tests.laws import close
from tests.oracles import output_fisher

D = torch.float64


def logits(seed, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def outer(columns):
    """sum over columns of r r' for each example, outputs flattened."""
    flat = columns.flatten(2)
    return torch.einsum("kbi,kbj->bij", flat, flat)


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


def test_categorical_root_is_accurate_in_float32_for_confident_outputs():
    """1 - p is never computed as a difference: rows of size 1e-12 keep their accuracy relative to sqrt(H_ii H_jj)."""
    y = torch.tensor([[30.0, 2.0, 1.0], [-20.0, 5.0, 9.0]])
    got, want = outer(Categorical().root(y)).double(), outer(Categorical().root(y.double()))
    size = want.diagonal(dim1=1, dim2=2).sqrt()
    assert ((got - want).abs() <= 3e-5 * size[:, :, None] * size[:, None]).all()
    assert size.min() < 1e-6


def test_categorical_root_is_differentiable_for_extreme_logits():
    g = grad(lambda y: (Categorical().root(y) ** 2).sum())(torch.tensor([[80.0, 0.0, -80.0]], dtype=D))
    assert g.isfinite().all()


@given(st.integers(0, 99), st.floats(0.1, 10.0), st.sampled_from([(3,), (2, 2)]))
def test_gaussian_root(seed, variance, shape):
    y = logits(seed, 2, *shape)
    for got, t in zip(outer(Gaussian(variance).root(y)), y):
        close(got, torch.eye(t.numel(), dtype=D) / variance, 1e-12, "root of H")


@pytest.mark.parametrize("which", [Categorical(), Gaussian(2.0)])
@pytest.mark.parametrize("positions", [(), (2,)])
def test_samples_are_unbiased(which, positions):
    """The mean of g g' over 200,000 draws is H within five standard errors, entry by entry."""
    y = logits(0, 2, 3, *positions)
    generator = torch.Generator().manual_seed(1)
    g = which.sample(y, which.noise((200_000, *y.shape), generator, y)).flatten(2)
    products = g[:, :, :, None] * g[:, :, None, :]
    error = (products.mean(0) - outer(which.root(y))).abs()
    assert (error <= 5 * products.std(0) / 200_000**0.5 + 1e-12).all()
    assert (g.mean(0).abs() <= 5 * g.std(0) / 200_000**0.5).all(), "the score has mean zero"


def test_monte_carlo_error_falls_as_the_root_of_the_draws():
    y = logits(3, 1, 4)
    want = outer(Categorical().root(y))
    errors = []
    for n in (100, 10_000):
        runs = [
            outer(estimator("mc", Categorical(), generator=torch.Generator().manual_seed(s), n_samples=n)(y)) - want
            for s in range(20)
        ]
        errors.append(torch.stack(runs).pow(2).mean().sqrt().item())
    assert 6 < errors[0] / errors[1] < 16, errors


def test_unknown_names_and_missing_randomness():
    with pytest.raises(ValueError, match=r"likelihood: got 'poison', expected one of \['categorical', 'gaussian'\]"):
        likelihood("poison")
    with pytest.raises(ValueError, match=r"estimator: got 'empirial', expected one of \['exact', 'mc'\]"):
        estimator("empirial", Gaussian())
    with pytest.raises(ValueError, match="give either generator"):
        estimator("mc", Gaussian())
    with pytest.raises(ValueError, match="got noise, expected none"):
        estimator("exact", Gaussian(), noise=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="n_samples: got 0"):
        estimator("mc", Gaussian(), generator=torch.Generator(), n_samples=0)
    with pytest.raises(ValueError, match=r"noise: got shape \(1, 2, 2\), expected \[n, 2, 3\]"):
        estimator("mc", Gaussian(), noise=torch.zeros(1, 2, 2))(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="variance is 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match=r"expected .B, C. or"):
        Categorical().root(torch.zeros(3))
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        list(chunks(torch.zeros(3, 2), 0))


def test_any_object_with_the_three_methods_is_a_likelihood():
    assert likelihood(Categorical(class_axis=-1)) == Categorical(class_axis=-1)
    with pytest.raises(ValueError, match="or an object with the methods"):
        likelihood(object())
