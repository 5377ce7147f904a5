"""The recipe: its parts in order, optimizers as torch has them, ensembles, other methods, no dead units."""

import pytest
import torch
from torch.func import grad, vmap

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth import oracle

NET = network(11, r=4, p=2, q=3, samples=40, activation="relu", dtype=torch.float64)


def order(seed, phases=3, epochs=2):
    return growth.shuffles(40, [epochs] * phases, 8, generator=torch.Generator().manual_seed(seed))


def run(params=None, batches=None, net=NET, **options):
    options = {"target": 5, "k": 2} | options
    params, batches = net.params if params is None else params, order(0) if batches is None else batches
    return growth.fit_and_grow(net.f, params, net.data, net.pair, order=batches, **options)


@pytest.mark.parametrize(
    ("rule", "torch_rule"),
    [
        (growth.sgd(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
        (growth.adam(0.02), lambda p: torch.optim.Adam(p, 0.02)),
    ],
)
def test_optimizers_are_those_of_torch(rule, torch_rule):
    params = NET.params
    live = trees.map(lambda t: t.clone().requires_grad_(), params)
    optimizer, state = torch_rule(trees.leaves(live)), rule.init(params)
    loss = lambda p: torch.nn.functional.cross_entropy(NET.f(p, NET.x), NET.target)
    for _ in range(4):
        optimizer.zero_grad()
        loss(live).backward()
        optimizer.step()
        step, state = rule.update(grad(loss)(params), state, params)
        params = trees.add(params, step)
    for a, b in zip(trees.leaves(params), trees.leaves(live)):
        oracle.close(a, b.detach(), 1e-12)


def test_widths_losses_and_parameters_of_each_step():
    fit = run()
    assert [s.width for s in fit.steps] == [2, 4, 5]
    assert fit.params["hidden"]["weight"].shape == (5, 4)
    oracle.close(fit.steps[0].before, oracle.mean_loss(NET, NET.params), 1e-12)
    oracle.close(fit.steps[-1].trained, oracle.mean_loss(NET, fit.params), 1e-12)
    assert fit.steps[-1].parameters == sum(t.numel() for t in trees.leaves(fit.params))
    for last, step in zip(fit.steps, fit.steps[1:]):
        assert torch.equal(step.before, last.trained)
        assert step.grown < step.before
        assert step.gain > 0
        assert step.decrease > 0
    assert all(s.score.isnan() for s in fit.steps)


def test_the_state_of_the_optimizer_is_carried():
    fit = run(optimizer=growth.adam(0.01))
    trees.check_like(fit.state["mean"], fit.params, "mean")
    assert fit.state["step"] == 30
    batches = [*order(0)[:-1], torch.zeros(0, 8, dtype=torch.int64)]
    state, old = run(batches=batches).state["momentum"], run(batches=order(0)[:2], target=4).state["momentum"]
    oracle.close(state["hidden"]["weight"][:4], old["hidden"]["weight"], 0)
    assert not state["hidden"]["weight"][4:].any()


def test_training_without_growth_is_plain_descent():
    batches = order(1, phases=1)
    fit = run(batches=batches, target=2)
    params, rule = NET.params, growth.sgd()
    state = rule.init(params)
    for index in batches[0]:
        loss = lambda p, i=index: torch.nn.functional.cross_entropy(NET.f(p, NET.x[i]), NET.target[i])
        step, state = rule.update(grad(loss)(params), state, params)
        params = trees.add(params, step)
    for a, b in zip(trees.leaves(fit.params), trees.leaves(params)):
        oracle.close(a, b, 1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_an_ensemble_grown_at_once_is_the_loop(shared):
    """Losses to 1e-6: the search takes the minimum of almost equal losses, and training amplifies rounding."""
    members = [network(seed, r=4, p=2, q=3, samples=40, activation="tanh").params for seed in range(2)]
    batches = [order(0 if shared else seed, epochs=1) for seed in range(2)]
    score = lambda p: (NET.f(p, NET.x).argmax(-1) == NET.target).double().mean()
    loop = [run(m, b, score=score) for m, b in zip(members, batches)]
    dims = (0, None) if shared else (0, 0)
    given = batches[0] if shared else [torch.stack(phase) for phase in zip(*batches)]
    together = vmap(lambda p, o: run(p, o, score=score), dims)(trees.stack(members), given)
    for i, one in enumerate(loop):
        for a, b in zip(together.steps, one.steps):
            oracle.close(a.grown[i], b.grown, 1e-6)
            oracle.close(a.trained[i], b.trained, 1e-6)
            oracle.close(a.score[i], b.score, 0.03)
    assert "±" in repr(together)


def test_other_methods_amplitudes_and_schedules():
    tiny = run(method=growth.tiny, delta=False, k=growth.fixed_proportional(2, 5, 2))
    assert [s.width for s in tiny.steps] == [2, 3, 5]
    assert all(s.decrease == 0 and s.scale[0] == 0 for s in tiny.steps)
    kept = run(method=growth.zero_out, scale=(0.0, 1.0))
    for step in kept.steps[1:]:
        oracle.close(step.grown, step.before, 1e-12)
        assert step.scale[1] == 1


def test_units_without_gain_or_amplitude_are_not_dead():
    masked = lambda stats, k: trees.map(lambda t: 0 * t, growth.optimal_neurons(stats, k))
    for options in ({"method": masked}, {"scale": 0.0}):
        fit = run(batches=[order(0)[0], torch.zeros(0, 8, dtype=torch.int64)], target=4, delta=False, **options)
        oracle.close(fit.steps[1].grown, fit.steps[1].before, 1e-12)
        gradient = grad(lambda p: oracle.mean_loss(NET, p))(fit.params)["output"]["weight"][:, 2:]
        assert (gradient.abs().amax(0) > 1e-6).all()


def test_repr_is_a_table():
    lines = repr(run()).splitlines()
    assert lines[0].split()[:3] == ["width", "parameters", "before"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "4", "5"]
    assert len({len(line) for line in lines}) == 1


def test_progress_is_a_bar_on_standard_error(capsys):
    run(progress=True)
    assert "fit_and_grow" in capsys.readouterr().err
    run()
    assert capsys.readouterr().err == ""


def test_params_stay_as_they_are_and_answers_need_no_graph():
    before = trees.map(torch.clone, NET.params)
    fit = run(trees.map(lambda t: t.clone().requires_grad_(), NET.params))
    assert not any(t.requires_grad for t in trees.leaves(fit))
    for a, b in zip(trees.leaves(before), trees.leaves(NET.params)):
        assert torch.equal(a, b)


def test_single_precision_stays_single():
    net = network(11, r=4, p=2, q=3, samples=40, dtype=torch.float32)
    assert {t.dtype for t in trees.leaves(run(net=net))} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": 1}, ValueError, "target: got 1, expected an int from 2"),
        ({"target": 9}, ValueError, "order: got 3 phases, expected 5"),
        ({"k": [1, 1]}, ValueError, r"k: got steps \[1, 1\]"),
    ],
)
def test_errors_say_what_was_got(options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


def test_several_pairs_neighbours_too_grow_at_once():
    pairs = [growth.Pair("first", "hidden"), NET.pair]
    fit = growth.fit_and_grow(NET.f, NET.params, NET.data, pairs, order=order(0), target=[6, 5], k=2)
    assert [s.width for s in fit.steps] == [(4, 2), (6, 4), (6, 5)]
    assert fit.params["hidden"]["weight"].shape == (5, 6)
    for step in fit.steps[1:]:
        assert step.grown < step.before
    assert fit.steps[1].gain > fit.steps[2].gain
    assert fit.state["momentum"]["hidden"]["weight"].shape == (5, 6)
    with pytest.raises(ValueError, match="target: got 3, expected 2"):
        growth.fit_and_grow(NET.f, NET.params, NET.data, pairs, order=order(0), target=[6, 5, 4], k=2)


def test_convolutions_with_batch_norm_and_its_running_statistics():
    from tests.growth.test_convolution import net

    n = net("same", torch.relu, norm=True)
    pair = growth.Pair("hidden", "output", norm="norm")
    batches = growth.shuffles(len(n.x), [1, 1], 7, generator=torch.Generator().manual_seed(0))
    fit = growth.fit_and_grow(n.f, n.params, (n.x, n.t), pair, order=batches, target=5, k=2, optimizer=growth.sgd(0.01))
    assert fit.params["norm"]["running_var"].shape == (5,)
    assert torch.equal(fit.params["norm"]["running_mean"][:3], n.params["norm"]["running_mean"])
    assert fit.steps[1].grown < fit.steps[1].before
