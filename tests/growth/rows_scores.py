"""Rows of the transform table for scores, schedules, search and the recipe."""

import dataclasses

import torch

import growth
from growth.strategies import from_rows, network, rows
from tests.laws import Case, Exempt

NET = network(71, activation="gelu", samples=30)
STATS = from_rows(*rows(72, 30, 4, 3, 3))
PAIRS = [growth.Pair("a", "b"), growth.Pair("b", "c")]
POINT = torch.tensor(0.4, dtype=torch.float64)
GRADIENT = {"w": torch.tensor([0.3, -0.7], dtype=torch.float64)}
ORDER = growth.shuffles(30, [1, 1], 6, generator=torch.Generator().manual_seed(0))

COUNT = dict.fromkeys(("grad", "jac"), "a count has no derivative; an integer or bool stays so in any dtype")
CHOICE = dict.fromkeys(("grad", "jac"), "amplitudes are chosen among points, the answer jumps where the choice changes")


def step():
    stats = growth.statistics(NET.f, NET.params, NET.data, NET.pair)
    return growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)


SEARCH = growth.line_search(NET.f, NET.params, NET.data, NET.pair, *step())
NAMELESS = tuple(dataclasses.replace(part, pair=None) for part in step())


def search(params, new, delta, x):
    found = growth.line_search(NET.f, params, (x, NET.target), NET.pair, new, delta)
    return {"loss": found.loss, "start": found.start}


def fit(params, x):
    fitted = growth.fit_and_grow(NET.f, params, (x, NET.target), NET.pair, order=ORDER, target=6, k=2, scale=(0.1, 0.1))
    return [s.grown for s in fitted.steps], [s.trained for s in fitted.steps]


def batches(params, x):
    data = [(x[:13], NET.target[:13]), (x[13:], NET.target[13:])]
    fitted = growth.fit_and_grow(NET.f, params, data, NET.pair, order=[1, 1], target=6, k=2, scale=(0.1, 0.1))
    return [s.grown for s in fitted.steps], [s.trained for s in fitted.steps]


def update(rule):
    def twice(gradient, params):
        first, state = rule.update(gradient, rule.init(params), params)
        return rule.update(first, state, params)

    return twice


CASES: dict[str, Case | Exempt] = {
    "growth.improvement": Case(growth.improvement, step()),
    "growth.compare": Case(lambda new, delta: growth.compare(PAIRS, [None, new], [delta, delta]), NAMELESS),
    "growth.Comparison/best": Case(lambda c: c.best, (growth.compare(PAIRS, None, [NAMELESS[1]] * 2),), COUNT),
    "growth.compare/params": Case(
        lambda new, p: growth.compare([NET.pair], [new], None, params=p).slopes, (step()[0], NET.params)
    ),
    "growth.Comparison/steepest": Case(
        lambda n: growth.compare([NET.pair], [n], None, params=NET.params).steepest, (step()[0],), COUNT
    ),
    "growth.senn_score": Case(growth.senn_score, (STATS,)),
    "growth.senn_score/ridge": Case(growth.senn_score, (STATS, POINT)),
    "growth.senn_score/layer": Case(lambda s: growth.senn_score(s, of="layer"), (STATS,)),
    "growth.senn_score/units": Case(
        lambda s, n: growth.senn_score(s, 0.1, new=n), (STATS, growth.optimal_neurons(STATS, 2))
    ),
    "growth.senn_trigger": Case(lambda a, b: growth.senn_trigger(a, b).long(), (POINT, 2 * POINT), COUNT),
    "growth.north_score": Case(growth.north_score, (STATS,), COUNT),
    "growth.north_trigger": Case(
        lambda a, b: growth.north_trigger(a, b, 40, most=8), (POINT + 0.5, POINT + 0.3), COUNT
    ),
    "growth.gradmax_score": Case(growth.gradmax_score, (STATS,)),
    "growth.gradmax_score/k": Case(lambda s: growth.gradmax_score(s, 2), (STATS,)),
    "growth.by_gain": Case(lambda g: growth.by_gain(g, relative=0.3), (torch.linspace(0, 2, 5).double(),), COUNT),
    "growth.line_search": Case(search, (NET.params, *step(), NET.x), CHOICE),
    "growth.Search/at_edge": Case(lambda s: s.at_edge.long(), (SEARCH,), COUNT),
    "growth.Search": Exempt("the record of line_search"),
    "growth.step": Case(
        lambda p, x: growth.step(NET.f, p, (x, NET.target), NET.pair, 2, scale=(0.1, 0.1)).params, (NET.params, NET.x)
    ),
    "growth.step/state": Case(
        lambda p, s, x: growth.step(NET.f, p, (x, NET.target), NET.pair, 1, state=s, scale=0.1, delta=False).state,
        (NET.params, NET.params, NET.x),
    ),
    "growth.GrowthStep": Exempt("the record of step"),
    "growth.fit_and_grow": Case(
        fit, (NET.params, NET.x), dict.fromkeys(("grad", "jac"), "training is a constant for derivatives")
    ),
    "growth.fit_and_grow/batches": Case(
        batches, (NET.params, NET.x), dict.fromkeys(("grad", "jac"), "training is a constant for derivatives")
    ),
    "growth.sgd": Case(update(growth.sgd(0.1)), (GRADIENT, GRADIENT)),
    "growth.adam": Case(update(growth.adam(0.1)), (GRADIENT, GRADIENT)),
    "growth.Optimizer": Exempt("two functions in a tuple"),
    "growth.Step": Exempt("a row of the record of fit_and_grow"),
    "growth.Fit": Exempt("the record of fit_and_grow"),
    "growth.shuffles": Exempt("indices from a generator, no tensor in"),
    "growth.fixed_proportional": Exempt("numbers of units, no tensor"),
    "growth.geometric": Exempt("numbers of units, no tensor"),
    "growth.in_steps_of": Exempt("numbers of units, no tensor"),
    "growth.to_target": Exempt("numbers of units, no tensor"),
}
