"""The strategies that users may take: what they draw is what they say."""

import torch
from hypothesis import given

import growth
from growth import strategies


@given(strategies.networks(p=0, loss="squared_error"))
def test_fixed_choices_are_fixed(net):
    assert growth.pairs.layer_at(net.params, "hidden").weight.shape[0] == 0
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
