"""Every kind alike: apply is the product with W, one layer is a slice of all, the init's scale is exact, ranks fit."""

import math

import pytest
import torch
from torch.func import grad, vmap

from linmaps import trees
from linmaps.factorized.kinds import KINDS

D = torch.float64
SHAPES = [((3, 2), (2, 4)), ((6,), (5,)), ((2, 3, 2), (4, 2, 2))]
over_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def draw(kind, rank, L, O, I, seed=0, std=1.0):
    r = kind.ranks(rank, L, O, I)
    g = torch.Generator().manual_seed(seed)
    return r, kind.init(g, r, L, O, I, std, D)


@over_kinds
@pytest.mark.parametrize(("O", "I"), SHAPES)
@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("rank", ["same", 0.5, 2])
def test_apply_is_the_product_with_the_matrix_of_a_layer(kind, rank, L, O, I):
    r, params = draw(kind, rank, L, O, I)
    assert {k: tuple(t.shape) for k, t in params.items()} == kind.shapes(r, L, O, I)
    if L > 1:
        r, params = kind.single(r), kind.select(params, 1)
        assert {k: tuple(t.shape) for k, t in params.items()} == kind.shapes(r, 1, O, I)
    W = kind.matrix(params, O, I)
    assert W.shape == (math.prod(I), math.prod(O))
    for rows in (0, 1, 5):
        x = torch.randn(rows, math.prod(I), generator=torch.Generator().manual_seed(1), dtype=D)
        assert torch.allclose(kind.apply(params, x, O, I), x @ W, atol=1e-12)


@over_kinds
@pytest.mark.parametrize("L", [1, 4])
@pytest.mark.parametrize("rank", [0.3, 2])
def test_the_scale_at_init_is_exact(kind, L, rank):
    O, I = (3, 4), (4, 5)
    _, params = draw(kind, rank, L, O, I, std=0.25)
    layers = [kind.select(params, i) for i in range(L)] if L > 1 else [params]
    W = torch.stack([kind.matrix(layer, O, I) for layer in layers])
    for layer in W:
        assert layer.square().mean().sqrt().item() == pytest.approx(0.25, rel=1e-12)
    assert kind.squared_norm(params).item() == pytest.approx(W.square().sum().item(), rel=1e-12)


@over_kinds
def test_the_law_at_init_before_it_is_made_exact(kind):
    """The leaves' size is right in the mean over draws, so that making it exact changes little."""
    O, I, rank = (4, 4), (4, 4), 3
    r = kind.ranks(rank, 1, O, I)
    sigma = (1 / math.sqrt(kind.terms(r))) ** (1 / len(kind.shapes(r, 1, O, I)))
    squares = []
    for seed in range(800):
        g = torch.Generator().manual_seed(seed)
        params = {k: sigma * torch.randn(s, generator=g, dtype=D) for k, s in kind.shapes(r, 1, O, I).items()}
        squares.append(kind.squared_norm(params) / 256)
    assert torch.stack(squares).mean().item() == pytest.approx(1.0, rel=0.25)


@over_kinds
@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("L", [1, 3])
def test_a_fraction_is_a_ceiling(kind, share, L):
    O, I = (6, 8), (7, 5)
    r = kind.ranks(share, L, O, I)
    count = sum(math.prod(s) for s in kind.shapes(r, L, O, I).values())
    assert kind.name == "dense" or count <= share * L * math.prod(O) * math.prod(I)


@over_kinds
def test_layers_by_tensor_and_under_vmap(kind):
    O, I, L = (2, 3), (3, 2), 4
    _, params = draw(kind, 0.5, L, O, I)
    one = lambda i: kind.matrix(kind.select(params, i), O, I)
    want = torch.stack([one(i) for i in range(L)])
    assert torch.allclose(torch.stack([one(torch.tensor(i)) for i in range(L)]), want)
    assert torch.allclose(vmap(one)(torch.arange(L)), want, atol=1e-14)
    assert torch.allclose(one(-1), want[-1])


@over_kinds
def test_every_leaf_gets_gradient_and_ensembles_equal_the_loop(kind):
    O, I = (2, 3), (3, 2)
    _, params = draw(kind, 0.8, 1, O, I)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=D)
    slopes = grad(lambda p: kind.apply(p, x, O, I).sin().sum())(params)
    assert all((t.abs() > 1e-12).all() for t in slopes.values())
    members = [draw(kind, 0.8, 1, O, I, seed=s)[1] for s in range(3)]
    together = vmap(lambda p: kind.apply(p, x, O, I))(trees.stack(members))
    assert torch.allclose(together, torch.stack([kind.apply(p, x, O, I) for p in members]), atol=1e-12)
    matrices = vmap(lambda p: kind.matrix(p, O, I))(trees.stack(members))
    assert torch.allclose(matrices, torch.stack([kind.matrix(p, O, I) for p in members]), atol=1e-12)


def test_one_core_and_many_modes():
    for name in ("tt", "blocktt", "cp", "tucker"):
        kind = KINDS[name]
        for O, I in (((5,), (7,)), ((2,) * 7, (2,) * 7)):
            _, params = draw(kind, 2, 1, O, I)
            x = torch.randn(3, math.prod(I), generator=torch.Generator().manual_seed(1), dtype=D)
            assert torch.allclose(kind.apply(params, x, O, I), x @ kind.matrix(params, O, I), atol=1e-12)


@over_kinds
@pytest.mark.parametrize(("O", "I"), SHAPES + [((4, 3, 2, 2), (2, 2, 3, 3))])
@pytest.mark.parametrize("rank", ["same", 0.3, 3])
@pytest.mark.parametrize("B", [0, 1, 7, 4096])
def test_every_way_to_multiply_gives_the_same(kind, rank, O, I, B):
    r, params = draw(kind, rank, 1, O, I)
    ways = kind.ways(r, O, I, B)
    *_, last = ways.values()
    assert last.options is None
    assert all(way.cost.flops >= 0 and way.cost.time > 0 for way in ways.values())
    x = torch.randn(min(B, 9), math.prod(I), generator=torch.Generator().manual_seed(1), dtype=D)
    W = kind.matrix(params, O, I)
    for title, way in ways.items():
        if way.options is not None:
            assert torch.allclose(kind.apply(params, x, O, I, **way.options), x @ W, atol=1e-11), title


@over_kinds
@pytest.mark.parametrize(("O", "I"), SHAPES)
def test_rows(kind, O, I):
    _, params = draw(kind, 0.6, 1, O, I)
    W = kind.matrix(params, O, I)
    flat = torch.tensor([0, len(W) - 1, 1, 0])
    index = torch.unravel_index(flat, I)
    assert torch.allclose(kind.rows(params, index, O, I), W[flat], atol=1e-13)
    assert kind.rows(params, tuple(i[:0] for i in index), O, I).shape == (0, math.prod(O))


@over_kinds
@pytest.mark.parametrize("L", [1, 3])
def test_inner_products_without_the_tensor(kind, L):
    O, I = SHAPES[0] if kind.name != "blocktt" else ((3, 2), (2, 4))
    (_, a), (_, b) = draw(kind, 2, L, O, I), draw(kind, 0.9, L, O, I, seed=1)

    def stacked(params):
        layers = [kind.select(params, i) for i in range(L)] if L > 1 else [params]
        return torch.stack([kind.matrix(layer, O, I) for layer in layers])

    assert kind.inner(a, b).item() == pytest.approx((stacked(a) * stacked(b)).sum().item(), rel=1e-11)


@over_kinds
@pytest.mark.parametrize("L", [1, 3])
def test_bonds(kind, L):
    """All ones change nothing; zeros at some values are the same as keeping the others."""
    O, I = (3, 4), (4, 2)
    r, params = draw(kind, 3, L, O, I)
    bonds = kind.bonds(r)
    whole = kind.scale_bonds(params, {bond: torch.ones(size, dtype=D) for bond, size in bonds.items()})
    assert all(torch.equal(whole[k], params[k]) for k in params)
    layer = lambda p: kind.matrix(kind.select(p, 0) if L > 1 else p, O, I)
    for bond, size in bonds.items():
        kept = torch.arange(size)[: max(1, size - 1)]
        mask = torch.zeros(size, dtype=D).index_fill(0, kept, 1.0)
        smaller, leaves = kind.keep(params, r, {bond: kept})
        assert {k: tuple(t.shape) for k, t in leaves.items()} == kind.shapes(smaller, L, O, I)
        assert torch.allclose(layer(leaves), layer(kind.scale_bonds(params, {bond: mask})), atol=1e-13)
