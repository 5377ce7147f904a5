"""A softmax taken before the likelihood takes its own is noticed, by whatever asks for logits."""

import warnings

import pytest
import torch
from torch.func import vmap

import fisher
import growth
from fisher.likelihoods.logits import are_probabilities
from linmaps import trees

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
T = torch.arange(6) % 3
PARAMS = {"a": {"weight": X[:5] / 2}, "b": {"weight": X.T[:3, :5] / 2}}
PAIR = growth.Pair("a", "b")


def logits(p, x):
    return torch.tanh(x @ p["a"]["weight"].T) @ p["b"]["weight"].T


def softmaxed(p, x):
    return logits(p, x).softmax(-1)


def positions(p, x):
    return torch.stack([softmaxed(p, x), softmaxed(p, x)], -1)


CALLS = {
    "KFAC": lambda f: fisher.fim(f, PARAMS, X),
    "dense": lambda f: fisher.fim(f, PARAMS, X, fisher.PMatDense),
    "implicit": lambda f: fisher.fim(f, PARAMS, X, fisher.PMatImplicit),
    "sampled": lambda f: fisher.fim(f, PARAMS, X, estimator="mc", generator=torch.Generator().manual_seed(0)),
    "empirical": lambda f: fisher.fim(f, PARAMS, (X, T), estimator="empirical"),
    "batches": lambda f: fisher.fim(f, PARAMS, [X, X]),
    "statistics": lambda f: growth.statistics(f, PARAMS, (X, T), PAIR),
    "output Fisher": lambda f: growth.output_fisher(f, PARAMS, X, PAIR),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_softmax_too_many_is_noticed(name):
    with pytest.warns(UserWarning, match="rows are >= 0 and sum to 1.*expected logits"):
        CALLS[name](softmaxed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[name](logits)
        CALLS[name](lambda p, x: logits(p, x).log_softmax(-1))


def test_positions_and_other_likelihoods():
    with pytest.warns(UserWarning, match="logits"):
        fisher.fim(positions, PARAMS, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fisher.fim(softmaxed, PARAMS, X, likelihood="gaussian")
        vmap(lambda p: fisher.fim(softmaxed, p, X).trace())(trees.stack([PARAMS, PARAMS]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_distributions_are(dtype):
    y = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert are_probabilities(y.softmax(1))
    assert not are_probabilities(y)
    assert not are_probabilities(y.softmax(0))
    assert not are_probabilities(y[:0].softmax(1))
    assert not are_probabilities(torch.eye(3, dtype=dtype))
    assert not are_probabilities(torch.ones(3, 1, dtype=dtype))
