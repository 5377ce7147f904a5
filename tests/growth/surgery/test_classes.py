"""add_classes: old logits bit by bit, new ones as named, a bound on their probability that every input keeps."""

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.growth.ends import back, conv, layer, linear, use
from tests.growth.oracle import close
from tests.growth.rows_surgery import normal

HEADS = {  # forward, kernel, layout, x; classes are axis 1
    "dense": (linear, (), "out_in", normal(1, 50, 3)),
    "x @ W": (use, (), "in_out", normal(2, 50, 3)),
    "segmentation": (conv(), (1, 1), "out_in", normal(3, 20, 3, 4, 4)),
    "transposed": (back(stride=2), (2, 2), "in_out", normal(4, 20, 3, 4, 4)),
}


def head(name, bias=True):
    forward, kernel, layout, x = HEADS[name]
    params = {"body": {"weight": normal(5, 3, 3)}, "head": layer(4, 3, *kernel, layout=layout, bias=bias)}
    return lambda p, x: forward(p["head"], 2 * x), params, layout, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_old_logits_are_kept_and_new_ones_are_the_mean(name, bias):
    f, params, layout, x = head(name, bias)
    wide = growth.add_classes(params, "head", 3, layout=layout)
    old, new = f(params, x), f(wide, x)
    close(new[:, :4], old, 1e-14)
    close(new[:, 4:], old.mean(1, keepdim=True).expand_as(new[:, 4:]), 1e-12)
    assert (new.softmax(1)[:, 4:].sum(1) <= 3 / 7 + 1e-12).all()
    axis = 0 if layout == "out_in" else 1
    assert torch.equal(wide["head"]["weight"].narrow(axis, 0, 4), params["head"]["weight"])
    assert wide["body"] is params["body"] or torch.equal(wide["body"]["weight"], params["body"]["weight"])
    zero = f(growth.add_classes(params, "head", 2, weight="zero", layout=layout), x)[:, 4:]
    assert not zero.any()


@pytest.mark.parametrize("probability", [0.5, 1e-3, torch.tensor(0.1, dtype=torch.float64)])
@pytest.mark.parametrize("name", HEADS)
def test_new_classes_have_at_most_this_probability(name, probability):
    f, params, layout, x = head(name)
    wide = growth.add_classes(params, "head", 2, probability=probability, layout=layout)
    mass = f(wide, 10 * x).softmax(1)[:, 4:].sum(1)
    assert (mass <= float(probability) * (1 + 1e-9)).all()
    flat = trees.map(torch.zeros_like, params)
    even = growth.add_classes(flat, "head", 2, probability=probability, layout=layout)
    close(f(even, x).softmax(1)[:, 4:].sum(1), float(probability) * torch.ones_like(mass), 1e-9)
    old = f(params, x).softmax(1)
    kept = f(wide, x).softmax(1)[:, :4]
    close(kept / kept.sum(1, keepdim=True), old, 1e-12)


def test_weights_and_biases_of_ones_own():
    params = {"w": torch.eye(2), "h.weight": torch.eye(2), "h.bias": torch.zeros(2)}
    rows = torch.tensor([[3.0, 4.0]])
    assert torch.equal(growth.add_classes(params, "h", 1, weight=rows)["h.weight"][2:], rows)
    turned = growth.add_classes(params, "h", 1, weight=rows, bias=torch.tensor([7.0]), layout="in_out")
    assert torch.equal(turned["h.weight"][:, 2:], rows.T)
    assert torch.equal(turned["h.bias"], torch.tensor([0.0, 0.0, 7.0]))
    assert torch.equal(growth.add_classes(params, "w", 1)["w"][2], torch.tensor([0.5, 0.5]))
    assert growth.add_classes(params, "h", 1, bias=-3)["h.bias"][2] == -3
    assert trees.leaves(growth.add_classes(params, "h", 0)) == trees.leaves(params)
    none = {"h.weight": torch.zeros(0, 2), "h.bias": torch.zeros(0)}
    assert not growth.add_classes(none, "h", 2)["h.weight"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n: got -1"),
        ({"probability": 1.0}, "probability"),
        ({"probability": 0.1, "weight": "zero"}, "beside other weights"),
        ({"probability": 0.1, "bias": 0.0}, "beside other weights or a bias"),
        ({"weight": "median"}, r"got 'median', expected one of \['mean', 'zero'\]"),
        ({"weight": torch.ones(2, 3)}, r"expected real rows \(1, 2\)"),
        ({"bias": torch.ones(2)}, r"bias: got shape \(2,\), expected a number or \(1,\)"),
        ({"layout": "io"}, "layout: got 'io'"),
        ({"layer": "g", "bias": 1.0}, "bias: got one, g has no bias"),
        ({"layer": "g", "probability": 0.5}, "probability: got one, g has no bias"),
        ({"layer": "x"}, "x: no such layer"),
    ],
)
def test_refused_by_name(options, message):
    params = {"h.weight": torch.eye(2), "h.bias": torch.zeros(2), "g": torch.eye(2)}
    with pytest.raises(ValueError, match=message):
        growth.add_classes(params, **{"layer": "h", "n": 1, **options})


def test_modules_states_ensembles_and_half_precision():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    _, params = fisher.functional(model)
    wide = growth.add_classes(params, "2", 3, probability=0.01)
    made = growth.into_module(model, wide, optimizer=optimizer)
    assert made[2].out_features == 5
    made(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    carried = growth.grow_like(params, params, wide)
    assert torch.equal(carried["2.weight"][:2], params["2.weight"])
    assert not carried["2.weight"][2:].any()
    stacked = trees.stack([params, trees.map(lambda t: 2 * t, params)])
    both = vmap(lambda p, q: growth.add_classes(p, "2", 3, probability=q))(stacked, torch.tensor([0.01, 0.5]))
    close(trees.unstack(both)[0]["2.bias"], wide["2.bias"], 1e-6)
    half = trees.map(lambda t: t.bfloat16(), params)
    assert {t.dtype for t in trees.leaves(growth.add_classes(half, "2", 1, probability=0.1))} == {torch.bfloat16}
    F.cross_entropy(made(torch.randn(5, 3)), torch.arange(5))
