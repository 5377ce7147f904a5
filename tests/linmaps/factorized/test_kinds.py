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
        r, params = kind.select(params, r, 1)
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
    r, params = draw(kind, rank, L, O, I, std=0.25)
    layers = [kind.select(params, r, i)[1] for i in range(L)] if L > 1 else [params]
    W = torch.stack([kind.matrix(layer, O, I) for layer in layers])
    assert W.square().mean().sqrt().item() == pytest.approx(0.25, rel=1e-12)
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
    r, params = draw(kind, 0.5, L, O, I)
    one = lambda i: kind.matrix(kind.select(params, r, i)[1], O, I)
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


def test_block_trains_need_as_many_modes_on_both_sides():
    with pytest.raises(
        ValueError, match=r"out_shape \(2, 3\) and in_shape \(6,\) have 2 and 1 modes, expected as many"
    ):
        KINDS["blocktt"].ranks("same", 1, (2, 3), (6,))
