"""Agreement: sizes and differences of raw numbers, in one pass and by parts, are those of the whole."""

import math

import pytest
import torch

from fisher.checks import agreement

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_extent_is_the_largest_absolute_value(dtype):
    t = torch.tensor([[1.0, -3.0], [2.0, 0.0]], dtype=dtype)
    assert agreement.extent(t) == agreement.extent(-t) == agreement.extent(t.T) == 3.0
    assert agreement.extent(t[:0]) == 0.0
    assert agreement.extent(t[0, 0]) == 1.0


@pytest.mark.parametrize(
    ("numbers", "extent", "largest"),
    [([1.0, NAN, -2.0], NAN, 2.0), ([1.0, -INF], INF, 1.0), ([INF, NAN], NAN, 0.0), ([0.0, -4.0], 4.0, 4.0)],
)
def test_what_is_not_finite_shows_in_the_extent_and_not_in_the_largest(numbers, extent, largest):
    t = torch.tensor(numbers)
    assert agreement.largest(t) == largest
    assert agreement.extent(t) == extent or (math.isnan(extent) and math.isnan(agreement.extent(t)))
    assert agreement.rounding([t, torch.zeros(0), torch.ones(2, dtype=torch.long)]) == pytest.approx(
        100 * torch.finfo(t.dtype).eps * largest
    )


def test_the_gap_by_parts_is_that_of_the_whole(monkeypatch):
    monkeypatch.setattr(agreement, "AT_ONCE", 6)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 4, generator=g), torch.randn(7, 4, generator=g)
    assert agreement.gap(a, b) == (a - b).abs().max().item()
    assert agreement.gap(a.T, b.T) == (a - b).abs().max().item()
    assert agreement.gap(a, b[0]) == (a - b[0]).abs().max().item()
    assert agreement.gap(a[0, 0], b[0, 0]) == (a - b)[0, 0].abs().item()
    assert agreement.gap(a[:0], b[:0]) == 0.0
    b[-1, -1] = NAN
    assert math.isnan(agreement.gap(a, b))


def test_an_overflow_is_no_finding_and_a_number_is():
    assert agreement.vanishes(torch.tensor([0.0, INF, NAN]))
    assert agreement.vanishes(torch.zeros(0))
    assert not agreement.vanishes(torch.tensor([0.0, 1e-30, INF]))
