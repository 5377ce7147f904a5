"""Moments: by panels, or the narrower side first, they are the products, under every transform."""

import pytest
import torch
from torch.func import grad, hessian, jvp, vmap

from linmaps.numerics.moments import add_moment, bordered_moment, cross_moment, mirror, second_moment
from linmaps.trees import compiled


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 7, 99, 100, 250, 900])
@pytest.mark.parametrize("count", [3, 64, 500])  # few rows: one product; more rows than columns, and fewer
@pytest.mark.parametrize("over", [1, 5])
def test_a_second_moment_by_panels_is_the_product(width, count, over):
    R = drawn(2, count, width, seed=width)
    flat = R.reshape(2 * count, width)
    assert torch.allclose(second_moment(R, over), flat.T @ flat / over, rtol=0, atol=1e-12 * count)
    assert torch.allclose(second_moment(R), second_moment(R).T, rtol=0, atol=1e-14 * count)


@pytest.mark.parametrize("width", [0, 1, 7, 99, 100, 250, 900, 1100])
@pytest.mark.parametrize("count", [0, 3, 64, 500])
@pytest.mark.parametrize("over", [1, 5])
def test_a_bordered_moment_is_that_of_rows_with_a_one(width, count, over):
    R = drawn(2, count, width, seed=width)
    ones = torch.nn.functional.pad(R, (0, 1), value=1.0).reshape(2 * count, width + 1)
    assert torch.allclose(bordered_moment(R, over), ones.T @ ones / over, rtol=0, atol=1e-12 * max(1, count))


def test_a_bordered_moment_compiles():
    R = drawn(150, 220)
    assert torch.allclose(compiled(bordered_moment)(R), bordered_moment(R), rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [0, 1, 7, 100, 250, 900])
@pytest.mark.parametrize("counts", [(500,), (3, 3), (64, 200, 3), (500, 500, 20)])
def test_moments_added_in_place_are_that_of_all_rows(width, counts):
    parts = [drawn(2, count, width, seed=count) for count in counts]
    found = second_moment(parts[0])
    for part in parts[1:]:
        add_moment(found, part)
    mirror(found)
    flat = torch.cat(parts, 1).flatten(0, 1)
    assert torch.allclose(found, flat.T @ flat, rtol=0, atol=1e-12 * sum(counts))
    assert torch.equal(found, found.T) or torch.allclose(found, found.T, rtol=0, atol=1e-14 * sum(counts))


def test_no_rows_and_no_columns_have_a_moment():
    assert torch.equal(second_moment(torch.zeros(0, 300)), torch.zeros(300, 300))
    assert second_moment(torch.zeros(200, 0)).shape == (0, 0)


def test_panels_are_as_exact_in_float32_as_the_product():
    R = drawn(1024, 300)
    wide = R.T @ R
    error = lambda M: ((M - wide).abs().max() / wide.abs().max()).item()
    assert error(second_moment(R.float())) <= 4 * max(error(R.float().T @ R.float()), 1e-7)


def test_panels_pass_through_the_transforms():
    R, t = drawn(150, 220), drawn(150, 220, seed=1)
    every_transform(second_moment, lambda R: R.T @ R, R, t)


@pytest.mark.parametrize("count", [20, 150])
def test_a_bordered_moment_passes_through_the_transforms(count):
    ones = lambda R: torch.nn.functional.pad(R, (0, 1), value=1.0)
    every_transform(bordered_moment, lambda R: ones(R).T @ ones(R), drawn(count, 220), drawn(count, 220, seed=1))


def every_transform(second_moment, plain, R, t):
    cubed = lambda made: lambda R: (made(R) ** 3).sum()
    for ours, want in [
        (vmap(second_moment)(torch.stack([R, t])), torch.stack([plain(R), plain(t)])),
        (jvp(second_moment, (R,), (t,))[1], jvp(plain, (R,), (t,))[1]),
        (grad(cubed(second_moment))(R), grad(cubed(plain))(R)),
        (vmap(grad(cubed(second_moment)))(torch.stack([R, t])), vmap(grad(cubed(plain)))(torch.stack([R, t]))),
        (
            hessian(lambda s: cubed(second_moment)(R + s * t))(torch.zeros((), dtype=R.dtype)),
            hessian(lambda s: cubed(plain)(R + s * t))(torch.zeros((), dtype=R.dtype)),
        ),
    ]:
        assert torch.allclose(ours, want, rtol=1e-10, atol=1e-9 * want.abs().max().item())


@pytest.mark.parametrize(("F", "G"), [(40, 3), (3, 40), (8, 2), (7, 2), (5, 0), (0, 5)])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_cross_moment_is_the_product(F, G, count):
    x, y = drawn(2, count, F), drawn(2, count, G, seed=1)
    found = cross_moment(x[0], y[0])
    assert found.is_contiguous()
    torch.testing.assert_close(found, x[0].T @ y[0])
    torch.testing.assert_close(vmap(cross_moment)(x, y), x.mT @ y)
    torch.testing.assert_close(
        grad(lambda x: cross_moment(x, y[0]).square().sum())(x[0]), grad(lambda x: (x.T @ y[0]).square().sum())(x[0])
    )
