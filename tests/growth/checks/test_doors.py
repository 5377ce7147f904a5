"""The doors of growth: records of others and numbers that are none are refused, in every function that takes them."""

import dataclasses
import math
import pickle

import pytest
import torch

import growth
from growth.strategies import network

NET = network(1, r=4, p=4, q=4, samples=20)
OWN, OTHER = growth.Pair("hidden", "output"), growth.Pair("first", "hidden")
G = torch.Generator


def made(pair=OWN):
    """stats, new, delta of a pair whose layers have the sizes of the other's."""
    stats = growth.statistics(SQUARE.f, SQUARE.params, SQUARE.data, pair)
    return {
        "stats": stats,
        "new": growth.optimal_neurons(stats, 2),
        "delta": growth.optimal_delta(stats),
        "removed": growth.cut(SQUARE.params, pair, [0])[1],
    }


class SQUARE:  # first is 4 x 4 too, so that all sizes coincide
    params = NET.params | {"first": {"weight": torch.eye(4).double(), "bias": torch.zeros(4).double()}}
    f = staticmethod(NET.f)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = (x, NET.target)


MINE, FOREIGN = made(), made(OTHER)
P, F, D = SQUARE.params, SQUARE.f, SQUARE.data
TAKERS = {  # every function with the records it takes: r holds the right ones but for one
    "Statistics +": (lambda r: MINE["stats"] + r["stats"], "stats"),
    "optimal_neurons delta": (lambda r: growth.optimal_neurons(r["stats"], 1, delta=r["delta"]), "stats delta"),
    "split_floor": (lambda r: growth.split_floor(MINE["stats"], r["stats"]), "stats"),
    "split_floor delta": (lambda r: growth.split_floor(MINE["stats"], MINE["stats"], delta=r["delta"]), "delta"),
    "standard_errors": (lambda r: growth.standard_errors([MINE["stats"], r["stats"]]), "stats"),
    "with_fisher": (lambda r: growth.with_fisher(r["stats"], F, P, D, OWN), "stats"),
    "prune": (lambda r: growth.prune(P, OWN, [0], stats=r["stats"]), "stats"),
    "unit_scores": (lambda r: growth.unit_scores(P, OWN, stats=r["stats"]), "stats"),
    "senn_score": (lambda r: growth.senn_score(r["stats"], new=r["new"]), "stats new"),
    "gradient_norms": (lambda r: growth.gradient_norms(r["stats"], r["new"]), "stats new"),
    "grow": (lambda r: growth.grow(P, OWN, r["new"], delta=r["delta"]), "new delta"),
    "grow a list": (lambda r: growth.grow(P, [OTHER, OWN], [None, r["new"]]), "new"),
    "apply_extended": (lambda r: growth.apply_extended(F, P, OWN, r["new"], r["delta"], 1.0, D[0]), "new delta"),
    "line_search": (lambda r: growth.line_search(F, P, D, OWN, r["new"], r["delta"], grid=[1.0]), "new delta"),
    "choose_sign": (lambda r: growth.choose_sign(F, P, D, OWN, r["new"]), "new"),
    "normalize": (lambda r: growth.normalize(r["new"], r["delta"], P, OWN), "new delta"),
    "improvement": (lambda r: growth.improvement(r["new"], r["delta"]), "new delta"),
    "compare": (lambda r: growth.compare([OWN], [r["new"]], [r["delta"]]), "new delta"),
    "merge_neurons": (lambda r: growth.merge_neurons(MINE["new"], r["new"]), "new"),
    "restore": (lambda r: growth.restore(growth.prune(P, OWN, [0]), OWN, r["removed"]), "removed"),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_records_of_another_pair_are_refused(taker):
    call, kinds = TAKERS[taker]
    call(MINE)
    for kind in kinds.split():
        with pytest.raises(ValueError, match=r"Pair\('first', 'hidden'\)"):
            call(MINE | {kind: FOREIGN[kind]})
        wrong = MINE["delta"] if kind != "delta" else MINE["new"]
        with pytest.raises(TypeError):
            call(MINE | {kind: wrong})
        if kind != "stats" or "delta" not in kinds:  # of unknown origin: nothing to compare
            call(MINE | {kind: dataclasses.replace(MINE[kind], pair=None)})


def test_a_delta_of_other_statistics_is_refused():
    more = growth.statistics(F, P, (D[0] + 1, D[1]), OWN)
    with pytest.raises(ValueError, match="of the same statistics"):
        growth.optimal_neurons(more, 1, delta=MINE["delta"])
    scaled = growth.normalize(None, MINE["delta"], P, OWN)[1]
    growth.optimal_neurons(MINE["stats"], 1, delta=scaled)


def test_records_keep_their_pair_when_saved():
    for kind, record in MINE.items():
        assert pickle.loads(pickle.dumps(record)).pair == OWN, kind


def test_a_derived_record_is_held_against_the_axes_of_its_base():
    class Mine(growth.Delta):
        pass

    class Ours(growth.Statistics):
        pass

    delta, stats = (
        kind(**{f.name: getattr(record, f.name) for f in dataclasses.fields(record)})
        for kind, record in ((Mine, MINE["delta"]), (Ours, MINE["stats"]))
    )
    assert growth.improvement(None, delta) == MINE["delta"].decrease
    assert torch.equal(growth.optimal_delta(stats).weight, MINE["delta"].weight)
    with pytest.raises(ValueError, match=r"delta: bias: got shape \(1,\), expected \[4\]"):
        growth.improvement(None, dataclasses.replace(delta, bias=delta.bias[:1]))
    with pytest.raises(TypeError, match=r"stats: M: got torch.float32, expected torch.float64 as stats: S"):
        growth.optimal_delta(dataclasses.replace(stats, M=stats.M.float()))
    growth.improvement(None, dataclasses.replace(delta, bias=delta.bias.float()))  # cast where it goes


def test_a_pair_twice_is_refused():
    new = MINE["new"]
    for pairs in ([OWN, OWN], [OWN, growth.Pair(("hidden",), "output")]):
        with pytest.raises(ValueError, match="more than once"):
            growth.grow(P, pairs, [new, new])


BAD = {"nan": math.nan, "inf": math.inf, "negative": -1.0, "tensor": torch.tensor(-1.0), "none": "x"}
S, N, R = MINE["stats"], MINE["new"], lambda v: {"ridge": v}
NUMBERS = {  # every number argument that is >= 0 (or > 0)
    "optimal_delta ridge": lambda v: growth.optimal_delta(S, v),
    "optimal_delta rtol": lambda v: growth.optimal_delta(S, rtol=v),
    "optimal_delta shrinkage": lambda v: growth.optimal_delta(S, output_metric="fisher", shrinkage=v),
    "optimal_neurons ridge": lambda v: growth.optimal_neurons(S, 1, ridge=v),
    "optimal_neurons threshold": lambda v: growth.optimal_neurons(S, 1, threshold=v),
    "optimal_neurons noise_floor": lambda v: growth.optimal_neurons(S, 1, noise_floor=v),
    "noise_floor": lambda v: growth.noise_floor(S, v),
    "split_floor": lambda v: growth.split_floor(S, S, v),
    "prune ridge": lambda v: growth.prune(P, OWN, [0], stats=S, ridge=v),
    "grow scale": lambda v: growth.grow(P, OWN, N, scale=v),
    "grow scale of two": lambda v: growth.grow(P, OWN, N, scale=(1.0, v)),
    "grid": lambda v: growth.line_search(F, P, D, OWN, N, None, grid=[v]),
    "gradmax scale": lambda v: growth.gradmax(S, 1, scale=v),
    "random std": lambda v: growth.random(S, 1, std=v),
    "random std_out": lambda v: growth.random(S, 1, std_out=v),
    "normalize std": lambda v: growth.normalize(N, None, P, OWN, std=v),
    "normalize gradmax_scale": lambda v: growth.normalize(N, None, P, OWN, gradmax_scale=v),
    "paired noise": lambda v: growth.paired(N, noise=v, generator=G()),
    "widen noise": lambda v: growth.widen(P, OWN, 1, noise=v, generator=G()),
    "keep which": lambda v: growth.keep(N, v),
    "senn_score ridge": lambda v: growth.senn_score(S, v),
    "senn_trigger": lambda v: growth.senn_trigger(torch.ones(()), torch.ones(()), least=v),
    "north_score": lambda v: growth.north_score(S, v),
    "north_trigger": lambda v: growth.north_trigger(torch.ones(()), torch.ones(()), 4, gamma=v, most=2),
    "by_gain relative": lambda v: growth.by_gain(torch.ones(2), relative=v),
    "sgd lr": growth.sgd,
    "sgd momentum": lambda v: growth.sgd(0.1, v),
    "adam lr": growth.adam,
    "adam betas": lambda v: growth.adam(betas=(0.9, v)),
    "adam eps": lambda v: growth.adam(eps=v),
    "fit ridge": lambda v: growth.fit_and_grow(
        F, P, D, OWN, order=[torch.zeros(0, 2).long()] * 2, target=5, k=1, **R(v)
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none_are_refused(name, bad):
    with pytest.raises((ValueError, TypeError), match="expected a finite number"):
        NUMBERS[name](BAD[bad])


COUNTS = {
    "optimal_neurons": lambda k: growth.optimal_neurons(S, k),
    "tiny": lambda k: growth.tiny(S, k),
    "gradmax": lambda k: growth.gradmax(S, k),
    "random": lambda k: growth.random(S, k, generator=G()),
    "zero_out": lambda k: growth.zero_out(S, k),
    "gradmax_score": lambda k: growth.gradmax_score(S, k),
    "initialize": lambda k: growth.initialize(P, OWN, k, generator=G()),
    "rescale": lambda k: growth.rescale(P, OWN, k),
    "widen": lambda k: growth.widen(P, OWN, k),
    "widen at random": lambda k: growth.widen(P, OWN, k, "zero_out", G()),
    "truncate": lambda k: growth.truncate(N, k),
    "weakest_units": lambda k: growth.weakest_units(torch.ones(3), keep=k),
    "add_parameters": lambda k: growth.add_parameters(P["hidden"], added_out_features=k),
    "fixed_proportional": lambda k: growth.fixed_proportional(0, 4, k),
    "target": lambda k: growth.fixed_proportional(0, k, 2),
    "geometric": lambda k: growth.geometric(1, 4, k),
    "in_steps_of": lambda k: growth.in_steps_of(0, k, 1),
    "to_target": lambda k: growth.to_target(1, 4, k),
    "by_gain": lambda k: growth.by_gain(torch.ones(2), most=k),
    "north_trigger": lambda k: growth.north_trigger(torch.ones(()), torch.ones(()), 4, most=k),
    "shuffles": lambda k: growth.shuffles(k, [1], 1, generator=G()),
    "epochs": lambda k: growth.shuffles(10, [k], 1, generator=G()),
    "batch": lambda k: growth.shuffles(10, [1], k, generator=G()),
    "chunk_size": lambda k: growth.line_search(F, P, D, OWN, N, None, chunk_size=k) if k != 10**9 else _raise(),
}


def _raise():
    raise ValueError("expected an int: any large number of points at once is all of them")


@pytest.mark.parametrize("k", [-1, 10**9, 1.0, True, None])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_checked_before_memory_is_taken(name, k):
    if k is None and name in ("gradmax_score", "to_target", "by_gain", "chunk_size"):
        return
    with pytest.raises((ValueError, TypeError), match="expected an int"):
        COUNTS[name](k)
