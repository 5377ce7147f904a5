"""The pair that a record keeps is the pair that it was made of: all leaves that grow along, and all that are counted."""

import dataclasses

import pytest
import torch
from torch import nn

import fisher
import growth
from growth.checks.buffers import parameter_count
from linmaps import trees
from tests.growth.ends import mobile
from tests.laws import close

X, IMAGES = (torch.randn(*s, generator=torch.Generator().manual_seed(0)).double() for s in ((9, 3), (9, 2, 4, 4)))
B1, END = nn.BatchNorm1d, [nn.Flatten(), nn.Linear(48, 3)]
NETS = {  # layers, inputs, the pair
    "dense": ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)], X, growth.Pair("0", "2", torch.tanh)),
    "norm": ([nn.Linear(3, 4), B1(4), nn.Tanh(), nn.Linear(4, 3)], X, growth.Pair("0", "3", norm="1")),
    "norm as a tuple": ([nn.Linear(3, 4), B1(4), nn.Tanh(), nn.Linear(4, 3)], X, growth.Pair("0", "3", norm=("1",))),
    "norm and slopes": ([nn.Linear(3, 4), B1(4), nn.PReLU(4), nn.Linear(4, 3)], X, growth.Pair("0", "3", norm="1")),
    "slopes": ([nn.Conv2d(2, 4, 1), nn.PReLU(4), nn.Conv2d(4, 3, 1), *END], IMAGES, growth.Pair("0", "2")),
}
NAMES = [*NETS, "depthwise and two norms"]
LOSS = "squared_error"


def net(name):
    if name in NETS:
        layers, x, pair = NETS[name]
        f, params = fisher.functional(nn.Sequential(*layers).double().eval(), buffers=True)
        data = (x, torch.ones(len(x), 3).double())
    else:
        n = mobile(norms=("n", "m"), padding=1)
        f, params, data, pair = n.f, n.params, n.data, n.pair
    stats = growth.statistics(f, params, data, pair, LOSS)
    return f, params, data, pair, stats, growth.optimal_neurons(stats, 2, "gradient")


@pytest.mark.parametrize("name", NAMES)
def test_records_keep_all_of_it_but_the_activation(name):
    f, params, data, pair, stats, new = net(name)
    want = dataclasses.replace(pair, activation=None, along=stats.pair.along)
    signed = growth.choose_sign(f, params, data, pair, new, LOSS)
    assert stats.pair == new.pair == signed.pair == growth.optimal_delta(stats).pair == want
    drawn = growth.initialize(params, pair, 2, generator=torch.Generator().manual_seed(0))
    assert drawn.pair == dataclasses.replace(pair, activation=None)
    assert growth.cut(params, want, [0])[1].pair == want


@pytest.mark.parametrize("name", NAMES)
def test_a_record_completes_a_pair_that_names_the_layers_alone(name):
    f, params, data, pair, stats, new = net(name)
    alone = growth.Pair(pair.before, pair.after)
    new = dataclasses.replace(new, sigma0=0 * new.sigma0)
    grown = growth.grow(params, pair, new)
    close(growth.grow(params, alone, new), grown, 0.0, "grow")
    close(growth.prune(grown, stats.pair, [-1, -2]), params, 0.0, "prune, of the record's own pair")
    signed = [growth.choose_sign(f, params, data, p, new, LOSS) for p in (alone, pair)]
    close(*signed, 0.0, "choose_sign")
    smaller, removed = growth.cut(params, stats.pair, [0, 2])
    close(growth.restore(smaller, alone, removed), params, 0.0, "restore")
    both = [growth.prune(params, p, [1], stats=stats) for p in (alone, stats.pair)]
    close(*both, 0.0, "prune with statistics")


def test_two_depthwise_convolutions_are_refused():
    _, params, _, pair, _, new = net("depthwise and two norms")
    with pytest.raises(ValueError, match="expected the same depthwise convolution"):
        growth.grow(params, dataclasses.replace(pair, depthwise="other"), new)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_counted_are_parameters(name):
    f, params, data, pair, _, new = net(name)

    def count(tree):
        named = zip(map(trees.path_str, trees.paths(tree)), trees.leaves(tree))
        return sum(t.numel() for path, t in named if "running" not in path and "num_batches" not in path)

    assert parameter_count(params) == count(params)
    added = count(growth.grow(params, pair, new)) - count(params)
    for named in (pair, growth.Pair(pair.before, pair.after)):
        assert growth.compare([named], new, None, params=params).parameters == (added,)
    order = growth.shuffles(len(data[0]), [0, 0], 9, generator=torch.Generator().manual_seed(0))
    for choose in ("all", "slope"):
        fit = growth.fit_and_grow(f, params, data, pair, order=order, target=5, k=1, loss=LOSS, choose=choose)
        assert [s.parameters for s in fit.steps] == [count(params), count(fit.params)]
