"""The spec of a tensorized matrix: all implementations agree, layers, complex leaves, ranks, plans, rows."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import linmaps
from linmaps import Factorized, trees
from linmaps.factorized.kinds import KINDS

D, C = torch.float64, torch.complex128
over_kinds = pytest.mark.parametrize("name", KINDS)
MODES = [((2, 3), (4, 2)), ((6,), (5,)), ((2, 3, 2), (3, 2, 2))]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


@st.composite
def cases(draw):
    """A spec of any kind, its params and a batch."""
    name = draw(st.sampled_from(list(KINDS)))
    modes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
    in_shape = draw(modes)
    n = st.integers(1, 4)
    out_shape = tuple(draw(n) for _ in in_shape) if name == "blocktt" else draw(modes)
    rank = draw(st.sampled_from(["same", 0.1, 0.5, 0.9, 1.5, 1, 2, 5]))
    L = draw(st.sampled_from([1, 3]))
    spec = Factorized(in_shape, out_shape, factorization=name, rank=rank, n_layers=L, bias=draw(st.booleans()))
    dtype = draw(st.sampled_from([D, C]))
    batch = draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)]))
    seed = draw(st.integers(0, 99))
    return spec, spec.init(gen(seed), dtype=dtype), randn(*batch, spec.in_features, seed=seed, dtype=dtype)


def test_an_int_is_split_into_as_many_modes_as_the_other_shape_has():
    assert Factorized(784, 256) == Factorized((28, 28), (16, 16))
    assert Factorized((7, 8, 14), 256) == Factorized((7, 8, 14), (4, 8, 8))
    assert Factorized(784, (256,)) == Factorized((784,), (256,))
    assert Factorized(7) == Factorized((1, 7), (1, 7))


@given(case=cases())
def test_all_implementations_are_the_product_with_the_matrix(case):
    spec, params, x = case
    layer = None if spec.n_layers == 1 else 1
    W = spec.effective_W(params, layer)
    bias = (params["bias"] if layer is None else params["bias"][layer]) if spec.bias else 0.0
    want = x @ W + bias
    scale = max(1.0, float(W.abs().max())) * spec.in_features
    for implementation in ("auto", "factorized", "reconstructed"):
        for checkpointing in (False, True):
            way = dataclasses.replace(spec, implementation=implementation, checkpointing=checkpointing)
            y = way.apply(params, x, layer)
            assert y.shape == (*x.shape[:-1], spec.out_features)
            assert torch.allclose(y, want, rtol=0, atol=1e-12 * scale), (implementation, checkpointing)


@given(case=cases())
def test_counts_budgets_and_scale_at_init(case):
    spec, params, _ = case
    weights = sum(t.numel() for k, t in params.items() if k != "bias")
    dense = spec.n_layers * spec.in_features * spec.out_features
    assert spec.n_params == sum(t.numel() for t in params.values())
    assert spec.ratio == weights / dense
    if isinstance(spec.rank, float) and spec.rank < 1 and spec.factorization != "dense":
        least = dataclasses.replace(spec, rank=1)
        assert weights <= spec.rank * dense or weights == least.n_params - spec.bias * spec.n_layers * spec.out_features
    W = spec.effective_W(params).reshape(spec.n_layers, -1)
    assert torch.allclose(W.abs().square().mean(1), torch.tensor(1 / (3 * spec.in_features), dtype=D), rtol=1e-10)
    assert spec.norm(params).item() == pytest.approx(W.norm().item(), rel=1e-10)


@over_kinds
@pytest.mark.parametrize("dtype", [D, C])
def test_layers(name, dtype):
    spec = Factorized((2, 3), (4, 2), factorization=name, rank=0.7, n_layers=3)
    params, x = spec.init(gen(), dtype=dtype), randn(5, 6, dtype=dtype)
    W = spec.effective_W(params)
    want = torch.stack([x @ W[i] + params["bias"][i] for i in range(3)])
    assert W.shape == (3, 6, 8)
    for i in (0, 2, -1, np.int64(1), torch.tensor(1)):
        assert torch.allclose(spec.effective_W(params, i), W[i], atol=1e-13)
        assert torch.allclose(spec.apply(params, x, i), want[i], atol=1e-12)
        one, leaves = spec.select(params, i)
        assert one.n_layers == 1
        assert {k: tuple(t.shape) for k, t in leaves.items()} == one.shapes()
        assert torch.allclose(one.apply(leaves, x), want[i], atol=1e-12)
        assert one.select(leaves, 0) == (one, leaves) or torch.equal(one.effective_W(leaves), W[i])
    for several in ([2, 0], torch.tensor([2, 0]), range(2, -1, -2)):
        assert torch.allclose(spec.apply(params, x, several), want[[2, 0]], atol=1e-12)
        assert torch.allclose(spec.effective_W(params, several), W[[2, 0]], atol=1e-13)
        joint, leaves = spec.select(params, several)
        assert joint.n_layers == 2
        assert torch.allclose(joint.effective_W(leaves), W[[2, 0]], atol=1e-13)
    assert spec.select(params, [1])[0].n_layers == 1
    each = torch.tensor([1, 1, 0, 2, 2])
    mixed = vmap(spec.apply, (None, 0, 0))(params, x, each)
    assert torch.allclose(mixed, torch.stack([want[i, b] for b, i in enumerate(each)]), atol=1e-12)
    assert torch.allclose(vmap(lambda i: spec.effective_W(params, i))(each), W[each], atol=1e-13)
    pairs = list(spec.layers(params))
    assert len(pairs) == 3
    assert torch.allclose(torch.stack([s.effective_W(p) for s, p in pairs]), W, atol=1e-13)


def test_a_layer_must_be_named_and_exist():
    spec = Factorized((2, 3), n_layers=3)
    params, x = spec.init(gen()), torch.ones(1, 6)
    with pytest.raises(ValueError, match="layer is None, expected one of 3; pass layer="):
        spec.apply(params, x)
    for wrong in (3, -4):
        with pytest.raises(IndexError, match=f"layer is {wrong}, expected one of 3"):
            spec.select(params, wrong)
    for wrong in (1.0, torch.tensor(1.0), torch.tensor([[0]]), "0", torch.tensor(True)):
        with pytest.raises(TypeError, match="expected"):
            spec.apply(params, x, wrong)
    for ask in (spec.eig, spec.singular_values, spec.inverse, spec.logabsdet, lambda p: spec.solve(p, x)):
        with pytest.raises(ValueError, match=r"there are 3 layers, expected one; use spec.select\(params, layer\)"):
            ask(params)


@over_kinds
def test_joint_layers_share_what_they_say(name):
    spec = Factorized((2, 3), (4, 2), factorization=name, rank=0.7, n_layers=3)
    params = spec.init(gen(), dtype=D)
    slopes = grad(lambda p: spec.effective_W(p, 1).square().sum())(params)
    shared = [k for k, t in slopes.items() if k != "bias" and (t.abs() > 0).all()]
    assert bool(shared) == (KINDS[name].joint != "nothing")


@over_kinds
@pytest.mark.parametrize("checkpointing", [False, True])
def test_derivatives(name, checkpointing):
    spec = Factorized((2, 3), (3, 2), factorization=name, rank=0.6, checkpointing=checkpointing)
    params, x = spec.init(gen(), dtype=D), randn(4, 6)
    f = lambda p: spec.apply(p, x)
    back, forward = jacrev(f)(params), jacfwd(f)(params)
    assert all(torch.allclose(back[k], forward[k], atol=1e-12) for k in params)
    step = 1e-6
    direction = trees.map(torch.cos, params)
    moved = [f(trees.axpy(t, direction, params)) for t in (step, -step)]
    want = (moved[0] - moved[1]) / (2 * step)
    got = sum((back[k] * direction[k]).reshape(4, 6, -1).sum(-1) for k in params)
    assert torch.allclose(got, want, atol=1e-8)
    twice, again = jacrev(jacrev(f))(params), jacfwd(jacfwd(f))(params)
    assert all(torch.allclose(twice[a][b], again[a][b], atol=1e-11) for a in params for b in params)
    per_example = vmap(grad(lambda p, one: spec.apply(p, one).square().sum()), (None, 0))(params, x)
    loop = [grad(lambda p: spec.apply(p, one).square().sum())(params) for one in x]  # noqa: B023
    assert all(torch.allclose(per_example[k], torch.stack([g[k] for g in loop]), atol=1e-11) for k in params)


@over_kinds
def test_checkpointing_saves_only_its_inputs(name):
    """Between forward and backward pass autograd holds x, the leaves, and nothing in between."""
    held = {}
    for checkpointing in (False, True):
        spec = Factorized((8, 8), (8, 8), factorization=name, rank=0.5, checkpointing=checkpointing, bias=False)
        params = trees.map(lambda t: t.requires_grad_(), spec.init(gen()))
        x, seen = torch.ones(256, 64, requires_grad=True), {}

        def pack(t, seen=seen):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = spec.apply(params, x)
        held[checkpointing] = sum(seen.values())
        y.sum().backward()
        own = sum(t.untyped_storage().nbytes() for t in [x, *params.values()])
        assert not checkpointing or held[True] <= own
    assert held[True] < held[False] or name == "dense"


@over_kinds
def test_half_precision_and_mixed_kinds_of_numbers(name):
    spec = Factorized((4, 4), (4, 4), factorization=name, rank=0.5)
    exact = spec.init(gen(), dtype=D)
    x = randn(3, 16)
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        half = trees.map(lambda t: t.to(dtype), exact)  # noqa: B023
        assert spec.apply(half, x.to(dtype)).dtype == dtype
        assert (spec.apply(half, x.to(dtype)).double() - spec.apply(exact, x)).abs().max() < tolerance
    z = spec.init(gen(), dtype=C)
    assert torch.allclose(spec.apply(z, x), x.to(C) @ spec.effective_W(z) + z["bias"], atol=1e-12)
    assert torch.allclose(spec.apply(exact, x.to(C)), (x @ spec.effective_W(exact) + exact["bias"]).to(C), atol=1e-12)
    assert z["bias"].abs().max() <= 16**-0.5
    with pytest.raises(TypeError, match="expected complex64 or complex128"):
        spec.init(gen(), dtype=torch.complex32)


@over_kinds
def test_rows_are_those_of_the_matrix(name):
    spec = Factorized((3, 4), (2, 3), factorization=name, rank=0.6, n_layers=2, bias=False)
    params = spec.init(gen(), dtype=D, std=1.0)
    W = spec.effective_W(params)
    idx = torch.tensor([[0, 11, 5], [7, 7, -1]])
    assert torch.allclose(spec.rows(params, idx, 1), W[1][idx], atol=1e-13)
    assert torch.allclose(spec.rows(params, torch.tensor(3), 0), W[0][3], atol=1e-13)
    assert torch.allclose(spec.rows(params, idx, [1, 0]), W[[1, 0]][:, idx], atol=1e-13)
    assert spec.rows(params, idx[:0], 0).shape == (0, 3, 6)
    assert torch.allclose(vmap(lambda i: spec.rows(params, i, 0))(idx), W[0][idx], atol=1e-13)
    slopes = grad(lambda p: spec.rows(p, idx, 0).square().sum())(params)
    want = grad(lambda p: spec.effective_W(p, 0)[idx].square().sum())(params)
    assert all(torch.allclose(slopes[k], want[k], atol=1e-12) for k in params)
    assert W.square().mean().sqrt().item() == pytest.approx(1.0)
    for wrong in (12, -13):
        with pytest.raises(IndexError):
            spec.rows(params, torch.tensor([wrong]), 0)
    with pytest.raises(TypeError, match="expected a tensor of ints"):
        spec.rows(params, torch.tensor([1.0]), 0)


@over_kinds
def test_a_row_costs_far_less_than_the_matrix(name):
    """50,000 x 64, which dense would take 12.8 MB, in a meta run: no intermediate is as large as W."""
    if name == "dense":
        return
    spec = Factorized((40, 50, 25), (4, 4, 4), factorization=name, rank=0.01, bias=False)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    params = spec.init(gen())
    with Watch():
        spec.rows(params, torch.tensor([3, 49_999]))
    assert largest < 50_000 * 64 / 10


def test_regression_layer():
    spec = Factorized((2, 3), (4, 1, 2), rank=0.8)
    params, x = spec.init(gen(), dtype=D), randn(5, 7, 2, 3)
    T = spec.effective_W(params).reshape(2, 3, 4, 1, 2)
    want = torch.einsum("abij,ijklm->abklm", x, T) + params["bias"].reshape(4, 1, 2)
    assert torch.allclose(spec.apply_tensor(params, x), want, atol=1e-12)
    with pytest.raises(ValueError, match=r"x has shape \(5, 6\), expected \[..., 2, 3\]"):
        spec.apply_tensor(params, randn(5, 6))
    joint = dataclasses.replace(spec, n_layers=2)
    params = joint.init(gen(), dtype=D)
    want = joint.apply(params, x.reshape(5, 7, 6), 1).reshape(5, 7, 4, 1, 2)
    assert torch.equal(joint.apply_tensor(params, x, 1), want)


def test_contraction_layer():
    spec = linmaps.Kronecker((2, 3), (4, 5), bias=True)
    params, x = spec.init(gen(), dtype=D), randn(7, 2, 3)
    want = torch.einsum("bij,ik,jl->bkl", x, params["A0"], params["A1"]) + params["bias"].reshape(4, 5)
    assert torch.allclose(spec.apply_tensor(params, x), want, atol=1e-12)


BAD = [
    ({"in_shape": 6.0}, TypeError, "in_shape: got 6.0, expected a tuple of ints"),
    ({"in_shape": ()}, ValueError, "at least one axis"),
    ({"in_shape": 0}, TypeError, r"in_shape: got 0, expected a tuple of ints"),
    ({"in_shape": 4, "out_shape": True}, TypeError, r"out_shape: got True, expected a tuple of ints"),
    ({"in_shape": 4, "out_shape": -6}, TypeError, r"out_shape: got -6, expected a tuple of ints"),
    ({"in_shape": (2, 0)}, ValueError, "positive sizes"),
    ({"in_shape": (2, 2.0)}, TypeError, "tuple of ints"),
    ({"in_shape": (2,), "factorization": "hosvd"}, ValueError, "factorization"),
    ({"in_shape": (2, 3), "out_shape": (6,), "factorization": "blocktt"}, ValueError, "pad with ones"),
    ({"in_shape": (2,), "n_layers": 0}, ValueError, "n_layers"),
    ({"in_shape": (2,), "n_layers": True}, TypeError, "n_layers"),
    ({"in_shape": (2,), "implementation": "fast"}, ValueError, "implementation"),
    ({"in_shape": (2,), "rank": 0.0}, ValueError, "rank"),
    ({"in_shape": (2,), "rank": 0}, ValueError, "rank"),
    ({"in_shape": (2, 2), "rank": (1, 2)}, ValueError, "rank"),
    ({"in_shape": (2,), "rank": "full"}, ValueError, "rank"),
    ({"in_shape": (2,), "rank": np.float32(0.5)}, TypeError, "float"),
    ({"in_shape": (2,), "checkpointing": 1}, TypeError, "checkpointing"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        Factorized(**options)


def test_names_and_aliases():
    assert Factorized((2, 2), factorization="TTM").factorization == "blocktt"
    assert Factorized((2, 2), factorization="CP").factorization == "cp"
    assert Factorized((2, 2), factorization=None).factorization == "dense"
    assert Factorized([2, 2], rank=[1, 1, 1, 1]) == Factorized((2, 2), rank=(1, 1, 1, 1))
    assert dataclasses.replace(Factorized((2, 2), rank=0.5), out_shape=(3,)).out_features == 3


def test_ranks_of_a_tuple_are_cut_unless_compat():
    spec = Factorized((2, 2), (2, 2), factorization="tt", rank=(1, 9, 9, 9, 1))
    assert spec.ranks == (1, 2, 4, 2, 1)
    assert dataclasses.replace(spec, compat=True).ranks == (1, 9, 9, 9, 1)


def test_plans():
    few = Factorized((16, 16, 16), factorization="tucker", rank=0.01)
    assert few.plan(64).chosen == "modes"
    many = Factorized((16, 16, 16), factorization="blocktt", rank=0.1)
    assert many.plan(64).chosen == "dense"
    assert dataclasses.replace(many, implementation="factorized").plan(64).chosen != "dense"
    assert dataclasses.replace(few, implementation="reconstructed").plan(64).chosen == "dense"
    few_rows = Factorized((16, 16), factorization="cp", rank=256).plan(1)
    assert few_rows.ways[few_rows.chosen].options == {"in_head": 1, "out_head": 1}
    assert Factorized((16, 16), factorization="cp", rank=256).plan(999).ways["Khatri-Rao"].options["in_head"] == 0
    assert few.plan(0).chosen
    assert str(few.plan(64)).count("\n") == len(few.plan(64).ways)


@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "blocktt"])
def test_more_modes_than_an_einsum_has_letters(name):
    spec = Factorized((1,) * 28 + (3,), (2,) + (1,) * 28, factorization=name, rank=2, n_layers=2)
    params, x = spec.init(gen(), dtype=D), randn(4, 3)
    want = x @ spec.effective_W(params, 1) + params["bias"][1]
    for implementation in ("auto", "factorized", "reconstructed"):
        y = dataclasses.replace(spec, implementation=implementation).apply(params, x, 1)
        assert torch.allclose(y, want, atol=1e-12)


@over_kinds
def test_compiled_equals_eager(name):
    spec = Factorized((4, 4), factorization=name, rank=0.4)
    params, x = spec.init(gen(), dtype=D), randn(3, 16)
    compiled = torch.compile(spec.apply, backend="eager", fullgraph=True)
    assert torch.equal(compiled(params, x), spec.apply(params, x))


def test_no_global_setting_matters():
    before = torch.backends.opt_einsum.enabled
    spec = Factorized((4, 4, 4), factorization="cp", rank=0.3, implementation="factorized")
    params, x = spec.init(gen(), dtype=D), randn(3, 64)
    try:
        torch.backends.opt_einsum.enabled = False
        without = spec.apply(params, x)
    finally:
        torch.backends.opt_einsum.enabled = before
    assert torch.equal(without, spec.apply(params, x))
    assert math.prod(spec.in_shape) == linmaps.Factorized((4, 4, 4)).in_features
