"""A pair that is read once: later passes give the same numbers, call f once, and read anew what the reading is not of."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
from growth import Pair, Reading
from linmaps import trees
from tests.laws import close

G = torch.Generator().manual_seed(0)
X = torch.randn(12, 5, generator=G, dtype=torch.float64)
T = torch.arange(12) % 3
IMAGES = torch.randn(12, 2, 6, 6, generator=G, dtype=torch.float64)
DENSE = [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)]
CONVOLVED = [
    nn.Conv2d(2, 3, 3),
    nn.ReLU(),
    nn.AvgPool2d(2),
    nn.Conv2d(3, 3, 2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(3, 3),
]
NETS = {  # layers, inputs, pairs
    "dense": (DENSE, X, [Pair("0", "2")]),
    "neighbours": (DENSE, X, [Pair("2", "4"), Pair("0", "2")]),
    "slopes": ([nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3)], X, [Pair("0", "2")]),
    "norm": ([nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)], X, [Pair("0", "3", norm="1")]),
    "maps": (CONVOLVED, IMAGES, [Pair("0", "3"), Pair("3", "6")]),
}
each_net = pytest.mark.parametrize("name", NETS)


def net(name):
    layers, x, pairs = NETS[name]
    torch.manual_seed(1)
    f, params = fisher.functional(nn.Sequential(*layers).double().eval(), buffers=True)
    return f, params, x, pairs


def moved(params, by=0.5):
    return trees.map(lambda t: t + by * torch.cos(torch.arange(t.numel()).to(t)).reshape(t.shape), params)


def counting(f):
    calls = []
    return lambda p, x: (calls.append(len(trees.leaves(x)[0])), f(p, x))[1], calls


@each_net
def test_numbers_are_those_without_a_reading_whatever_the_params(name):
    f, params, x, pairs = net(name)
    reading = Reading.from_function(f, params, x[:4], pairs)
    for p in (params, moved(params) if name != "norm" else params):
        want = growth.statistics(f, p, (x, T), pairs)
        got = growth.statistics(f, p, (x, T), pairs, layers=reading)
        close(trees.leaves(got), trees.leaves(want), 1e-15, name)
        assert [s.pair for s in got] == [s.pair for s in want]
        new = [growth.optimal_neurons(s, 2) for s in want]
        signed = [growth.choose_sign(f, p, (x, T), pairs, new, layers=l) for l in (reading, None)]
        close(*(trees.leaves(s) for s in signed), 1e-15, name)


@each_net
def test_f_is_called_once_a_batch(name):
    f, params, x, pairs = net(name)
    reading = Reading.from_function(f, params, x, pairs)
    f, calls = counting(f)
    growth.statistics(f, params, [(x[:5], T[:5]), (x[5:], T[5:])], pairs, layers=reading)
    assert calls == [5, 7]


def test_some_of_the_pairs_in_another_order():
    f, params, x, pairs = net("neighbours")
    reading = Reading.from_function(f, params, x, pairs)
    f, calls = counting(f)
    for some in (pairs[::-1], pairs[1:], pairs[0]):
        got = growth.statistics(f, params, (x, T), some, layers=reading)
        assert calls.pop() == 12
        assert not calls
        close(trees.leaves(got), trees.leaves(growth.statistics(f, params, (x, T), some)), 1e-15, f"{some}")
        calls.clear()


@pytest.mark.parametrize("name", ["dense", "maps"])
def test_grown_params_other_pairs_and_dtypes_are_read_anew(name):
    f, params, x, (pair, *_) = net(name)
    reading = Reading.from_function(f, params, x, pair)
    new = growth.optimal_neurons(growth.statistics(f, params, (x, T), pair), 2)
    other = {"dense": Pair("2", "4"), "maps": Pair("3", "6")}[name]
    cases = [
        (growth.grow(params, pair, new), x, pair),
        (trees.map(lambda t: t.float(), params), x.float(), pair),
        (params, x, other),
    ]
    cases += [(params, x, dataclasses.replace(pair, activation=torch.tanh))] if name == "dense" else []
    for p, inputs, one in cases:
        got, want = (growth.statistics(f, p, (inputs, T), one, layers=known) for known in (reading, None))
        close(trees.leaves(got), trees.leaves(want), 1e-6 if inputs.dtype is torch.float32 else 1e-15, f"{one}")


def test_maps_of_other_sizes_are_read_anew():
    f = lambda p, x: torch.conv2d(torch.relu(torch.conv2d(x, p["a"])), p["b"]).mean((2, 3))
    params = {"a": torch.randn(3, 2, 3, 3, generator=G).double(), "b": torch.randn(3, 3, 1, 1, generator=G).double()}
    reading = Reading.from_function(f, params, IMAGES, Pair("a", "b"))
    larger = torch.nn.functional.pad(IMAGES, (0, 1, 0, 2), value=0.5)
    batches = [(IMAGES[:5], T[:5]), (larger, T), (IMAGES[5:], T[5:])]
    for data in (batches, batches[::-1], [batches[1]]):
        got, want = (growth.statistics(f, params, data, Pair("a", "b"), layers=known) for known in (reading, None))
        close(trees.leaves(got), trees.leaves(want), 1e-14, f"{len(data)} batches")


def test_an_activation_that_f_changes_is_read_anew_or_refused():
    """The same f, which closes over what is changed."""
    inside = {"between": torch.tanh}
    f = lambda p, x: inside["between"](x @ p["a"].T) @ p["b"].T
    params = {"a": torch.eye(5, dtype=torch.float64)[:4], "b": torch.eye(4, dtype=torch.float64)[:3]}
    pair = Pair("a", "b")
    reading = Reading.from_function(f, params, X, pair)
    inside["between"] = torch.sigmoid
    with pytest.raises(ValueError, match=r"the activation is 0\.5 at 0"):
        growth.statistics(f, params, (X, T), pair, layers=reading)
    inside["between"] = torch.relu
    got = growth.statistics(f, params, (X, T), pair, layers=reading)
    want = growth.statistics(f, params, (X, T), pair)
    close(trees.leaves(got), trees.leaves(want), 1e-15, "relu")
    assert [float(t) for t in (got.slope_plus, got.slope_minus)] == [1.0, 0.0]
    inside["between"] = lambda z: z.softmax(-1)
    with pytest.raises(ValueError, match="softmax"):
        growth.statistics(f, params, (X, T), pair, layers=reading)


def test_another_function_is_refused():
    f, params, x, (pair,) = net("dense")
    reading = Reading.from_function(f, params, x, pair)
    other = lambda p, x: f(p, x) + (x @ p["0.weight"].T)[:, :3]
    with pytest.raises(ValueError, match="f took another way"):
        growth.statistics(other, params, (x, T), pair, layers=reading)


def test_what_cannot_be_read_is_refused_as_by_statistics():
    f = lambda p, x: (x @ p["a"].T).softmax(-1) @ p["b"].T
    params = {"a": torch.eye(5)[:4], "b": torch.eye(4)}
    with pytest.raises(ValueError, match="softmax"):
        Reading.from_function(f, params, X.float(), Pair("a", "b"))
    shaky = lambda p, x: torch.tanh(x @ p["a"].T + torch.rand(4)) @ p["b"].T
    with pytest.raises(ValueError, match="is random"):
        Reading.from_function(shaky, params, X.float(), Pair("a", "b"))


def test_members_of_an_ensemble_share_a_reading():
    f, params, x, (pair,) = net("dense")
    reading = Reading.from_function(f, params, x, pair)
    members = [params, moved(params)]
    one = lambda p: growth.statistics(f, p, (x, T), pair, layers=reading)
    close(
        trees.leaves(vmap(one)(trees.stack(members))),
        trees.leaves(trees.stack([one(p) for p in members])),
        1e-12,
        "vmap",
    )


def test_it_holds_no_tensor_of_params():
    for name in NETS:
        f, params, x, pairs = net(name)
        reading = Reading.from_function(f, params, x, pairs)
        assert len(reading.places) == len(pairs)
        for place in reading.places:
            assert place is None or place.layer.weight.device.type == "meta"
        assert dataclasses.replace(reading).known(params, pairs, x) is not None


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("behind", ["convolution", "dense"])
def test_another_function_between_convolutions_is_read_anew(behind, padding):
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    maps = {
        "a": draw(4, 2, 3, 3),
        "b": draw(3, 4, 2, 2) if behind == "convolution" else draw(3, 4 * (4 + 2 * padding) ** 2),
    }

    def f(act):
        def run(p, x):
            h = act(torch.nn.functional.conv2d(x, p["a"], padding=padding))
            if behind == "dense":
                return h.flatten(1) @ p["b"].T
            return torch.nn.functional.conv2d(h, p["b"], padding=padding).mean((2, 3))

        return run

    pair = Pair("a", "b")
    reading = Reading.from_function(f(torch.tanh), maps, IMAGES, pair)
    for act in (torch.tanh, torch.relu, torch.sin):
        want = growth.statistics(f(act), maps, (IMAGES, T), pair)
        got = growth.statistics(f(act), maps, (IMAGES, T), pair, layers=reading)
        close(trees.leaves(got), trees.leaves(want), 1e-14, act.__name__)
    same, calls = counting(f(torch.tanh))
    growth.statistics(same, maps, (IMAGES, T), pair, layers=reading)
    assert calls == [12]
