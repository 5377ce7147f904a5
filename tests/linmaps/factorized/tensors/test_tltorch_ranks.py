"""The rank rules of tensorly-torch: a table of its ranks, its own validators where installed, and sound values elsewhere."""

import importlib
import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmaps.factorized.tensors.tltorch_ranks import cp_rank, tt_rank, tucker_rank
from tests.linmaps import tensor_peer

PEER = tensor_peer.tltorch()
needs_peer = pytest.mark.skipif(PEER is None, reason=tensor_peer.ABSENT)

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=7).map(tuple)
EVEN = st.integers(1, 24).map(lambda k: k / 16)  # of these many put c s_k halfway between two ints
SHARES = st.one_of(st.just("same"), EVEN, st.integers(1, 99).map(lambda k: k / 100), st.floats(1e-4, 3.0))


@pytest.mark.parametrize(
    ("rule", "sizes", "rank", "expected"),
    [
        (cp_rank, (4, 4, 16) * 2, 0.01, 14),
        (cp_rank, (4, 4, 16) * 2, 0.1, 137),
        (cp_rank, (4, 16, 16) * 2, 0.01, 146),
        (cp_rank, (4, 16, 16) * 2, 0.1, 1456),
        (cp_rank, (16,) * 6, 0.01, 1748),
        (cp_rank, (16,) * 6, 0.1, 17476),
        (cp_rank, (5, 5), 0.2, 1),
        (cp_rank, (5, 5), 0.6, 2),
        (cp_rank, (5, 5), "same", 2),
        (cp_rank, (4, 3, 5, 2, 3, 4), "same", 69),
        (cp_rank, (4, 3, 5, 2, 3, 4), 2.0, 137),
        (cp_rank, (4, 3, 5, 2, 3, 4), 5000, 5000),
        (tucker_rank, (4, 4, 16) * 2, 0.01, (2, 2, 7, 2, 2, 7)),
        (tucker_rank, (4, 4, 16) * 2, 0.1, (3, 3, 11, 3, 3, 11)),
        (tucker_rank, (4, 16, 16) * 2, 0.01, (2, 7, 7, 2, 7, 7)),
        (tucker_rank, (4, 16, 16) * 2, 0.1, (3, 11, 11, 3, 11, 11)),
        (tucker_rank, (16,) * 6, 0.01, (7,) * 6),
        (tucker_rank, (16,) * 6, 0.1, (11,) * 6),
        (tucker_rank, (4,) * 6, 0.5, (4,) * 6),
        (tucker_rank, (4,) * 6, 0.1, (3,) * 6),
        (tucker_rank, (3, 3), 1.25, (1, 1)),  # halfway, decided by the last digits of c
        (tucker_rank, (2, 8, 12), 1.25, (1, 6, 9)),
        (tucker_rank, (5, 6), 0.7, (2, 2)),
        (tucker_rank, (3, 4, 4, 5), 0.2, (2, 2, 2, 3)),
        (tucker_rank, (3, 5, 2), 7, (7, 7, 7)),
        (tucker_rank, (3, 5, 2), [4, 1, 9], (4, 1, 9)),
        (tt_rank, (16, 16, 256), 0.01, (1, 1, 2, 1)),
        (tt_rank, (16, 16, 256), 0.1, (1, 3, 22, 1)),
        (tt_rank, (16, 256, 256), 0.01, (1, 4, 8, 1)),
        (tt_rank, (16, 256, 256), 0.1, (1, 14, 27, 1)),
        (tt_rank, (256, 256, 256), 0.01, (1, 25, 25, 1)),
        (tt_rank, (256, 256, 256), 0.1, (1, 80, 80, 1)),
        (tt_rank, (12, 12, 6), "same", (1, 9, 7, 1)),
        (tt_rank, (64, 64), "same", (1, 7, 1)),
        (tt_rank, (448, 448), "same", (1, 20, 1)),
        (tt_rank, (2, 3, 4), 9, (1, 9, 9, 1)),
        (tt_rank, (2, 3, 4), [1, 5, 6, 1], (1, 5, 6, 1)),
    ],
)
def test_ranks_of_stored_weights(rule, sizes, rank, expected):
    assert rule(rank, sizes) == expected


def test_sound_values_where_the_rule_has_none():
    assert cp_rank(0.01, (2, 3)) == 1
    assert tucker_rank(3.0, (2, 3, 9)) == (2, 3, 9) == tucker_rank(1e300, (2, 3, 9))
    assert tt_rank("same", (5,)) == tt_rank(0.1, (5,)) == tt_rank(4, (5,)) == tt_rank((1, 1), (5,)) == (1, 1)


@given(sizes=SIZES, share=SHARES)
def test_fractions_solve_the_equations(sizes, share):
    f, D = 1.0 if share == "same" else share, math.prod(sizes)
    assert abs(cp_rank(share, sizes) - max(1.0, f * D / sum(sizes))) <= 0.5 * (1 + 1e-12)
    ranks = tucker_rank(share, sizes)
    value = lambda c: D * c ** len(sizes) + c * sum(s * s for s in sizes)
    for s, r in zip(sizes, ranks):  # c is between (r - 1/2) / s and (r + 1/2) / s
        assert 1 <= r <= s
        assert r == 1 or value((r - 0.5) / s) <= f * D * (1 + 1e-9)
        assert r == s or value((r + 0.5) / s) >= f * D * (1 - 1e-9)


@needs_peer
@given(sizes=SIZES, share=SHARES)
def test_fractions_against_the_peer(sizes, share):
    cp, tucker, tt = validators()
    assert cp_rank(share, sizes) == max(1, cp(sizes, share))
    assert tucker_rank(share, sizes) == tuple(map(min, sizes, tucker(sizes, share)))
    if len(sizes) > 1:
        assert tt_rank(share, sizes) == tuple(tt(sizes, share))


@needs_peer
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_small_sizes_against_the_peer(n):
    cp, tucker, tt = validators()
    sizes = (2, 3, 8, 12, 3, 4)[: n + 2]
    for f in [k / 64 for k in range(1, 129)]:
        assert cp_rank(f, sizes) == max(1, cp(sizes, f))
        assert tucker_rank(f, sizes) == tuple(map(min, sizes, tucker(sizes, f)))
        assert tt_rank(f, sizes) == tuple(tt(sizes, f))


@needs_peer
@given(sizes=SIZES, ranks=st.lists(st.integers(1, 50), min_size=9, max_size=9))
def test_ints_against_the_peer(sizes, ranks):
    cp, tucker, tt = validators()
    n, r = len(sizes), ranks[-1]
    assert cp_rank(r, sizes) == cp(sizes, r)
    assert tucker_rank(r, sizes) == tuple(tucker(sizes, r))
    assert tucker_rank(tuple(ranks[:n]), sizes) == tuple(tucker(sizes, tuple(ranks[:n])))
    assert tt_rank(r, sizes) == tuple(tt(sizes, r))
    train = (1, *ranks[: n - 1], 1)
    assert tt_rank(train, sizes) == tuple(tt(sizes, train))


def validators():
    names = ("cp", "tucker", "tt")
    found = [getattr(importlib.import_module(f"tensorly.{n}_tensor"), f"validate_{n}_rank") for n in names]
    return [silent(validate) for validate in found]


def silent(function):
    def call(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of matrices, and of single ranks
            return function(*arguments)

    return call


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tt_rank("full", (2, 3)), ValueError, r"tensor train: rank is 'full', expected 'same', a fraction"),
        (lambda: tt_rank(0.0, (2, 3)), ValueError, r"rank is 0.0, expected a fraction > 0"),
        (lambda: tt_rank((2, 2, 1), (2, 3)), ValueError, r"rank is \(2, 2, 1\), expected 1 at both ends"),
        (lambda: tt_rank((1, 1), (2, 3)), ValueError, r"rank has 2 entries, expected 3"),
        (lambda: tt_rank(0, (2, 3)), ValueError, r"rank contains 0, expected positive ints"),
        (lambda: tucker_rank((1, 2.0), (2, 3)), TypeError, r"rank contains 2.0, expected positive ints"),
        (lambda: tucker_rank((1, 2, 3), (2, 3)), ValueError, r"Tucker: rank has 3 entries, expected 2"),
        (lambda: tucker_rank(None, (2, 3)), TypeError, r"Tucker: rank is NoneType"),
        (lambda: cp_rank(math.inf, (2, 3)), ValueError, r"CP: rank is inf, expected a fraction > 0"),
        (lambda: cp_rank(-1, (2, 3)), ValueError, r"CP: rank contains -1, expected positive ints"),
        (lambda: cp_rank(True, (2, 3)), TypeError, r"CP: rank is bool"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
