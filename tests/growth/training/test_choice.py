"""choose="slope": the pair whose units gain most per parameter grows alone, and what it gains is what the loss does."""

import pytest
import torch
from torch.func import vmap

import growth
from growth.reading.leaves import unit_size
from growth.strategies import network
from linmaps import trees
from tests.growth import oracle
from tests.growth.rows_surgery import SMOOTH

NET = network(11, r=4, p=2, q=3, samples=40, activation="relu", dtype=torch.float64)
PAIRS = [growth.Pair("first", "hidden"), NET.pair]
NOTHING = torch.zeros(0, 8, dtype=torch.int64)


def order(phases, seed=0):
    return growth.shuffles(40, [1] * phases, 8, generator=torch.Generator().manual_seed(seed))


def run(phases=3, params=NET.params, batches=None, pairs=PAIRS, **options):
    options = {"target": 9, "k": 2, "choose": "slope"} | options
    return growth.fit_and_grow(NET.f, params, NET.data, pairs, order=batches or order(phases), **options)


def widths(params):
    return params["first"]["weight"].shape[0], params["hidden"]["weight"].shape[0]


def measured(pair, k, t=1e-9):
    """The slope of the loss along new units alone, and how many parameters they are: what a step of this pair does."""
    made = growth.step(NET.f, NET.params, NET.data, pair, k, delta=False, scale=(0.0, t))
    added = [sum(v.numel() for v in trees.leaves(p)) for p in (NET.params, made.params)]
    return (made.before - made.grown) / t, added[1] - added[0]


@pytest.mark.parametrize("k", [1, 2])
def test_the_first_to_grow_has_the_largest_measured_slope(k):
    slopes = [slope / n for slope, n in (measured(pair, k) for pair in PAIRS)]
    best = int(slopes[1] > slopes[0])
    fit = run(batches=[NOTHING, NOTHING], k=k, target=20)
    start = widths(NET.params)
    assert fit.steps[1].width == tuple(w + k * (i == best) for i, w in enumerate(start))
    oracle.close(fit.steps[1].gain / measured(PAIRS[best], k)[1], slopes[best], 1e-5)


def test_it_grows_as_the_chosen_pair_does_alone():
    fit = run(batches=[NOTHING, NOTHING])
    best = fit.steps[1].width[0] == widths(NET.params)[0]
    want = growth.step(NET.f, NET.params, NET.data, PAIRS[best], 2).params
    for a, b in zip(trees.leaves(fit.params), trees.leaves(want), strict=True):
        oracle.close(a, b, 1e-9)


def test_one_pair_grows_at_a_time_until_none_may():
    fit = run(8, target=[5, 5], k=2)
    grown = [b[0] - a[0] + b[1] - a[1] for a, b in zip([s.width for s in fit.steps], [s.width for s in fit.steps][1:])]
    first, hidden = widths(NET.params)
    assert sum(grown) == 5 - first + 5 - hidden
    assert all(
        (a[0] == b[0]) or (a[1] == b[1]) for a, b in zip([s.width for s in fit.steps], [s.width for s in fit.steps][1:])
    )
    assert fit.steps[-1].width == (5, 5)
    assert grown[-1] == 0
    assert fit.state["momentum"]["hidden"]["weight"].shape == fit.params["hidden"]["weight"].shape


def test_units_of_each_step_by_a_list():
    fit = run(3, k=[3, 1])
    sums = [sum(s.width) for s in fit.steps]
    assert [b - a for a, b in zip(sums, sums[1:])] == [3, 1]


def test_a_fit_that_chooses_is_no_worse_per_parameter_at_once():
    """After one step without training: the same number of units, fewer parameters or a lower loss."""
    fit = run(batches=[NOTHING, NOTHING], delta=False)
    others = [growth.step(NET.f, NET.params, NET.data, p, 2, delta=False) for p in PAIRS]
    assert any(abs(float(fit.steps[1].grown - made.grown)) < 1e-9 for made in others)


def test_the_table_of_slopes():
    stats = growth.statistics(NET.f, NET.params, NET.data, PAIRS)
    news = growth.choose_sign(NET.f, NET.params, NET.data, PAIRS, [growth.optimal_neurons(s, 2) for s in stats])
    table = growth.compare(PAIRS, news, None, params=NET.params)
    sizes = [trees.leaves(growth.grow(NET.params, p, n)) for p, n in zip(PAIRS, news)]
    old = sum(t.numel() for t in trees.leaves(NET.params))
    assert table.parameters == tuple(sum(t.numel() for t in flat) - old for flat in sizes)
    oracle.close(table.slopes, torch.stack([n.gain for n in news]) / torch.tensor(table.parameters), 1e-14)
    assert int(table.steepest) == int(table.slopes.argmax())
    assert "steepest" in repr(table)
    with pytest.raises(ValueError, match="slopes: got steps of unknown size"):
        growth.compare(PAIRS, news, None).slopes  # noqa: B018


@pytest.mark.parametrize("kind", ["dense", "flat", "no bias", "flattened", "norm", "scale and shift"])
def test_parameters_of_a_unit_are_those_that_grow(kind):
    net = SMOOTH[kind]()
    count = lambda tree: sum(t.numel() for t in trees.leaves(tree))
    wider = growth.widen(net.params, net.pair, 3)
    assert 3 * unit_size(net.params, net.pair) == count(wider) - count(net.params)


def test_ensembles_are_refused():
    both, batches = trees.stack([NET.params, NET.params]), order(3)
    with pytest.raises(ValueError, match=r'choose="slope": got an ensemble under vmap, .* choose="all"'):
        vmap(lambda p: run(params=p, batches=batches).params)(both)
    batches = [torch.stack([a, b]) for a, b in zip(order(3), order(3, 1))]
    with pytest.raises(ValueError, match="got an ensemble under vmap"):
        vmap(lambda *o: run(batches=list(o)).params)(*batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": "gain"}, "choose: got 'gain', expected one of"),
        ({"target": [9]}, "target: got 1, expected 2"),
        ({"target": 1}, "target: got 1, expected an int from"),
        ({"k": [1, 1, 1]}, r"k: got 3 numbers of units, expected 2, one per growth step"),
        ({"k": -1}, "k: got -1"),
    ],
)
def test_errors_say_what_was_got(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
