"""Laws of maps: each member of the zoo meets each of them, in float64 unless the law is about dtypes."""

import copy
import dataclasses
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import linmaps
from linmaps import strategies, trees
from tests.linmaps import zoo

over_the_zoo = pytest.mark.parametrize("entry", zoo.ENTRIES, ids=zoo.label)
TOLERANCE = 1e-10


def size(spec):
    return max(spec.in_features, spec.out_features)


def outside(spec, seed):
    """A matrix that is far from every promise."""
    return 3 * torch.randn(spec.in_features, spec.out_features, generator=zoo.generator(seed), dtype=torch.float64) - 1


def test_every_map_of_the_registry_is_in_the_zoo():
    assert {e.spec.name for e in zoo.ENTRIES} == set(linmaps.maps) == set(zoo.KINDS)


@over_the_zoo
@given(data=st.data())
def test_promise_at_init_and_at_adversarial_params(entry, data):
    spec = entry.spec
    params = data.draw(strategies.params(spec) | strategies.adversarial_params(spec))
    W = spec.effective_W(params)
    assert W.shape == (spec.in_features, spec.out_features)
    assert torch.isfinite(W).all()
    assert zoo.residual(spec, W) <= 1e-12 * size(spec)
    assert spec.violation(W) <= 1e-12 * size(spec)


@given(data=st.data())
def test_promise_of_drawn_specs(data):
    spec = data.draw(strategies.specs(max_size=12))
    params = data.draw(strategies.adversarial_params(spec))
    W, x = spec.effective_W(params), data.draw(strategies.inputs(spec))
    assert zoo.residual(spec, W) <= TOLERANCE * size(spec)
    want = x @ W + params["bias"] if spec.bias else x @ W
    assert torch.allclose(spec.apply(params, x), want, rtol=1e-11, atol=1e-11)


@over_the_zoo
def test_promise_after_training_towards_a_target_outside(entry):
    spec, target = entry.spec, outside(entry.spec, 1)
    params = zoo.descend(spec, lambda W: (W - target).square().sum(), 0, 200, 0.1)
    assert zoo.residual(spec, spec.effective_W(params)) <= TOLERANCE * size(spec)


@over_the_zoo
@given(data=st.data())
def test_apply_is_the_matrix_product_plus_bias(entry, data):
    spec = entry.spec
    params, x = data.draw(strategies.params(spec)), data.draw(strategies.inputs(spec))
    y, W = spec.apply(params, x), spec.effective_W(params)
    want = x @ W + params["bias"] if spec.bias else x @ W
    assert y.shape == (*x.shape[:-1], spec.out_features)
    assert torch.allclose(y, want, rtol=0, atol=1e-12)


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_pure(entry, seed):
    spec = entry.spec
    state = torch.random.get_rng_state()
    params, again = zoo.random_params(spec, seed), zoo.random_params(spec, seed)
    before = trees.map(torch.clone, params)
    x = torch.ones(2, spec.in_features, dtype=torch.float64)
    results = [
        (spec.effective_W(p), spec.apply(p, x), spec.reg_error(p), spec.singular_values(p)) for p in (params, again)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert params.keys() == before.keys()
    assert all(torch.equal(params[k], before[k]) for k in params)
    assert torch.equal(state, torch.random.get_rng_state())


@over_the_zoo
def test_every_entry_gets_gradient(entry):
    spec = entry.spec
    params = zoo.random_params(spec, 3)
    target, x = outside(spec, 4), torch.randn(3, spec.in_features, generator=zoo.generator(5), dtype=torch.float64)
    gradients = grad(lambda p: (spec.apply(p, x) - x @ target).square().sum())(params)
    assert {k: tuple(t.shape) for k, t in gradients.items()} == spec.shapes()
    for name, gradient in gradients.items():
        assert (gradient.abs() > 1e-9).all(), f"dead entries in {name}: {gradient}"
    assert sum(t.numel() for t in params.values()) == spec.n_params


SIZES = [(512, 8), (8, 512), (64, 64)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("name", linmaps.maps)
def test_output_scale_at_init(name, rows, columns):
    cls = linmaps.maps[name]
    if cls.square and rows != columns:
        rows = columns = max(rows, columns) // 2
    spec = cls(rows, columns)
    x = torch.randn(400, rows, generator=zoo.generator(0), dtype=torch.float64)
    got = spec.apply(zoo.random_params(spec, 1), x).square().mean().sqrt().item()
    assert got == pytest.approx(zoo.KINDS[name].std(spec), rel=0.15)


@over_the_zoo
def test_bias_scale_and_place(entry):
    spec = dataclasses.replace(entry.spec, bias=True)
    params = zoo.random_params(spec, 0)
    bound = spec.in_features**-0.5
    many = torch.cat([zoo.random_params(spec, seed)["bias"] for seed in range(100)])
    assert many.abs().max() <= bound
    assert many.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    shifted = params | {"bias": params["bias"] + 7}
    assert torch.equal(spec.effective_W(params), spec.effective_W(shifted))


@pytest.mark.parametrize("entry", [e for e in zoo.ENTRIES if not e.incomplete and e.spec.n_params], ids=zoo.label)
def test_a_random_member_of_the_set_is_reached_by_descent(entry):
    spec = entry.spec
    target = torch.tensor(zoo.KINDS[spec.name].member(spec, np.random.default_rng(8)))
    assert zoo.residual(spec, target) <= 1e-12
    # of several starts, since a Cayley transform may lie on the far side of the eigenvalue -1
    assert any(fit(spec, target, seed) <= 1e-6 for seed in range(6))


def fit(spec, target, seed):
    params = {k: t.requires_grad_() for k, t in zoo.random_params(spec, seed).items()}
    leaves = [t for t in params.values() if t.numel()]
    optimizer = torch.optim.LBFGS(
        leaves, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = (spec.effective_W(params) - target).square().sum()
        loss.backward()
        for leaf in leaves:  # the bias is no part of W
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return loss

    optimizer.step(closure)
    return (spec.effective_W(params) - target).abs().max().item()


@over_the_zoo
def test_vmap_equals_the_loop(entry):
    spec = entry.spec
    members = [zoo.random_params(spec, seed) for seed in range(3)]
    x = torch.randn(3, 4, spec.in_features, generator=zoo.generator(9), dtype=torch.float64)
    stacked = trees.stack(members)
    pairs = {
        "effective_W": (vmap(spec.effective_W)(stacked), [spec.effective_W(p) for p in members]),
        "apply": (vmap(spec.apply)(stacked, x), [spec.apply(p, xi) for p, xi in zip(members, x)]),
        "one x": (vmap(spec.apply, (None, 0))(members[0], x[0]), [spec.apply(members[0], xi) for xi in x[0]]),
        "reg_error": (vmap(spec.reg_error)(stacked), [spec.reg_error(p) for p in members]),
        "singular_values": (vmap(spec.singular_values)(stacked), [spec.singular_values(p) for p in members]),
        "violation": (
            vmap(spec.violation)(torch.stack([outside(spec, i) for i in range(3)])),
            [spec.violation(outside(spec, i)) for i in range(3)],
        ),
    }
    for what, (got, want) in pairs.items():
        assert torch.allclose(got, torch.stack(want), rtol=0, atol=1e-11), what


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_eig_is_the_spectrum_of_the_matrix(entry, seed):
    spec = entry.spec
    params = zoo.random_params(spec, seed)
    W = spec.effective_W(params)
    if spec.in_features != spec.out_features:
        with pytest.raises(ValueError, match=r"expected a square map; use singular_values"):
            spec.eig(params)
        return
    got, want = spec.eig(params), np.linalg.eigvals(W.numpy())
    rest = list(want)
    for value in got.tolist():  # as a multiset: take the nearest one away
        nearest = min(range(len(rest)), key=lambda i: abs(rest[i] - value))
        assert abs(rest.pop(nearest) - value) <= 1e-8
    values, vectors = spec.eig(params, vectors=True)
    kind = torch.promote_types(values.dtype, W.dtype)
    assert torch.allclose(W.to(kind) @ vectors.to(kind), vectors * values, atol=1e-9)
    if isinstance(spec, linmaps.Symmetric):
        assert not got.is_complex()
        assert (got.diff() >= 0).all()
        assert torch.allclose(vectors.T @ vectors, torch.eye(spec.in_features, dtype=W.dtype), atol=1e-12)


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_singular_values_are_those_of_the_matrix(entry, seed):
    spec = entry.spec
    params = zoo.random_params(spec, seed)
    want = np.linalg.svd(spec.effective_W(params).numpy(), compute_uv=False)
    assert np.abs(spec.singular_values(params).numpy() - want).max() <= 1e-12


@over_the_zoo
def test_penalty_is_a_scalar_that_is_zero_when_hard(entry):
    spec = entry.spec
    for dtype in (torch.float32, torch.float64):
        penalty = spec.reg_error(zoo.random_params(spec, 0, dtype))
        assert penalty.shape == ()
        assert penalty.dtype == dtype
        assert penalty >= 0
        assert not spec.hard or penalty == 0


@over_the_zoo
def test_violation_is_zero_on_the_set_and_positive_off_it(entry):
    spec, rng = entry.spec, np.random.default_rng(2)
    for seed in range(5):
        member = torch.tensor(zoo.KINDS[spec.name].member(spec, rng))
        assert spec.violation(member) <= 1e-12 * size(spec)
        off = outside(spec, seed)
        assert (spec.violation(off) > 1e-3) == (zoo.residual(spec, off) > 1e-3)
        slope = grad(spec.violation)(member)
        assert torch.isfinite(slope).all()


@over_the_zoo
def test_dtypes(entry):
    spec = entry.spec
    exact = zoo.random_params(spec, 0)
    x = torch.randn(3, spec.in_features, generator=zoo.generator(1), dtype=torch.float64)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.03)):
        params = trees.map(lambda t: t.to(dtype), exact)  # noqa: B023
        W, y, s = spec.effective_W(params), spec.apply(params, x.to(dtype)), spec.singular_values(params)
        assert {W.dtype, y.dtype, s.dtype, spec.violation(W).dtype, spec.reg_error(params).dtype} == {dtype}
        assert (W.double() - spec.effective_W(exact)).abs().max() <= tolerance * max(1, W.abs().max())
        assert (y.double() - spec.apply(exact, x)).abs().max() <= 3 * tolerance * max(1, y.abs().max())
        assert {t.dtype for t in zoo.random_params(spec, 0, dtype).values()} == {dtype}
        if spec.in_features == spec.out_features:
            assert spec.eig(params).dtype in (dtype, torch.complex64)


@over_the_zoo
def test_device_follows_params(entry):
    spec = entry.spec
    on_meta = spec.init(zoo.generator(0), device="meta")
    assert {t.device.type for t in on_meta.values()} == {"meta"}
    x = torch.empty(3, spec.in_features, device="meta")
    for result in (spec.effective_W(on_meta), spec.apply(on_meta, x), spec.reg_error(on_meta)):
        assert result.device.type == "meta"


@over_the_zoo
def test_spec_and_params_copy_pickle_hash(entry):
    spec, params = entry.spec, zoo.random_params(entry.spec, 0)
    buffer = io.BytesIO()
    torch.save((spec, params), buffer)
    buffer.seek(0)
    pairs = [copy.deepcopy((spec, params)), pickle.loads(pickle.dumps((spec, params))), torch.load(buffer)]
    for other, copied in pairs:
        assert other == spec
        assert hash(other) == hash(spec)
        assert torch.equal(other.effective_W(copied), spec.effective_W(params))
    assert {spec: 1}[dataclasses.replace(spec)] == 1
    assert dataclasses.replace(spec, bias=not spec.bias) != spec
