"""Inputs as loaders and tokenizers give them: mappings of any kind, nested tuples, text and numbers beside the tensors."""

import collections

import numpy as np
import pytest
import torch
from torch.func import vmap

import fisher
import growth
from linmaps import trees
from linmaps.trees.seals import Sealed, sealed, unsealed

B = 6
G = torch.Generator().manual_seed(0)
X = torch.randn(B, 3, generator=G, dtype=torch.float64)
Z = torch.randn(B, 2, generator=G, dtype=torch.float64)
T = torch.arange(B) % 4
PARAMS = {
    "hidden": {
        "weight": torch.randn(5, 3, generator=G, dtype=torch.float64),
        "bias": torch.zeros(5, dtype=torch.float64),
    },
    "output": {"weight": torch.randn(4, 5, generator=G, dtype=torch.float64)},
    "side": {"weight": torch.randn(4, 2, generator=G, dtype=torch.float64)},
}


class Encoding(collections.UserDict):
    """As tokenizers give them: keys as attributes, and a method that is no key."""

    def to(self, device):
        return self


class Bare:
    """A mapping by its methods alone."""

    def __init__(self, **entries):
        self.entries = entries

    def keys(self):
        return self.entries.keys()

    def __getitem__(self, key):
        return self.entries[key]


def network(params, x, z, scale=1.0):
    h = torch.tanh(x @ params["hidden"]["weight"].T + params["hidden"]["bias"])
    return scale * (h @ params["output"]["weight"].T) + z @ params["side"]["weight"].T


def by_tuple(params, x):
    return network(params, *x)


def by_name(params, x):
    assert x["names"] == ["a", "b"], "what is no tensor comes as it was"
    assert x["inner"][1] is None
    return network(params, x["x"], x["inner"][0], x["scale"])


def entries():
    return {"x": X, "inner": (Z, None), "names": ["a", "b"], "scale": 1.0}


INPUTS = {
    "dict": entries(),
    "ordered": collections.OrderedDict(reversed(entries().items())),
    "UserDict": collections.UserDict(entries()),
    "tokenizer": Encoding(entries()),
    "methods": Bare(**entries()),
}
REPRESENTATIONS = (
    fisher.PMatDense,
    fisher.PMatBlockDiag,
    fisher.PMatDiag,
    fisher.PMatQuasiDiag,
    fisher.PMatKFAC,
    fisher.PMatEKFAC,
    fisher.PMatLowRank,
    fisher.PMatImplicit,
    fisher.PMatMixed,
)


def same(got, want):
    v = trees.map(torch.ones_like, PARAMS)
    for mine, other in zip(trees.leaves(got.mv(v)), trees.leaves(want.mv(v))):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda r: r.__name__)
def test_every_kind_of_mapping_is_an_input(kind, representation):
    want = fisher.fim(by_tuple, PARAMS, ((X, Z), T), representation)
    same(fisher.fim(by_name, PARAMS, INPUTS[kind], representation), want)
    same(fisher.fim(by_name, PARAMS, (INPUTS[kind], T), representation), want)
    same(fisher.fim(by_name, PARAMS, [(INPUTS[kind], T), (INPUTS[kind], T)], representation), want)
    same(fisher.fim(by_name, PARAMS, [INPUTS[kind]], representation), want)


FUNCTIONS = {
    "layers": lambda f, x: torch.tensor([len(fisher.LayerCollection.from_function(f, PARAMS, x))]),
    "jacobian": lambda f, x: fisher.jacobian(f, PARAMS, x).to_torch(),
    "jacobian of batches": lambda f, x: fisher.jacobian(f, PARAMS, [x, x]).to_torch(),
    "implicit jacobian": lambda f, x: fisher.jacobian(f, PARAMS, x, fisher.PFMapImplicit).jvp(PARAMS),
    "gram": lambda f, x: fisher.gram(f, PARAMS, x).to_torch(),
    "layer_io": lambda f, x: fisher.layer_io(
        f, PARAMS, x, fisher.LayerCollection.from_function(f, PARAMS, x), lambda y: torch.ones_like(y)[None]
    )[0],
    "hessian": lambda f, x: fisher.hessian(
        lambda p, x, t: torch.nn.functional.cross_entropy(f(p, x), t), PARAMS, (x, T)
    ).to_torch(),
    "ggn": lambda f, x: fisher.ggn(
        f, lambda y, t: torch.nn.functional.cross_entropy(y, t, reduction="none"), PARAMS, (x, T)
    ).to_torch(),
    "influence": lambda f, x: fisher.recipes.influence(
        f, PARAMS, (x, T), fisher.fim(f, PARAMS, (x, T), fisher.PMatDense), (x, T), regul=0.1
    ),
    "leave_one_out": lambda f, x: fisher.recipes.leave_one_out(
        f, PARAMS, (x, T), fisher.fim(f, PARAMS, (x, T), fisher.PMatDense), n_examples=B, regul=0.1
    )["side"]["weight"],
    "laplace": lambda f, x: fisher.recipes.laplace(f, PARAMS, fisher.fim(f, PARAMS, (x, T), fisher.PMatKFAC), B).sample(
        noise=PARAMS
    )["side"]["weight"],
    "predict": lambda f, x: fisher.recipes.laplace(
        f, PARAMS, fisher.fim(f, PARAMS, (x, T), fisher.PMatKFAC), B
    ).predict(x)[1],
    "statistics": lambda f, x: growth.statistics(f, PARAMS, (x, T), growth.Pair("hidden", "output")).S,
    "statistics of batches": lambda f, x: growth.statistics(f, PARAMS, [(x, T)] * 2, growth.Pair("hidden", "output")).S,
    "line_search": lambda f, x: (
        growth.line_search(f, PARAMS, (x, T), growth.Pair("hidden", "output"), None, _delta(f, x)).losses
    ),
    "apply_extended": lambda f, x: growth.apply_extended(
        f, PARAMS, growth.Pair("hidden", "output"), None, _delta(f, x), 0.5, x
    ),
    "output_fisher": lambda f, x: growth.output_fisher(f, PARAMS, x, growth.Pair("hidden", "output")),
    "fit_and_grow": lambda f, x: growth.fit_and_grow(
        f, PARAMS, (x, T), growth.Pair("hidden", "output"), order=[torch.arange(B)[None]] * 2, target=6, k=1
    ).params["side"]["weight"],
}


ALONE = ("jacobian", "jacobian of batches", "implicit jacobian", "gram", "output_fisher")


def _delta(f, x):
    return growth.optimal_delta(growth.statistics(f, PARAMS, (x, T), growth.Pair("hidden", "output")), 0.1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_them(name):
    alone = name in ALONE  # where a pair would be (x, target)
    want = FUNCTIONS[name](by_tuple, ((X, Z),) if alone else (X, Z))
    torch.testing.assert_close(FUNCTIONS[name](by_name, INPUTS["dict"]), want, atol=1e-10, rtol=1e-10)
    if name != "apply_extended":  # x goes to f as it is
        torch.testing.assert_close(FUNCTIONS[name](by_name, INPUTS["tokenizer"]), want, atol=1e-10, rtol=1e-10)


def test_nested_tuples_and_ensembles():
    nested = lambda p, x: network(p, x[0], x[1][0], x[1][1])
    data = ((X, (Z, 1.0)), T)
    same(fisher.fim(nested, PARAMS, data, fisher.PMatKFAC), fisher.fim(by_tuple, PARAMS, ((X, Z), T), fisher.PMatKFAC))
    layers = fisher.LayerCollection.from_function(nested, PARAMS, data[0])
    both = trees.stack([PARAMS, trees.scale(0.5, PARAMS)])
    F = vmap(lambda p: fisher.fim(nested, p, data, fisher.PMatKFAC, layers=layers).trace())(both)
    for n, member in enumerate(trees.unstack(both)):
        torch.testing.assert_close(F[n], fisher.fim(nested, member, data, fisher.PMatKFAC).trace())


def test_seals_open_to_what_was_there():
    tree = {"a": [torch.ones(2), "text", 3, None, 2.5, True, b"bytes", {1, 2}], "b": ()}
    assert unsealed(sealed(tree))["a"][1:] == tree["a"][1:]
    assert sealed(X) is X
    once = sealed(tree)
    assert sealed(once) == once or trees.leaves(sealed(once))[0] is tree["a"][0]
    assert trees.leaves(once) == [tree["a"][0]]
    assert isinstance(once["a"][3], Sealed)


REFUSED = {
    "an array as data": (
        lambda: fisher.fim(by_tuple, PARAMS, X.numpy()),
        r"data: got numpy.ndarray of shape \(6, 3\).*as_tensor",
    ),
    "an array in a pair": (lambda: fisher.fim(by_tuple, PARAMS, ((X.numpy(), Z), T)), r"data: 0: got numpy.ndarray"),
    "an array as target": (
        lambda: fisher.fim(by_tuple, PARAMS, ((X, Z), T.numpy()), estimator="empirical"),
        r"data: target: got numpy.ndarray",
    ),
    "an array in a batch": (
        lambda: fisher.fim(by_tuple, PARAMS, [(X.numpy(), T)]),
        r"data: batch 0: got numpy.ndarray",
    ),
    "an array as x": (lambda: fisher.jacobian(by_tuple, PARAMS, X.numpy()), r"data: got numpy.ndarray"),
    "an array to watch": (
        lambda: fisher.LayerCollection.from_function(by_tuple, PARAMS, X.numpy()),
        r"x: got numpy.ndarray",
    ),
    "no tensor": (lambda: fisher.fim(by_tuple, PARAMS, {"text": ["a"]}), r"x: got dict without a tensor"),
    "an object": (lambda: fisher.fim(by_tuple, PARAMS, [(object(), T)]), r"x: got object without a tensor"),
    "arrays for growth": (
        lambda: growth.statistics(by_tuple, PARAMS, (np.ones((6, 3)), T), growth.Pair("hidden", "output")),
        r"data: got numpy.ndarray",
    ),
    "arrays as params": (lambda: fisher.fim(by_tuple, {"w": np.ones(3)}, X), r"w: got ndarray, expected a tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_tensor_where_one_is_wanted(name):
    call, words = REFUSED[name]
    with pytest.raises(TypeError, match=words):
        call()
