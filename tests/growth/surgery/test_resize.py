"""add_parameters: blocks where they belong, zeros for None, convolutions, no bias; what does not fit raises."""

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import growth
from growth.surgery.resize import gathered, indices
from tests.growth.rows_surgery import NETS, normal

size = st.integers(0, 4)


@given(size, size, size, st.booleans(), st.sampled_from([(), (3,), (3, 1)]))
def test_blocks(q, p, k, bias, kernel):
    layer = {"weight": normal(1, q, p, *kernel)} | ({"bias": normal(2, q)} if bias else {})
    columns, rows, x = normal(3, q, k, *kernel), normal(4, k, p, *kernel), normal(5, k)
    wide = growth.add_parameters(layer, added_in_features=k, matrix_extension=columns if k else None)
    assert torch.equal(wide["weight"], torch.cat([layer["weight"], columns], 1))
    assert wide.keys() == layer.keys()
    tall = growth.add_parameters(
        layer,
        added_out_features=k,
        matrix_extension=rows if k else None,
        bias_extension=x if bias and k else None,
    )
    assert torch.equal(tall["weight"], torch.cat([layer["weight"], rows], 0))
    if bias:
        assert torch.equal(wide["bias"], layer["bias"])
        assert torch.equal(tall["bias"], torch.cat([layer["bias"], x]))
    assert torch.equal(growth.layer_in_extension(layer, columns)["weight"], wide["weight"])
    named = growth.layer_out_extension(layer, rows, x if bias and k else None)
    assert all(torch.equal(named[n], tall[n]) for n in tall)


def test_none_is_zeros_on_both_sides():
    layer = OrderedDict(scale=torch.ones(1), weight=normal(1, 2, 3).float(), bias=normal(2, 2).float())
    both = growth.add_parameters(layer, added_in_features=1, added_out_features=2)
    assert type(both) is OrderedDict
    assert list(both) == list(layer)
    assert both["scale"] is layer["scale"]
    assert torch.equal(both["weight"][:2, :3], layer["weight"])
    assert both["weight"].shape == (4, 4)
    assert both["weight"].dtype == both["bias"].dtype == torch.float32
    assert not both["weight"][:, 3:].any()
    assert not both["weight"][2:].any()
    assert not both["bias"][2:].any()
    columns, rows = normal(3, 2, 1), normal(4, 2, 4)
    full = growth.add_parameters(
        layer["weight"], added_in_features=1, added_out_features=2, matrix_extension=(columns, rows)
    )
    assert torch.equal(full, torch.cat([torch.cat([layer["weight"], columns.float()], 1), rows.float()]))
    same = growth.add_parameters(layer)
    assert all(torch.equal(same[k], layer[k]) for k in layer)


LAYER = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"added_in_features": -1}, "added_in_features: got -1.*prune"),
        ({"added_out_features": 2**40}, "added_out_features: got 10995"),
        ({"added_in_features": 2, "matrix_extension": torch.zeros(2, 3)}, r"got shape \(2, 3\), expected \(3, 2\)"),
        ({"added_out_features": 2, "matrix_extension": torch.zeros(3, 2)}, r"got shape \(3, 2\), expected \(2, 2\)"),
        ({"added_in_features": 1, "added_out_features": 1, "matrix_extension": torch.zeros(4, 3)}, "expected a tuple"),
        ({"added_in_features": 1, "matrix_extension": (torch.zeros(3, 1),) * 2}, "expected a tensor for the one"),
        ({"matrix_extension": torch.zeros(3, 1)}, "0 new inputs and 0 new outputs"),
        ({"added_in_features": 1, "bias_extension": torch.zeros(1)}, "bias_extension.*added_out_features is 0"),
        ({"added_out_features": 2, "bias_extension": torch.zeros(3)}, r"bias_extension: got shape \(3,\)"),
    ],
)
def test_what_does_not_fit_raises(options, message):
    with pytest.raises(ValueError, match=message):
        growth.add_parameters(LAYER, **options)


def test_other_layers_raise():
    with pytest.raises(ValueError, match="the layer has no bias"):
        growth.layer_out_extension({"weight": torch.zeros(3, 2)}, torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(TypeError, match=r"keys \['hidden'\].*subtree"):
        growth.add_parameters({"hidden": LAYER}, added_in_features=1)
    with pytest.raises(TypeError, match="got list"):
        growth.add_parameters([torch.zeros(2, 2)], added_in_features=1)
    with pytest.raises(ValueError, match=r"layer.weight: got shape \(3,\)"):
        growth.add_parameters(torch.zeros(3), added_in_features=1)
    with pytest.raises(ValueError, match=r"layer.bias: got shape \(2,\), expected \(3,\)"):
        growth.add_parameters({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, added_in_features=1)
    with pytest.raises(ValueError, match="weight: got"):
        growth.layer_in_extension(LAYER, torch.zeros(3))


@pytest.mark.parametrize("kind", NETS)
def test_units_in_another_order_compute_the_same(kind):
    net = NETS[kind]()
    p = growth.reading.layers.layers_of(net.params, net.pair)[0].weight.shape[0]
    turned = gathered(net.params, net.pair, torch.arange(p).flip(0))
    assert (net.f(turned, net.x) - net.f(net.params, net.x)).abs().max() < 1e-12


def test_indices():
    cpu = torch.device("cpu")
    assert indices([-1, 0], 3, "units", cpu).tolist() == [2, 0]
    assert indices([], 3, "units", cpu).dtype == torch.int64
    assert indices(torch.tensor([True, False, True]), 3, "units", cpu).tolist() == [0, 2]
    assert indices([True, False, False], 3, "units", cpu).tolist() == [0]
    with pytest.raises(ValueError, match=r"units: got .*3.* expected indices"):
        indices([3], 3, "units", cpu)
    with pytest.raises(ValueError, match=r"mask of shape \(2,\), expected \(3,\)"):
        indices(torch.tensor([True, False]), 3, "units", cpu)
    with pytest.raises(TypeError, match="bool mask that is True"):
        indices(torch.ones(3), 3, "units", cpu)
