"""Laws of the short way of plain numbers: what is looked at to save work changes nothing that comes out."""

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode

from linmaps.numerics import lapack
from linmaps.numerics.eigen import constant_eigh, denoised, plain_eigh
from linmaps.numerics.numeric import is_plain

A = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
A = A + A.mT
DEAD = A * (torch.arange(6) > 2) * (torch.arange(6) > 2)[:, None]


class Watching(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_plain_numbers_are_told_from_all_others():
    seen = []

    def looks(t):
        seen.append(is_plain(t))
        seen.append(is_plain(A))
        return t.sum()

    looks(A)
    assert seen == [True, True]
    seen.clear()
    grad(looks)(A)
    vmap(looks)(A)
    jvp(looks, (A,), (A,))
    assert not any(seen)
    with Watching():
        assert not is_plain(A)
    assert not is_plain(A.clone().requires_grad_())
    assert not is_plain(A.to("meta"))


@pytest.mark.parametrize("m", [A, DEAD, A * 0], ids=["regular", "dead rows", "zero"])
def test_the_short_way_is_that_of_an_ensemble(m):
    for fn in (plain_eigh, constant_eigh, lapack.eigh):
        values, vectors = fn(m)
        several = vmap(fn)(torch.stack([m, m]))
        torch.testing.assert_close(several[0][1], values)
        torch.testing.assert_close(vectors * values @ vectors.mT, m)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_comes_out_as_nan(bad):
    m = A.clone()
    m[2, 2] = bad
    for fn in (plain_eigh, constant_eigh, lapack.eigh):
        assert all(bool(t.isnan().all()) for t in fn(m))
    large = torch.full((3, 3), 1e308, dtype=torch.float64)  # finite, and its sum is not
    assert bool(torch.isfinite(lapack.eigh(large * torch.eye(3))[1]).all())


def test_nothing_is_cut_where_nothing_is_to_be():
    values = torch.tensor([torch.nan, 2.0])
    assert denoised(values, 0.0).isnan().tolist() == [True, False]
