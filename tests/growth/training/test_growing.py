"""Laws of one growth step: its numbers are those of its parts, whatever the data come in."""

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.utils.data import DataLoader, TensorDataset

import fisher
import growth
from linmaps import trees
from tests.laws import close

G = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, generator=G, dtype=torch.float64)
T = (X[:, 0] > 0).long() + (X[:, 1:3].prod(1) > 0).long()
PAIR = growth.Pair("0", "2")


def net(activation=nn.Tanh, width=2):
    torch.manual_seed(0)
    return fisher.functional(nn.Sequential(nn.Linear(5, width), activation(), nn.Linear(width, 3)).double())


def mean_loss(f, params):
    return nn.functional.cross_entropy(f(params, X), T)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_step_is_its_parts(activation):
    f, params = net(activation)
    made = growth.step(f, params, (X, T), PAIR, 1)
    stats = growth.statistics(f, params, (X, T), PAIR)
    options = {"output_metric": "fisher", "shrinkage": 0.1}
    size = lambda S: 0.1 * S.diagonal().mean()
    delta = growth.optimal_delta(stats, size(stats.S), **options)
    new = growth.optimal_neurons(stats, 1, delta=delta, ridge=size(stats.S_prev), **options)
    new = growth.choose_sign(f, params, (X, T), PAIR, new)
    found = growth.line_search(f, params, (X, T), PAIR, new, delta)
    close(made.amplitudes, found.scale, 1e-12, "amplitudes")
    close(made.params, growth.grow(params, PAIR, new, delta=delta, scale=found.scale), 1e-10, "params")
    close(made.before, mean_loss(f, params), 1e-12, "before")
    close(made.grown, mean_loss(f, made.params), 1e-12, "grown")
    close((made.gain, made.decrease), (new.gain, delta.decrease), 1e-12, "slopes")
    assert made.grown < made.before
    assert made.state is None


def test_slopes_are_those_of_the_loss():
    f, params = net(nn.ReLU)
    made = growth.step(f, params, (X, T), PAIR, 2, delta=False, scale=(0.0, 1e-8))
    close((made.before - made.grown) / 1e-8, made.gain, 1e-4 * float(made.gain) + 1e-7, "units")
    alone = growth.step(f, params, (X, T), PAIR, 2, scale=(1e-7, 0.0))
    close((alone.before - alone.grown) / 1e-7, alone.decrease, 1e-5 * float(alone.decrease) + 1e-8, "delta")


def test_data_of_any_kind_and_the_state():
    f, params = net()
    want = growth.step(f, params, (X, T), PAIR, 2)
    loader = DataLoader(TensorDataset(X, T), batch_size=12)
    state = {"momentum": trees.map(torch.ones_like, params), "step": torch.tensor(3)}
    got = growth.step(f, params, loader, PAIR, 2, state=state)
    close(got.params, want.params, 1e-8, "a loader")
    assert got.state["momentum"]["0.weight"].shape == (4, 5)
    close(got.state["momentum"]["0.weight"][2:], torch.zeros(2, 5).double(), 0.0, "new entries")
    assert got.state["step"] == 3
    close(growth.step(f, params, [(X[:7], T[:7]), (X[7:], T[7:])], PAIR, 2).params, want.params, 1e-8, "a list")


def test_several_pairs_and_an_ensemble():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    f, params = fisher.functional(model)
    pairs = [growth.Pair("0", "2"), growth.Pair("2", "4")]
    made = growth.step(f, params, (X, T), pairs, [1, 3])
    assert (made.params["0.weight"].shape, made.params["4.weight"].shape) == ((3, 5), (3, 5))
    assert made.grown < made.before
    both = trees.stack([params, trees.map(lambda t: 0.5 * t, params)])
    run = lambda p: growth.step(f, p, (X, T), pairs, 1, scale=0.1).params
    close(vmap(run)(both), trees.stack([run(p) for p in trees.unstack(both)]), 1e-10, "ensemble")


def test_no_unit_is_dead():
    """Of too few samples to gain from, and at amplitude zero: units that a next step moves."""
    f, params = net(width=4)
    for data, options in (((X[:2], T[:2]), {}), ((X, T), {"scale": 0.0})):
        made = growth.step(f, params, data, PAIR, 3, **options)
        g = torch.func.grad(lambda p: mean_loss(f, p))(made.params)
        moved = (g["0.weight"][4:].abs().sum(1) + g["2.weight"][:, 4:].abs().sum(0)) > 0
        assert bool(moved.all())


def test_lenet_on_a_loader_grows_within_its_optimizer():
    torch.manual_seed(0)
    x = torch.randn(24, 1, 8, 8, dtype=torch.float64)
    t = torch.arange(24) % 3
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).double()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    f, params = fisher.functional(model)
    pairs = [growth.Pair("0", "3"), growth.Pair("3", "6")]
    made = growth.step(f, params, DataLoader(TensorDataset(x, t), batch_size=10), pairs, 2)
    assert made.grown < made.before
    larger = growth.into_module(model, made.params, optimizer=optimizer)
    assert (larger[0].out_channels, larger[6].in_features) == (4, 16)
    close(larger(x).detach(), f(made.params, x), 1e-12, "module")


def test_masked_units_grown_by_hand_are_dead_and_fresh_ones_are_not():
    """The cure that the docstring of grow names."""
    f, params = net(width=4)
    new = growth.optimal_neurons(growth.statistics(f, params, (X[:2], T[:2]), PAIR), 4)
    masked = int(((new.fan_in == 0).all(1) & (new.fan_out == 0).all(0)).sum())
    assert masked
    fresh = growth.initialize(params, PAIR, masked, generator=torch.Generator().manual_seed(0))
    filled = growth.merge_neurons(growth.compact(new), fresh)
    for units, dead in ((new, masked), (filled, 0)):
        g = torch.func.grad(lambda p: mean_loss(f, p))(growth.grow(params, PAIR, units, scale=0.1))
        moved = (g["0.weight"][4:].abs().sum(1) + g["2.weight"][:, 4:].abs().sum(0)) > 0
        assert int((~moved).sum()) == dead
