"""Rows of the transform table for presets, selection, normalization, initialization and rescaling."""

import dataclasses

import torch

import growth
from growth.strategies import network
from tests.growth.rows_step import solid
from tests.laws import Case, Exempt

PAIR = growth.Pair("hidden", "output")
NET = network(71, p=3, r=4, q=3)
NORMAL = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FLAT = 3**0.5 * (2 * torch.rand(2, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)
STD = torch.tensor(0.4, dtype=torch.float64)
RELU = dataclasses.replace(solid(8), slope_minus=torch.zeros((), dtype=torch.float64))


def shape(new):
    """What the signs of units do not change, also where one side is zero."""
    parts = {"move": new.fan_out @ new.joined, "in": new.joined.mT @ new.joined, "out": new.fan_out @ new.fan_out.mT}
    return parts | {"eigenvalues": new.eigenvalues, "gains": new.gains, "gain": new.gain}


def preset(name, k=2, **options):
    return lambda stats: shape(getattr(growth, name)(stats, k, **options))


def filled(name):
    return lambda stats, draws: shape(getattr(growth, name)(stats, 4, draws=draws))


def units(seed=5):
    return growth.optimal_neurons(solid(seed), 2)


def normalized(kind, **options):
    def fn(new, delta, params, std):
        new, delta = growth.normalize(new, delta, params, PAIR, kind=kind, **dict.fromkeys(options, std))
        return shape(new), delta

    return Case(fn, (units(), growth.optimal_delta(solid(5)), NET.params, STD))


def drawn(rule):
    return lambda params, draws: shape(growth.initialize(params, PAIR, 2, fan_in=rule, fan_out=rule, draws=draws))


def rescaled(kind, preserve=False):
    return Case(lambda p: growth.rescale(p, PAIR, 2, kind=kind, preserve=preserve), (NET.params,))


CASES: dict[str, Case | Exempt] = {
    "growth.tiny": Case(preset("tiny"), (solid(11),)),
    "growth.tiny/ReLU": Case(preset("tiny"), (RELU,)),
    "growth.gradmax": Case(preset("gradmax", scale=0.3), (solid(12),)),
    "growth.gradmax/beyond the rank": Case(filled("gradmax"), (solid(12), NORMAL)),
    "growth.senn": Case(preset("senn"), (solid(13),)),
    "growth.senn/beyond the rank": Case(filled("senn"), (solid(13), NORMAL)),
    "growth.zero_in": Case(preset("zero_in"), (solid(14),)),
    "growth.zero_in/ReLU": Case(filled("zero_in"), (RELU, NORMAL)),
    "growth.zero_out": Case(preset("zero_out", target="gradient"), (solid(15),)),
    "growth.zero_out/beyond the rank": Case(filled("zero_out"), (solid(15), NORMAL)),
    "growth.random": Case(
        lambda stats, draws, std: shape(growth.random(stats, 2, draws=draws, std=std, std_out=std)),
        (solid(16), NORMAL[:2], STD),
    ),
    "growth.random/preserving": Case(
        lambda stats, draws: shape(growth.random(stats, 2, draws=draws)), (solid(16), NORMAL[2:])
    ),
    "growth.gradient_norms": Case(growth.gradient_norms, (solid(17), units())),
    "growth.truncate": Case(lambda new: growth.truncate(new, 1), (units(),)),
    "growth.keep/threshold": Case(lambda new: growth.keep(new, 0.9), (units(),)),
    "growth.keep/mask": Case(
        lambda new: growth.keep(new, torch.tensor([False, True], device=new.gains.device), fan_in=False), (units(),)
    ),
    "growth.scale_neurons": Case(
        lambda new, a, b: growth.scale_neurons(new, fan_in=a, fan_out=b), (units(), STD, 2 * STD)
    ),
    "growth.merge_neurons": Case(growth.merge_neurons, (units(5), units(6))),
    "growth.compact": Exempt(
        "its size depends on values (it drops masked units), so it runs outside of transforms only"
    ),
    "growth.normalize/after": normalized("after"),
    "growth.normalize/units": normalized("units", std=True),
    "growth.normalize/match": normalized("match"),
    "growth.normalize/fan_in": normalized("fan_in", std=True),
    "growth.normalize/gradmax": normalized("gradmax", gradmax_scale=True),
    "growth.initialize/copy": Case(drawn("copy_normal"), (NET.params, NORMAL[:2])),
    "growth.initialize/kaiming": Case(drawn("kaiming_uniform"), (NET.params, FLAT)),
    "growth.paired": Case(lambda new, size, d: growth.paired(new, noise=size, draws=d), (units(), STD, NORMAL[:3, :2])),
    "growth.rescale/default": rescaled("default"),
    "growth.rescale/constraint_old": rescaled("constraint_old"),
    "growth.rescale/constraint_new": rescaled("constraint_new", preserve=True),
}
