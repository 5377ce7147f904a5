"""Digits grown from few units: what the closed forms and the recipe reach, as means over seeds grown at once."""

import pytest
import torch
from torch.func import vmap

import growth
from tests.growth.digits import PAIR, accuracy, digits, ensemble, f, orders

TRAIN, TEST = digits()
OPTIONS = {"k": 6, "score": accuracy(TEST)}


def fit(members, start, target, epochs, **options):
    def one(params, order):
        return growth.fit_and_grow(f, params, TRAIN, PAIR, order=order, target=target, **OPTIONS, **options)

    return vmap(one)(ensemble(members, start), orders(members, epochs))


def test_one_step_of_growth_from_8_to_14_units():
    step = fit(5, 8, 14, [4, 0]).steps[-1]
    assert step.grown.mean() <= 0.20
    assert (step.grown < step.before).all()


@pytest.mark.slow
def test_one_step_of_growth_holds_over_many_seeds():
    step = fit(40, 8, 14, [4, 0]).steps[-1]
    assert step.grown.mean() <= 0.19
    assert (step.grown < step.before).all()


@pytest.mark.slow
def test_eight_networks_grown_at_once_from_2_to_32_units():
    steps = fit(8, 2, 32, [4, 4, 4, 4, 4, 12]).steps
    assert [s.width for s in steps] == [2, 8, 14, 20, 26, 32]
    assert steps[-1].score.mean() >= 0.960
    assert all((s.grown <= s.before).all() for s in steps)


@pytest.mark.slow
def test_accuracy_after_24_epochs_in_all():
    assert fit(8, 2, 32, [4] * 6).steps[-1].score.mean() >= 0.957
    assert fit(24, 2, 32, [4] * 6).steps[-1].score.mean() >= 0.960


def test_one_member_of_the_ensemble_is_the_network_grown_alone():
    together = fit(3, 2, 14, [1, 1, 1])
    params, order = ensemble(3, 2), orders(3, [1, 1, 1])
    alone = growth.fit_and_grow(
        f,
        {n: {k: t[1] for k, t in layer.items()} for n, layer in params.items()},
        TRAIN,
        PAIR,
        order=[t[1] for t in order],
        target=14,
        **OPTIONS,
    )
    for a, b in zip(together.steps, alone.steps):
        torch.testing.assert_close(a.trained[1], b.trained, rtol=2e-2, atol=1e-3)


def test_a_network_whose_units_are_all_dead_learns_after_growth():
    params = ensemble(2, 2)
    params["hidden"]["bias"] = params["hidden"]["bias"] - 100.0
    run = lambda p, o: growth.fit_and_grow(f, p, TRAIN, PAIR, order=o, target=14, **OPTIONS)
    steps = vmap(run)(params, orders(2, [1, 1, 4])).steps
    assert (steps[0].score < 0.3).all()
    assert (steps[-1].score > 0.9).all()
