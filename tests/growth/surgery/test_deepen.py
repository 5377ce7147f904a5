"""deepen: the identity exactly, right behind its layer in any kind of dict; what is there already stays."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import growth
from linmaps import trees
from tests.growth.rows_surgery import normal

ACTS = {"relu": torch.relu, "identity": lambda z: z}


@given(st.integers(0, 4), st.integers(1, 4), st.booleans(), st.sampled_from(sorted(ACTS)), st.booleans())
def test_the_function_is_exactly_the_same(p, r, bias, act, flat):
    act = ACTS[act]
    layer = {"weight": normal(1, p, r)} | ({"bias": normal(2, p)} if bias else {})
    params = {f"net.a.{k}": t for k, t in layer.items()} if flat else {"net": {"a": layer}}
    x = normal(3, 5, r)
    deeper = growth.deepen(params, "net.a", "new")

    def apply(params, name, x):
        new = {k: trees.get(params, f"net.{name}.{k}") for k in layer}
        return act(F.linear(x, new["weight"], new.get("bias")))

    y = apply(params, "a", x)
    assert torch.equal(apply(deeper, "new", apply(deeper, "a", x)), y)
    assert len(trees.leaves(deeper)) == 2 * len(layer)
    assert deeper.keys() >= params.keys()


@pytest.mark.parametrize("kernel", [(3,), (1, 5), (3, 3, 3)])
def test_convolutions(kernel):
    n = len(kernel)
    conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    params = {"a": {"weight": normal(1, 3, 2, *kernel), "bias": normal(2, 3)}}
    pad = tuple(k // 2 for k in kernel)
    x = normal(3, 2, 2, *[6] * n)
    y = torch.relu(conv(x, params["a"]["weight"], params["a"]["bias"], padding=pad))
    deeper = growth.deepen(params, "a", "b")
    assert torch.equal(torch.relu(conv(y, deeper["b"]["weight"], deeper["b"]["bias"], padding=pad)), y)
    one = growth.deepen(params, "a", "b", kernel=(1,) * n, bias=False)
    assert list(one["b"]) == ["weight"]
    assert torch.equal(conv(y, one["b"]["weight"]), y)


def test_weights_stored_in_out():
    x, index = normal(3, 5, 2), torch.arange(5)
    params = {"a": {"weight": normal(1, 2, 3), "bias": normal(2, 3)}, "t": {"weight": normal(4, 5, 3)}}
    deeper = growth.deepen(params, "a", "b", layout="in_out")
    y = torch.relu(x @ params["a"]["weight"] + params["a"]["bias"])
    assert torch.equal(torch.relu(y @ deeper["b"]["weight"] + deeper["b"]["bias"]), y)
    table = growth.deepen(params, "t", "s", layout="in_out")
    rows = F.embedding(index, params["t"]["weight"])
    assert torch.equal(rows @ table["s"]["weight"], rows)
    maps = {"a": {"weight": normal(1, 2, 3, 3, 3)}}
    wide = growth.deepen(maps, "a", "b", layout="in_out")
    y = F.conv_transpose2d(normal(3, 2, 2, 4, 4), maps["a"]["weight"], stride=2)
    assert torch.equal(F.conv_transpose2d(y, wide["b"]["weight"], padding=1), y)


def test_right_behind_its_layer():
    layer = OrderedDict(weight=torch.ones(2, 3), bias=torch.ones(2))
    nested = growth.deepen(OrderedDict(z=layer, m=layer), "z", "a")
    assert list(nested) == ["z", "a", "m"]
    assert type(nested) is OrderedDict
    assert list(nested["a"]) == ["weight", "bias"]
    assert type(nested["a"]) is OrderedDict
    assert nested["z"] is layer
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    params = {k: t.detach() for k, t in model.named_parameters()}
    assert list(growth.deepen(params, "0", "new")) == [
        "0.weight",
        "0.bias",
        "new.weight",
        "new.bias",
        "2.weight",
        "2.bias",
    ]
    mixed = growth.deepen({"net": {"a.weight": torch.ones(2, 3)}}, "net.a", "net.b")
    assert list(mixed["net"]) == ["a.weight", "b.weight"]
    deep = growth.deepen({"net": {"block": {"a": layer}}}, ("net", "block", "a"), "net.block.b")
    assert list(deep["net"]["block"]) == ["a", "b"]
    bare = growth.deepen({"net": {"w": torch.ones(2, 3), "v": torch.ones(1, 2)}}, "net.w", "u")
    assert list(bare["net"]) == ["w", "u", "v"]
    assert torch.equal(bare["net"]["u"], torch.eye(2))


def test_dtype_is_that_of_the_layer():
    assert growth.deepen({"a": {"weight": torch.ones(2, 3).double()}}, "a", "b")["b"]["weight"].dtype == torch.float64
    with_bias = growth.deepen({"a": {"weight": torch.ones(2, 3)}}, "a", "b", bias=True)
    assert torch.equal(with_bias["b"]["bias"], torch.zeros(2))


LAYER = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("params", "after", "name", "options", "message"),
    [
        ({"a": LAYER}, "b", "c", {}, "b: no such layer"),
        ({"a": LAYER, "b": LAYER}, "a", "b", {}, "name: got 'b', but there is a 'b' already"),
        ({"n.a.weight": torch.ones(2, 3), "n.b.scale": torch.ones(1)}, "n.a", "b", {}, "there is a 'n.b' already"),
        ({"n": {"a": LAYER}}, "n.a", "n.a", {}, "there is a 'a' already"),
        ({"n": {"a": LAYER}}, "n.a", "m.b", {}, "name: got 'm.b', expected a key without dots, beside n.a"),
        ({"a": LAYER}, "a", "", {}, "name: got ''"),
        ({"n": [LAYER, LAYER]}, "n.0", "1", {}, r"n.0.weight: got a list around it, expected dicts"),
        ({"w": torch.ones(2, 3)}, "w", "v", {"bias": True}, "bias: got True, expected False or None, since w is"),
        ({"a": {"weight": torch.ones(2, 3, 2)}}, "a", "b", {}, r"kernel: got \(2,\) behind a.weight"),
        ({"a": LAYER}, "a", "b", {"kernel": (3,)}, r"kernel: got \(3,\) .* expected 0 odd sizes"),
    ],
)
def test_bad_arguments(params, after, name, options, message):
    with pytest.raises(ValueError, match=message):
        growth.deepen(params, after, name, **options)


def test_new_leaves_join_a_live_optimizer():
    params = {k: {n: t.clone().requires_grad_() for n, t in LAYER.items()} for k in "ab"}
    optimizer = torch.optim.Adam(trees.leaves(params))
    deeper = growth.deepen(params, "a", "new")
    assert deeper["a"]["weight"] is params["a"]["weight"]
    fresh = [t.requires_grad_() for t in deeper["new"].values()]
    optimizer.add_param_group({"params": fresh})
    assert {id(t) for g in optimizer.param_groups for t in g["params"]} == {id(t) for t in trees.leaves(deeper)}
