"""Columns: every estimator gives the same columns at once and in parts; samples are unbiased; targets are needed or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from fisher.likelihoods import Bernoulli, Categorical, Gaussian, Poisson, Segmentation
from fisher.likelihoods.columns import ESTIMATORS, chunks, estimator
from tests.laws import close

D = torch.float64


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def outer(columns):
    """sum over columns of r r' for each example."""
    flat = columns.flatten(2)
    return torch.einsum("kbi,kbj->bij", flat, flat)


Y, T = randn(0, 3, 4, 2), torch.tensor([[0, 1], [3, 2], [-100, 1]])


def make(name, n_samples=5):
    generator = torch.Generator().manual_seed(0) if name == "mc" else None
    return estimator(name, Categorical(), generator=generator, n_samples=n_samples)


@pytest.mark.parametrize("name", ESTIMATORS)
@given(size=st.sampled_from([None, 1, 2, 3, 4, 5, 100]))
def test_parts_are_the_columns_whatever_their_size(name, size):
    whole = make(name)(Y, T)
    parts = list(make(name).parts(Y, T, size))
    assert whole.shape[1:] == Y.shape
    assert all(len(part) <= (size or len(whole)) for part in parts)
    assert size is not None or len(parts) == 1
    close(torch.cat(parts), whole, 1e-15, "parts")


def test_parts_are_made_when_asked_for():
    """The root of 1,000 classes at 4,096 pixels does not fit anywhere; its first columns do."""
    y = torch.zeros(1, 1000, 64, 64)
    parts = estimator("exact", Segmentation()).parts(y, size=4)
    assert next(parts).shape == next(parts).shape == (4, *y.shape)


def test_a_distribution_without_parameters_has_a_column_of_zeros():
    columns = estimator("exact", Categorical())
    y = torch.ones(3, 1)
    assert columns(y).shape == (0, 3, 1)
    for size in (None, 2):
        with pytest.warns(UserWarning, match="one class, whose probability is 1"):
            (part,) = columns.parts(y, size=size)
        assert torch.equal(part, torch.zeros(1, 3, 1))


def test_exact_columns_need_nothing_but_the_root():
    class Mine:
        def root(self, y):
            return Gaussian().root(y)

        noise = sample = None

    close(torch.cat(list(estimator("exact", Mine()).parts(Y, size=3))), Gaussian().root(Y), 0.0, "parts of a root")


@pytest.mark.parametrize("which", [Categorical(), Bernoulli(), Poisson(), Gaussian(0.5)], ids=repr)
def test_monte_carlo_error_falls_as_the_root_of_the_draws(which):
    """Also where the number of draws is a multiple of the batch size: trials and examples are different axes."""
    y = 0.5 * randn(3, 4, 3)
    want = outer(which.root(y))
    errors = []
    for n in (16, 1024):
        runs = [
            outer(estimator("mc", which, generator=torch.Generator().manual_seed(s), n_samples=n)(y)) - want
            for s in range(40)
        ]
        errors.append(torch.stack(runs).pow(2).mean().sqrt().item())
    assert 6 < errors[0] / errors[1] < 10.7, errors


def test_positions_and_examples_draw_their_own_targets():
    """The mean of g_p g_q' between positions p and q is zero, as is that between examples."""
    y, n = torch.zeros(2, 2, 2, dtype=D), 40_000
    g = estimator("mc", Categorical(), generator=torch.Generator().manual_seed(0), n_samples=n)(y)[:, :, 0]  # [n, B, P]
    moment = torch.einsum("ni,nj->ij", g.flatten(1), g.flatten(1))
    close(moment, 0.25 * torch.eye(4, dtype=D), 5 * 0.25 / n**0.5, "apart")


def test_noise_is_what_the_generator_would_have_drawn_and_works_under_vmap():
    which = Categorical()
    noise = which.noise((5, *Y.shape), torch.Generator().manual_seed(0), Y)
    close(estimator("mc", which, noise=noise)(Y), make("mc")(Y), 0.0, "noise")
    members = torch.stack([Y, Y.cos()])
    got = vmap(lambda y: estimator("mc", which, noise=noise)(y))(members)
    close(got, torch.stack([estimator("mc", which, noise=noise)(y) for y in members]), 1e-15, "ensemble")


def test_a_generator_goes_on_from_batch_to_batch():
    columns = make("mc")
    first, second = columns(Y), columns(Y)
    again = make("mc")
    close(torch.stack([again(Y), torch.cat(list(again.parts(Y, size=2)))]), torch.stack([first, second]), 0.0, "order")
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["empirical", "gradient_covariance"])
def test_the_given_target_has_the_score_as_its_column(name):
    columns = estimator(name, Categorical())
    want = grad(lambda y: Categorical().log_prob(y, T).sum())(Y)
    close(columns(Y, T), want[None], 1e-14, "score")
    close(vmap(lambda y: columns(y, T))(Y[None]), want[None, None], 1e-14, "under vmap")
    with pytest.raises(ValueError, match=rf"estimator='{name}': got data without targets, expected \(x, target\)"):
        columns(Y)


def test_the_mean_of_the_empirical_over_targets_is_the_exact_one():
    y = randn(1, 1, 4)
    p = torch.softmax(y, 1)[0]
    cores = torch.stack([outer(estimator("empirical", Categorical())(y, torch.tensor([t]))) for t in range(4)])
    close(torch.einsum("t,tbij->bij", p, cores), outer(estimator("exact", Categorical())(y)), 1e-14, "mean")


def test_errors_name_the_cure():
    generator = torch.Generator()
    with pytest.raises(
        ValueError, match=r"estimator: got 'empirial', expected one of \['exact', 'mc', 'empirical', 'grad"
    ):
        estimator("empirial", Gaussian())
    for both in ({}, {"generator": generator, "noise": torch.zeros(1, 2, 3)}):
        with pytest.raises(ValueError, match="give either generator"):
            estimator("mc", Gaussian(), **both)
    for name in ("exact", "empirical", "gradient_covariance"):
        with pytest.raises(ValueError, match="got noise, expected none"):
            estimator(name, Gaussian(), noise=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="n_samples: got 0"):
        estimator("mc", Gaussian(), generator=generator, n_samples=0)
    with pytest.raises(TypeError, match="n_samples: got float"):
        estimator("mc", Gaussian(), generator=generator, n_samples=2.5)
    with pytest.raises(TypeError, match=r"generator: got int, expected a torch.Generator"):
        estimator("mc", Gaussian(), generator=0)
    for which in (Categorical(), Bernoulli(), Poisson()):
        for noise in (randn(0, 4, 2, 3), torch.full((4, 2, 3), torch.nan)):
            with pytest.raises(ValueError, match=r"noise: got numbers outside \[0, 1\], expected uniform noise"):
                estimator("mc", which, noise=noise)(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"noise: got dtype torch.int64"):
        estimator("mc", Gaussian(), noise=torch.zeros(1, 2, 3).long())(torch.zeros(2, 3))
    for shape in [(1, 2, 2), (0, 2, 3), (2, 3), ()]:
        with pytest.raises(ValueError, match=r"noise: got shape \(.*\), expected \[n, 2, 3\]"):
            estimator("mc", Gaussian(), noise=torch.zeros(shape))(torch.zeros(2, 3))
    for columns in (make("exact"), make("mc"), make("empirical")):
        with pytest.raises(ValueError, match="chunk_size: got 0"):
            columns.parts(Y, T, size=0)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        list(chunks(torch.zeros(3, 2), 0))
