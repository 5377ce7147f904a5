"""Runs along a way that is known: the bits of a run that is watched, and given up wherever f goes another."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jacfwd, vmap

import fisher
from fisher.collector import taps
from linmaps import trees
from tests.fisher.collector.test_backwards import Double


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = draw(6, 4)
PARAMS = {"w": draw(4, 5, seed=1), "b": draw(5, seed=2), "v": draw(5, 3, seed=3)}


def plain(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"]


def conv(p, x):
    return F.linear(F.relu(F.conv2d(x, p["k"], p["c"], 2)).flatten(1), p["v"])


NETWORKS = {
    "products and a bias": (plain, PARAMS, X),
    "convolution": (conv, {"k": draw(3, 2, 3, 3), "c": draw(3), "v": draw(4, 27)}, draw(5, 2, 7, 7)),
    "module": (*fisher.functional(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()), X),
    "addmm": (lambda p, x: torch.addmm(p["b"], x, p["w"]).relu() @ p["v"], PARAMS, X),
    "sequences": (plain, PARAMS, draw(3, 7, 4)),
    "a weight twice": (lambda p, x: torch.tanh(torch.tanh(x @ p["w"]) @ p["w"]), {"w": draw(4, 4)}, X),
}


def watched(monkeypatch):
    """How often f is watched from now on."""
    seen = []

    class Watcher(taps.Watcher):
        def __init__(self, *args, **kwargs):
            seen.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(taps, "Watcher", Watcher)
    return seen


def information(f, params, x, layers, kind=fisher.PMatKFAC):
    likelihood = fisher.Categorical(class_axis=-1)
    return fisher.fim(f, params, x, kind, likelihood, layers=layers, check_finite=False)


def same(F, G):
    for s, t in zip(trees.leaves(F), trees.leaves(G), strict=True):
        torch.testing.assert_close(s, t, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatDense])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_run_is_not_watched_and_gives_the_same_bits(name, kind, monkeypatch):
    f, params, x = NETWORKS[name]
    layers = fisher.LayerCollection.from_function(f, params, x)
    fresh = layers.select(layers.names())
    layers.way[:] = [()]  # as of a function without a way
    by_watching = [information(f, params, x, layers, kind) for _ in range(2)]
    information(f, params, x, fresh, kind)
    seen = watched(monkeypatch)
    same(information(f, params, x, fresh, kind), by_watching[1])
    assert not seen
    more = torch.cat([x, x[:2]])  # of another number of examples too
    same(information(f, params, more, fresh, kind), information(f, params, more, layers, kind))
    assert len(seen) == 1


def test_under_transforms(monkeypatch):
    layers, stacked = fisher.LayerCollection.from_function(plain, PARAMS, X), trees.stack([PARAMS, PARAMS])
    factors = lambda p: information(plain, p, X, layers).factors
    trace = lambda p: information(plain, p, X, layers).trace()
    runs = (lambda: vmap(factors)(stacked), lambda: grad(trace)(PARAMS), lambda: jacfwd(trace)(PARAMS))
    first = [run() for run in runs]
    seen = watched(monkeypatch)
    same([run() for run in runs], first)
    assert not seen
    layers.way[:] = [()]
    same([run() for run in runs], first)
    assert len(seen) == 3


OTHERS = {
    "another activation": lambda p, x: torch.relu(x @ p["w"] + p["b"]) @ p["v"],
    "another constant": lambda p, x: torch.tanh((x * 2) @ p["w"] + p["b"]) @ p["v"],
    "a call more": lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"] * 2,
    "a hidden call at the end": lambda p, x: Double.apply(torch.tanh(x @ p["w"] + p["b"]) @ p["v"]),
    "a hidden call between": lambda p, x: torch.tanh(Double.apply(x @ p["w"] + p["b"])) @ p["v"],
    "a hidden call before a use": lambda p, x: Double.apply(torch.tanh(x @ p["w"] + p["b"])) @ p["v"],
    "addmm": lambda p, x: torch.addmm(p["b"], x, p["w"]).tanh() @ p["v"],
    "linear": lambda p, x: F.linear(torch.tanh(x @ p["w"] + p["b"]), p["v"].T),
}


def outcome(f, layers):
    """The matrix, or what is said in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return information(f, PARAMS, X, layers)
        except ValueError as error:
            return str(error)


def alike(found, expected):
    assert found == expected


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_with_the_same_layers(name):
    layers, f = fisher.LayerCollection.from_function(plain, PARAMS, X), OTHERS[name]
    information(plain, PARAMS, X, layers)
    expected, found = (outcome(f, l) for l in (fisher.LayerCollection.from_function(plain, PARAMS, X), layers))
    assert type(found) is type(expected)
    same(found, expected) if isinstance(expected, fisher.PMat) else alike(found, expected)
    assert not any(layers.way)


REFUSED = {
    "the weights in another order": lambda p, x: torch.tanh(x @ p["v"]) @ p["w"],
    "no further use": lambda p, x: torch.tanh(torch.tanh(torch.tanh(x @ p["w"]) @ p["v"]) @ p["w"]),
    "one use less": lambda p, x: torch.tanh(x @ p["w"]),
    "a slice more": lambda p, x: torch.tanh(x @ p["w"]) @ p["v"] + (x @ p["w"].T[:, :3]).sum(1, keepdim=True),
    "a multiple more": lambda p, x: torch.tanh(x @ p["w"]) @ p["v"] + x @ p["v"].sin(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_watched_run_refuses_is_refused(name):
    square = {"w": draw(4, 4), "v": draw(4, 4, seed=1)}
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    layers = fisher.LayerCollection.from_function(f, square, X)
    for _ in range(2):
        information(f, square, X, layers)
    with pytest.raises(ValueError, match="another way"):
        information(REFUSED[name], square, X, layers)


def test_strides_and_numbers_are_compared():
    _, params, x = NETWORKS["convolution"]
    layers = fisher.LayerCollection.from_function(conv, params, x)
    information(conv, params, x, layers)
    other = lambda p, x: F.linear(F.relu(F.conv2d(x, p["k"], p["c"], 1, 0, 2)).flatten(1), p["v"])
    with pytest.raises(ValueError, match="another way"):  # dilated, with an output of the same size
        information(other, params, x, layers)


def test_a_list_that_was_written_to_is_another():
    params, x, dilation = {"k": draw(3, 2, 3, 3), "v": draw(3, 4)}, draw(5, 2, 7, 7), [1, 1]
    f = lambda p, x: F.conv2d(x, p["k"], None, 1, "same", dilation).tanh().mean((2, 3)) @ p["v"]
    layers = fisher.LayerCollection.from_function(f, params, x)
    information(f, params, x, layers)
    dilation[:] = [2, 2]
    with pytest.raises(ValueError, match="another way"):
        information(f, params, x, layers)


def test_a_constant_takes_the_place_of_data():
    c = draw(6, 4, seed=9)
    layers = fisher.LayerCollection.from_function(plain, PARAMS, X)
    information(plain, PARAMS, X, layers)
    of_constant = lambda p, x: torch.tanh(c @ p["w"] + p["b"]) @ p["v"]
    fresh = fisher.LayerCollection.from_function(plain, PARAMS, X)
    with pytest.raises(ValueError) as error:
        information(of_constant, PARAMS, X, fresh)
    with pytest.raises(ValueError) as again:
        information(of_constant, PARAMS, X, layers)
    assert str(again.value) == str(error.value)


def test_a_tensor_that_f_closes_over_keeps_its_graph():
    c = torch.ones(5, dtype=torch.float64)
    f = lambda p, x: (torch.tanh(x @ p["w"]) * c) @ p["v"]
    layers = fisher.LayerCollection.from_function(f, PARAMS, X)
    for _ in range(2):
        information(f, PARAMS, X, layers)
    c.requires_grad_()
    total = sum((A**2).sum() + (G**2).sum() for A, G in information(f, PARAMS, X, layers).factors.values())
    (slope,) = torch.autograd.grad(total, c)
    assert slope.abs().sum() > 0


def test_no_way_holds_a_tensor_or_is_in_a_file(tmp_path):
    layers = fisher.LayerCollection.from_function(plain, PARAMS, X)
    information(plain, PARAMS, X, layers)
    (way,) = layers.way
    assert way
    assert not any(isinstance(a, torch.Tensor) for call in way for a in call.args)
    trees.save(layers, tmp_path / "layers")
    assert not trees.load(tmp_path / "layers").way
