"""Laws of modules as pure functions."""

import pickle
import threading
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import fisher
from linmaps import trees
from tests.laws import close
from tests.zoo.keeping import KEPT, Keeping


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double().eval()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding(x)))


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a, b, scale=1.0):
        return scale * self.one(a) + self.other(b)


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_it_is_the_module_and_shares_nothing_with_it():
    m = net()
    f, params = fisher.functional(m)
    want = m(X).detach()
    assert list(params) == [name for name, _ in m.named_parameters()]
    assert not any(t.requires_grad for t in params.values())
    close(f(params, X), want, 0.0, "values")
    with torch.no_grad():
        for t in (*m.parameters(), *m.buffers()):
            t.add_(1)
    m.train()
    close(f(params, X), want, 0.0, "after the module has moved, and in the mode that it had")


def test_it_leaves_the_module_alone_in_train_mode():
    m = net().train()
    before = {name: t.clone() for name, t in m.state_dict().items()}
    f, params = fisher.functional(m)
    one, other = f(params, X), f(params, X)
    close(one, other, 0.0, "twice the same")
    assert all(torch.equal(t, before[name]) for name, t in m.state_dict().items())


def test_buffers_are_leaves_if_asked_for():
    m = net()
    f, params = fisher.functional(m, buffers=True)
    assert {"1.running_mean", "1.running_var"} <= set(params)
    assert "1.num_batches_tracked" not in params
    moved = f({**params, "1.running_mean": params["1.running_mean"] + 1}, X)
    assert (moved - f(params, X)).abs().max() > 0.01


def test_tied_parameters_are_one_leaf():
    m = Tied().double().eval()
    f, params = fisher.functional(m)
    assert list(params) == ["embedding.weight"]
    x = torch.tensor([[0, 1], [2, 4]])
    close(f(params, x), m(x).detach(), 0.0, "values")
    assert fisher.LayerCollection.from_function(f, params, x)["embedding"].kronecker


@pytest.mark.parametrize(
    "x", [(X, X[:, [0, 1, 2, 0]]), {"a": X, "b": X[:, [0, 1, 2, 0]]}, UserDict(a=X, b=X[:, [0, 1, 2, 0]], scale=2.0)]
)
def test_tuples_are_positional_and_mappings_keywords(x):
    m = Several().double()
    f, params = fisher.functional(m)
    want = m(**x) if not isinstance(x, tuple) else m(*x)
    close(f(params, x), want.detach(), 0.0, "values")


def test_hooks_and_parametrizations_go_along():
    m = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).double()
    f, params = fisher.functional(m)
    close(f(params, X), m(X).detach(), 1e-14, "values")
    layers = fisher.LayerCollection.from_function(f, params, X)
    assert [layer.kind for layer in layers.through] == ["weight_norm"]


def test_matrices_and_ensembles():
    m = net()
    f, params = fisher.functional(m)
    plain = lambda p, x: functional_call(m, p, (x,))
    close(fisher.fim(f, params, X), fisher.fim(plain, params, X), 1e-14, "KFAC")
    stacked = trees.stack([params, trees.map(torch.sin, params)])
    kfac = lambda p: fisher.fim(f, p, X, check_finite=False).trace()
    close(vmap(kfac)(stacked), torch.stack([kfac(p) for p in trees.unstack(stacked)]), 1e-12, "ensemble")


def test_a_module_in_place_of_f_is_refused_with_the_cure():
    m = net()
    for refused in (
        lambda: fisher.fim(m, dict(m.named_parameters()), X),
        lambda: fisher.jacobian(m, dict(m.named_parameters()), X),
        lambda: fisher.LayerCollection.from_function(m, dict(m.named_parameters()), X),
    ):
        with pytest.raises(
            TypeError, match=r"the module Sequential, expected a function of params; use f, params = fisher"
        ):
            refused()
    with pytest.raises(TypeError, match="module"):
        fisher.functional(lambda x: x)


def test_the_function_can_be_pickled_and_what_keeps_it_too():
    m = net()
    f, params = fisher.functional(m)
    posterior = fisher.recipes.laplace(f, params, fisher.fim(f, params, X), 6)
    again = pickle.loads(pickle.dumps(posterior)).on_function(pickle.loads(pickle.dumps(f)))
    close(again.f(params, X), f(params, X), 0.0, "f")
    close(again.probabilities(X), posterior.probabilities(X), 0.0, "posterior")
    assert repr(f) == "functional(Sequential)"


def test_names_must_be_those_of_the_module():
    """A missing one would be read from the live module, with its gradient."""
    m = net()
    f, params = fisher.functional(m)
    for wrong, words in (
        ({k: t for k, t in params.items() if k != "0.bias"}, r"missing \['0.bias'\], unknown \[\]"),
        (params | {"0.biass": params["0.bias"]}, r"missing \[\], unknown \['0.biass'\]"),
    ):
        with pytest.raises(ValueError, match=words):
            f(wrong, X)
        with pytest.raises(ValueError, match=words):
            fisher.fim(f, wrong, X)
    with pytest.raises(TypeError, match="params: got list"):
        f([], X)


def test_it_is_safe_among_threads():
    f, params = fisher.functional(nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)]).double())
    scaled = [trees.scale(float(n), params) for n in range(1, 5)]
    want, wrong = [f(p, X) for p in scaled], []

    def work(n):
        wrong.extend(1 for _ in range(100) if not torch.equal(f(scaled[n], X), want[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buffers_among_the_leaves_have_no_derivative():
    f, params = fisher.functional(net(), buffers=True)
    F, plain = fisher.fim(f, params, X, fisher.PMatDense), fisher.fim(*fisher.functional(net()), X, fisher.PMatDense)
    close(F.trace(), plain.trace(), 1e-12, "trace")
    layers = fisher.LayerCollection.from_function(f, params, X)
    assert layers["1.running_mean"].family == "unused"


def test_several_inputs_come_as_a_loader_gives_them():
    m = Several().double()
    f, params = fisher.functional(m)
    data = [((x, x[[0, 1, 2, 0]]), torch.tensor(n % 2)) for n, x in enumerate(X)]
    loader = torch.utils.data.DataLoader(data, batch_size=3)  # gives lists
    pairs = (X, X[:, [0, 1, 2, 0]])
    want = fisher.fim(f, params, (pairs, torch.arange(6) % 2))
    close(fisher.fim(f, params, loader).trace(), want.trace(), 1e-12, "lists")


def test_a_function_that_ignores_its_params_is_noticed():
    m = net()
    with pytest.warns(UserWarning, match="no leaf of params moves its output"):
        fisher.fim(lambda p, x: m(x), fisher.functional(m)[1], X)


def test_pairs_that_are_no_pairs_are_refused():
    f, params = fisher.functional(net())
    with pytest.raises(ValueError, match=r"target has shape \(3,\), expected one for each of 6 examples"):
        fisher.fim(f, params, (X, torch.arange(3)))
    with pytest.warns(
        UserWarning, match=r"of a regression use likelihood='gaussian', and several inputs go into one x"
    ):
        fisher.fim(f, params, (X, X))
    layers = fisher.LayerCollection.from_function(f, params, X)
    with pytest.raises(ValueError, match="without a layer"):
        fisher.fim(f, params, X, layers=layers.select(lambda layer: False))


@pytest.mark.parametrize("kind", KEPT)
def test_functions_that_a_module_keeps_run_on_the_params_that_are_given(kind):
    m = Keeping(kind)
    f, params = fisher.functional(m)
    before = m(X).detach()
    others = {name: 2 * t for name, t in params.items()}
    close(f(params, X), before, 1e-12, "its own")
    found = f(others, X)
    close(m(X), before, 1e-12, "the module itself")
    m.load_state_dict(others)
    close(found, m(X), 1e-12, "others")
    layers = fisher.LayerCollection.from_function(f, params, X)
    assert "unused" not in {layer.family for layer in layers}
