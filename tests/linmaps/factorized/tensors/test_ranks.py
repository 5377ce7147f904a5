"""One rule of ranks: a fraction is a ceiling, no single rank could grow, full ranks on request, bad ranks refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmaps.factorized import cp_rank, low_rank, tt_rank, tucker_rank
from linmaps.factorized.tensors.ranks import tt_count, tt_feasible, tucker_count, tucker_feasible

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple)
SHARES = st.floats(0.02, 0.99)


@given(sizes=SIZES, share=SHARES)
def test_tucker_within_the_budget_and_none_could_grow(sizes, share):
    ranks, budget = tucker_rank(share, sizes), share * math.prod(sizes)
    assert len(ranks) == len(sizes)
    assert all(1 <= r <= s for r, s in zip(ranks, sizes))
    assert tucker_feasible(ranks) == ranks
    assert tucker_count(ranks, sizes) <= budget or set(ranks) == {1}
    for k in range(len(ranks)):
        more = (*ranks[:k], ranks[k] + 1, *ranks[k + 1 :])
        possible = more[k] <= sizes[k] and tucker_feasible(more) == more
        assert not possible or tucker_count(more, sizes) > budget or len(sizes) == 1


@given(sizes=SIZES, share=SHARES)
def test_tt_within_the_budget_and_none_could_grow(sizes, share):
    ranks, budget = tt_rank(share, sizes), share * math.prod(sizes)
    assert len(ranks) == len(sizes) + 1
    assert ranks[0] == ranks[-1] == 1
    assert tt_feasible(ranks[1:-1], sizes) == ranks[1:-1]
    assert tt_count(ranks, sizes) <= budget or set(ranks) == {1}
    for k in range(1, len(sizes)):
        more = (*ranks[:k], ranks[k] + 1, *ranks[k + 1 :])
        possible = tt_feasible(more[1:-1], sizes) == more[1:-1]
        assert not possible or tt_count(more, sizes) > budget


@given(sizes=SIZES, share=SHARES)
def test_cp_and_low_rank_within_the_budget_and_maximal(sizes, share):
    R, D = cp_rank(share, sizes), math.prod(sizes)
    assert R * (1 + sum(sizes)) <= share * D or R == 1
    assert (R + 1) * (1 + sum(sizes)) > share * D
    rows, columns = sizes[0], sizes[-1]
    r = low_rank(share, rows, columns)
    assert r * (rows + columns) <= share * rows * columns or r == 1


@given(sizes=SIZES)
def test_same_is_full_where_that_is_exact(sizes):
    ranks = tt_rank("same", sizes)
    assert ranks == tt_rank(1.0, sizes) == tt_rank(7.5, sizes)
    assert ranks == tuple(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(len(sizes) + 1))
    full = tucker_rank("same", sizes)
    assert full == tucker_rank(2.0, sizes)
    assert all(r == min(s, math.prod(sizes) // s) for r, s in zip(full, sizes)) or len(sizes) == 1


def test_more_budget_never_means_less():
    sizes = (4, 4, 16, 7, 7, 16)
    for rule, count in ((tt_rank, tt_count), (tucker_rank, tucker_count)):
        counts = [count(rule(share / 50, sizes), sizes) for share in range(1, 50)]
        assert counts == sorted(counts)
        assert counts[4] > 0.95 * 0.1 * math.prod(sizes), "the budget is used"


def test_ints_are_and_tuples_are_cut_to_what_is_feasible():
    assert tt_rank(100, (2, 3, 4)) == (1, 2, 4, 1)
    assert tt_rank((1, 1, 9, 1), (2, 3, 4)) == (1, 1, 3, 1)
    assert tt_feasible((1, 9), (2, 3, 4)) == (1, 3)
    assert tucker_rank(9, (2, 3, 4)) == (2, 3, 4)
    assert tucker_rank((1, 3, 2), (2, 3, 4)) == (1, 2, 2)
    assert tucker_feasible((1, 3, 2)) == (1, 2, 2)
    assert low_rank(99, 4, 6) == 4
    assert cp_rank(99, (4, 6)) == 99


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tt_rank("full", (2, 3)), ValueError, r"tensor train: rank is 'full', expected 'same', a fraction"),
        (lambda: tt_rank(0.0, (2, 3)), ValueError, r"rank is 0.0, expected a fraction > 0"),
        (lambda: tt_rank(math.nan, (2, 3)), ValueError, r"rank is nan, expected a fraction > 0"),
        (lambda: tt_rank(None, (2, 3)), TypeError, r"rank is NoneType, expected 'same'"),
        (lambda: tt_rank((2, 2, 1), (2, 3)), ValueError, r"rank is \(2, 2, 1\), expected 1 at both ends"),
        (lambda: tt_rank((1, 1), (2, 3)), ValueError, r"rank has 2 entries, expected 3"),
        (lambda: tucker_rank((1, 2.0), (2, 3)), TypeError, r"rank contains 2.0, expected positive ints"),
        (lambda: tucker_rank(0, (2, 3)), ValueError, r"rank contains 0, expected positive ints"),
        (lambda: cp_rank(True, (2, 3)), TypeError, r"CP: rank is bool"),
        (lambda: low_rank((1, 2), 2, 3), ValueError, r"low rank: rank has 2 entries, expected 1"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
