"""Likelihoods: the root, the samples and the scores are those of the distribution, also where outputs are extreme.

The oracle is torch.distributions: H is the mean outer product of autograd's scores, and minus the mean Hessian of the log
density, over all targets (enumerated; the normal distribution by Gauss-Hermite quadrature, exact for these polynomials).
"""

import dataclasses
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from fisher.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Poisson,
    Segmentation,
    likelihood,
    n_columns,
    root_part,
    score,
)
from tests.laws import close

D = torch.float64


def logits(seed, *shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def outer(columns):
    """sum over columns of r r' for each example, outputs flattened."""
    flat = columns.reshape(*columns.shape[:2], math.prod(columns.shape[2:]))
    return torch.einsum("kbi,kbj->bij", flat, flat)


# --- the oracle: (log density of one example's target, all targets, their probabilities) ------------------------------


def spd(n):
    a = logits(7, n, n)
    return a @ a.T + 0.5 * torch.eye(n, dtype=D)


def normal_targets(mean, factor, nodes=4):
    """Targets mean + factor e, and weights that integrate polynomials of degree 7 in each e exactly."""
    x, w = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(nodes))
    e = torch.tensor(list(itertools.product(x.tolist(), repeat=len(factor))), dtype=D)
    weights = torch.tensor(list(itertools.product(w.tolist(), repeat=len(factor))), dtype=D)
    return mean + e @ factor.T, weights.prod(1) / (2 * math.pi) ** (len(factor) / 2)


def of_categorical(y):
    return (
        lambda z, t: distributions.Categorical(logits=z, validate_args=False).log_prob(t),
        torch.arange(len(y)),
        torch.softmax(y, 0),
    )


def of_bernoulli(y):
    targets = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(y))), dtype=D)
    log = lambda z, t: distributions.Bernoulli(logits=z, validate_args=False).log_prob(t).sum()
    return log, targets, vmap(log, (None, 0))(y, targets).exp()


def of_poisson(y):
    targets = torch.tensor(list(itertools.product(range(40), repeat=len(y))), dtype=D)
    log = lambda z, t: distributions.Poisson(z.exp(), validate_args=False).log_prob(t).sum()
    return log, targets, distributions.Poisson(y.exp()).log_prob(targets).sum(1).exp()


def of_normal(covariance):
    factor = torch.linalg.cholesky(covariance)
    log = lambda z, t: distributions.MultivariateNormal(z, covariance, validate_args=False).log_prob(t)
    return lambda y: (log, *normal_targets(y, factor))


def of_heteroscedastic(y):
    mean, logvar = y.chunk(2)

    def log(z, t):
        mean, logvar = z.chunk(2)
        return distributions.Normal(mean, (0.5 * logvar).exp(), validate_args=False).log_prob(t).sum()

    return log, *normal_targets(mean, torch.diag((0.5 * logvar).exp()))


ORACLES = {
    "categorical": (Categorical(), of_categorical, 3),
    "bernoulli": (Bernoulli(), of_bernoulli, 3),
    "poisson": (Poisson(), of_poisson, 2),
    "gaussian": (Gaussian(2.0), of_normal(2.0 * torch.eye(2, dtype=D)), 2),
    "gaussian of variances": (Gaussian((0.5, 3.0)), of_normal(torch.diag(torch.tensor([0.5, 3.0], dtype=D))), 2),
    "gaussian of a covariance": (Gaussian(covariance=spd(3)), of_normal(spd(3)), 3),
    "heteroscedastic": (HeteroscedasticGaussian(), of_heteroscedastic, 4),
}
every = pytest.mark.parametrize("name", ORACLES)


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_root_is_that_of_the_mean_outer_score_and_of_minus_the_mean_hessian(name, seed):
    which, oracle, size = ORACLES[name]
    y = logits(seed, 3, size)
    for got, z in zip(outer(which.root(y)), y):
        log, targets, p = oracle(z)
        close(p.sum(), torch.ones((), dtype=D), 1e-11, "all targets")
        scores = vmap(grad(log), (None, 0))(z, targets)
        close(got, torch.einsum("t,ti,tj->ij", p, scores, scores), 1e-10, "mean outer score")
        curvature = vmap(hessian(log), (None, 0))(z, targets)
        close(got, -torch.einsum("t,tij->ij", p, curvature), 1e-10, "minus mean Hessian")


@every
def test_score_and_log_prob_are_those_of_the_distribution(name):
    which, oracle, size = ORACLES[name]
    y = logits(5, 2, size)
    for example in y:
        log, targets, _ = oracle(example)
        targets = targets[:16]
        z = example.expand(len(targets), size)
        close(which.log_prob(z, targets), vmap(log)(z, targets), 1e-12, "log_prob")
        close(which.score(z, targets), vmap(grad(log))(z, targets), 1e-12, "score")


# --- every likelihood, in every shape ---------------------------------------------------------------------------------

SHAPES = {
    "categorical": (Categorical(), (2, 4)),
    "categorical of pixels": (Categorical(), (2, 3, 2, 2)),
    "categorical of tokens": (Categorical(class_axis=-1), (2, 3, 4)),
    "categorical of weights": (Categorical(weight=(0.2, 1.0, 3.0)), (2, 3, 2)),
    "categorical of weights, last": (Categorical(-1, weight=torch.tensor([0.0, 2.0], dtype=D)), (2, 3, 2)),
    "segmentation": (Segmentation(), (2, 3, 4)),
    "bernoulli": (Bernoulli(), (2, 3, 2)),
    "poisson": (Poisson(), (2, 3, 2)),
    "gaussian": (Gaussian(0.3), (2, 3, 2)),
    "gaussian without an axis": (Gaussian(0.3), (3,)),
    "gaussian of variances": (Gaussian((0.5, 3.0, 1.0)), (2, 3, 2)),
    "gaussian of variances, last": (Gaussian((0.5, 3.0), class_axis=-1), (2, 3, 2)),
    "gaussian of a variance each": (Gaussian(torch.rand(3, 2, dtype=D) + 0.1), (2, 3, 2)),
    "gaussian of a covariance": (Gaussian(covariance=spd(3)), (2, 3, 2)),
    "gaussian of a covariance, last": (Gaussian(covariance=spd(3), class_axis=-1), (2, 4, 3)),
    "heteroscedastic": (HeteroscedasticGaussian(), (2, 4, 2)),
    "heteroscedastic of tokens": (HeteroscedasticGaussian(class_axis=-1), (2, 3, 2)),
}
in_every_shape = pytest.mark.parametrize("name", SHAPES)


def targets_of(which, y, seed=0):
    """Random targets that fit y."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(which, Categorical):
        z = y.movedim(which.class_axis, -1)
        return torch.randint(z.shape[-1], z.shape[:-1], generator=g)
    if isinstance(which, HeteroscedasticGaussian):
        return torch.randn(y.chunk(2, which.class_axis)[0].shape, generator=g, dtype=y.dtype)
    if isinstance(which, Gaussian):
        return torch.randn(y.shape, generator=g, dtype=y.dtype)
    return torch.randint(2, y.shape, generator=g).to(y.dtype)


@in_every_shape
def test_positions_are_apart_and_each_is_as_if_alone(name):
    """H of an output with positions is H of each position, and zero between them."""
    which, shape = SHAPES[name]
    y = logits(3, *shape)
    axis = getattr(which, "class_axis", 1)
    if len(shape) < 3 or "each" in name:
        want = [torch.block_diag(*[outer(which.root(t[None]))[0]]) for t in y]
        close(outer(which.root(y)), torch.stack(want), 1e-14, "examples")
        return
    alone = dataclasses.replace(which, class_axis=1) if hasattr(which, "class_axis") else which
    alone = Categorical() if isinstance(which, Segmentation) else alone
    z = y.movedim(axis, -1).flatten(1, -2)  # [B, P, C]
    where = torch.arange(y[0].numel()).reshape(y.shape[1:]).movedim(axis - 1 if axis > 0 else axis, -1)
    want = torch.zeros(len(y), y[0].numel(), y[0].numel(), dtype=D)
    for p, index in enumerate(where.reshape(-1, z.shape[-1])):
        want[:, index[:, None], index[None]] = outer(alone.root(z[:, p]))
    close(outer(which.root(y)), want, 1e-14, "positions")


@in_every_shape
@given(data=st.data())
def test_a_part_of_the_root_is_that_part(name, data):
    which, shape = SHAPES[name]
    y = logits(2, *shape)
    root, total = which.root(y), which.n_columns(y)
    assert root.shape == (total, *y.shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(0, total + 2))
    close(root_part(which, y, start, stop), root[start:stop], 1e-15, "part")


@in_every_shape
def test_score_is_the_gradient_of_log_prob(name):
    """With class weights, of which the score has the root: its square is what is weighed."""
    which, shape = SHAPES[name]
    y = logits(2, *shape)
    t = targets_of(which, y)
    assert which.log_prob(y, t).shape == y.shape[:1]
    density = which
    if getattr(which, "weight", None) is not None:
        density = dataclasses.replace(which, weight=torch.as_tensor(which.weight, dtype=D).sqrt())
    want = grad(lambda y: density.log_prob(y, t).sum())(y)
    close(which.score(y, t), want, 1e-12, "score")
    close(vmap(which.score)(torch.stack([y, 2 * y]), torch.stack([t, t]))[0], want, 1e-12, "vmap")


@in_every_shape
def test_samples_are_unbiased(name):
    """The mean of g g' over 40,000 draws is H within five standard errors, entry by entry; that of g is zero."""
    which, shape = SHAPES[name]
    y, n = logits(0, *shape)[:1], 40_000
    g = which.sample(y, which.noise((n, *y.shape), torch.Generator().manual_seed(1), y)).reshape(n, y.numel())
    second = g.T @ g / n
    spread = ((g**2).T @ g**2 / n - second**2).clamp_min(0).sqrt()
    want = outer(which.root(y))[0]
    assert ((second - want).abs() <= 5 * spread / n**0.5 + 1e-9).all()
    assert (g.mean(0).abs() <= 5 * g.std(0) / n**0.5 + 1e-9).all(), "the score has mean zero"


@in_every_shape
def test_derivatives_are_finite_and_equal_in_every_mode(name):
    which, shape = SHAPES[name]
    y, t = logits(2, *shape), targets_of(which, logits(2, *shape))
    noise = which.noise((2, *shape), torch.Generator().manual_seed(0), y)
    line = lambda s: y + s * torch.cos(torch.arange(y.numel(), dtype=D)).reshape(y.shape)
    zero = torch.zeros((), dtype=D)

    def along(s):
        z = line(s)
        parts = which.root(z), which.sample(z, noise), which.score(z, t), which.log_prob(z, t)
        return torch.cat([part.flatten() for part in parts])

    first = jacrev(along)(zero)
    close(jacfwd(along)(zero), first, 1e-10, "first")
    h = 1e-6
    close(first, (along(zero + h) - along(zero - h)) / (2 * h), 1e-8, "differences")
    second = jacrev(jacrev(along))(zero)
    for other in (jacfwd(jacfwd(along)), jacfwd(jacrev(along)), jacrev(jacfwd(along))):
        close(other(zero), second, 1e-10, "second")


@in_every_shape
def test_an_ensemble_is_its_members(name):
    which, shape = SHAPES[name]
    y = torch.stack([logits(s, *shape) for s in range(3)])
    noise = which.noise((3, 2, *shape), torch.Generator().manual_seed(0), y)
    close(vmap(which.root)(y), torch.stack([which.root(t) for t in y]), 1e-14, "root")
    want = torch.stack([which.sample(t, n) for t, n in zip(y, noise)])
    close(vmap(which.sample)(y, noise), want, 1e-14, "sample")
    same = torch.stack([which.sample(t, noise[0]) for t in y])
    close(vmap(lambda t: which.sample(t, noise[0]))(y), same, 1e-14, "the same noise")


@in_every_shape
@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16])
def test_results_have_the_dtype_of_the_outputs(name, dtype):
    which, shape = SHAPES[name]
    y, t = logits(2, *shape).to(dtype), targets_of(which, logits(2, *shape))
    noise = which.noise((2, *shape), torch.Generator().manual_seed(0), y)
    for got in (which.root(y), which.sample(y, noise), which.score(y, t), which.log_prob(y, t)):
        assert got.dtype == dtype
    tol = 0.05 if dtype == torch.bfloat16 else 1e-6
    close(which.root(y).to(D), which.root(y.to(D)), tol, "root")
    close(which.score(y, t).to(D), which.score(y.to(D), t), tol, "score")


@in_every_shape
def test_specs_are_hashable_printable_and_saved(name):
    which, _ = SHAPES[name]
    buffer = io.BytesIO()
    torch.save(which, buffer)
    buffer.seek(0)
    for copy in (torch.load(buffer), pickle.loads(pickle.dumps(which)), eval(repr(which))):
        assert copy == which
        assert hash(copy) == hash(which)
    with pytest.raises(dataclasses.FrozenInstanceError):
        which.class_axis = 3


@in_every_shape
def test_product_is_that_of_the_root(name):
    which, shape = SHAPES[name]
    y, u = logits(2, *shape), logits(3, *shape)
    want = torch.einsum("bij,bj->bi", outer(which.root(y)), u.reshape(len(u), y[0].numel())).reshape(y.shape)
    close(which.product(y, u), want, 1e-13, "H u")


def test_no_positions_and_no_examples():
    for which, shape in [
        (Categorical(), (2, 3, 0)),
        (Categorical(), (0, 3)),
        (Gaussian(), (0, 3)),
        (Poisson(), (2, 0)),
    ]:
        y = torch.zeros(shape)
        assert which.root(y).shape == (which.n_columns(y), *shape)


# --- likelihoods of the user, names, errors ---------------------------------------------------------------------------


class Laplace:
    """A likelihood with the three methods alone."""

    def root(self, y):
        return Gaussian().root(y)

    def noise(self, shape, generator, like):
        return torch.rand(shape, generator=generator, dtype=like.dtype) - 0.5

    def sample(self, y, noise):
        return noise.sign().expand(len(noise), *y.shape)


class LaplaceWithDensity(Laplace):
    def log_prob(self, y, target):
        return -(target - y).abs().sum(1)


def test_any_object_with_the_three_methods_is_a_likelihood():
    assert likelihood(Categorical(class_axis=-1)) == Categorical(class_axis=-1)
    which, y = Laplace(), logits(0, 3, 2)
    assert likelihood(which) is which
    assert n_columns(which, y) == 2
    close(root_part(which, y, 1, 5), which.root(y)[1:], 0.0, "part")
    with pytest.raises(ValueError, match=r"Laplace has no density of given targets.*score.*log_prob"):
        score(which, y, y)
    close(score(LaplaceWithDensity(), y, y + 1), torch.ones_like(y), 0.0, "by log_prob")
    with pytest.raises(ValueError, match="or an object with the methods"):
        likelihood(object())
    with pytest.raises(ValueError, match="or an object with the methods"):
        likelihood(Gaussian)


def test_names():
    for name in ("categorical", "segmentation", "bernoulli", "gaussian", "poisson", "heteroscedastic_gaussian"):
        assert type(likelihood(name)).__name__.lower() == name.replace("_", "")
    with pytest.raises(ValueError, match=r"likelihood: got 'poison', expected one of \['bernoulli', 'categorical'"):
        likelihood("poison")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "variance is 0"),
        (lambda: Gaussian((1.0, -1.0)), "expected positive numbers"),
        (lambda: Gaussian(((1.0, 2.0), (1.0,))), "variance has rows of unequal length"),
        (lambda: Gaussian(2.0, torch.eye(2)), "got variance and covariance"),
        (lambda: Gaussian(covariance=torch.ones(3)), r"covariance has shape \(3,\), expected \[C, C\]"),
        (lambda: Gaussian(covariance=torch.ones(2, 2)), "not symmetric positive definite"),
        (lambda: Gaussian(covariance=torch.tensor([[2.0, 1.0], [0.0, 2.0]])), "not symmetric positive definite"),
        (lambda: Gaussian(covariance=torch.eye(2)).root(torch.zeros(1, 3)), "of 2 coordinates, expected 3"),
        (lambda: Gaussian((1.0, 2.0)).root(torch.zeros(1, 3)), "variance is of 2 coordinates, expected 3"),
        (lambda: Gaussian(torch.ones(2, 2)).root(torch.zeros(1, 3, 2)), r"variance has shape \(2, 2\)"),
        (lambda: Categorical(0), "class_axis is 0.*axis 0 holds the examples"),
        (lambda: Categorical().root(torch.zeros(3)), r"expected .B, C. or"),
        (lambda: Categorical(2).root(torch.zeros(3, 2)), "without a class axis 2"),
        (lambda: Segmentation().root(torch.zeros(3, 2)), "segmentation: output has shape"),
        (lambda: HeteroscedasticGaussian().root(torch.zeros(3, 3)), "expected an even number"),
        (lambda: HeteroscedasticGaussian().score(torch.zeros(3, 4), torch.zeros(3, 4)), "one value for each mean"),
        (lambda: Gaussian().score(torch.zeros(3, 2), torch.zeros(3)), r"target has shape \(3,\), expected \(3, 2\)"),
        (lambda: Categorical().score(torch.zeros(2, 5, 3), torch.zeros(2, 5).long()), "class_axis=-1"),
        (lambda: Categorical().score(torch.zeros(2, 3), torch.tensor([0, 3])), "holds class 3, expected 0 to 2"),
        (lambda: Categorical().score(torch.zeros(2, 3), torch.tensor([0, -1])), "holds class -1"),
        (lambda: Categorical().score(torch.zeros(2, 3), torch.zeros(2, 1).long()), r"target has shape \(2, 1\)"),
        (lambda: Categorical().score(torch.zeros(2, 3), torch.eye(2, 3).long()), r"one-hot targets target.argmax"),
        (lambda: Categorical().score(torch.zeros(2, 3), torch.ones(2, 3)), "no probabilities"),
        (lambda: Categorical().score(torch.zeros(2, 2), torch.tensor([[2.0, -1.0]] * 2)), "no probabilities"),
        (lambda: Categorical(weight=(1.0, -1.0)), "weight is .*expected numbers >= 0"),
        (lambda: Categorical(weight=2.0), r"weight has shape \(\), expected \[C\]"),
        (lambda: Categorical(weight=(1.0, 2.0)).root(torch.zeros(1, 3)), "weight is of 2 classes, expected 3"),
        (lambda: Bernoulli().score(torch.zeros(2, 1), torch.tensor([[-1.0], [1.0]])), r"holds -1.0.*\(t \+ 1\) / 2"),
        (lambda: Poisson().score(torch.zeros(2, 1), torch.tensor([[-1.0], [1.0]])), "holds -1.0, expected counts"),
    ],
)
def test_errors_name_the_cure(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("which", "target", "message"),
    [
        (Categorical(), torch.zeros(2), r"dtype torch.float32, expected whole numbers.*target.long\(\)"),
        (Categorical(), torch.zeros(2, dtype=torch.bool), "expected whole numbers"),
        (Poisson(), torch.zeros(2, 3, dtype=torch.complex64), "expected real numbers"),
        (Bernoulli(), [0, 1], "target is list, expected a tensor"),
        (Categorical(), torch.zeros(2, 1), "expected whole numbers"),
    ],
)
def test_targets_of_another_type_are_refused(which, target, message):
    with pytest.raises(TypeError, match=message):
        which.score(torch.zeros(2, 3), target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian("1"), "variance: got str, expected numbers"),
        (lambda: Gaussian(torch.ones(2, dtype=torch.complex64)), "variance has dtype torch.complex64"),
        (lambda: Categorical(ignore_index=None), "ignore_index is None, expected a whole number"),
    ],
)
def test_parameters_of_another_type_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()
