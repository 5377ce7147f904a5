"""Numbers come from their neighbours: autocast, default dtype and device, half precision, mappings, threads change nothing."""

from collections import OrderedDict, UserDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import growth
from growth.strategies import network
from linmaps import trees
from tests.growth.cases import CASES
from tests.laws import Case

NET = network(5, samples=24, dtype=torch.float32)
P, PAIR = NET.params, NET.pair
G = lambda: torch.Generator().manual_seed(0)


def closed(stats, params):
    """Everything that is computed of statistics and params without f."""
    delta, new = growth.optimal_delta(stats), growth.optimal_neurons(stats, 2)
    fisher = {"output_metric": "fisher", "shrinkage": 0.1}
    return {
        "delta": delta,
        "natural": growth.optimal_delta(stats, 0.1, **fisher),
        "units": new,
        "natural units": growth.optimal_neurons(stats, 2, ridge=0.1, **fisher).gains,
        "joint": growth.optimal_neurons(stats, 1, joint=True, ridge=0.1).gains,
        "gradmax": growth.gradmax(stats, 2).eigenvalues,
        "senn": growth.senn(stats, 2).fan_in,
        "random": growth.random(stats, 3, generator=G()).fan_in,
        "scores": torch.stack([growth.senn_score(stats, 0.1), growth.north_score(stats), growth.gradmax_score(stats)]),
        "norms": growth.gradient_norms(stats, new),
        "floor": growth.noise_floor(stats),
        "pruned": growth.prune(params, PAIR, [1], stats=stats, ridge=1e-3),
        "unit scores": growth.unit_scores(params, PAIR, stats=stats),
        "normalized": growth.normalize(new, delta, params, PAIR)[1],
        "grown": growth.grow(params, PAIR, new, delta=delta, scale=0.3),
        "split": growth.widen(params, PAIR, 2),
        "widened": growth.widen(params, PAIR, 2, "pair", G(), noise=0.1),
        "restored": growth.restore(*(lambda q, r: (q, PAIR, r))(*growth.cut(params, PAIR, [0]))),
        "rescaled": growth.rescale(params, PAIR, 2, preserve=True),
        "initialized": growth.initialize(params, PAIR, 2, generator=G()).fan_in,
        "deepened": growth.deepen(params, "hidden", "more"),
        "carried": growth.grow_like({"m": params, "s": stats}, params, growth.grow(params, PAIR, new)),
    }


STATS = growth.statistics(NET.f, P, NET.data, PAIR, NET.loss)
WANT = closed(STATS, P)


def same(got, want, tol=0.0):
    for name, a, b in (
        (n, s, t) for n in want for s, t in zip(trees.leaves(got[n]), trees.leaves(want[n]), strict=True)
    ):
        if not isinstance(b, torch.Tensor):
            continue
        assert (a.dtype, a.device) == (b.dtype, b.device), name
        torch.testing.assert_close(a, b, rtol=tol, atol=tol, equal_nan=True, msg=name)


def test_autocast_around_closed_forms_changes_nothing():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = closed(STATS, P)
    same(got, WANT)


TABLE = [name for name, case in CASES.items() if isinstance(case, Case)]


@pytest.mark.parametrize("name", TABLE)
def test_defaults_of_torch_change_nothing(name):
    case = CASES[name]
    single = trees.map(lambda t: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, case.args)
    want = case.fn(*single)
    before = torch.get_default_dtype()
    for setting in ("dtype", "device"):
        try:
            if setting == "dtype":
                torch.set_default_dtype(torch.float64)
            else:
                torch.set_default_device("meta")
            got = case.fn(*single)
        finally:
            torch.set_default_dtype(before)
            torch.set_default_device(None)
        same({name: got}, {name: want})


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_autocast_inside_f_is_watched(activation):
    params = {k: P[k] for k in ("hidden", "output")}
    plain = lambda p, x: F.linear(activation(F.linear(x, **p["hidden"])), **p["output"])

    def f(p, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(p, x).float()

    x, t = torch.randn(40, 3, generator=G()), torch.randn(40, 3, generator=G())
    got, want = (growth.statistics(g, params, (x, t), PAIR, "squared_error") for g in (f, plain))
    for name in ("S", "M", "S_prev", "M_prev"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.mark.parametrize("kind", [OrderedDict, UserDict, nn.ParameterDict, "state_dict"])
def test_any_mapping_in_any_order_is_params(kind):
    flat = network(5, samples=24, flat=True, dtype=torch.float32)
    turned = dict(reversed(flat.params.items()))
    if kind == "state_dict":
        model = nn.Module()
        for name, leaves in P.items():
            model.add_module(name, nn.Module())
            for leaf, t in leaves.items():
                getattr(model, name).register_parameter(leaf, nn.Parameter(t))
        made = model.state_dict()
    elif kind is nn.ParameterDict:
        made = {n: nn.ParameterDict(leaves) for n, leaves in P.items()}  # names with dots are none of a module
    else:
        made = kind(turned)
    f = NET.f if kind is nn.ParameterDict else flat.f
    stats = growth.statistics(f, made, NET.data, PAIR, NET.loss)
    assert not stats.S.requires_grad
    torch.testing.assert_close(stats.M_prev, STATS.M_prev, rtol=1e-5, atol=1e-6)
    new = growth.optimal_neurons(stats, 2)
    grown = growth.grow(made, PAIR, new)
    assert growth.reading.layers.layer_at(grown, "hidden").weight.shape[0] == 6
    assert growth.reading.layers.layer_at(growth.widen(made, PAIR, 1), "output").weight.shape[1] == 5
    carried = growth.grow_like({"m": made}, made, grown)
    assert growth.reading.layers.layer_at(carried["m"], "hidden").weight.shape[0] == 6


def test_half_precision_keeps_sums_in_float32():
    half = trees.map(lambda t: t.to(torch.bfloat16), P)
    x, many = NET.x.to(torch.bfloat16), 300
    one = growth.statistics(NET.f, half, (x, NET.target), PAIR, NET.loss)
    all_ = growth.statistics(NET.f, half, [(x, NET.target)] * many, PAIR, NET.loss)
    assert one.S.dtype == all_.S.dtype == torch.float32
    for name in ("S", "M", "S_prev", "M_prev", "P", "E"):
        a, b = getattr(all_, name), getattr(one, name)
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    cast = trees.map(lambda t: t.to(torch.bfloat16), STATS)
    for name, part in closed(cast, half).items():
        assert all(t.isfinite().all() for t in trees.leaves(part) if t.is_floating_point()), name


def test_threads_change_nothing():
    collect = lambda _: growth.statistics(NET.f, P, NET.data, PAIR, NET.loss).M_prev
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(collect, range(24)):
            assert torch.equal(got, STATS.M_prev)


def test_mixed_dtypes_of_records_are_named():
    wide = trees.map(lambda t: t.double(), STATS)
    with pytest.raises(TypeError, match="float64"):
        STATS + wide
    with pytest.raises(TypeError, match=r"delta.*float64"):
        growth.optimal_neurons(STATS, 1, delta=growth.optimal_delta(wide))
