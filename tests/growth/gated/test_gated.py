"""Statistics and closed forms of gated pairs: gains are slopes, moments are their definition, activations are read."""

import pytest
import torch
from torch.nn import functional as F

import growth
from linmaps import trees
from tests.growth.gated.slopes import along, both, every
from tests.growth.oracle import close
from tests.growth.rows_gated import GATES, collect, gated
from tests.growth.rows_surgery import normal


@every
@both
@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_gains_are_slopes(kind, bias, positions, target):
    net = gated(kind, bias, positions=positions)
    stats = collect(net)
    new = growth.optimal_neurons(stats, 3, target)
    assert new.gain > 0 or target == "residual"
    close(torch.tensor(along(net, new)).double(), -new.gain, 1e-4 * max(1e-3, float(new.gain.abs())))
    for j in range(3):
        one = growth.keep(new, torch.arange(3) == j)
        assert abs(along(net, one) + float(one.gain)) < 1e-4 * max(1e-3, abs(float(one.gain)))


@every
@both
def test_the_decrease_of_a_delta_is_a_slope(kind, bias):
    net = gated(kind, bias)
    delta = growth.optimal_delta(collect(net))
    step = along(net, delta=delta, h=1e-4)
    assert abs(step + float(delta.decrease)) < 1e-6 * max(1.0, float(delta.decrease))


def test_the_delta_is_that_of_gated_hidden_values():
    net = gated("swiglu", (False, False, False))
    z = torch.tanh(F.linear(net.x, net.params["first"]["weight"], net.params["first"]["bias"]))
    h = F.silu(z @ net.params["gate"]["weight"].mT) * (z @ net.params["up"]["weight"].mT)
    close(collect(net).S, h.mT @ h / len(h), 1e-12)


@every
@both
def test_given_gate_rows_are_solved_in_closed_form(kind, bias):
    """The best unit of a gate row: no other (u, w) of the same size has a larger slope."""
    net = gated(kind, bias)
    row = normal(4, 1, 3 + bias[0])
    stats = collect(net, gates=row)
    new = growth.optimal_neurons(stats, 1, "gradient")
    torch.testing.assert_close(new.joined_gate, row)
    S, M = stats.gates.S[0], stats.gates.M[0]
    top = torch.linalg.svdvals(torch.linalg.pinv(torch.linalg.cholesky(S)) @ M)[0]
    close(new.eigenvalues[0], top, 1e-8)
    close(new.gain, top**2, 1e-8)


@both
def test_moments_of_gates_are_their_definition(bias):
    net = gated("swiglu", bias, positions=2)
    rows = normal(1, 3, 3 + bias[0])
    stats = collect(net, gates=rows)
    z = torch.tanh(F.linear(net.x, net.params["first"]["weight"], net.params["first"]["bias"])).flatten(0, 1)
    one = z.new_ones(len(z), 1)
    gate = F.silu((torch.cat([z, one], 1) if bias[0] else z) @ rows.mT)
    inputs = torch.cat([z, one], 1) if bias[1] else z
    for j in range(3):
        rows_j = gate[:, j : j + 1] * inputs
        close(stats.gates.S[j], rows_j.mT @ rows_j / len(net.x), 1e-12)


def test_more_samples_and_other_batches_are_the_same():
    net, rows = gated("geglu"), normal(2, 3, 4)
    whole = collect(net, gates=rows)
    parts = [(net.x[i : i + 5], net.target[i : i + 5]) for i in range(0, 14, 5)]
    split = growth.statistics(net.f, net.params, parts, net.pair, gates=rows)
    first, second = (
        growth.statistics(net.f, net.params, parts[a:b], net.pair, gates=rows) for a, b in ((0, 2), (2, 3))
    )
    for other in (split, first + second):
        trees.map(lambda a, b: close(a, b, 1e-12), whole, other)


@pytest.mark.parametrize("kind", GATES)
def test_the_activation_is_read_from_f_or_named(kind):
    net = gated(kind)
    read = growth.statistics(net.f, net.params, net.data, net.pair, gates=normal(1, 2, 4))
    named = growth.Gated("gate", "up", "down", activation=GATES[kind])
    told = growth.statistics(net.f, net.params, net.data, named, gates=normal(1, 2, 4))
    trees.map(lambda a, b: close(a, b, 1e-5 if "hand" in kind else 1e-10), read, told)
    other = growth.Gated("gate", "up", "down", activation=torch.tanh)
    with pytest.raises(ValueError, match="is not the named activation"):
        growth.statistics(net.f, net.params, net.data, other)
