"""Laws of `from_matrix` at matrices of any size: finite params, the promise, the nearest member, members and cones back."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

from linmaps import trees
from tests.linmaps import zoo
from tests.linmaps.kind import Entry

TAKES = [e for e in zoo.ENTRIES if e.spec.n_params and zoo.closed_form(e.spec)]
SIZES = {  # powers of two: W / size has the digits of W
    torch.float32: (2.0**-96, 2.0**17, 2.0**60, 2.0**84, 2.0**126),
    torch.float64: (2.0**-900, 2.0**60, 2.0**400, 2.0**700, 2.0**1022),
}
each = pytest.mark.parametrize("entry", TAKES, ids=zoo.label)
each_dtype = pytest.mark.parametrize("dtype", SIZES, ids=str)


def wide(spec):
    return torch.complex128 if spec.complex_W else torch.float64


def of_size_one(spec):
    """Matrices of norm 1, so that theirs is a number at any size: a generic one, one with a lone entry, one of negative
    entries, and a member."""
    shape = (spec.in_features, spec.out_features)
    generic = 2 * torch.rand(shape, generator=zoo.generator(3), dtype=wide(spec)) - (1 + 1j if spec.complex_W else 1)
    lone = torch.zeros(shape, dtype=wide(spec))
    lone[0, -1] = 1
    found = (generic, lone, -generic.abs().to(wide(spec)), member(spec))
    return [W / torch.linalg.vector_norm(W) for W in found]


def member(spec):
    W = torch.tensor(zoo.KINDS[spec.name].member(spec, np.random.default_rng(3)))
    return W / torch.linalg.vector_norm(W)


def sized(spec, dtype):
    """(size, W / size in double precision, W) of each, and params and distances of all, stacked."""
    to = dtype.to_complex() if spec.complex_W else dtype
    found = []
    for size in SIZES[dtype]:
        for unit in of_size_one(spec):
            W = (unit * size).to(to)
            found.append((size, W.to(wide(spec)) / size, W))
    return found, vmap(spec.from_matrix)(torch.stack([W for _, _, W in found]))


def away(X, unit, size):
    """|X - size unit|, without squares that overflow or vanish."""
    c = max(float(X.abs().max()), size)
    return norm(X / c - unit * (size / c)) * c


def double(t):
    return t.to(torch.promote_types(t.dtype, torch.float64))


def norm(t):
    return float(torch.linalg.vector_norm(t))


@each_dtype
@each
def test_params_are_finite_keep_the_promise_and_tell_the_distance(entry: Entry, dtype: torch.dtype) -> None:
    spec, info = entry.spec, torch.finfo(dtype)
    found, (params, distances) = sized(spec, dtype)
    nears = vmap(spec.effective_W)(params)
    for k, (size, unit, W) in enumerate(found):
        near, distance = nears[k], distances[k]
        assert all(t[k].isfinite().all() for t in trees.leaves(params)), size
        assert near.isfinite().all(), size
        exact = double(near)
        rounding = 16 * info.eps * max(W.shape) * max(1.0, float(exact.abs().max()))
        if spec.guaranteed:
            assert spec.violation(exact) <= rounding, size
        assert float(distance) == pytest.approx(away(exact, unit, size), rel=1e-4, abs=30 * info.eps * size), size


@each_dtype
@pytest.mark.parametrize("entry", [e for e in TAKES if zoo.KINDS[e.spec.name].projects], ids=zoo.label)
def test_no_member_is_nearer(entry: Entry, dtype: torch.dtype) -> None:
    """|W - X|^2 is |W|^2 less twice <X, W> - |X|^2 / 2, of which nothing is lost where W is far away."""
    spec = entry.spec
    if entry.incomplete or spec.name == "power_bound":
        pytest.skip(entry.incomplete or "a spectrum is shrunk, which is not nearest")

    def gained(X, unit, size, unit_of_X):
        if size < 1:
            return -away(X, unit, size)
        Y = X / unit_of_X
        return float((Y.conj() * unit).real.sum() - (Y * (X / size).conj()).real.sum() / 2)

    others = [torch.tensor(zoo.KINDS[spec.name].member(spec, np.random.default_rng(seed))) for seed in range(20)]
    found, (params, _) = sized(spec, dtype)
    for (size, unit, _), X in zip(found, double(vmap(spec.effective_W)(params))):
        c = max(1.0, float(X.abs().max()))
        most = max(gained(other, unit, size, c) for other in others)
        assert gained(X, unit, size, c) >= most - 1e-4 * (1 + norm(X / c)), size


CONES = {  # name: the least entry that the map's docstring says, for W -> sW, s > 0, takes the set of these matrices to itself
    "linear": 0.0,
    "identity_init": 0.0,
    "symmetric": 0.0,
    "skew_symmetric": 0.0,
    "hamiltonian": 0.0,
    "block_skew": 0.0,
    "factorized": 0.0,
    "low_rank": 0.0,
    "circulant": 0.0,
    "block_diagonal": 0.0,
    "kronecker": 0.0,
    "toeplitz": 0.0,
    "diagonal": 0.0,
    "monarch": 0.0,
    "weight_norm": 0.0,
    "lasso": 0.0,
    "lasso_relu": 0.0,
    "non_negative": 1e-6,
    "split": 1e-6,
    "triangular": 1e-6,
}


@each_dtype
@pytest.mark.parametrize("entry", [e for e in TAKES if e.spec.name in CONES], ids=zoo.label)
def test_a_cone_does_not_see_the_size(entry: Entry, dtype: torch.dtype) -> None:
    """from_matrix(s W) is s from_matrix(W), but for the least entries and the rounding of logarithms."""
    spec, eps = entry.spec, torch.finfo(dtype).eps
    if getattr(spec, "diagonal", "") == "unit":
        pytest.skip("no cone")
    take = vmap(lambda W: spec.effective_W(spec.from_matrix(W)[0]))
    units = torch.stack(of_size_one(spec))
    ones = double(take(units.to(dtype)))
    n, loose = (
        max(ones.shape),
        1e6 if getattr(spec, "factorization", "") == "cp" else 1,
    )  # sweeps that have not converged
    for size in SIZES[dtype]:
        slack = (64 * n + 4 * abs(math.log(size))) * eps * size
        for near, one in zip(double(take((units * size).to(dtype))), ones):
            assert away(near, one, size) <= slack * loose + 1.01 * CONES[spec.name] * n * (1 + size), size


@each_dtype
@each
def test_members_come_back(entry: Entry, dtype: torch.dtype) -> None:
    """Of whatever size: those that the oracle says are in the set, to rounding and the margins of 1e-6 of the bounds."""
    spec, info = entry.spec, torch.finfo(dtype)
    if entry.incomplete or spec.name in ("trivial_null_space", "svd_learn_bounds", "unit_determinant"):
        pytest.skip("not every matrix that keeps the promise is reached, or none of this size but members")
    bounds = max([1.0, *(abs(v) for v in vars(spec).values() if isinstance(v, float))])
    for size in SIZES[dtype]:
        W = (member(spec) * size).to(dtype.to_complex() if spec.complex_W else dtype)
        with np.errstate(all="ignore"):
            off = zoo.residual(spec, member(spec) * size)
        if not off <= 1e-12 * size:
            continue
        back = double(spec.effective_W(spec.from_matrix(W)[0]))
        rounding = (200 * max(W.shape) + 4 * abs(math.log(size))) * info.eps * size
        margin = 2e-5 * bounds * max(W.shape) if size < 1e5 else 0.0
        assert away(back, double(W) / size, size) <= rounding + margin, size


@each
def test_an_ensemble_of_sizes_is_the_loop(entry: Entry) -> None:
    spec = entry.spec
    found, (params, _) = sized(spec, torch.float64)
    for one, (_, _, W) in list(zip(vmap(spec.effective_W)(params), found))[::6]:
        alone = spec.effective_W(spec.from_matrix(W)[0])
        assert norm((one - alone) / alone.abs().max().clamp(min=1e-6)) <= 1e-9
