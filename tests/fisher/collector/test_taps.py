"""The collector: pitfalls met in practice, one test each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

import fisher
from fisher.checks.axes import INNER, batch_axes, batch_size, rows
from fisher.collector.io import layer_io
from fisher.collector.watching.known import opened
from linmaps import trees
from tests.laws import close
from tests.oracles import fisher_matrix
from tests.zoo import MODELS

D = torch.float64


def ones_column(y):
    return torch.ones_like(y)[None]


def test_composites_of_torch_open():
    """The naming habit that opening relies on holds in this version of torch: the linear inside attention is seen."""
    net = nn.MultiheadAttention(4, 2, batch_first=True).double()
    params = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    layers = fisher.LayerCollection.from_function(lambda p, x: functional_call(net, p, (x, x, x))[0], params, x)
    assert layers["in_proj_weight[4:8]"].kind == "linear"
    assert layers["out_proj"].kind == "linear"
    assert opened(F.layer_norm) is opened(F.layer_norm)
    assert F.layer_norm.__globals__["has_torch_function_variadic"] is torch.nn.functional.has_torch_function_variadic


def overwrites(p, x):
    """Changes the input of a layer after its use; plain autograd refuses this for v's gradient, the taps must not err."""
    h = x @ p["w"]
    z = h @ p["v"]
    h += 1.0
    return z * h


OVERWRITTEN = {
    "w": torch.linspace(-1, 1, 9, dtype=D).reshape(3, 3),
    "v": torch.linspace(1, 2, 9, dtype=D).reshape(3, 3),
}


def test_input_changed_after_use_is_kept_as_it_was():
    x = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)
    layers = fisher.LayerCollection.from_function(overwrites, OVERWRITTEN, x, check=False)
    assert [u.mutated for u in layers.uses] == [False, True]
    _, io = layer_io(overwrites, OVERWRITTEN, x, layers, ones_column)
    close(io[1][0][:, 0], x @ OVERWRITTEN["w"], 1e-14, "input of v")


def test_mutation_is_seen_under_vmap():
    x = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)

    def inputs(p):
        layers = fisher.LayerCollection.from_function(overwrites, p, x, check=False)
        return layer_io(overwrites, p, x, layers, ones_column)[1][1][0]

    stacked = trees.stack([OVERWRITTEN, trees.scale(2.0, OVERWRITTEN)])
    close(vmap(inputs)(stacked)[1][:, 0], 2 * x @ OVERWRITTEN["w"], 1e-14, "input of v")


def test_other_way_through_the_function_raises():
    way = {"long": True}

    def f(p, x):
        return torch.tanh(x @ p["w"]) @ p["v"] if way["long"] else x @ p["v"]

    params = {"w": torch.ones(3, 3), "v": torch.ones(3, 2)}
    layers = fisher.LayerCollection.from_function(f, params, torch.ones(2, 3))
    way["long"] = False
    with pytest.raises(ValueError, match=r"v: use 0 is matmul of v, expected matmul of w; .*make a new one"):
        fisher.fim(f, params, torch.ones(2, 3), layers=layers)
    with pytest.raises(ValueError, match=r"matmul of v: met 1 uses, expected 2"):
        layer_io(lambda p, x: torch.tanh(x @ p["w"]), params, torch.ones(2, 3), layers, ones_column)


def test_fewer_parameters_than_the_collection():
    m = MODELS["mlp"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    with pytest.raises(ValueError, match=r"params \(of the LayerCollection\): leaf a.weight has shape"):
        fisher.fim(m.f, trees.replace(m.params, "a.weight", torch.ones(4, 2, dtype=D)), m.x, layers=layers)


@pytest.mark.parametrize("name", ["mlp", "sequence", "flattened", "steps_first", "attention"])
def test_another_batch_size_and_length_reuse_the_collection(name):
    m = MODELS[name]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    x = torch.cat([m.x, 2 * m.x, m.x[:1]])
    whole = fisher.fim(m.f, m.params, x, fisher.PMatDense, "gaussian", layers=layers)
    fresh = fisher.fim(m.f, m.params, x, fisher.PMatDense, "gaussian")
    close(whole, fresh, 1e-12, "reused layers")


def test_another_sequence_length_looks_again():
    m = MODELS["pooled"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    x = torch.cat([m.x, m.x[:, :2]], 1)
    close(fisher.fim(m.f, m.params, x, layers=layers), fisher.fim(m.f, m.params, x), 1e-12, "longer sequences")


def test_function_written_by_vmap_of_one_example():
    one = lambda p, x: torch.tanh(p["w"] @ x)
    f = lambda p, x: vmap(lambda x: one(p, x))(x)
    params = {"w": torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=D)}
    x = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)
    g = lambda p, x: torch.tanh(x @ p["w"].T)
    close(
        fisher.fim(f, params, x, fisher.PMatDense).matrix,
        fisher.fim(g, params, x, fisher.PMatDense).matrix,
        1e-12,
        "vmap",
    )


def test_the_same_tensor_at_two_places_is_two_leaves():
    w = torch.linspace(-1, 1, 9, dtype=D).reshape(3, 3)
    f = lambda p, x: torch.tanh(x @ p["a"]) @ p["b"]
    x = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)
    got = fisher.fim(f, {"a": w, "b": w}, x, fisher.PMatDense)
    close(got, fisher.fim(f, {"a": w, "b": w.clone()}, x, fisher.PMatDense), 1e-14, "shared object")


def test_requires_grad_tensors_are_left_alone():
    m = MODELS["module"]
    params = {k: v.clone().requires_grad_() for k, v in m.params.items()}
    F_ = fisher.fim(m.f, params, m.x)
    assert all(v.grad is None for v in params.values())
    F_.trace().backward()
    want = grad(lambda p: fisher.fim(m.f, p, m.x).trace())(m.params)
    close({k: v.grad for k, v in params.items()}, want, 1e-12, "backward through fim")


@pytest.mark.parametrize(
    ("shape", "batch", "axes"),
    [
        ((4, 3), 4, (0,)),
        ((12, 3), 4, (0, INNER)),
        ((5, 4, 3), 4, (1,)),
        ((4, 4, 3), 4, (0, 1)),
        ((5, 3), 4, ()),
        ((0, 3), 0, (0,)),
    ],
)
def test_batch_axes(shape, batch, axes):
    assert batch_axes(shape, batch) == axes


def test_rows_bring_examples_in_front():
    t = torch.arange(24).reshape(4, 3, 2)
    assert torch.equal(rows(t, 4), t)
    assert torch.equal(rows(t.reshape(12, 2), 4), t)
    assert torch.equal(rows(t.transpose(0, 1), 4, 1), t)
    assert torch.equal(rows(t.transpose(0, 1).reshape(12, 2), 4, INNER), t)
    assert rows(torch.zeros(0, 3, 2), 0).shape == (0, 3, 2)


def test_batch_size_needs_one_leading_axis():
    with pytest.raises(ValueError, match="expected one common batch axis"):
        batch_size({"a": torch.zeros(3), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="expected one common batch axis"):
        batch_size(torch.zeros(()))


def test_make_fx_replays_the_same_matrix():
    """The supported accelerator: trace the pure function, then run the graph."""
    from torch.fx.experimental.proxy_tensor import make_fx

    m = MODELS["module"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    fn = lambda p, x: fisher.fim(m.f, p, x, layers=layers, check_finite=False).factors
    graph = make_fx(fn)(m.params, m.x)
    other = trees.scale(0.7, m.params)
    close(graph(other, m.x), fn(other, m.x), 1e-14, "replayed graph")


W3 = torch.linspace(-1, 1, 9, dtype=D).reshape(3, 3)
X3 = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)


def added_in_place_to_no_layer(p, x):
    h = torch.sin(x)
    h += p["b"]
    return torch.tanh(h) @ p["w"]


def overwritten_before_the_bias(p, x):
    z = x @ p["w"]
    z[:, 0] = 0.0
    return torch.tanh(z + p["b"])


def masked_in_place_before_the_bias(p, x):
    z = x @ p["w"]
    z.masked_fill_(x > 0, 0.5)
    return torch.tanh(z + p["b"])


@pytest.mark.parametrize(
    "f",
    [added_in_place_to_no_layer, overwritten_before_the_bias, masked_in_place_before_the_bias],
    ids=lambda f: f.__name__,
)
def test_in_place_changes_between_product_and_bias(f):
    """Such a bias shares no output-gradient with the product: it must not join it, and the matrix must be right."""
    params = {"w": W3, "b": torch.linspace(0.1, 0.3, 3, dtype=D)}
    layers = fisher.LayerCollection.from_function(f, params, X3)
    assert all(len(layer.leaves) == 1 for layer in layers)
    want = fisher_matrix(f, params, X3, "gaussian")
    close(fisher.fim(f, params, X3, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-12, "dense")


@pytest.mark.parametrize("change", ["masked_fill_", "__setitem__", "mul_ by a tensor"])
def test_an_unknown_change_in_place_is_no_activation(change):
    def f(p, x):
        z = x @ p["w"].T
        if change == "masked_fill_":
            z.masked_fill_(x > 0, 0.0)
        elif change == "__setitem__":
            z[x > 0] = 0.0
        else:
            z.mul_(x)
        return z @ p["v"].T

    layers = fisher.LayerCollection.from_function(f, {"w": W3, "v": W3 + 1}, X3)
    assert layers.uses[1].source is None


def test_what_a_dead_tensor_was_called_does_not_matter():
    """Ids of tensors that are gone are given again: the same function must always give the same layers."""

    def f(p, x):
        for k in range(12):
            x = torch.softmax(x, -1) + p[f"b{k}"]  # a bias on a tensor that nothing else holds
            x = torch.tanh(x @ p[f"w{k}"] + p[f"c{k}"])
        return x

    params = {f"{n}{k}": torch.full((3, 3) if n == "w" else (3,), 0.1 * k) for k in range(12) for n in "bwc"}
    for _ in range(5):
        layers = fisher.LayerCollection.from_function(f, params, torch.ones(4, 3), check=False)
        assert {layer.kind for layer in layers} == {"bias", "matmul"}
        assert all((layer.bias is not None) for layer in layers)


def test_calls_with_keywords_alone():
    f = lambda p, x: F.linear(
        bias=p["c"], input=torch.tanh(input=torch.add(torch.matmul(x, other=p["w"]), other=p["b"])), weight=p["v"]
    )
    params = {"w": W3, "b": W3[0], "v": W3 + 1, "c": W3[1]}
    layers = fisher.LayerCollection.from_function(f, params, X3)
    assert {layer.name: (layer.kind, len(layer.leaves)) for layer in layers} == {"w": ("matmul", 2), "v": ("linear", 2)}
    want = fisher_matrix(f, params, X3, "categorical")
    close(fisher.fim(f, params, X3, fisher.PMatDense).matrix, want, 1e-12, "keywords")
