"""LayerCollection: what each leaf is, the printed table, the completeness check, errors that name the cure."""

import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch.func import vjp, vmap

import fisher
from fisher.collector.io import layer_io
from fisher.collector.products import example_gradients, gradient
from fisher.collector.weights import derived_weights
from fisher.strategies import networks
from linmaps import trees
from tests.laws import close, noise_like
from tests.zoo import MODELS

D = torch.float64
X = torch.linspace(-1, 1, 12, dtype=D).reshape(4, 3)


class Closed(torch.autograd.Function):
    """An opaque function of a leaf: x W with nothing to see inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x @ w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


@pytest.mark.parametrize("name", MODELS)
def test_each_leaf_is_what_it_is(name):
    m = MODELS[name]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    assert {layer.name: layer.kind for layer in layers} == m.blocks
    assert layers.numel() == sum(t.numel() for t in trees.leaves(m.params))
    assert sorted({n for layer in layers for n in layer.leaves}) == list(range(len(trees.leaves(m.params))))
    v = noise_like(m.params, 3)
    close(layers.tree(layers.views(v)), v, 0.0, "there and back")
    assert {l.name: t.numel() for l, t in zip(layers, layers.views(v).values())} == {l.name: l.numel for l in layers}


@pytest.mark.parametrize("name", MODELS)
def test_sum_over_uses_is_the_gradient(name):
    m = MODELS[name]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    y, back = vjp(lambda p: m.f(p, m.x), m.params)
    cotangent = torch.cos(torch.arange(y.numel(), dtype=D)).reshape(y.shape)
    _, uses = layer_io(m.f, m.params, m.x, layers, lambda _: cotangent[None])
    views = layers.views(back(cotangent)[0])
    phi = derived_weights(m.f, m.params, m.x, layers)
    flat = trees.leaves(m.params)
    for layer in layers.through:
        _, pull = vjp(phi[layer.name], [flat[n] for n in layer.leaves])
        g = [gradient(w, [uses[k][0] for k in w.uses], [uses[k][1][0] for k in w.uses]) for w in layer.inner]
        close(torch.cat([t.flatten() for t in pull(g)[0]]), views[layer.name], 1e-12, layer.name)
    for layer in layers:
        if not layer.by_leaf and layer.uses:
            a, g = [uses[k][0] for k in layer.uses], [uses[k][1][0] for k in layer.uses]
            close(gradient(layer, a, g), views[layer.name], 1e-12, layer.name)
            rows = example_gradients(layer, a, [t[None] for t in g])
            close(rows.sum((0, 1)), views[layer.name], 1e-12, f"{layer.name}, by example")


@given(networks(max_batch=4))
def test_random_networks_are_fully_factored(network):
    layers = fisher.LayerCollection.from_function(network.f, network.params, network.x, strict=True)
    assert all(layer.kronecker for layer in layers)
    assert {layer.name: layer.bias is not None for layer in layers} == {
        n: "bias" in p for n, p in network.params.items()
    }


def test_hashable_picklable_equal():
    m = MODELS["module"]
    one, two = (fisher.LayerCollection.from_function(m.f, m.params, m.x) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    buffer = io.BytesIO()
    torch.save(one, buffer)
    buffer.seek(0)
    assert torch.load(buffer) == one
    assert one != fisher.LayerCollection.from_function(MODELS["mlp"].f, MODELS["mlp"].params, MODELS["mlp"].x)


def test_table_says_which_leaf_gets_which_block():
    m = MODELS["bare"]
    table = str(fisher.LayerCollection.from_function(m.f, m.params, m.x)).splitlines()
    assert table[0] == "LayerCollection: 4 leaves, 21 parameters, 4 blocks, 336 B"
    assert [line.split()[:3] for line in table[2:]] == [
        ["idle", "none", "unused"],
        ["scale", "exact", "scale"],
        ["t", "exact", "exact"],
        ["w", "kronecker", "matmul"],
    ]
    assert table[4].endswith("used by torch.lerp: no rule")


def test_layers_by_name():
    m = MODELS["mlp"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    assert layers["a"].shape == (4, 3)
    with pytest.raises(ValueError, match=r"'nope': no such layer; expected one of \['a', 'b'\]"):
        layers["nope"]


def test_exact_blocks_by_name_of_the_layer():
    m = MODELS["mlp"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x, exact=("a",))
    assert {l.name: (l.kind, l.note) for l in layers} == {
        "a.bias": ("exact", "asked for"),
        "a.weight": ("exact", "asked for"),
        "b": ("linear", ""),
    }
    with pytest.raises(ValueError, match=r"c: no such leaf, expected one of \['a.bias'"):
        fisher.LayerCollection.from_function(m.f, m.params, m.x, exact=("c",))


def test_strict_names_leaf_call_and_cure():
    m = MODELS["bare"]
    with pytest.raises(ValueError, match=r"t: used by torch.lerp: no rule; add one with fisher.rules.register or"):
        fisher.LayerCollection.from_function(m.f, m.params, m.x, strict=True)


def test_leaf_in_an_opaque_function():
    f = lambda p, x: Closed.apply(x, p["w"])
    params = {"w": torch.ones(3, 2, dtype=D)}
    with pytest.raises(ValueError, match=r"w: has a gradient but is used by no torch call.*exact=\('w',\)"):
        fisher.LayerCollection.from_function(f, params, X)
    with pytest.raises(ValueError, match="w: has a gradient but"):
        fisher.fim(f, params, X)
    layers = fisher.LayerCollection.from_function(f, params, X, exact=("w",))
    g = lambda p, x: x @ p["w"]
    close(
        fisher.fim(f, params, X, layers=layers).to_torch(),
        fisher.fim(g, params, X, fisher.PMatDense).matrix,
        1e-12,
        "exact",
    )


def test_second_hidden_use_of_a_known_leaf():
    f = lambda p, x: x @ p["w"] + Closed.apply(x, p["w"])
    with pytest.raises(ValueError, match=r"w: the uses seen \(matmul of w\) explain only part of its gradient"):
        fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2, dtype=D)}, X)


def test_hidden_use_is_found_under_vmap():
    f = lambda p, x: x @ p["w"] + Closed.apply(x, p["w"])
    with pytest.raises(ValueError, match="explain only part"):
        vmap(lambda p: fisher.fim(f, p, X))({"w": torch.ones(2, 3, 2, dtype=D)})


def test_scripted_callable_is_found():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, but people still have traced callables
        scripted = torch.jit.trace(lambda x, w: torch.tanh(x @ w), (X, torch.ones(3, 2, dtype=D)))
    with pytest.raises(ValueError, match="w: has a gradient but is used by no torch call"):
        fisher.LayerCollection.from_function(lambda p, x: scripted(x, p["w"]), {"w": torch.ones(3, 2, dtype=D)}, X)


def test_mixed_examples_are_refused_with_the_cure():
    f = lambda p, x: F.batch_norm(x @ p["w"], None, None, training=True)
    with pytest.raises(ValueError, match=r"one example depends on other examples.*model\.eval\(\)"):
        fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2, dtype=D)}, X)


def test_mixed_examples_are_refused_for_integer_inputs_too():
    f = lambda p, x: F.batch_norm(p["w"][x], None, None, training=True)
    params = {"w": torch.linspace(-1, 1, 10, dtype=D).reshape(5, 2) ** 3}
    with pytest.raises(ValueError, match="one example depends on other examples"):
        fisher.LayerCollection.from_function(f, params, torch.tensor([0, 3, 1]))
    places = lambda p, x: (p["w"][x] + p["places"][torch.arange(4)]).flatten(1)  # four places, two examples
    params["places"] = torch.ones(4, 2, dtype=D)
    layers = fisher.LayerCollection.from_function(places, params, torch.tensor([[0, 3, 1, 1], [2, 2, 0, 4]]))
    assert [l.kind for l in layers] == ["positions", "embedding"]


def test_integer_leaf_wrong_output_and_unknown_exact():
    f = lambda p, x: x @ p["w"]
    with pytest.raises(TypeError, match=r"steps: got dtype torch.int64"):
        fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2, dtype=D), "steps": torch.tensor(3)}, X)
    with pytest.raises(ValueError, match="return one row per example"):
        fisher.LayerCollection.from_function(lambda p, x: f(p, x).sum(), {"w": torch.ones(3, 2, dtype=D)}, X)
    with pytest.raises(TypeError, match="got tuple, expected one tensor"):
        fisher.LayerCollection.from_function(lambda p, x: (f(p, x), 0), {"w": torch.ones(3, 2, dtype=D)}, X)
    beside = lambda p, x: {"loss": f(p, x).sum(), "logits": f(p, x)}
    with pytest.raises(TypeError, match=r"take one: lambda params, x: f\(params, x\)\['logits'\] of 'logits'$"):
        fisher.LayerCollection.from_function(beside, {"w": torch.ones(3, 2, dtype=D)}, X)
    with pytest.raises(ValueError, match=r"v: no such leaf, expected one of \['w'\]"):
        fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2, dtype=D)}, X, exact=("v",))


def test_without_check_a_hidden_use_passes():
    f = lambda p, x: x @ p["w"] + Closed.apply(x, p["w"])
    layers = fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2, dtype=D)}, X, check=False)
    assert layers["w"].kind == "matmul"


def test_sources_lead_from_layer_to_layer():
    m = MODELS["module"]
    uses = fisher.LayerCollection.from_function(m.f, m.params, m.x).uses
    assert [u.source and u.source[0] for u in uses] == [None, 0, 1]
    assert [str(u.source[1]) for u in uses[1:]] == ["relu", "gelu"]
    z = torch.linspace(-2, 2, 9)
    close(uses[1].source[1](z), F.relu(z), 0, "relu")
    f = lambda p, x: (lambda h: torch.tanh(h @ p["v"]) + h)(torch.tanh(x @ p["w"]))
    uses = fisher.LayerCollection.from_function(f, {"w": torch.ones(3, 2), "v": torch.ones(2, 2)}, X.float()).uses
    assert uses[1].source is None, "the hidden values also go elsewhere"


def test_register_refuses_a_second_rule_and_learns_a_new_call():
    with pytest.raises(ValueError, match=r"linear: has a rule already"):
        fisher.rules.register(F.linear, fisher.rules.linear)
    f = lambda p, x: torch.linalg.matmul(x, p["w"])
    params = {"w": torch.ones(3, 2, dtype=D)}
    assert fisher.LayerCollection.from_function(f, params, X)["w"].kind == "exact"
    fisher.rules.register(torch.linalg.matmul, fisher.rules.matmul)
    try:
        assert fisher.LayerCollection.from_function(f, params, X)["w"].kind == "matmul"
    finally:
        del fisher.rules.RULES[torch.linalg.matmul]


class Twice(torch.nn.Module):
    """One module under two names, and one weight of two modules."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.net = torch.nn.Sequential(self.first, torch.nn.LayerNorm(3))
        self.tied = torch.nn.Linear(3, 3)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(torch.tanh(self.net(x)))


def test_a_module_under_two_names_is_left_as_it_was():
    model = Twice().double()
    before = [(id(p), type(p), p.requires_grad, p.detach().clone()) for p in model.parameters()]
    layers = fisher.LayerCollection.from_model(model, None, X)
    after = [(id(p), type(p), p.requires_grad, p.detach().clone()) for p in model.parameters()]
    assert [a[:3] for a in after] == [b[:3] for b in before]
    assert all(torch.equal(a[3], b[3]) for a, b in zip(after, before))
    assert {layer.name: len(layer.uses) for layer in layers} == {
        "first": 2,
        "first.bias": 1,
        "net.1": 1,
        "tied.bias": 1,
    }


def test_leaves_that_ask_for_it_share_a_block():
    m = MODELS["norms"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x, exact=["1", ["9", "10.weight"]])
    assert [l.name for l in layers.exact] == ["1.bias", "1.weight", "10.weight+9.bias+9.weight"]
    shared = layers["10.weight+9.bias+9.weight"]
    assert shared.numel == 12
    v = noise_like(m.params, 3)
    close(layers.tree(layers.views(v)), v, 0.0, "there and back")
    truth = fisher.fim(m.f, m.params, m.x, fisher.PMatDense, "gaussian")
    starts = [0, *torch.tensor(layers.layout.sizes).cumsum(0).tolist()]
    at = [k for n in shared.leaves for k in range(starts[n], starts[n + 1])]
    for representation in (
        fisher.PMatBlockDiag,
        fisher.PMatKFAC,
        fisher.PMatMixed,
        fisher.PMatDense,
        fisher.PMatLowRank,
    ):
        F_ = fisher.fim(m.f, m.params, m.x, representation, "gaussian", layers=layers)
        close(F_.to_torch()[at][:, at], truth.matrix[at][:, at], 1e-10, representation.__name__)
    close(fisher.jacobian(m.f, m.params, m.x, layers=layers), fisher.jacobian(m.f, m.params, m.x), 1e-12, "jacobian")
    with pytest.raises(ValueError, match=r"exact: names \['9.bias', '9.weight'\] twice"):
        fisher.LayerCollection.from_function(m.f, m.params, m.x, exact=["9", ["9", "10"]])


def test_a_function_that_autograd_does_not_see_is_refused_and_a_saddle_is_not():
    """At zeros no leaf of a product has a gradient, and the matrix is zero; a function that detaches has none anywhere."""
    zeros = {"a": torch.zeros(3, 2, dtype=D), "b": torch.zeros(2, 2, dtype=D)}
    assert fisher.fim(lambda p, x: torch.tanh(x @ p["a"]) @ p["b"], zeros, X).trace() == 0
    with pytest.raises(ValueError, match="depends on params, but no gradient leads to them"):
        fisher.fim(lambda p, x: torch.tanh(x @ p["a"].detach()) @ p["b"].detach(), zeros, X)
