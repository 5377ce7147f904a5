"""Regularizers on bonds: dropout is unbiased by enumeration, the soft threshold is optimal, pruning keeps W."""

import itertools
import math
import string
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

from linmaps import Factorized, trees
from linmaps.factorized import (
    bonds,
    distance,
    dropout_mask,
    inner,
    lasso_prox,
    lasso_weights,
    prune_ranks,
    tensor_dropout,
    tensor_lasso,
)
from linmaps.factorized.kinds import KINDS

D, C = torch.float64, torch.complex128
over_kinds = pytest.mark.parametrize("name", KINDS)
over_bonded = pytest.mark.parametrize("name", [k for k in KINDS if k != "dense"])
over_layers = pytest.mark.parametrize("L", [1, 3])
over_dtypes = pytest.mark.parametrize("dtype", [D, C])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


def made(name, L=1, dtype=D, seed=0, rank=2, **options):
    spec = Factorized((2, 3), (3, 2), factorization=name, rank=rank, n_layers=L, **options)
    return spec, spec.init(gen(seed), dtype=dtype)


def drawn(spec, seed=1, dtype=D):
    return {bond: randn(r, seed=seed + k, dtype=dtype) for k, (bond, r) in enumerate(bonds(spec).items())}


def close(a, b, tolerance=1e-12):
    return torch.allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def brute(spec, params, factors):
    """W [(L,) in, out] by one einsum over all leaves, with a vector on each bond."""
    name, L = spec.factorization, spec.n_layers
    f = {bond: factors.get(bond, torch.ones(r, dtype=D)) for bond, r in bonds(spec).items()}
    dtype = torch.promote_types(params[next(iter(params))].dtype, next(iter(f.values())).dtype)
    p, f = {k: t.to(dtype) for k, t in params.items()}, {k: t.to(dtype) for k, t in f.items()}
    if name == "lowrank":
        return torch.einsum("ir,r,...ro->...io", p["U"], f["r"], p["V"])
    n = (L > 1) + len(spec.out_shape) + len(spec.in_shape)
    small, large = string.ascii_lowercase[:n], string.ascii_uppercase
    if name == "cp":
        terms = ["A", *(m + "A" for m in small), "A"]
        T = torch.einsum(",".join(terms) + "->" + small, p["weights"], *(p[f"U{k}"] for k in range(n)), f["r"])
    elif name == "tucker":
        terms = [large[:n], *(m + M for m, M in zip(small, large)), *large[:n]]
        leaves = [p["core"], *(p[f"U{k}"] for k in range(n)), *(f[f"r{k}"] for k in range(n))]
        T = torch.einsum(",".join(terms) + "->" + small, *leaves)
    elif name == "tt":
        terms = [*(large[k] + m + large[k + 1] for k, m in enumerate(small)), *large[1:n]]
        leaves = [*(p[f"A{k}"] for k in range(n)), *(f[f"r{k}"] for k in range(1, n))]
        T = torch.einsum(",".join(terms) + "->" + small, *leaves)
    else:
        layer = "l" if L > 1 else ""
        T = torch.einsum(f"A{layer}oiB,B{layer}pjC,B->{layer}opij", p["A0"], p["A1"], f["r1"])
    lead = (L,) if L > 1 else ()
    return T.reshape(*lead, spec.out_features, spec.in_features).mT


@st.composite
def cases(draw):
    """A spec of any kind with bonds, params, and factors on some of the bonds."""
    name = draw(st.sampled_from([k for k in KINDS if k != "dense"]))
    L, rank = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2, 3, "same"]))
    seed, dtype = draw(st.integers(0, 99)), draw(st.sampled_from([D, C]))
    spec, params = made(name, L, dtype, seed, rank, bias=draw(st.booleans()))
    factors = drawn(spec, seed, draw(st.sampled_from([D, dtype])))
    return spec, params, {k: w for k, w in factors.items() if draw(st.booleans())}


# --- bonds ---------------------------------------------------------------------------------------------------------


def test_bonds_by_name_and_rank():
    ranks = {
        "dense": {},
        "lowrank": {"r": 2},
        "cp": {"r": 2},
        "tucker": {"r0": 2, "r1": 2, "r2": 2, "r3": 2, "r4": 2},
        "tt": {"r1": 2, "r2": 2, "r3": 2, "r4": 2},
        "blocktt": {"r1": 2},
    }
    assert {name: bonds(made(name, 3)[0]) for name in KINDS} == ranks


@given(case=cases())
def test_a_factor_on_a_bond_scales_the_terms_of_the_tensor(case):
    spec, params, factors = case
    want = brute(spec, params, factors)
    for leaves in (tensor_dropout(spec, params, factors), tensor_lasso(spec, params, factors)[0]):
        assert leaves.keys() == params.keys()
        assert all(leaves[k].shape == t.shape and leaves[k].dtype == t.dtype for k, t in params.items())
        assert close(spec.effective_W(leaves), want)
        assert not spec.bias or torch.equal(leaves["bias"], params["bias"])


@over_kinds
@over_layers
@over_dtypes
def test_ones_are_the_identity(name, L, dtype):
    spec, params = made(name, L, dtype)
    whole = {k: torch.ones(r, dtype=torch.bool) for k, r in bonds(spec).items()}
    for mask in ({}, lasso_weights(spec, dtype=D), whole, list(whole.values())):
        assert all(torch.equal(t, params[k]) for k, t in tensor_dropout(spec, params, mask).items())


@over_bonded
def test_dicts_sequences_and_a_single_tensor_say_the_same(name):
    spec, params = made(name, 3)
    mask = drawn(spec)
    want = tensor_dropout(spec, params, mask)
    ways = [list(mask.values()), tuple(mask.values()), MappingProxyType(mask), dict(reversed(mask.items()))]
    for same in ways + (list(mask.values()) if len(mask) == 1 else []):
        got, loss = tensor_lasso(spec, params, same)
        assert trees.map(torch.equal, got, want) == trees.map(lambda _: True, want)
        assert loss.item() == pytest.approx(0.01 * sum(w.abs().sum().item() for w in mask.values()), rel=1e-14)
        assert all(torch.equal(t, want[k]) for k, t in tensor_dropout(spec, params, same).items())


@over_bonded
@over_dtypes
def test_masks_commute_with_layers(name, dtype):
    spec, params = made(name, 3, dtype)
    mask = drawn(spec)
    dropped = tensor_dropout(spec, params, mask)
    W = spec.effective_W(dropped)
    for layer in range(3):
        one, leaves = spec.select(dropped, layer)
        assert close(one.effective_W(leaves), W[layer])
    # the bond between the layers and the rest is summed over by select; the others keep their order
    shared = {"tucker": "r0", "tt": "r1"}.get(name)
    rest = {k: m for k, m in mask.items() if k != shared}
    one, leaves = spec.select(params, 1)
    got = tensor_dropout(one, leaves, list(rest.values()))
    assert close(one.effective_W(got), spec.effective_W(tensor_dropout(spec, params, rest), 1))


# --- dropout -------------------------------------------------------------------------------------------------------


def combined(per_bond):
    """All combinations of one row for each bond: bond -> [M, r], for dict bond -> [m, r]."""
    index = torch.cartesian_prod(*(torch.arange(len(rows)) for rows in per_bond.values())).reshape(-1, len(per_bond))
    return {bond: rows[index[:, k]] for k, (bond, rows) in enumerate(per_bond.items())}


@over_bonded
@over_layers
@over_dtypes
def test_the_mean_over_all_masks_and_their_probabilities_is_w(name, L, dtype):
    p, q = 0.3, 0.7
    spec, params = made(name, L, dtype, rank=3 if name in ("cp", "lowrank", "blocktt") else 2)
    bits = {k: torch.tensor(list(itertools.product([0.0, 1.0], repeat=r)), dtype=D) for k, r in bonds(spec).items()}
    masks = combined(bits)
    kept = sum(m.sum(1) for m in masks.values())
    probability = q**kept * p ** (sum(bonds(spec).values()) - kept)
    Ws = vmap(lambda m: spec.effective_W(tensor_dropout(spec, params, m)))(trees.scale(1 / q, masks))
    assert probability.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert close(torch.tensordot(probability.to(dtype), Ws, dims=1), spec.effective_W(params))
    assert (Ws[-1] - spec.effective_W(params)).abs().max() > 1e-3  # no mask is the identity


@over_bonded
@over_layers
@over_dtypes
@pytest.mark.parametrize("n_kept", [1, 2])
def test_the_mean_over_all_masks_that_keep_equally_many_is_w(name, L, dtype, n_kept):
    spec, params = made(name, L, dtype, rank=3 if name in ("cp", "lowrank", "blocktt") else 2)
    rows = {}
    for bond, r in bonds(spec).items():
        chosen = list(itertools.combinations(range(r), min(n_kept, r)))
        rows[bond] = torch.zeros(len(chosen), r, dtype=torch.bool).scatter(1, torch.tensor(chosen), True)
    Ws = vmap(lambda m: spec.effective_W(tensor_dropout(spec, params, m)))(combined(rows))
    assert close(Ws.mean(0), spec.effective_W(params))


@over_bonded
def test_a_mask_that_keeps_nothing_gives_zero(name):
    spec, params = made(name, 3)
    nothing = {k: torch.zeros(r, dtype=torch.bool) for k, r in bonds(spec).items()}
    assert torch.equal(
        spec.effective_W(tensor_dropout(spec, params, nothing)), torch.zeros(3, *spec._W_shape[1:], dtype=D)
    )


@over_kinds
def test_drawn_masks(name):
    spec = made(name, rank=3)[0]
    p, n, before = 0.3, 20_000, torch.get_rng_state()
    assert trees.map(torch.equal, *(dropout_mask(spec, gen(), p) for _ in range(2))) == dict.fromkeys(bonds(spec), True)
    g = gen(1)
    draw = lambda _: dropout_mask(spec, g, p, dtype=D, min_keep=0)
    masks = vmap(draw, randomness="different")(torch.arange(n))
    assert {k: tuple(m.shape) for k, m in masks.items()} == {k: (n, r) for k, r in bonds(spec).items()}
    assert torch.equal(torch.get_rng_state(), before)
    if not bonds(spec):
        return
    values = torch.cat(list(masks.values()), 1)
    assert set(values.unique().tolist()) == {0.0, 1 / (1 - p)}
    sigma = math.sqrt(p / (1 - p) / n)
    assert (values.mean(0) - 1).abs().max() < 5 * sigma
    off_diagonal = torch.cov(values.T) - torch.diag(values.var(0))
    assert off_diagonal.abs().max() < 5 * p / (1 - p) / math.sqrt(n)
    few = dropout_mask(spec, gen(), 0.9, min_rank=4)
    assert all(torch.equal(m, torch.ones(len(m))) for m in few.values())
    assert all(torch.equal(m, torch.ones(len(m))) for m in dropout_mask(spec, gen(), 0.0).values())
    assert all(m.dtype == D for m in dropout_mask(spec, gen(), p, dtype=D, device="cpu").values())


def test_bonds_of_small_rank_are_left_alone():
    spec = Factorized((2, 3), (3, 2), factorization="tucker", rank=(2, 1, 3, 2), compat=True)
    mask = dropout_mask(spec, gen(), 0.999, min_rank=3, min_keep=0)
    assert [m.tolist() for m in mask.values()] == [[1, 1], [1], [0, 0, 0], [1, 1]]


def kept_counts(r, p, min_keep):
    """The chance that so many of r values are kept, 0 to r: of max(X, min_keep)."""
    binomial = [math.comb(r, c) * (1 - p) ** c * p ** (r - c) for c in range(r + 1)]
    least = min(min_keep, r)
    return [0.0] * least + [sum(binomial[: least + 1])] + binomial[least + 1 :]


def mean_factor(r, p, min_keep):
    """E max(X, min(min_keep, r)) / (r (1 - p))."""
    return sum(c * chance for c, chance in enumerate(kept_counts(r, p, min_keep))) / (r * (1 - p))


@pytest.mark.parametrize("name", ["lowrank", "cp", "tt", "blocktt"])
@pytest.mark.parametrize("min_keep", [0, 1, 2])
def test_the_mean_of_w_over_all_masks_is_w_times_the_means_of_its_bonds(name, min_keep):
    """Every mask that can be drawn, by its chance: those of a bond that keep equally many are equally likely."""
    (spec, params), p = made(name, rank=3), 0.4
    patterns = []
    for r in bonds(spec).values():
        chances = kept_counts(r, p, min_keep)
        ways = itertools.product([0.0, 1.0], repeat=r)
        patterns.append([(w, chances[int(sum(w))] / math.comb(r, int(sum(w)))) for w in ways])
    drawn_masks = [m for m in itertools.product(*patterns) if math.prod(chance for _, chance in m) > 0]
    weights = torch.tensor([math.prod(chance for _, chance in m) for m in drawn_masks], dtype=D)
    masks = {
        bond: torch.tensor([m[k][0] for m in drawn_masks], dtype=D) / (1 - p) for k, bond in enumerate(bonds(spec))
    }
    assert weights.sum().item() == pytest.approx(1.0, rel=1e-12)
    every = vmap(lambda m: spec.effective_W(tensor_dropout(spec, params, m)))(masks)
    mean = math.prod(mean_factor(r, p, min_keep) for r in bonds(spec).values())
    assert close((weights[:, None, None] * every).sum(0), mean * spec.effective_W(params))
    assert mean == pytest.approx(1.0, rel=1e-12) if min_keep == 0 else mean > 1.0


@over_kinds
@pytest.mark.parametrize("min_keep", [1, 2, 5])
def test_no_bond_is_dropped_as_a_whole(name, min_keep):
    """And the mean of the factors is what the docstring says."""
    spec, params = made(name, rank=3)
    p, n, g = 0.6, 20_000, gen(2)
    draw = lambda _: dropout_mask(spec, g, p, dtype=D, min_keep=min_keep)
    for bond, factors in vmap(draw, randomness="different")(torch.arange(n)).items():
        r = bonds(spec)[bond]
        if r == 1:  # below min_rank
            assert (factors == 1).all()
            continue
        counts, chances = (factors > 0).sum(1), kept_counts(r, p, min_keep)
        for c, chance in enumerate(chances):
            assert abs((counts == c).double().mean().item() - chance) <= 5 * math.sqrt(chance * (1 - chance) / n)
        mean, spread = mean_factor(r, p, min_keep), counts.double().std().item() / (r * (1 - p))
        assert abs(factors.mean().item() - mean) <= 5 * spread / math.sqrt(n) + 1e-12
        if min_keep == 1:
            assert mean == pytest.approx(1 + p**r / (r * (1 - p)), rel=1e-12)
        each = factors.mean(0)  # no place of a bond is kept more often than another
        assert (each - mean).abs().max() <= 5 * math.sqrt(mean / (1 - p) / n)
    default = dropout_mask(spec, gen(), 0.999, dtype=D)
    assert (spec.effective_W(tensor_dropout(spec, params, default)) != 0).any()
    for wrong, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="min_keep"):
            dropout_mask(spec, gen(), p, min_keep=wrong)


# --- lasso ---------------------------------------------------------------------------------------------------------


@over_kinds
@over_dtypes
def test_weights_start_at_one_and_the_loss_is_their_sum(name, dtype):
    spec, params = made(name, 3)
    weights = lasso_weights(spec, dtype=dtype)
    assert {k: tuple(w.shape) for k, w in weights.items()} == {k: (r,) for k, r in bonds(spec).items()}
    assert all(w.dtype == dtype and torch.equal(w, torch.ones_like(w)) for w in weights.values())
    n = sum(bonds(spec).values())
    if dtype == D:
        for normalize, want in ((False, 0.5 * n), (True, 0.5 if n else 0.0)):
            leaves, loss = tensor_lasso(spec, params, weights, penalty=0.5, normalize=normalize)
            assert loss.shape == ()
            assert loss.dtype == D
            assert loss.item() == pytest.approx(want, rel=1e-14)
            assert all(torch.equal(leaves[k], t) for k, t in params.items())


@over_bonded
@over_layers
@over_dtypes
def test_each_weight_is_moved_by_the_loss_and_moves_w(name, L, dtype):
    spec, params = made(name, L, dtype)
    weights = drawn(spec)
    slopes = grad(lambda w: tensor_lasso(spec, params, w, penalty=0.3)[1])(weights)
    assert all(close(slopes[k], 0.3 * w.sign(), 1e-15) for k, w in weights.items())
    real = lambda w: torch.view_as_real(spec.effective_W(tensor_lasso(spec, params, w)[0]).to(C))
    J = jacrev(real)(weights)
    assert all((j.reshape(-1, j.shape[-1]).norm(dim=0) > 1e-3).all() for j in J.values())
    flipped = {k: -w.abs() for k, w in weights.items()}
    assert close(spec.effective_W(tensor_lasso(spec, params, flipped)[0]), brute(spec, params, flipped))
    assert all((lasso_prox(w, 1e-3) < 0).any() for w in flipped.values())


@given(seed=st.integers(0, 999), step=st.floats(1e-3, 3.0), dtype=st.sampled_from([D, C]), tensor_step=st.booleans())
def test_the_soft_threshold_is_the_proximal_map(seed, step, dtype, tensor_step):
    """Subgradients, and growth by at least |d|^2 / 2 around the minimum of a strongly convex function."""
    w = torch.cat([randn(6, seed=seed, dtype=dtype), torch.zeros(1, dtype=dtype), torch.full((1,), step, dtype=dtype)])
    z = lasso_prox(w, torch.tensor(step, dtype=D) if tensor_step else step)
    assert z.dtype == dtype
    g = (w - z) / step
    assert torch.equal(z == 0, w.abs() <= step)
    assert close(torch.where(z == 0, 0, g), torch.where(z == 0, 0, z.sgn()))
    assert (g.abs() <= 1 + 1e-12).all()
    F = lambda v: ((v - w).abs().square() / 2 + step * v.abs()).sum()
    for scale in (1e-3, 0.1, 1.0):
        d = scale * randn(8, seed=seed + 1, dtype=dtype)
        assert F(z + d) - F(z) >= d.abs().square().sum() / 2 - 1e-12


def test_the_soft_threshold_of_trees_and_steps():
    w = {"r1": torch.tensor([0.5, -2.0], dtype=D), "r2": [torch.tensor([-0.1, 1.0], dtype=D)]}
    got = lasso_prox(w, 0.25)
    assert got["r1"].tolist() == [0.25, -1.75]
    assert got["r2"][0].tolist() == [0.0, 0.75]
    steps = torch.tensor([0.0, 0.25, 9.0], dtype=D)
    assert torch.equal(
        vmap(lasso_prox, (None, 0))(w["r1"], steps)[1:], torch.tensor([[0.25, -1.75], [0.0, 0.0]], dtype=D)
    )
    assert torch.equal(lasso_prox(w["r1"], steps[0]), w["r1"])
    half = lasso_prox(w["r1"].bfloat16(), 0.25)
    assert half.dtype == torch.bfloat16
    assert half.tolist() == [0.25, -1.75]
    assert grad(lambda t: lasso_prox(w["r1"], t).sum())(torch.tensor(0.25, dtype=D)).item() == 0.0
    assert jacrev(lambda v: lasso_prox(v, 0.25))(torch.tensor([0.0, 2.0], dtype=D)).tolist() == [[0, 0], [0, 1]]


@over_bonded
@over_layers
@over_dtypes
def test_thresholded_weights_and_pruned_ranks(name, L, dtype):
    spec, params = made(name, L, dtype, rank=3)
    weights = drawn(spec)
    weights = {k: lasso_prox(w, w.abs().min() * (len(w) > 1)) for k, w in weights.items()}
    absorbed, _ = tensor_lasso(spec, params, weights)
    small, leaves = prune_ranks(spec, absorbed, {k: w != 0 for k, w in weights.items()})
    assert bonds(small) == {k: int((w != 0).sum()) for k, w in weights.items()}
    assert sum(bonds(small).values()) < sum(bonds(spec).values())
    assert small.n_params < spec.n_params
    assert {k: tuple(t.shape) for k, t in leaves.items()} == small.shapes()
    assert torch.equal(leaves["bias"], params["bias"])
    assert close(small.effective_W(leaves), spec.effective_W(absorbed))
    assert close(small.effective_W(leaves), brute(spec, params, weights))
    x = randn(4, 6, dtype=dtype)
    layer = None if L == 1 else 2
    assert close(small.apply(leaves, x, layer), spec.apply(absorbed, x, layer))


@given(case=cases(), data=st.data())
def test_pruned_is_the_same_as_zeroed(case, data):
    spec, params, _ = case
    sizes = bonds(spec)
    kept = {
        k: data.draw(st.lists(st.integers(-r, r - 1), min_size=1, unique_by=lambda i, r=r: i % r))
        for k, r in sizes.items()
        if data.draw(st.booleans())
    }
    zero = {k: torch.zeros(sizes[k], dtype=D).index_fill(0, torch.tensor(i) % sizes[k], 1.0) for k, i in kept.items()}
    want = spec.effective_W(tensor_dropout(spec, params, zero))
    by_index = {k: torch.tensor(i) for k, i in kept.items()}
    for keep in (kept, by_index, {k: z.bool() for k, z in zero.items()}):
        small, leaves = prune_ranks(spec, params, keep)
        assert bonds(small) == sizes | {k: len(i) for k, i in kept.items()}
        assert leaves.keys() == params.keys()
        assert close(small.effective_W(leaves), want)
    if not kept:
        assert small == spec
    slopes = grad(lambda p: small.effective_W(prune_ranks(spec, p, kept)[1]).abs().square().sum())(params)
    want = grad(lambda p: spec.effective_W(tensor_dropout(spec, p, zero)).abs().square().sum())(params)
    assert all(close(slopes[k], t, 1e-11) for k, t in want.items())


def test_pruned_ranks_that_are_not_feasible_are_taken_as_they_are():
    spec, params = made("tt", rank="same")
    assert spec.ranks == (1, 3, 6, 3, 1)
    small, leaves = prune_ranks(spec, params, {"r1": [0]})
    assert small.ranks == (1, 1, 6, 3, 1)
    assert small.compat
    assert small.effective_W(leaves).shape == (6, 6)
    same, whole = prune_ranks(spec, params, {"r1": torch.ones(3, dtype=torch.bool)})
    assert same == spec
    assert all(torch.equal(whole[k], t) for k, t in params.items())
    many, leaves = made("cp", 3, rank=9)  # more terms than entries of the bias
    few, kept = prune_ranks(many, leaves, {"r": [8]})
    assert torch.equal(kept["bias"], leaves["bias"])
    assert few.shapes() == {k: tuple(t.shape) for k, t in kept.items()}
    dense, leaves = made("dense")
    assert prune_ranks(dense, leaves, {}) == (dense, leaves)
    stacked = trees.stack([made("tt", rank="same", seed=s)[1] for s in range(3)])
    several = vmap(lambda p: prune_ranks(spec, p, {"r1": [0]})[1])(stacked)
    assert vmap(small.effective_W)(several).shape == (3, 6, 6)


# --- inner products ------------------------------------------------------------------------------------------------


@over_kinds
@over_layers
@pytest.mark.parametrize("dtypes", [(D, D), (C, C), (D, C), (C, D)])
def test_inner_products_and_distances_of_one_kind(name, L, dtypes):
    (spec, params), (other, leaves) = (
        made(name, L, dtypes[0]),
        made(name, L, dtypes[1], seed=5, rank="same", bias=False),
    )
    W, V = spec.effective_W(params), other.effective_W(leaves)
    assert close(inner(spec, params, other, leaves), (W.conj() * V).sum())
    assert close(inner(other, leaves, spec, params), (V.conj() * W).sum())
    assert inner(spec, params, spec, params).real.item() == pytest.approx(W.norm().item() ** 2, rel=1e-12)
    got = distance(spec, params, other, leaves)
    assert got.shape == ()
    assert got.dtype == D
    assert got.item() == pytest.approx((W - V).norm().item(), rel=1e-12)
    assert distance(spec, params, spec, params).item() <= 4e-8 * W.norm().item()


@pytest.mark.parametrize("pair", list(itertools.permutations(KINDS, 2)))
def test_inner_products_of_different_kinds(pair):
    (spec, params), (other, leaves) = made(pair[0], 3, D), made(pair[1], 3, C, seed=5)
    W, V = spec.effective_W(params), other.effective_W(leaves)
    assert close(inner(spec, params, other, leaves), (W.conj() * V).sum())
    assert distance(spec, params, other, leaves).item() == pytest.approx((W - V).norm().item(), rel=1e-13)


def test_the_same_features_in_other_modes():
    spec, other = (Factorized(s, s[::-1], factorization="tucker", rank=2) for s in ((2, 3), (3, 2)))
    params, leaves = spec.init(gen(), dtype=D), other.init(gen(1), dtype=D)
    want = (spec.effective_W(params) * other.effective_W(leaves)).sum()
    assert close(inner(spec, params, other, leaves), want)


def test_no_matrix_is_formed_for_one_kind():
    """2^40 rows and columns."""
    for name in ("cp", "tucker", "tt", "blocktt"):
        spec = Factorized((2,) * 40, factorization=name, rank=(1,) * 80 if name == "tucker" else 2, bias=False)
        params, leaves = spec.init(gen(), dtype=D), spec.init(gen(1), dtype=D)
        assert torch.isfinite(inner(spec, params, spec, leaves))
        assert distance(spec, params, spec, leaves) > 0


@over_kinds
def test_derivatives_of_distances(name):
    (spec, params), (other, leaves) = made(name, 3), made(name, 3, seed=5)
    W = lambda p: spec.effective_W(p) - other.effective_W(leaves)
    want = grad(lambda p: W(p).norm())(params)
    got = grad(lambda p: distance(spec, p, other, leaves))(params)
    assert all(close(got[k], want[k], 1e-10) for k in params)
    assert all(close(jacfwd(lambda p: distance(spec, p, other, leaves))(params)[k], want[k], 1e-10) for k in params)
    zeros = trees.zeros_like(params)
    at_zero = grad(lambda p: distance(spec, p, spec, zeros))(zeros)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in at_zero.values())
    stacked = trees.stack([made(name, 3, seed=s)[1] for s in range(3)])
    for f in (inner, distance):
        want = torch.stack([f(spec, p, other, leaves) for p in trees.unstack(stacked)])
        assert close(vmap(lambda p: f(spec, p, other, leaves))(stacked), want)  # noqa: B023


# --- transforms, dtypes, purity ------------------------------------------------------------------------------------


@over_bonded
def test_batches_of_masks_and_of_params(name):
    spec, params = made(name, 3)
    members = [made(name, 3, seed=s)[1] for s in range(4)]
    masks = [drawn(spec, seed=10 * s) for s in range(4)]
    kept = [{k: m > -0.5 for k, m in mask.items()} for mask in masks]
    for some in (masks, kept):
        W = lambda p, m: spec.effective_W(tensor_dropout(spec, p, m))
        together = vmap(W, (None, 0))(params, trees.stack(some))
        assert close(together, torch.stack([W(params, m) for m in some]))
        together = vmap(W)(trees.stack(members), trees.stack(some))
        assert close(together, torch.stack([W(p, m) for p, m in zip(members, some)]))
    losses = vmap(lambda w: tensor_lasso(spec, params, w, normalize=True)[1])(trees.stack(masks))
    assert close(losses, torch.stack([tensor_lasso(spec, params, w, normalize=True)[1] for w in masks]))


@over_bonded
@over_layers
def test_derivatives_through_masks_and_weights(name, L):
    spec, params = made(name, L)
    weights = drawn(spec)

    def dropped(p, w):
        return spec.effective_W(tensor_dropout(spec, p, w))

    def penalized(p, w):
        leaves, loss = tensor_lasso(spec, p, w, penalty=0.2)
        return torch.cat([spec.effective_W(leaves).flatten(), loss[None]])

    directions = trees.map(torch.cos, params), trees.map(torch.sin, weights)
    for f in (dropped, penalized):
        back, forward = jacrev(f, (0, 1))(params, weights), jacfwd(f, (0, 1))(params, weights)
        assert all(close(back[i][k], forward[i][k]) for i in (0, 1) for k in back[i])
        h = 1e-6
        ends = [f(*(trees.axpy(t, d, v) for d, v in zip(directions, (params, weights)))) for t in (h, -h)]
        parts = [
            torch.tensordot(back[i][k], d, dims=d.ndim) for i, part in enumerate(directions) for k, d in part.items()
        ]
        assert close(sum(parts), (ends[0] - ends[1]) / (2 * h), 1e-8)


@over_bonded
def test_leaves_keep_their_dtype(name):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.complex64):
        spec, params = made(name, 3, dtype)
        factors = drawn(spec)
        want = trees.map(lambda t: t.to(C if t.is_complex() else D), params)
        want = tensor_dropout(spec, want, factors)
        for given_ in (factors, {k: f.float() for k, f in factors.items()}):
            leaves, loss = tensor_lasso(spec, params, given_)
            assert loss.dtype == next(iter(given_.values())).dtype
            for k, t in leaves.items():
                assert t.dtype == dtype
                assert close(t.to(want[k].dtype), want[k], torch.finfo(dtype).eps)
        kept = {k: torch.arange(len(f)) > 0 for k, f in factors.items()}
        assert all(t.dtype == dtype for t in tensor_dropout(spec, params, kept).values())
        assert inner(spec, params, spec, params).dtype == dtype
        assert distance(spec, params, spec, params).dtype == dtype.to_real()


@over_bonded
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(name, dtype):
    spec, params = made(name, 3, dtype, rank=5)
    other = made(name, 3, dtype, seed=5, rank=5)[1]
    up = [trees.map(lambda t: t.float(), p) for p in (params, other)]
    for f in (inner, distance):
        assert torch.equal(f(spec, params, spec, other), f(spec, up[0], spec, up[1]).to(dtype))
    mask = {k: torch.arange(r) < 3 for k, r in bonds(spec).items()}
    want = tensor_dropout(spec, up[0], mask)
    assert all(torch.equal(t, want[k].to(dtype)) for k, t in tensor_dropout(spec, params, mask).items())
    for seed in range(20):
        weights = {k: w.to(dtype) for k, w in drawn(spec, seed).items()}
        loss = tensor_lasso(spec, params, weights, penalty=0.3, normalize=True)[1]
        want = 0.3 * torch.cat(list(weights.values())).float().abs().sum() / sum(map(len, weights.values()))
        assert torch.equal(loss, want.to(dtype))
    wide = Factorized((64, 64), factorization="lowrank", rank=4096)
    exact, half = dropout_mask(wide, gen(), 0.3), dropout_mask(wide, gen(), 0.3, dtype=dtype)
    assert torch.equal(exact["r"].to(dtype), half["r"])


@pytest.mark.parametrize("name", ["dense", "tucker"])
def test_compiled_equals_eager(name):
    spec, params = made(name, 3)
    weights = drawn(spec)
    kept = {k: w > 0 for k, w in weights.items()}

    def every(p, w, m):
        dropped, (leaves, loss) = tensor_dropout(spec, p, m), tensor_lasso(spec, p, lasso_prox(w, 0.1))
        return spec.apply(dropped, torch.ones(6, dtype=D), 1), loss, distance(spec, leaves, spec, p)

    compiled = torch.compile(every, backend="eager", fullgraph=True)(params, weights, kept)
    assert all(torch.equal(a, b) for a, b in zip(compiled, every(params, weights, kept)))


@over_kinds
def test_arguments_stay_as_they_are(name):
    spec, params = made(name, 3)
    weights = drawn(spec)
    copies = trees.map(torch.clone, params), trees.map(torch.clone, weights)
    results = [
        tensor_dropout(spec, params, weights),
        tensor_dropout(spec, params, {k: w > 0 for k, w in weights.items()}),
        tensor_lasso(spec, params, weights)[0],
        prune_ranks(spec, params, {k: [0] for k in weights})[1],
    ]
    lasso_prox(weights, 0.1)
    inner(spec, params, spec, params)
    distance(spec, params, spec, params)
    for before, after in zip(copies, (params, weights)):
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(leaves is not params for leaves in results)


# --- misuse --------------------------------------------------------------------------------------------------------

CP, P = made("cp", rank=3)
TT, Q = made("tt", rank=3)
ONES = torch.ones(3)
BAD_MASKS = [
    (CP, P, {"r0": ONES}, ValueError, r"bonds \['r0'\], expected some of \{'r': 3\}"),
    (CP, P, {"r": torch.ones(4)}, ValueError, r"\.r has shape \(4,\), expected \(3,\)"),
    (CP, P, {"r": torch.ones(7, 3)}, ValueError, r"\.r has shape \(7, 3\), expected \(3,\).*vmap"),
    (CP, P, torch.ones(()), ValueError, r"\.r has shape \(\), expected \(3,\)"),
    (CP, P, {"r": [1.0, 1.0, 1.0]}, TypeError, r"\.r is list, expected a tensor \[3\]; use torch.tensor"),
    (CP, P, {"r": ONES.long()}, TypeError, r"\.r is of torch.int64, expected .*floats.*; use "),
    (CP, P, {"r": ONES.to(torch.complex64)}, TypeError, r"\.r is of torch.complex64, expected real numbers"),
    (CP, P, [ONES, ONES], ValueError, r"has 2 entries, expected a dict .*\{'r': 3\}, or 1 in this order"),
    (CP, P, "r", TypeError, "is str, expected a dict"),
    (CP, P, None, TypeError, "is NoneType, expected a dict"),
    (TT, Q, ONES, ValueError, r"is a single tensor, expected a dict .*\{'r1': 3, 'r2': 3, 'r3': 3\}"),
    (TT, Q, [ONES], ValueError, "has 1 entries, expected a dict .*, or 3 in this order"),
    (*made("dense"), ONES, ValueError, "is a single tensor, expected a dict"),
    (*made("dense"), {"r": ONES}, ValueError, r"bonds \['r'\], expected some of \{\}"),
]


@pytest.mark.parametrize(("spec", "params", "mask", "error", "match"), BAD_MASKS)
def test_wrong_masks(spec, params, mask, error, match):
    with pytest.raises(error, match=r"Factorized\(6, 6\): mask.*" + match):
        tensor_dropout(spec, params, mask)
    with pytest.raises(error, match=r"Factorized\(6, 6\): weights.*" + match):
        tensor_lasso(spec, params, mask)


def test_weights_are_numbers():
    with pytest.raises(TypeError, match=r"weights\.r is of torch.bool, expected floats"):
        tensor_lasso(CP, P, ONES.bool())
    for wrong in ("0.1", True, None):
        with pytest.raises(TypeError, match=r"penalty: got .*, expected a finite number >= 0"):
            tensor_lasso(CP, P, ONES, penalty=wrong)
        with pytest.raises(TypeError, match=r"step: got .*, expected a finite number >= 0"):
            lasso_prox(ONES, wrong)
    for wrong in (-0.1, math.nan, torch.tensor(-0.1)):
        with pytest.raises(ValueError, match=r"penalty: got .*, expected a finite number >= 0"):
            tensor_lasso(CP, P, ONES, penalty=wrong)
        with pytest.raises(ValueError, match=r"step: got .*, expected a finite number >= 0"):
            lasso_prox(ONES, wrong)
    with pytest.raises(ValueError, match=r"step: got a tensor of shape \(\d,\), expected .*, or a tensor without axes"):
        lasso_prox(ONES, ONES)
    for wrong in ({"r": 1.0}, {"r": ONES.long()}, [ONES.bool()]):
        with pytest.raises(TypeError, match=r"weights\.(r|0) is .*, expected a tensor of floats"):
            lasso_prox(wrong, 0.1)


def test_wrong_probabilities_and_generators():
    for wrong in (-0.1, math.nan, 1.0, 2, torch.tensor(-0.1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"p: got .*, expected a finite number >= 0 and < 1; p = 0 drops nothing"):
            dropout_mask(CP, gen(), wrong)
    with pytest.raises(TypeError, match=r"p: got str, expected a finite number"):
        dropout_mask(CP, gen(), "0.5")
    with pytest.raises(TypeError, match=r"generator is int, expected a torch.Generator"):
        dropout_mask(CP, 0, 0.5)
    for wrong in (torch.int64, torch.complex64, "float32"):
        with pytest.raises(TypeError, match=r"dtype is .*, expected a real floating torch.dtype"):
            dropout_mask(CP, gen(), 0.5, dtype=wrong)


BAD_KEEP = [
    ({"r": torch.zeros(3, dtype=torch.bool)}, ValueError, r"keep\.r keeps none of 3, expected one at least"),
    ({"r": []}, ValueError, r"keep\.r keeps none of 3"),
    ({"r": [0, 3]}, IndexError, r"keep\.r has \[3\], expected -3 to 2"),
    ({"r": [0, -3]}, ValueError, r"keep\.r is \[0, -3\], expected each once"),
    ({"r": [0.0]}, TypeError, r"keep\.r is of torch.float\d+, expected a bool mask \[3\] or ints"),
    ({"r": ONES}, TypeError, r"keep\.r is of torch.float32, expected a bool mask \[3\] or ints.*!= 0"),
    ({"r": torch.ones(2, dtype=torch.bool)}, ValueError, r"keep\.r has shape \(2,\), expected \(3,\)"),
    ({"r": torch.zeros(1, 1, dtype=torch.long)}, ValueError, r"keep\.r has shape \(1, 1\), expected one axis"),
    ({"r": 2}, TypeError, r"keep\.r is int, expected a bool mask \[3\] or ints"),
    ({"r": "01"}, TypeError, r"keep\.r is str, expected a bool mask \[3\] or ints"),
    ({"s": [0]}, ValueError, r"bonds \['s'\], expected some of \{'r': 3\}"),
]


@pytest.mark.parametrize(("keep", "error", "match"), BAD_KEEP)
def test_wrong_ranks_to_keep(keep, error, match):
    with pytest.raises(error, match=r"Factorized\(6, 6\): .*" + match):
        prune_ranks(CP, P, keep)


def test_what_to_keep_must_be_known():
    with pytest.raises(ValueError, match=r"keep.r has no concrete values, expected them.*tensor_dropout"):
        vmap(lambda m: prune_ranks(CP, P, {"r": m})[1])(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"keep.r has no concrete values"):
        vmap(lambda m: prune_ranks(CP, P, {"r": m})[1])(torch.ones(2, 1, dtype=torch.long))


def test_params_and_shapes_must_fit():
    wide = Factorized((2, 3), (4,), factorization="cp", rank=3)
    for f in (inner, distance):
        with pytest.raises(ValueError, match=r"W is \(6, 6\) and \(6, 4\), expected the same shape"):
            f(CP, P, wide, wide.init(gen()))
        with pytest.raises(ValueError, match=r"W is \(6, 6\) and \(3, 6, 6\), expected the same shape; use .*select"):
            f(CP, P, *made("cp", 3))
        with pytest.raises(ValueError, match=r"params of another spec"):
            f(CP, P, CP, Q)
    for call in (
        lambda: tensor_dropout(CP, Q, {}),
        lambda: tensor_lasso(CP, Q, {}),
        lambda: prune_ranks(CP, Q, {}),
    ):
        with pytest.raises(ValueError, match=r"params of another spec"):
            call()
