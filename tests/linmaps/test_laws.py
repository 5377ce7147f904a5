"""Laws of maps: each member of the zoo meets each of them, in float64 unless the law is about dtypes."""

import copy
import dataclasses
import inspect
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, grad_and_value, vmap

import linmaps
from linmaps import strategies, trees
from linmaps.composed.composite import Composite
from tests.linmaps import zoo
from tests.linmaps.at_zero import WORDS

over_the_zoo = pytest.mark.parametrize("entry", zoo.ENTRIES, ids=zoo.label)
TOLERANCE = 1e-10
COMPOSITES = {cls.name for cls in vars(linmaps).values() if isinstance(cls, type) and issubclass(cls, Composite)}


def size(spec):
    return max(spec.in_features, spec.out_features)


def scale(spec, W):
    """What rounding is relative to."""
    return size(spec) * max(1.0, float(W.detach().abs().max()))


def outside(spec, seed):
    """A matrix that is far from every promise; complex for a map of complex matrices, as real ones are a set of their own."""
    dtype = torch.complex128 if spec.complex_W else torch.float64
    return 3 * torch.randn(spec.in_features, spec.out_features, generator=zoo.generator(seed), dtype=dtype) - 1


def test_every_map_of_the_registry_is_in_the_zoo():
    assert set(linmaps.maps) | COMPOSITES == {e.spec.name for e in zoo.ENTRIES} == set(zoo.KINDS)


@over_the_zoo
@given(data=st.data())
def test_promise_at_init_and_at_adversarial_params(entry, data):
    spec = entry.spec
    params = data.draw(strategies.params(spec) | strategies.adversarial_params(spec))
    W = zoo.matrix(spec, params)
    assert W.shape == (spec.in_features, spec.out_features)
    assert torch.isfinite(W).all()
    if spec.guaranteed:
        assert zoo.residual(spec, W) <= 1e-12 * scale(spec, W)
        assert spec.violation(W) <= 1e-12 * scale(spec, W)


def rounding32(spec, W):
    """What a matrix of these sizes may miss its promise by when it was computed in float32."""
    return 8 * torch.finfo(torch.float32).eps * scale(spec, W)


def keeps_in_float32(spec, params):
    W = spec.effective_W(params)
    assert torch.isfinite(W).all()
    exact = W.to(torch.promote_types(W.dtype, torch.float64))
    assert zoo.residual(spec, W) <= rounding32(spec, W)
    assert spec.violation(exact) <= rounding32(spec, W)


@pytest.mark.parametrize("entry", [e for e in zoo.ENTRIES if e.spec.guaranteed and e.spec.n_params], ids=zoo.label)
@given(data=st.data())
def test_promise_in_float32_at_init_and_at_adversarial_params(entry, data):
    spec, single = entry.spec, {"dtype": torch.float32}
    keeps_in_float32(spec, data.draw(strategies.params(spec, **single) | strategies.adversarial_params(spec, **single)))


@pytest.mark.parametrize("name", linmaps.maps)
@given(data=st.data())
def test_promise_in_float32_of_drawn_specs_up_to_24(name, data):
    spec, single = data.draw(strategies.specs(names=[name], max_size=24)), {"dtype": torch.float32}
    params = data.draw(strategies.params(spec, **single) | strategies.adversarial_params(spec, **single))
    if spec.guaranteed and spec.n_params:
        keeps_in_float32(spec, params)


@pytest.mark.parametrize("entry", [e for e in zoo.ENTRIES if not e.spec.guaranteed], ids=zoo.label)
def test_a_soft_promise_is_kept_where_the_penalty_is_zero(entry):
    """And a descent of the penalty leads there from anywhere."""
    spec = entry.spec
    start = trees.map(lambda t: 3 * t + 0.3, zoo.random_params(spec, 5))
    params = zoo.minimize(lambda p: spec.reg_error(spec.project(p)), start, 0.02, 4000)
    params = spec.project(params)
    W = zoo.matrix(spec, params)
    if zoo.KINDS[spec.name].residual is not zoo.NO_PROMISE:
        assert spec.reg_error(params) <= 1e-9
        assert zoo.residual(spec, W) <= 1e-4
        assert spec.violation(W) <= 1e-4
    else:
        assert spec.reg_error(params) < 0.5 * spec.reg_error(spec.project(start))


@pytest.mark.parametrize("name", linmaps.maps)
@given(data=st.data())
def test_drawn_specs_up_to_24(name, data):
    """The promise, apply and its gradient, at any options and sizes, far from any init."""
    spec = data.draw(strategies.specs(names=[name], max_size=24))
    params = data.draw(strategies.adversarial_params(spec) | strategies.params(spec))
    W, x = zoo.matrix(spec, params), data.draw(strategies.inputs(spec))
    assert not spec.guaranteed or zoo.residual(spec, W) <= 1e-12 * scale(spec, W)
    want = x.to(W.dtype) @ W + (params["bias"] if spec.bias else 0.0)
    error = (spec.apply(params, x) - want).abs().max() if want.numel() else 0.0
    assert error <= 1e-11 * scale(spec, W)
    s = spec.singular_values(params).to(W.dtype.to_real())
    assert (s - torch.linalg.svdvals(W)).abs().max() <= 1e-10 * scale(spec, W)
    if spec.n_params:
        slopes = grad(lambda p: zoo.squared(spec.apply(p, torch.ones_like(x))) + spec.reg_error(p))(params)
        assert all(torch.isfinite(t).all() for t in trees.leaves(slopes))


def test_soft_maps_say_so_first():
    for cls in linmaps.maps.values():
        assert cls.hard or "soft" in inspect.getdoc(cls).splitlines()[0]


@over_the_zoo
def test_promise_after_training_towards_a_target_outside(entry):
    spec, target = entry.spec, outside(entry.spec, 1)
    params = zoo.descend(spec, lambda W: zoo.squared(W - target), 0, 200, 0.1)
    W = zoo.matrix(spec, params)
    assert torch.isfinite(W).all()
    assert not spec.guaranteed or zoo.residual(spec, W) <= TOLERANCE * scale(spec, W)


@over_the_zoo
@given(data=st.data())
def test_apply_is_the_matrix_product_plus_bias(entry, data):
    spec = entry.spec
    params, x = data.draw(strategies.params(spec)), data.draw(strategies.inputs(spec))
    y, W = spec.apply(params, x), zoo.matrix(spec, params)
    want = x.to(W.dtype) @ W + (params["bias"] if spec.bias else 0.0)
    assert y.shape == (*x.shape[:-1], spec.out_features)
    assert torch.allclose(y, want, rtol=0, atol=1e-12 * scale(spec, W))


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_pure(entry, seed):
    spec = entry.spec
    state = torch.random.get_rng_state()
    params, again = zoo.random_params(spec, seed), zoo.random_params(spec, seed)
    before = trees.map(torch.clone, params)
    x = torch.ones(2, spec.in_features, dtype=torch.float64)
    results = [
        (zoo.matrix(spec, p), spec.apply(p, x), spec.reg_error(p), spec.singular_values(p)) for p in (params, again)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results))
    assert trees.paths(params) == trees.paths(before)
    assert all(torch.equal(a, b) for a, b in zip(trees.leaves(params), trees.leaves(before)))
    assert torch.equal(state, torch.random.get_rng_state())


@over_the_zoo
def test_every_entry_gets_gradient(entry):
    spec = entry.spec
    params = zoo.random_params(spec, 3)
    target, x = outside(spec, 4), torch.randn(3, spec.in_features, generator=zoo.generator(5), dtype=torch.float64)
    if not spec.n_params:
        return
    loss = lambda p: (
        zoo.squared(spec.apply(p, x) - (x.to(target.dtype) @ target).to(spec.apply(p, x).dtype)) + spec.reg_error(p)
    )
    gradients = grad(loss)(params)
    assert trees.map(lambda t: tuple(t.shape), gradients) == spec.shapes()
    for path, gradient in zip(trees.paths(gradients), trees.leaves(gradients)):
        alive = gradient.abs() > 1e-9
        assert alive.any() or not gradient.numel(), f"dead leaf {path}"
        assert alive.all() or entry.dead, f"dead entries in {path}: {gradient}"
    assert sum(t.numel() for t in trees.leaves(params)) == spec.n_params


SIZES = [(512, 8), (8, 512), (64, 64)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("name", linmaps.maps)
def test_output_scale_at_init(name, rows, columns):
    cls = linmaps.maps[name]
    if cls.square and rows != columns:
        rows = columns = max(rows, columns) // 2
    spec = strategies.of_size(cls, rows, columns)
    # the mean over inputs of unit variance is |W|^2 / out
    squares = [spec.effective_W(zoo.random_params(spec, seed)).abs().square().sum(0).mean() for seed in range(12)]
    assert np.mean(squares) ** 0.5 == pytest.approx(zoo.KINDS[name].std(spec), rel=0.15)


@over_the_zoo
def test_bias_scale_and_place(entry):
    if "bias" not in inspect.signature(type(entry.spec)).parameters:
        return  # maps of maps have it from Affine
    spec = dataclasses.replace(entry.spec, bias=True)
    params = zoo.random_params(spec, 0)
    bound = spec.in_features**-0.5
    many = torch.cat([zoo.random_params(spec, seed)["bias"] for seed in range(100)])
    assert many.abs().max() <= bound
    assert many.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    shifted = params | {"bias": params["bias"] + 7}
    assert torch.equal(zoo.matrix(spec, params), zoo.matrix(spec, shifted))


@pytest.mark.parametrize("entry", [e for e in zoo.ENTRIES if not e.incomplete and zoo.trainable(e.spec)], ids=zoo.label)
def test_a_random_member_of_the_set_is_reached_by_descent(entry):
    spec = entry.spec
    target = torch.tensor(zoo.KINDS[spec.name].member(spec, np.random.default_rng(8)))
    assert zoo.residual(spec, target) <= 1e-12
    # of several starts, since a Cayley transform may lie on the far side of the eigenvalue -1
    assert any(fit(spec, target, seed) <= 1e-6 for seed in range(6))


def fit(spec, target, seed):
    params = trees.map(lambda t: t.requires_grad_(), zoo.random_params(spec, seed))
    leaves = [t for t in trees.leaves(params) if t.numel()]
    optimizer = torch.optim.LBFGS(
        leaves, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = zoo.squared(zoo.matrix(spec, params) - target)
        loss.backward()
        for leaf in leaves:  # the bias is no part of W
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return loss

    optimizer.step(closure)
    return (zoo.matrix(spec, params) - target).abs().max().item()


@over_the_zoo
def test_vmap_equals_the_loop(entry):
    spec = entry.spec
    if not spec.n_params:
        return
    members = [zoo.random_params(spec, seed) for seed in range(3)]
    x = torch.randn(3, 4, spec.in_features, generator=zoo.generator(9), dtype=torch.float64)
    stacked = trees.stack(members)
    pairs = {
        "effective_W": (vmap(spec.effective_W)(stacked), [zoo.matrix(spec, p) for p in members]),
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
    W = zoo.matrix(spec, params)
    if spec.in_features != spec.out_features:
        with pytest.raises(ValueError, match=r"expected a square map; use singular_values"):
            spec.eig(params)
        return
    got, want = spec.eig(params), np.linalg.eigvals(W.numpy())
    slack = 1e-8 if entry.spec.n_params else 1e-12
    rest = list(want)
    for value in got.tolist():  # as a multiset: take the nearest one away
        nearest = min(range(len(rest)), key=lambda i: abs(rest[i] - value))
        assert abs(rest.pop(nearest) - value) <= slack * scale(spec, W)
    values, vectors = spec.eig(params, vectors=True)
    kind = torch.promote_types(values.dtype, W.dtype)
    assert torch.allclose(W.to(kind) @ vectors.to(kind), (vectors * values).to(kind), atol=1e-9 * scale(spec, W))
    if zoo.symmetric(spec, params):
        assert not got.is_complex()
        assert (got.diff() >= 0).all()
        assert torch.allclose(vectors.T @ vectors, torch.eye(spec.in_features, dtype=vectors.dtype), atol=1e-12)


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_singular_values_are_those_of_the_matrix(entry, seed):
    spec = entry.spec
    params = zoo.random_params(spec, seed)
    want = np.linalg.svd(zoo.matrix(spec, params).numpy(), compute_uv=False)
    assert np.abs(spec.singular_values(params).numpy() - want).max() <= 1e-12 * max(1.0, want[0])


@over_the_zoo
@given(seed=strategies.SEEDS)
def test_solve_inverse_and_logabsdet(entry, seed):
    spec = entry.spec
    params = zoo.random_params(spec, seed)
    y = torch.randn(2, 3, spec.out_features, generator=zoo.generator(4), dtype=torch.float64)
    if spec.in_features != spec.out_features:
        for call in (lambda: spec.solve(params, y), lambda: spec.inverse(params), lambda: spec.logabsdet(params)):
            with pytest.raises(ValueError, match="expected a square map"):
                call()
        return
    W = zoo.matrix(spec, params)
    condition = zoo.condition(spec, params)
    if condition > 1e10:  # odd skew matrices, factors of low rank: no inverse
        assert zoo.singular(spec), "a generic member of this kind was expected to be regular"
        return
    x = spec.solve(params, y)
    eye = torch.eye(spec.in_features, dtype=W.dtype)
    assert x.shape == (2, 3, spec.in_features)
    assert torch.allclose(spec.apply(params, x), y.to(x.dtype), rtol=0, atol=1e-12 * condition * scale(spec, W))
    assert torch.allclose(spec.inverse(params).to(W.dtype) @ W, eye, rtol=0, atol=1e-12 * condition * scale(spec, W))
    want = torch.linalg.slogdet(W).logabsdet
    assert torch.allclose(spec.logabsdet(params).to(want.dtype), want, rtol=1e-11, atol=1e-11 * condition)
    assert spec.solve(params, y[:0]).shape == (0, 3, spec.in_features)


@over_the_zoo
def test_from_matrix_takes_members_back_and_reports_the_distance_of_others(entry):
    spec = entry.spec
    if not zoo.closed_form(spec):
        return
    target = torch.tensor(zoo.KINDS[spec.name].member(spec, np.random.default_rng(11)))
    params, distance = spec.from_matrix(target)
    assert trees.map(lambda t: tuple(t.shape), params) == spec.shapes()
    if not entry.incomplete:
        assert distance <= 1e-9
        assert (zoo.matrix(spec, params) - target).abs().max() <= 1e-9
    others = torch.stack([outside(spec, seed) for seed in range(3)] + [torch.zeros_like(target)])
    for other in others:
        params, distance = spec.from_matrix(other)
        W = zoo.matrix(spec, params)
        assert torch.isfinite(W).all()
        assert not spec.guaranteed or zoo.residual(spec, W) <= 1e-10 * scale(spec, W)
        assert abs(distance - zoo.squared(W - other) ** 0.5) <= 1e-12 * scale(spec, other)
        random = zoo.matrix(spec, zoo.random_params(spec, 1))
        nearest = zoo.KINDS[spec.name].projects and not entry.incomplete
        assert not nearest or distance <= zoo.squared(random - other) ** 0.5 + 1e-9
    stacked, distances = vmap(spec.from_matrix)(others[:3])
    for i in range(3):
        params, distance = spec.from_matrix(others[i])
        assert abs(distance - distances[i]) <= 1e-10 * scale(spec, others)
        if spec.n_params:
            W = zoo.matrix(spec, trees.map(lambda t: t[i], stacked))  # noqa: B023
            assert torch.allclose(W, zoo.matrix(spec, params), atol=1e-9)
    if spec.bias:
        bias = torch.arange(spec.out_features, dtype=torch.float64)
        assert torch.equal(spec.from_matrix(others[0], bias=bias)[0]["bias"], bias)


@over_the_zoo
def test_from_matrix_of_any_rank_gives_params_that_train(entry):
    """The matrix moves at once, and after a few steps of descent, scaled by leaf, every leaf gets gradient; none is NaN."""
    spec, target = entry.spec, outside(entry.spec, 4)
    if not zoo.closed_form(spec) or not zoo.trainable(spec):
        return
    rows, columns = outside(spec, 5)[:, :1], outside(spec, 6)[:1]
    corner = torch.zeros_like(target)
    corner[0, 0] = 2.0
    largest = lambda g: g.abs().amax().clamp(min=1e-30) if g.numel() else 1.0
    loss = lambda p: zoo.squared(spec.effective_W(p) - target) + spec.reg_error(p)
    for start in (torch.zeros_like(target), rows @ columns, corner, 0 * target + 1, outside(spec, 7)):
        params, sizes = spec.from_matrix(start)[0], []
        for _ in range(4):
            slopes = [t for path, t in zip(trees.paths(params), trees.leaves(grad(loss)(params))) if path != ("bias",)]
            assert all(torch.isfinite(t).all() for t in slopes)
            sizes.append([float(t.abs().amax()) for t in slopes if t.numel()])
            params = trees.map(lambda t, g: t - 0.03 * g / largest(g), params, grad(loss)(params))
        assert max(sizes[0]) > 1e-9, "no leaf gets gradient"
        assert min(sizes[-1]) > 1e-9, (start, sizes)


@over_the_zoo
def test_derivatives_are_finite_where_params_vanish_or_repeat(entry):
    """Of W, the spectrum, the norms and what is finite itself, at zeros, ones, one leaf of zeros, and equal columns; and
    of W where decay has brought params below the smallest normal number."""
    spec, params = entry.spec, zoo.random_params(entry.spec, 1)
    if not spec.n_params:
        return
    columns = lambda t: t[..., :1].expand(t.shape) if t.ndim else t
    points = [trees.map(fn, params) for fn in (torch.zeros_like, torch.ones_like, columns)]
    points += [trees.replace(params, path, torch.zeros_like(trees.get(params, path))) for path in trees.paths(params)]
    numbers = torch.randn(spec.in_features, spec.out_features, generator=zoo.generator(2), dtype=torch.float64)
    linear = lambda p: (spec.effective_W(p) * numbers).sum().real
    assert all(torch.isfinite(t).all() for t in trees.leaves(grad(linear)(trees.scale(1e-310, params))))
    functions = [
        linear,
        lambda p: spec.singular_values(p).sum(),
        lambda p: zoo.squared(spec.effective_W(p)),
        lambda p: spec.violation(spec.effective_W(p)),
        spec.reg_error,
    ]
    functions += [spec.norm] if hasattr(spec, "norm") else []
    if spec.in_features == spec.out_features:
        functions += [lambda p: zoo.squared(spec.eig(p)), spec.logabsdet]
    for point in points:
        for fn in functions:
            slope, value = grad_and_value(fn)(point)
            slopes = trees.leaves(slope)
            assert not value.isfinite() or all(torch.isfinite(t).all() for t in slopes)


@over_the_zoo
def test_project_is_a_projection(entry):
    spec = entry.spec
    params = trees.map(lambda t: 20 * t, zoo.random_params(spec, 2))
    once = spec.project(params)
    assert trees.map(lambda t: tuple(t.shape), once) == spec.shapes()
    assert all(torch.equal(a, b) for a, b in zip(trees.leaves(once), trees.leaves(spec.project(once))))
    assert spec.reg_error(once) >= 0


@over_the_zoo
def test_penalty_is_a_scalar_that_is_zero_when_hard(entry):
    spec = entry.spec
    for dtype in (torch.float32, torch.float64):
        penalty = spec.reg_error(zoo.random_params(spec, 0, dtype))
        assert penalty.shape == ()
        assert penalty.dtype == dtype or not spec.n_params
        assert penalty >= 0
        assert not spec.guaranteed or penalty == 0


@over_the_zoo
def test_violation_is_zero_on_the_set_and_positive_off_it(entry):
    spec, rng = entry.spec, np.random.default_rng(2)
    for seed in range(5):
        member = torch.tensor(zoo.KINDS[spec.name].member(spec, rng))
        assert spec.violation(member) <= 1e-12 * size(spec)
        off = outside(spec, seed)
        assert (spec.violation(off) > 1e-6) == (zoo.residual(spec, off) > 1e-6)
        slope = grad(spec.violation)(member)
        assert torch.isfinite(slope).all()


@over_the_zoo
def test_dtypes(entry):
    spec = entry.spec
    exact = zoo.random_params(spec, 0)
    x = torch.randn(3, spec.in_features, generator=zoo.generator(1), dtype=torch.float64)
    if not spec.n_params or getattr(spec, "complex", False) or spec.complex_W:
        return  # tested with the map: no leaf to say the dtype, no complex half precision
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.03)):
        params = trees.map(lambda t: t.to(dtype), exact)  # noqa: B023
        W, y, s = zoo.matrix(spec, params), spec.apply(params, x.to(dtype)), spec.singular_values(params)
        assert {W.dtype, y.dtype, s.dtype, spec.violation(W).dtype, spec.reg_error(params).dtype} == {dtype}
        assert (W.double() - zoo.matrix(spec, exact)).abs().max() <= tolerance * max(1, W.abs().max())
        assert (y.double() - spec.apply(exact, x)).abs().max() <= 3 * tolerance * max(1, y.abs().max())
        assert {t.dtype for t in trees.leaves(zoo.random_params(spec, 0, dtype))} == {dtype}
        if spec.in_features == spec.out_features:
            assert spec.eig(params).dtype in (dtype, torch.complex64)


@over_the_zoo
def test_device_follows_params(entry):
    spec = entry.spec
    on_meta = spec.init(zoo.generator(0), device="meta")
    assert {t.device.type for t in trees.leaves(on_meta)} <= {"meta"}
    x = torch.empty(3, spec.in_features, device="meta")
    if not spec.n_params:
        return
    for result in (zoo.matrix(spec, on_meta), spec.apply(on_meta, x), spec.reg_error(on_meta)):
        assert result.device.type == "meta"


@pytest.mark.parametrize("entry", [e for e in zoo.ENTRIES if e.spec.name in linmaps.maps], ids=zoo.label)
def test_params_of_zeros_give_what_the_registry_says(entry):
    spec = entry.spec
    W = zoo.matrix(spec, trees.map(torch.zeros_like, zoo.random_params(spec, 0)))
    assert WORDS[spec.at_zero](spec, W.numpy())


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
        assert torch.equal(other.effective_W(copied), zoo.matrix(spec, params))
    assert {spec: 1}[dataclasses.replace(spec)] == 1
    assert (
        "bias" not in inspect.signature(type(spec)).parameters or dataclasses.replace(spec, bias=not spec.bias) != spec
    )
