"""What optimizers are handed: the batch and the generator by name, for those that ask; their state over growth."""

import functools
import types

import pytest
import torch
from torch.func import grad

import growth
from linmaps import trees
from tests.growth import oracle

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = (X[:, 0] > 0).long() + (X[:, 1] * X[:, 2] > 0).long()
DATA, PAIR = (X, T), growth.Pair("hidden", "output")
BATCHES = [(X[:20], T[:20]), (X[20:], T[20:])]


def inputs(params, x):
    """What enters the last layer."""
    return torch.tanh(x @ params["hidden"]["weight"].mT + params["hidden"]["bias"])


def f(params, x):
    return inputs(params, x) @ params["output"]["weight"].mT + params["output"]["bias"]


def start():
    g = torch.Generator().manual_seed(1)
    shapes = {"hidden": {"weight": (2, 4), "bias": (2,)}, "output": {"weight": (3, 2), "bias": (3,)}}
    return {
        a: {b: torch.randn(s, generator=g, dtype=torch.float64) / 2 for b, s in v.items()} for a, v in shapes.items()
    }


def run(optimizer, data=BATCHES, order=(1, 1), params=None, **options):
    options = {"target": 4, "k": 2} | options
    params = start() if params is None else params
    return growth.fit_and_grow(f, params, data, PAIR, order=list(order), optimizer=optimizer, **options)


class GaussNewton:
    """Gradient descent, but for the last layer, whose gradient is multiplied by the inverse second moment of its inputs."""

    def __init__(self):
        self.seen, self.made = [], []

    def init(self, params, batch, noise=None, generator=None):
        self.made.append(batch)
        n = params["output"]["weight"].shape[1]
        return {"A": torch.eye(n, dtype=torch.float64), "mean": trees.zeros_like(params)}

    def update(self, gradient, state, params, *, batch, noise=None, generator=None):
        self.seen.append((batch, generator))
        a = inputs(params, batch[0])
        A = 0.5 * state["A"] + 0.5 * a.mT @ a / len(a)
        mean = trees.axpy(0.5, state["mean"], gradient)
        solved = torch.linalg.solve(A + 0.1 * torch.eye(len(A)).to(A), mean["output"]["weight"].mT).mT
        return trees.replace(trees.scale(-0.3, mean), "output.weight", -0.3 * solved), {"A": A, "mean": mean}


class Carried(GaussNewton):
    """What zeros do not suit: new diagonal entries as large as the old ones."""

    def carry(self, state, params, grown):
        more = grown["output"]["weight"].shape[1] - len(state["A"])
        A = torch.block_diag(state["A"], torch.eye(more, dtype=torch.float64) * state["A"].diagonal().mean())
        return {"A": A, "mean": growth.grow_like(state["mean"], params, grown)}


def test_the_batch_is_that_of_the_step():
    rule, own = Carried(), torch.Generator()
    fit = run(rule, order=(2, 1), generator=own)
    assert [len(b[0]) for b, _ in rule.seen] == [20] * 6
    for (batch, generator), want in zip(rule.seen, BATCHES * 3):
        assert torch.equal(batch[0], want[0])
        assert torch.equal(batch[1], want[1])
        assert generator is own
    assert fit.state["A"].shape == (4, 4)
    trees.check_like(fit.state["mean"], fit.params, "mean")
    assert fit.steps[1].trained < fit.steps[0].before


def test_indices_in_memory_give_the_same_batches():
    index = [torch.arange(40).reshape(2, 20)] * 2
    a, b = run(Carried(), DATA, index), run(Carried())
    oracle.close(a.params["output"]["weight"], b.params["output"]["weight"], 1e-6)


def test_by_hand_without_growth():
    rule = Carried()
    fit = run(rule, order=(2,), target=2)
    params, state = start(), Carried().init(start(), None)
    for x, t in BATCHES * 2:
        g = grad(lambda p, x=x, t=t: torch.nn.functional.cross_entropy(f(p, x), t))(params)
        step, state = Carried().update(g, state, params, batch=(x, t))
        params = trees.add(params, step)
    for a, b in zip(trees.leaves((fit.params, fit.state)), trees.leaves((params, state)), strict=True):
        oracle.close(a, b, 1e-12)


def test_state_is_made_with_the_first_batch():
    rule = Carried()
    assert run(rule, order=(0, 0)).state is None
    assert not rule.made
    run(rule, order=(1, 1))
    assert len(rule.made) == 1
    assert torch.equal(rule.made[0][0], BATCHES[0][0])
    assert run(Carried(), order=(0, 1)).state["A"].shape == (4, 4)


def plain(update):
    return types.SimpleNamespace(init=lambda params: {"n": torch.zeros(())}, update=update)


def test_who_does_not_ask_gets_what_it_got():
    down = lambda g: trees.scale(-0.1, g)
    kinds = {
        "three": lambda g, s, p: (down(g), s),
        "other names": lambda updates, own, q: (down(updates), own),
        "a default": lambda g, s, p=None: (down(g), s),
        "partial": functools.partial(lambda lr, g, s, p: (trees.scale(-lr, g), s), 0.1),
        "options": lambda g, s, p, **options: (down(g), s) if set(options) == {"batch", "noise", "generator"} else 1 / 0,
        "by name alone": lambda updates, state, *, params=None, inplace=True: (down(updates), state)
        if params is not None and not inplace
        else 1 / 0,
    }  # fmt: skip
    fits = [run(plain(update)).params for update in kinds.values()]
    for other in [*fits[1:], run(growth.sgd(0.1, 0.0)).params]:
        for a, b in zip(trees.leaves(fits[0]), trees.leaves(other), strict=True):
            assert torch.equal(a, b)


def test_one_that_asks_for_the_generator_alone():
    def update(g, s, p, generator):
        noise = torch.randn((), generator=generator, dtype=torch.float64)
        return trees.scale(-0.1 * (1 + 0.1 * float(noise)), g), s

    def weight(seed):
        return run(plain(update), generator=torch.Generator().manual_seed(seed)).params["output"]["weight"]

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


@pytest.mark.parametrize("optimizer", [object(), types.SimpleNamespace(init=len), {"init": 1}])
def test_others_are_refused(optimizer):
    with pytest.raises(TypeError, match=r"optimizer: got .* without a function .* growth\.sgd"):
        run(optimizer)


def test_integers_pass_through():
    """Counters among the params, as of a batch norm: no gradient, no update, no change of dtype."""
    counted = {**start(), "norm": {"num_batches_tracked": torch.tensor(7)}}
    for rule in (growth.sgd(), growth.adam(0.01)):
        fit, without = run(rule, params=counted), run(rule)
        kept = fit.params["norm"]["num_batches_tracked"]
        assert kept.dtype == torch.int64
        assert kept == 7
        oracle.close(fit.params["output"]["weight"], without.params["output"]["weight"], 1e-9)
    stats = growth.statistics(f, counted, DATA, PAIR)
    with_exact = growth.with_fisher(stats, f, counted, DATA, PAIR)
    want = growth.with_fisher(growth.statistics(f, start(), DATA, PAIR), f, start(), DATA, PAIR)
    for a, b in zip(trees.leaves(with_exact), trees.leaves(want), strict=True):
        assert torch.equal(a, b)


class Noisy(GaussNewton):
    """Remembers its noise."""

    def update(self, gradient, state, params, *, batch, noise=None, generator=None):
        self.seen.append(noise)
        return trees.scale(-0.1, gradient), state


def test_noise_goes_to_who_asks_for_it_step_by_step():
    noise = [torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 10).reshape(3, 2)]
    order = [torch.arange(40).reshape(2, 20), torch.arange(30).reshape(3, 10)]
    rule = Noisy()
    run(rule, DATA, order, noise=noise)
    assert [t.tolist() for t in rule.seen] == [t.tolist() for part in noise for t in part]
    run(growth.sgd(), DATA, order, noise=noise)  # who does not ask gets none
    with pytest.raises(ValueError, match=r"noise: got \[2, 2\] steps by phase, expected \[2, 3\]"):
        run(Noisy(), DATA, order, noise=[noise[0], noise[0]])
    with pytest.raises(ValueError, match="noise: got some for data that come in batches"):
        run(Noisy(), noise=noise)


def test_kfac_trains_and_its_state_grows():
    from fisher import recipes

    rule, own = recipes.kfac(f, "categorical"), torch.Generator().manual_seed(0)
    fit = run(rule, order=(6, 6), generator=own)
    trained = [float(step.trained) for step in fit.steps]
    assert trained[0] < 0.9 * float(fit.steps[0].before)
    assert trained[1] < trained[0]
    assert fit.params["hidden"]["weight"].shape == (4, 4)
