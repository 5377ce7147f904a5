"""Laws of tokens: leaves that are put beside the data, the same for every example, have factors."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import fisher
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

# name: (what is put beside x [B, T, D], shape of the leaf, kind)
PUT = {
    "expand": (lambda c, x: torch.cat([c.expand(len(x), 1, 4), x], 1), (1, 1, 4), "bias"),
    "expand -1": (lambda c, x: torch.cat((c.expand(x.shape[0], -1, -1), x), dim=1), (1, 1, 4), "bias"),
    "of a vector": (lambda c, x: torch.cat([c.expand(len(x), 1, 4), x], 1), (4,), "bias"),
    "repeat": (lambda c, x: torch.concat([x, c.repeat(len(x), 1, 1)], 1), (1, 1, 4), "bias"),
    "expand_as": (lambda c, x: torch.cat([c.expand_as(x[:, :1]), x], 1), (1, 1, 4), "bias"),
    "several": (lambda c, x: torch.cat([x, c.expand(len(x), 2, 4)], 1), (1, 2, 4), "positions"),
    "several, from rows": (lambda c, x: torch.cat([x, c[None].expand(len(x), -1, -1)], 1), (2, 4), "positions"),
    "stack": (lambda c, x: torch.stack([x[:, 0], c.expand(len(x), 4), x[:, 1]], 1), (4,), "bias"),
    "steps first": (
        lambda c, x: torch.cat([c.expand(1, len(x), 4), x.transpose(0, 1)], 0).transpose(0, 1),
        (1, 1, 4),
        "bias",
    ),
    "twice": (lambda c, x: torch.cat([(t := c.expand(len(x), 1, 4)), x, t], 1), (1, 1, 4), "bias"),
    "features": (lambda c, x: torch.cat([x[..., :2], c.expand(*x.shape[:2], 2)], -1), (2,), "bias"),
}


@pytest.mark.parametrize("name", PUT)
@pytest.mark.parametrize("batch", [5, 3, 1])
def test_a_token_has_factors(name, batch):
    put, shape, kind = PUT[name]
    f = lambda p, x: (torch.tanh(put(p["c"], x) @ p["w"]).cumsum(1) ** 2).flatten(1)
    params, x = {"c": randn(*shape, seed=1), "w": randn(4, 2, seed=2)}, randn(batch, 3, 4, seed=3)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert [(l.kind, l.family, l.note) for l in layers] == [(kind, "product", ""), ("matmul", "product", "")]
    want = fisher_matrix(f, params, x, "gaussian")
    made = lambda kind: fisher.fim(f, params, x, kind, "gaussian", layers=layers)
    close(made(fisher.PMatDense).matrix, want, 1e-10, "dense")
    close(trees.ravel(made(fisher.PMatDiag).get_diag())[0], want.diagonal(), 1e-10, "diagonal")
    close(made(fisher.PMatEKFAC).trace(), want.trace(), 1e-10, "the corrected eigenvalues keep the trace")
    one = made(fisher.PMatKFAC)
    again = fisher.fim(f, params, x[:1], fisher.PMatKFAC, "gaussian", layers=layers)
    assert one.factors.keys() == again.factors.keys(), "a batch of one takes the same way"
    if batch > 1:
        stacked = trees.stack([params, trees.map(torch.sin, params)])
        kfac = lambda p: fisher.fim(f, p, x, likelihood="gaussian", layers=layers, check_finite=False).factors
        close(vmap(kfac)(stacked), trees.stack([kfac(p) for p in trees.unstack(stacked)]), 1e-10, name)


OTHERS = {
    "weights beside weights": (lambda p, x: x @ torch.cat([p["a"], p["b"]], 1), {"a": (4, 2), "b": (4, 1)}),
    "rows that are no examples": (lambda p, x: torch.cat([x @ p["a"], p["b"]])[: len(x)], {"a": (4, 2), "b": (1, 2)}),
    "a multiple": (lambda p, x: torch.cat([2 * p["b"].expand(len(x), 4), x], 1) @ p["a"], {"a": (8, 2), "b": (4,)}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_things_beside_each_other_are_right_all_the_same(name):
    f, shapes = OTHERS[name]
    params, x = {k: randn(*s, seed=i) for i, (k, s) in enumerate(shapes.items())}, randn(5, 4, seed=3)
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian").matrix, want, 1e-10, name)
    close(
        trees.ravel(fisher.fim(f, params, x, fisher.PMatDiag, "gaussian").get_diag())[0], want.diagonal(), 1e-10, name
    )


def test_keys_and_values_of_attention_that_are_learned():
    net = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True).double()
    params = {k: 0.5 * randn(*t.shape, seed=i) for i, (k, t) in enumerate(net.named_parameters())}
    f = lambda p, x: functional_call(net, p, (x, x, x))[0].mean(1)
    x = randn(3, 2, 4, seed=9)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert not layers.exact
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")
