"""The strategies that users may take: what they draw is what they say."""

import torch
from hypothesis import given

import growth
from growth import strategies
from tests.growth import oracle


@given(strategies.networks(p=0, loss="squared_error"))
def test_fixed_choices_are_fixed(net):
    assert growth.reading.layers.layer_at(net.params, "hidden").weight.shape[0] == 0
    assert net.loss == "squared_error"
    assert net.f(net.params, net.x).shape == net.target.shape


@given(strategies.statistics(max_size=3))
def test_statistics_are_those_of_rows(stats):
    joint = torch.cat([torch.cat([stats.S_prev, stats.P], 1), torch.cat([stats.P.mT, stats.S], 1)])
    assert torch.linalg.eigvalsh(joint)[0] > -1e-12
    assert stats.M.shape[1] == stats.E.shape[0] <= 3
    assert stats.P.shape == (stats.M_prev.shape[0], stats.M.shape[0])


def test_rows_of_lower_rank():
    b2, b1, _ = strategies.rows(0, 30, 4, 3, 2, deficient=True)
    assert torch.linalg.matrix_rank(b2) == 3
    assert torch.linalg.matrix_rank(b1) == 2


@given(strategies.convolutional_networks())
def test_convolutional_networks(net):
    assert net.f(net.params, net.x).shape == (len(net.x), 4)
    s = growth.statistics(net.f, net.params, net.data, net.pair)
    assert s.taps == net.taps
    new = growth.optimal_neurons(s, 2)
    assert new.fan_out.shape[0] == net.params["output"]["weight"].shape[0] * net.taps
    oracle.close(
        growth.apply_extended(net.f, net.params, net.pair, new, None, 0.0, net.x), net.f(net.params, net.x), 1e-12
    )


@given(strategies.graphs(max_size=4))
def test_graphs_apply(graph):
    params = graph.init(torch.Generator().manual_seed(0))
    assert graph.apply(params, torch.ones(2, graph.width(graph.input))).shape == (2, graph.width(graph.output))


@given(strategies.neurons())
def test_units_are_sorted_and_masked_at_the_end(new):
    assert (new.eigenvalues.diff() <= 0).all()
    assert ((new.eigenvalues == 0) == ~new.joined.any(1)).all()
    assert torch.equal(growth.truncate(new, new.size).fan_out, new.fan_out)
