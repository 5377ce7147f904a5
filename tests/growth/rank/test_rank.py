"""Ranks: the function stays, old entries keep place and value, nothing new is dead, and reduction takes it back."""

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import growth
import linmaps
from linmaps import trees
from tests.growth.carry.test_carry import adam
from tests.growth.kinds_rank import EXAMPLES, SHAPES, D, F, corner, difference, gen, randn, ranks, specs
from tests.growth.oracle import close

NAMES = [f"{s._title} {getattr(s, 'factorization', '')}" for s in EXAMPLES]
every = pytest.mark.parametrize("spec", EXAMPLES, ids=NAMES)


def grow(spec, params, k=2, seed=None, by_gradient=False):
    options = {"gradient": randn(*spec.effective_W(params).shape, seed=9).to(torch.float64)} if by_gradient else {}
    return growth.grow_rank(spec, params, k, None if seed is None else gen(seed), **options)


def feasible(spec) -> bool:
    with contextlib.suppress(ValueError):
        return bool(grow(spec, spec.init(gen(), dtype=D), 2))
    return False


@given(specs().filter(feasible), st.sampled_from([None, 3]), st.booleans())
def test_function_stays_and_reduction_undoes(spec, seed, by_gradient):
    params = spec.init(gen(), dtype=D)
    W, before = spec.effective_W(params), trees.map(torch.clone, params)
    larger, grown = grow(spec, params, 2, seed, by_gradient)
    close(larger.effective_W(grown), W, 1e-12)
    assert {n: tuple(t.shape) for n, t in grown.items()} == larger.shapes()
    assert max(difference(larger, spec)) > 0
    assert min(difference(larger, spec)) >= 0
    for n, t in params.items():
        assert torch.equal(corner(grown[n], t), t)
        assert torch.equal(before[n], t)
    small, reduced, error = growth.reduce_rank(larger, grown, difference(larger, spec))
    assert ranks(small) == ranks(spec)
    assert error <= 2e-15
    close(small.effective_W(reduced), W, 1e-13)


@every
@pytest.mark.parametrize("by_gradient", [False, True])
def test_every_new_entry_moves_within_two_steps(spec, by_gradient):
    params = spec.init(gen(), dtype=D)
    target = randn(*spec.effective_W(params).shape, seed=4)
    larger, grown = grow(spec, params, 2, by_gradient=by_gradient)
    loss = lambda p: ((larger.effective_W(p) - target) ** 2).sum()
    stepped = grown
    moved = trees.map(lambda t: torch.zeros_like(t, dtype=torch.bool), grown)
    for _ in range(2):
        slope = grad(loss)(stepped)
        moved = trees.map(lambda m, g: m | (g.abs() > 1e-9), moved, slope)
        stepped = trees.axpy(-0.02, slope, stepped)
    for name in params:
        if name != "bias":
            assert moved[name].all(), f"{name}: {(~moved[name]).sum()} entries have no gradient"
    one = trees.axpy(-0.02, grad(loss)(grown), grown)
    assert all((t != 0).all() for n, t in one.items() if n != "bias")
    assert loss(one) < loss(grown)


@every
@pytest.mark.parametrize("by_gradient", [False, True])
def test_next_adam_step_moves_old_entries_as_without_growth(spec, by_gradient):
    params, x, y = spec.init(gen(), dtype=D), randn(9, spec.in_features, seed=1), randn(9, spec.out_features, seed=2)
    layer = (0,) if getattr(spec, "n_layers", 1) > 1 else ()

    def step(spec, p, state):
        return adam(p, grad(lambda p: ((spec.apply(p, x, *layer) - y) ** 2).mean())(p), state)

    state = {"step": 0, "m": trees.zeros_like(params), "v": trees.zeros_like(params)}
    for _ in range(3):
        params, state = step(spec, params, state)
    larger, grown = grow(spec, params, 2, by_gradient=by_gradient)
    want, _ = step(spec, params, state)
    got, carried = step(larger, grown, growth.grow_like(state, params, grown))
    assert carried["step"] == 4
    for n, t in want.items():
        close(corner(got[n], t), t, 1e-11)


@pytest.mark.parametrize("spec", [s for s in EXAMPLES if not isinstance(s, linmaps.Spectral)], ids=str)
def test_new_columns_are_orthogonal_to_old_ones(spec):
    if getattr(spec, "factorization", "") == "cp":
        spec = F((9,), (8, 7), factorization="cp", rank=2)  # its terms need not be: they are of unit norm, and generic
    params = spec.init(gen(), dtype=D)
    _, grown = grow(spec, params, 1)
    for n, t in grown.items():
        if n == "bias" or t.shape[-1] == params[n].shape[-1] or n in ("weights", "core"):
            continue
        old, new = t[..., : params[n].shape[-1]], t[..., params[n].shape[-1] :]
        flat = lambda m, rows=params[n].shape[0]: m[:rows].reshape(-1, m.shape[-1])
        if getattr(spec, "factorization", "") == "cp":
            assert new.norm() == 0 or abs(new.norm() / old.square().sum(0).mean().sqrt() - 1) < 1e-12
        elif n[0] == "U" or n == "A0":
            close(flat(old).mT @ flat(new), torch.zeros(old.shape[-1], new.shape[-1], dtype=D), 1e-13)
            close(
                new.square().sum(tuple(range(t.ndim - 1))).sqrt().mean() ** 2, old.square().sum() / old.shape[-1], 1e-12
            )


@every
def test_an_ensemble_is_the_loop(spec):
    members = [spec.init(gen(i), dtype=D) for i in range(3)]
    slopes = [randn(*spec.effective_W(members[0]).shape, seed=10 + i) for i in range(3)]
    run = lambda p, G: growth.grow_rank(spec, p, 2, gradient=G)[1]
    loop = trees.stack([run(p, G) for p, G in zip(members, slopes)])
    mapped = vmap(run)(trees.stack(members), torch.stack(slopes))
    for n, t in loop.items():
        close(mapped[n], t, 1e-10)
    own = vmap(lambda p: growth.grow_rank(spec, p, 2, gen())[1], randomness="different")(trees.stack(members))
    larger = grow(spec, members[0], 2)[0]
    close(vmap(larger.effective_W)(own), torch.stack([spec.effective_W(p) for p in members]), 1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(spec, dtype):
    params = spec.init(gen(), dtype=dtype)
    larger, grown = growth.grow_rank(spec, params, 2, gradient=spec.effective_W(params).cos())
    assert {t.dtype for t in grown.values()} == {dtype}
    tol = 2e-6 if dtype == torch.float32 else 0.05
    close(larger.effective_W(grown).double(), spec.effective_W(params).double(), tol)
    small, reduced, error = growth.reduce_rank(larger, grown, difference(larger, spec))
    assert {t.dtype for t in reduced.values()} == {error.dtype} == {dtype}
    close(small.effective_W(reduced).double(), spec.effective_W(params).double(), 2 * tol)


@pytest.mark.parametrize("name", ["lowrank", "cp", "tucker", "tt", "blocktt"])
def test_complex_maps(name):
    spec = F((2, 3), (2, 3), factorization=name, rank=1)
    params = spec.init(gen(), dtype=torch.complex128)
    for generator in (None, gen(1)):
        larger, grown = growth.grow_rank(spec, params, 1, generator)
        close(larger.effective_W(grown), spec.effective_W(params), 1e-12)
        small, reduced, error = growth.reduce_rank(larger, grown, difference(larger, spec))
        close(small.effective_W(reduced), spec.effective_W(params), 1e-12)
        assert error < 1e-14
    with pytest.raises(ValueError, match="gradient: got complex"):
        growth.grow_rank(spec, params, 1, gradient=torch.ones(6, 6))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["lowrank", "tucker", "tt"])
def test_to_the_largest_rank_and_no_further(name, shapes):
    spec = F(*shapes, factorization=name, rank=1)
    params = spec.init(gen(), dtype=D)
    larger, grown = growth.grow_rank(
        spec, params, 100 if ranks(spec)[1:] else min(spec.in_features, spec.out_features) - 1
    )
    full = F(*shapes, factorization=name, rank="same" if name != "lowrank" else 100)
    assert ranks(larger) == ranks(full)
    close(larger.effective_W(grown), spec.effective_W(params), 1e-12)
    with pytest.raises(ValueError, match=r"expected at most \{"):
        growth.grow_rank(larger, grown, 1)
    again, same = growth.grow_rank(larger, grown, 0)
    assert again == larger
    assert all(torch.equal(same[n], t) for n, t in grown.items())


def test_zeros_are_params_too():
    for spec in EXAMPLES:
        params = trees.zeros_like(spec.init(gen(), dtype=D))
        for by_gradient in (False, True):
            larger, grown = grow(spec, params, 2, by_gradient=by_gradient)
            close(larger.effective_W(grown), spec.effective_W(params), 1e-12)
            assert all(t.isfinite().all() for t in grown.values())
        if isinstance(spec, linmaps.LowRank):
            slope = grad(lambda p, s=larger: (s.effective_W(p) + 1).square().sum())(grown)
            assert (slope["V"][2:] != 0).all()


@every
def test_twice_in_a_row(spec):
    params = spec.init(gen(), dtype=D)
    G = randn(*spec.effective_W(params).shape, seed=3)
    once, first = growth.grow_rank(spec, params, 1 if not isinstance(spec, linmaps.Spectral) else (2, 0), gradient=G)

    def second(p):
        try:
            return growth.grow_rank(once, p, 1, gradient=G)
        except ValueError:
            return once, p

    larger, grown = second(first)
    close(larger.effective_W(grown), spec.effective_W(params), 1e-12)
    slope = grad(lambda p: sum((t.cos() * t).sum() for t in second(p)[1].values()))(first)
    assert all(t.isfinite().all() for t in slope.values())


def test_a_generator_decides():
    spec = linmaps.LowRank(6, 5, 2)
    params = spec.init(gen(), dtype=D)
    state = torch.random.get_rng_state()
    U = [growth.grow_rank(spec, params, 2, g)[1]["U"] for g in (gen(1), gen(1), gen(2), None, None)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(U[0], U[1])
    assert torch.equal(U[3], U[4])
    assert not torch.allclose(U[0], U[2])
    assert not torch.allclose(U[0], U[3])


@pytest.mark.parametrize(
    ("spec", "k", "error", "match"),
    [
        (linmaps.LowRank(5, 4, 3), 2, ValueError, r"expected at most \{'r': 1\}, up to \(4,\)"),
        (linmaps.LowRank(5, 4, 3), -1, ValueError, "use growth.reduce_rank"),
        (linmaps.LowRank(5, 4, 3), 1.0, TypeError, "expected an int or a tuple"),
        (linmaps.LowRank(5, 4, 3), True, TypeError, "expected an int or a tuple"),
        (linmaps.LowRank(5, 4, 3), (1, 1), ValueError, "one for each of"),
        (linmaps.Spectral(5, 4), 1, ValueError, "expected at most"),
        (linmaps.Spectral(4, 6, n_U_reflectors=1), (1, 0), ValueError, "reflectors come in pairs"),
        (F((2, 2), (2, 2), factorization="tt", rank=2), (1, 0, 0), ValueError, "expected at most"),
        (F((2, 2), (2, 2), factorization="cp", rank=8), 1, ValueError, "expected at most"),
        (F((2, 2), (2, 2), factorization="dense"), 1, TypeError, "no ranks to change"),
        (F((4,), (4,), factorization="blocktt"), 1, ValueError, "expected at most"),
        (linmaps.Linear(3), 1, TypeError, r"Linear\(3, 3\), which has no ranks"),
    ],
)
def test_refusals(spec, k, error, match):
    with pytest.raises(error, match=match):
        growth.grow_rank(spec, spec.init(gen()), k)


def test_refusals_of_tensors():
    spec = linmaps.LowRank(5, 4, 1)
    params, G = spec.init(gen()), torch.ones(5, 4)
    with pytest.raises(ValueError, match="transpose"):
        growth.grow_rank(spec, params, 1, gradient=G.T)
    with pytest.raises(TypeError, match="gradient: got list"):
        growth.grow_rank(spec, params, 1, gradient=[1])
    with pytest.raises(ValueError, match="without a gradient"):
        growth.grow_rank(spec, params, 1, fisher=(torch.eye(5), torch.eye(4)))
    with pytest.raises(TypeError, match="fisher: got int"):
        growth.grow_rank(spec, params, 1, gradient=G, fisher=3)
    with pytest.raises(ValueError, match=r"fisher: B has shape \(5, 5\)"):
        growth.grow_rank(spec, params, 1, gradient=G, fisher=(torch.eye(6), torch.eye(5)))
    with pytest.raises(ValueError, match="params of another spec"):
        growth.grow_rank(dataclasses.replace(spec, bias=True), params, 1)
    with pytest.raises(ValueError, match="leave one of each"):
        growth.reduce_rank(spec, params, 1)
