"""A fit on batches that come again is the fit on the same batches in memory; one batch is held at a time."""

import gc
import weakref

import pytest
import torch
from torch.func import vmap
from torch.utils.data import DataLoader, TensorDataset

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth import oracle

NET = network(11, r=4, p=2, q=3, samples=40, activation="relu", dtype=torch.float64)
PIECES = [slice(0, 13), slice(13, 26), slice(26, 40)]
BATCHES = [(NET.x[i], NET.target[i]) for i in PIECES]


def run(data=BATCHES, epochs=(1, 2, 1), **options):
    options = {"target": 5, "k": 2} | options
    return growth.fit_and_grow(NET.f, NET.params, data, NET.pair, order=list(epochs), **options)


def by_hand():
    """Epochs over the batches, a step between: what the recipe says, one after the other."""
    rule, params = growth.sgd(), NET.params
    state, losses = rule.init(params), []
    for phase, epochs in enumerate((1, 2, 1)):
        if phase:
            made = growth.step(NET.f, params, NET.data, NET.pair, min(2, 5 - 2 * phase), state=state)
            params, state = made.params, made.state
            losses.append(made.grown)
        for x, t in BATCHES * epochs:
            loss = lambda p, x=x, t=t: torch.nn.functional.cross_entropy(NET.f(p, x), t)
            step, state = rule.update(torch.func.grad(loss)(params), state, params)
            params = trees.add(params, step)
        losses.append(oracle.mean_loss(NET, params))
    return params, losses


def test_a_list_of_batches_is_the_recipe_by_hand():
    fit, (params, losses) = run(), by_hand()
    got = [v for s in fit.steps for v in (s.grown, s.trained)][1:]
    oracle.close(torch.stack(got), torch.stack(losses), 1e-6)  # the search takes the minimum of almost equal losses
    for a, b in zip(trees.leaves(fit.params), trees.leaves(params)):
        oracle.close(a, b, 1e-5)
    assert [s.width for s in fit.steps] == [2, 4, 5]


def test_a_loader_is_the_list_of_its_batches():
    loader = DataLoader(TensorDataset(NET.x, NET.target), batch_size=13)
    same = [(NET.x[i : i + 13], NET.target[i : i + 13]) for i in range(0, 40, 13)]
    for a, b in zip(trees.leaves(run(loader)), trees.leaves(run(same)), strict=True):
        assert torch.equal(torch.as_tensor(a).nan_to_num(7.0), torch.as_tensor(b).nan_to_num(7.0))


def test_a_loader_that_shuffles_draws_from_its_own_generator():
    def shuffled(seed):
        own = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(NET.x, NET.target), batch_size=13, shuffle=True, generator=own)

    before = torch.random.get_rng_state()
    fits = [run(shuffled(seed)) for seed in (0, 0, 1)]
    a, b, c = (trees.leaves(fit.params)[0] for fit in fits)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    last = fits[2].steps[-1]
    oracle.close(last.trained, oracle.mean_loss(NET, fits[2].params), 1e-12)
    for one, two in zip(fits[2].steps, fits[2].steps[1:]):
        assert torch.equal(two.before, one.trained)
        assert two.grown < two.before
    assert torch.equal(before, torch.random.get_rng_state()) or shuffled(0).generator is not None


class Counted:
    """Batches made when they are asked for, and how many of them are alive."""

    def __init__(self, times):
        self.alive, self.most, self.passes, self.times = set(), 0, 0, times

    def __iter__(self):
        self.passes += 1
        for number, (x, t) in enumerate(BATCHES * self.times):
            mine, key = x.clone(), (self.passes, number)
            self.alive.add(key)
            self.most = max(self.most, len(self.alive))
            weakref.finalize(mine, self.alive.discard, key)
            yield mine, t
            del mine


@pytest.mark.parametrize("times", [1, 5])
def test_memory_is_that_of_a_few_batches_however_many_there_are(times):
    """The first, by which the others are known as of its kind, the one that is used, the last and the next."""
    gc.collect()
    trained = Counted(times)
    run(trained, (2,), target=2)
    assert trained.most <= 4
    assert trained.passes == 1 + 2 + 1
    grown = Counted(times)
    run(grown, (1, 2, 1), scale=0.1)
    assert grown.most <= 4 + 2 * 2  # the layers that a pass reads have circles, which wait for the garbage collector
    assert grown.passes == 1 + (1 + 2 + 1) + 3 + 2 * (2 + 2)


def test_an_ensemble_on_batches():
    members = [network(seed, r=4, p=2, q=3, samples=40, activation="tanh").params for seed in range(2)]
    fit = lambda p: growth.fit_and_grow(NET.f, p, BATCHES, NET.pair, order=[1, 1], target=3, k=1, scale=0.1).params
    together = vmap(fit)(trees.stack(members))
    for i, one in enumerate(map(fit, members)):
        for a, b in zip(trees.leaves(together), trees.leaves(one)):
            oracle.close(a[i], b, 1e-8)


def test_a_bar_over_batches(capsys):
    run(progress=True)
    assert "/12 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "epochs", "error", "message"),
    [
        (iter(BATCHES), (1, 1, 1), ValueError, r"data: got list_iterator, which can be gone through once, .* DataLoader"),
        ((b for b in BATCHES), (1, 1, 1), ValueError, r"data: got generator, which can be gone through once"),
        (NET.data, (1, 1, 1), TypeError, r"order: got numbers of epochs for tensors in memory, .* growth\.shuffles"),
        (BATCHES, [torch.arange(1)] * 3, TypeError, r"order\[0\]: got a tensor for data that come in batches"),
        (BATCHES, (1, -1, 1), ValueError, r"order\[1\]: got -1, expected an int from 0"),
        (BATCHES, (1, 1), ValueError, "order: got 2 phases, expected 3"),
        ([], (1, 1, 1), ValueError, "data: got no batch"),
        ([(NET.x * float("nan"), NET.target)], (1, 1, 1), ValueError, "data: batch 0"),
        (NET.x, (1, 1, 1), TypeError, "data: got Tensor, expected a tuple"),
    ],
)  # fmt: skip
def test_other_data_are_refused(data, epochs, error, message):
    with pytest.raises(error, match=message):
        run(data, epochs)


@pytest.mark.parametrize("call", ["step", "line_search", "gated_neurons"])
def test_passes_over_what_comes_once_are_refused_before_the_first(call):
    spent = iter(BATCHES)
    stats = growth.statistics(NET.f, NET.params, NET.data, NET.pair)
    calls = {
        "step": lambda: growth.step(NET.f, NET.params, spent, NET.pair, 1),
        "line_search": lambda: growth.line_search(
            NET.f, NET.params, spent, NET.pair, None, growth.optimal_delta(stats)
        ),
        "gated_neurons": lambda: growth.gated_neurons(
            NET.f, NET.params, spent, growth.Gated("hidden", "first", "output"), 1
        ),
    }
    with pytest.raises(ValueError, match=r"data: got list_iterator, which can be gone through once"):
        calls[call]()
    assert len(list(spent)) == 3
