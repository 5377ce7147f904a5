"""Slices and new modes of tensorized matrices: what is indexed and embedded is the dense tensor, and only leaves are touched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

from linmaps import Factorized, trees
from linmaps.factorized.kinds import KINDS

D, C = torch.float64, torch.complex128
over_kinds = pytest.mark.parametrize("kind", KINDS)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(spec, params):
    """The tensor [(L,) in_shape, out_shape], and the bias [(L,) out_shape], in numpy."""
    lead = (spec.n_layers,) if spec.n_layers > 1 else ()
    W = spec.effective_W(params).numpy().reshape(*lead, *spec.in_shape, *spec.out_shape)
    return W, params["bias"].numpy().reshape(*lead, *spec.out_shape) if spec.bias else None


def same(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= 1e-12 * max(1.0, np.abs(want).max(initial=0))


@st.composite
def specs(draw):
    kind = draw(st.sampled_from([*KINDS]))
    q = draw(st.integers(1, 3))
    p = q if kind == "blocktt" else draw(st.integers(1, 3))
    sizes = lambda n: tuple(draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)))
    options = {"rank": draw(st.sampled_from([1, 2, 3, 0.5, "same"])), "n_layers": draw(st.sampled_from([1, 3]))}
    spec = Factorized(sizes(q), sizes(p), factorization=kind, bias=draw(st.booleans()), **options)
    return spec, spec.init(gen(draw(st.integers(0, 9))), dtype=draw(st.sampled_from([D, C])))


@st.composite
def cuts(draw):
    """A spec, params and one slice for each mode that takes something."""
    spec, params = draw(specs())
    index = []
    for n in (*spec.in_shape, *spec.out_shape):
        bound = st.none() | st.integers(-n - 2, n + 2)
        step = st.none() | st.integers(-3, 3).filter(bool)
        index.append(draw(st.builds(slice, bound, bound, step).filter(lambda s, n=n: len(range(n)[s]) > 0)))
    return spec, params, tuple(index)


@given(cuts())
def test_a_slice_is_that_of_the_dense_tensor(case):
    spec, params, index = case
    part, leaves = spec.slice(params, *index)
    T, bias = dense(spec, params)
    lead, q = (slice(None),) * (spec.n_layers > 1), len(spec.in_shape)
    got, got_bias = dense(part, leaves)
    same(got, T[lead + index])
    if spec.bias:
        same(got_bias, bias[lead + index[q:]])
    assert (part.n_layers, part.factorization, part.ranks) == (spec.n_layers, spec.factorization, spec.ranks)
    assert {k: tuple(t.shape) for k, t in leaves.items()} == part.shapes()
    assert list(leaves) == list(part.shapes())
    assert part.n_params <= spec.n_params


@given(specs(), st.data())
def test_a_new_mode_has_the_tensor_in_its_middle(case, data):
    spec, params = case
    side, size = data.draw(st.sampled_from(["in", "out"])), data.draw(st.integers(1, 4))
    shape = spec.in_shape if side == "in" else spec.out_shape
    at = data.draw(st.integers(0, len(shape)))
    mode = data.draw(st.sampled_from([at, at - len(shape) - 1]))
    longer, leaves = spec.transduct(params, size, mode, side=side)
    grown = (*shape[:at], size, *shape[at:])
    other = spec.out_shape if side == "in" else spec.in_shape
    paired = (*other[:at], 1, *other[at:]) if spec.factorization == "blocktt" else other
    assert (longer.in_shape, longer.out_shape) == ((grown, paired) if side == "in" else (paired, grown))
    T, bias = dense(spec, params)
    lead = T.ndim - len(spec.in_shape) - len(spec.out_shape)
    axis = lead + at + (len(spec.in_shape) if side == "out" else 0)

    def embedded(t, axis):
        parts = [t if k == (size - 1) // 2 else np.zeros_like(t) for k in range(size)]
        return np.stack(parts, axis)

    got, got_bias = dense(longer, leaves)
    same(got.reshape(*got.shape[:lead], -1), embedded(T, axis).reshape(*got.shape[:lead], -1))
    if spec.bias:
        want = embedded(bias, lead + at) if side == "out" else bias
        same(got_bias.reshape(-1), want.reshape(-1))
    assert {k: tuple(t.shape) for k, t in leaves.items()} == longer.shapes()
    assert list(leaves) == list(longer.shapes())
    index = [slice(None)] * (len(longer.in_shape) + len(longer.out_shape))
    index[at + (len(longer.in_shape) if side == "out" else 0)] = slice((size - 1) // 2, (size - 1) // 2 + 1)
    back, found = longer.slice(leaves, *index)
    same(back.effective_W(found).numpy(), spec.effective_W(params).numpy())
    assert longer.ranks == back.ranks


@over_kinds
@pytest.mark.parametrize("L", [1, 3])
def test_applied_to_a_batch_of_frames(kind, L):
    spec = Factorized((4, 3), (2, 5), factorization=kind, rank=2, n_layers=L)
    params, x = spec.init(gen(), dtype=D), torch.randn(7, 4, 3, 3, generator=gen(), dtype=D)
    layer = None if L == 1 else 1
    longer, leaves = spec.transduct(params, 3, -1)
    want = spec.apply(params, x[..., 1].reshape(7, 12), layer)
    assert torch.allclose(longer.apply(leaves, x.reshape(7, 36), layer), want, atol=1e-12)
    part, cut = spec.slice(params, slice(0, 4, 2), slice(None), slice(None), slice(None, None, -1))
    zeros = torch.zeros(7, 4, 3, dtype=D)
    zeros[:, ::2] = x[:, ::2, :, 0]
    want = spec.apply(params, zeros.reshape(7, 12), layer).reshape(7, 2, 5).flip(2).reshape(7, 10)
    assert torch.allclose(part.apply(cut, x[:, ::2, :, 0].reshape(7, 6), layer), want, atol=1e-12)


@over_kinds
def test_few_numbers_are_made_and_none_is_shared(kind):
    """A tensor of 4e15 entries is cut and lengthened: W is never there."""
    n = 16 if kind in ("dense", "lowrank") else 4096
    spec = Factorized((n, n), (n, n), factorization=kind, rank=2, bias=False)
    params = {k: torch.ones(shape) for k, shape in spec.shapes().items()}
    part, cut = spec.slice(params, slice(2), slice(-1, None), slice(0, n, n // 2), slice(1))
    assert (part.in_shape, part.out_shape) == ((2, 1), (2, 1))
    longer, leaves = spec.transduct(params, 5)
    entries = {"dense": 5 * n**4, "lowrank": 2 * (5 * n * n + n * n)}
    assert longer.n_params <= entries.get(kind, spec.n_params + 2 * 2 * 5)
    for t in (*cut.values(), *leaves.values()):
        t.zero_()
    assert all((t == 1).all() for t in params.values())


@over_kinds
@pytest.mark.parametrize("L", [1, 3])
def test_they_map_and_differentiate(kind, L):
    spec = Factorized((3, 2), (2, 2), factorization=kind, rank=2, n_layers=L)
    stacked = trees.stack([spec.init(gen(seed), dtype=D) for seed in (0, 1)])
    index = (slice(None, None, -2), slice(1), slice(None), slice(1, None))
    for f in (lambda p: spec.slice(p, *index), lambda p: spec.transduct(p, 3, side="out")):
        other = f({k: t[0] for k, t in stacked.items()})[0]
        got = vmap(lambda p, f=f: f(p)[1])(stacked)
        for member in (0, 1):
            want = f({k: t[member] for k, t in stacked.items()})[1]
            assert all(torch.equal(got[k][member], t) for k, t in want.items())
        loss = lambda p, f=f, other=other: other.effective_W(f(p)[1]).square().sum()
        slopes = grad(loss)({k: t[0] for k, t in stacked.items()})
        assert all(t.isfinite().all() for t in slopes.values())
        assert sum(t.abs().sum() for t in slopes.values()) > 0


@over_kinds
def test_the_zeros_of_a_new_mode_get_gradients(kind):
    spec = Factorized((3, 2), (2, 2), factorization=kind, rank=2, bias=False)
    longer, leaves = spec.transduct(spec.init(gen(), dtype=D), 3)
    slopes = grad(lambda p: (longer.apply(p, torch.ones(1, 18, dtype=D)) - 1).square().sum())(leaves)
    edge = torch.zeros(18, 4, dtype=D)
    moved = longer.effective_W({k: t - 0.1 * slopes[k] for k, t in leaves.items()})
    edge = moved.reshape(3, -1)[[0, 2]]
    assert edge.abs().max() > 1e-4


def test_a_layer_of_low_rank_may_have_more_terms_than_its_matrix():
    spec = Factorized((2, 2), (2,), factorization="lowrank", rank=4, n_layers=3)
    params = spec.init(gen(), dtype=D)
    for layer in range(3):
        one, leaves = spec.select(params, layer)
        W = spec.effective_W(params, layer)
        assert torch.allclose(one.effective_W(leaves), W)
        assert torch.allclose(one.singular_values(leaves), torch.linalg.svdvals(W))
        assert one.violation(W) == 0
    assert math.prod(one.shapes()["U"]) == 16


SPEC = Factorized((3, 2), (4,), rank=2)
PARAMS = SPEC.init(gen())
ALL = slice(None)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (TypeError, r"slice: of in_shape\[1\] got int, expected a slice; slice\(i, i \+ 1\)", (ALL, 1, ALL)),
        (TypeError, r"of out_shape\[0\] got list, expected a slice; slice\(None\)", (ALL, ALL, [0, 1])),
        (TypeError, r"of in_shape\[0\] got ellipsis", (..., ALL, ALL)),
        (TypeError, r"got a slice with a float, expected ints", (slice(0.5), ALL, ALL)),
        (TypeError, r"got a slice with a bool", (slice(True), ALL, ALL)),
        (ValueError, r"got step 0, expected another", (ALL, slice(None, None, 0), ALL)),
        (ValueError, r"out_shape\[0\] slice\(4, None, None\) takes nothing, expected one", (ALL, ALL, slice(4, None))),
        (
            ValueError,
            r"got 2 slices, expected 3, for in_shape\[0\] of 3, in_shape\[1\] of 2, out_shape\[0\] of 4",
            (ALL, ALL),
        ),
    ],
)
def test_what_slice_refuses(error, text, call):
    with pytest.raises(error, match=text):
        SPEC.slice(PARAMS, *call)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, r"transduct: size: got 0, expected an int >= 1", {"size": 0}),
        (TypeError, r"size: got float, expected an int >= 1", {"size": 3.0}),
        (
            ValueError,
            r"transduct: mode: got 3, expected an int from -3 to 2; it is the place of the new mode",
            {"mode": 3},
        ),
        (ValueError, r"mode: got -3, expected an int from -2 to 1", {"mode": -3, "side": "out"}),
        (ValueError, r"side is 'up', expected 'in' or 'out'", {"side": "up"}),
    ],
)
def test_what_transduct_refuses(error, text, call):
    with pytest.raises(error, match=text):
        SPEC.transduct(PARAMS, **{"size": 3} | call)


def test_a_slice_bound_that_vmap_maps_is_refused():
    with pytest.raises(TypeError, match="got a slice with a Tensor, expected ints"):
        vmap(lambda i: SPEC.slice(PARAMS, slice(i, None), ALL, ALL)[1])(torch.arange(2))
    part, _ = SPEC.slice(PARAMS, slice(torch.tensor(1), np.int64(3)), ALL, ALL)
    assert part.in_shape == (2, 2)
