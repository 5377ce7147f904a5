"""reduce= in one process: what it is given, how often, and that a sum twice over is the same mean; what is sent."""

import dataclasses
import itertools
import math
import weakref

import pytest
import torch

import fisher
import growth
from fisher.distributed.buffers import Plan
from fisher.distributed.marks import Symmetric, from_triangle, triangle, unmarked
from fisher.distributed.splitting import balanced
from fisher.distributed.stages import over_all
from linmaps import trees
from tests.fisher.distributed import nets, table
from tests.fisher.distributed.nets import LAYERS, N, P, T, X, f
from tests.laws import close


class Twice:
    """All data seen twice: what two ranks with the same shard would do."""

    group = None

    def __init__(self):
        self.calls = []

    def __call__(self, sums, count):
        self.calls.append((sums, count))
        return trees.scale(2.0, sums), 2 * count

    def gather(self, rows):
        return trees.map(lambda t: torch.cat([t, t]), rows)


PASSES = {name: fn for name, fn in table.CHECKS.items() if name.startswith(("fim", "hessian", "ggn", "kfac", "soap"))}


STATISTICS = ("statistics", "statistics of gates", "statistics of several", "statistics_of_maps", "graph_statistics")


@pytest.mark.parametrize("name", [*PASSES, *STATISTICS, "update_diag", "drawn_targets", "output_fisher"])
def test_data_seen_twice_have_the_same_mean_by_one_call_for_each_stage(name):
    twice = Twice()
    _, (got, want) = table.CHECKS[name](table.Place(0, 1, twice))
    want = want()
    if name in STATISTICS:  # that count their samples
        counted = lambda s, t: dataclasses.replace(s, count=s.count / 2, positions=s.positions / 2)
        got = [counted(s, t) for s, t in zip(got, want)] if isinstance(want, list) else counted(got, want)
    close(got, want, 1e-12, name)
    if "kfac" not in name and "soap" not in name:
        assert len(twice.calls) == (2 if name.startswith(("fim EKFAC", "fim Mixed")) else 1)
        assert all(count == N for _, count in twice.calls)


@pytest.mark.parametrize("kind", ["Dense", "Diag", "KFAC", "BlockDiag", "QuasiDiag", "Eye"])
def test_sums_are_linear_in_the_data(kind):
    """Those of a batch are the sum of those of its parts."""

    def sums(x, t):
        twice = Twice()
        fisher.fim(f, P, (x, t), getattr(fisher, f"PMat{kind}"), layers=LAYERS[f], reduce=twice)
        return unmarked(twice.calls[0][0])

    close(sums(X, T), trees.add(sums(X[:4], T[:4]), sums(X[4:], T[4:])), 1e-12, kind)


def marked(sums):
    return [t for t in trees.flatten(sums, lambda t: isinstance(t, Symmetric))[0] if isinstance(t, Symmetric)]


def test_what_is_symmetric_is_known_by_what_it_is():
    """Square tensors that are no second moments (5 inputs, 5 outputs) go as they are."""
    square, p = (lambda p, x: torch.tanh(x @ p["a"]) @ p["b"]), {"a": torch.eye(5).double(), "b": torch.eye(5).double()}
    x = nets.drawn(N, 5)
    twice = Twice()
    fisher.fim(square, p, x, fisher.PMatEKFAC, "gaussian", reduce=twice)
    factors, moments = [sums for sums, _ in twice.calls]
    assert [len(marked(sums)) for sums in (factors, moments)] == [4, 0]
    twice = Twice()
    linear = lambda p, x: torch.tanh(x @ p["a"].T) @ p["b"].T
    growth.statistics(linear, p, (x, x), growth.Pair("a", "b"), "squared_error", reduce=twice)
    assert len(marked(twice.calls[0][0])) == 3  # S, S_prev, E: not M, P


@pytest.mark.parametrize(("n", "lead"), list(itertools.product([1, 2, 3, 4, 7], [(), (2,)])))
def test_a_triangle_and_back(n, lead):
    m = nets.drawn(*lead, n, n)
    m = m + m.mT
    t = triangle(m)
    assert t.shape == (*lead, n * (n + 1) // 2)
    assert torch.equal(from_triangle(t, n), m)


def test_bytes_against_dense_factors():
    """Half of the numbers of dense factors, and little else, in one buffer for each dtype."""
    wide = {"a": nets.drawn(200, 64) / 8, "b": nets.drawn(64, 10, seed=1)}
    twice = Twice()
    F = fisher.fim(lambda p, x: torch.tanh(x @ p["a"]) @ p["b"], wide, nets.drawn(N, 200), reduce=twice)
    sums, _ = twice.calls[0]
    buffers = list(Plan.of(sums).flat(sums))
    assert len(buffers) == 1
    sent = sum(b.numel() * b.element_size() for b in buffers)
    dense = sum(m.numel() * m.element_size() for m in trees.leaves(F.factors))
    assert sent < 0.51 * dense
    close(unmarked(Plan.of(sums).tree(buffers)), unmarked(sums), 1e-15, "there and back")


def test_buffers_hold_kinds_and_complex_numbers_apart():
    tree = {
        "a": torch.ones(3),
        "b": torch.ones(2, dtype=torch.float64),
        "c": torch.tensor([1 + 2j, 3 - 1j]),
        "d": Symmetric(torch.eye(2)),
    }
    plan = Plan.of(tree)
    buffers = list(plan.flat(tree))
    kinds = [(b.dtype, b.numel()) for b in buffers]
    assert kinds == [(torch.float32, 6), (torch.float64, 2), (torch.float32, 4)]
    back = plan.tree(buffers)
    assert all(map(torch.equal, trees.leaves(back), trees.leaves(tree)))


def test_two_buffers_are_held_at_most(monkeypatch):
    """What is sent lies beside the sums in parts: the one that is read and the one that is made."""
    monkeypatch.setattr("fisher.distributed.buffers.LARGEST", 16)
    tree = {str(n): torch.ones(4, 4) for n in range(8)} | {"s": Symmetric(torch.eye(5))}
    plan, made, alive = Plan.of(tree), [], []

    def seen(buffer):
        made.append(weakref.ref(buffer))
        alive.append(sum(ref() is not None for ref in made))
        return buffer

    plan.tree(map(seen, plan.flat(tree)))
    assert len(made) == 9
    assert max(alive) <= 2


def test_costs_are_balanced():
    costs = [float(n**3) for n in (785, 257, 257, 256, 256, 10)]
    at = balanced(costs, 2)
    loads = [sum(c for c, r in zip(costs, at) if r == rank) for rank in (0, 1)]
    assert loads == [costs[0], sum(costs[1:])]
    assert max(balanced([1.0] * 6, 3).count(r) for r in range(3)) == 2
    assert math.isclose(sum(loads), sum(costs))


@pytest.mark.parametrize(
    ("reduce", "words"),
    [
        (lambda sums, count: [sums, count], r"returned one list, expected two things, \(sums, count\)"),
        (lambda sums, count: sums, r"returned the sums alone, expected two things, \(sums, count\).*return both"),
        (lambda sums, count: (sums, sums, count), r"returned one tuple, expected two things"),
        (lambda sums, count: None, r"returned one NoneType, expected two things"),
        (
            fisher.distributed.all_reduce,
            r"got fisher.distributed.all_reduce itself, .*call it: fisher.distributed.all_reduce",
        ),
        (
            fisher.distributed.all_gather,
            r"got fisher.distributed.all_gather itself, .*give fisher.distributed.all_reduce\(\)",
        ),
        (lambda sums, count: (sums, -1), "reduce: the count returned"),
        (lambda sums, count: ([], count), "reduce: the sums returned"),
        (lambda sums, count: (trees.scale(0.0, sums), 0), "got no example"),
        ("mean", "reduce: got str"),
    ],
)
def test_what_a_reduce_gives_is_looked_at(reduce, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fisher.fim(f, P, X, layers=LAYERS[f], reduce=reduce)


@pytest.mark.parametrize("sums", [(torch.ones(1), torch.ones(1)), {"a": torch.ones(2)}, [torch.ones(1)], torch.ones(2)])
def test_sums_alone_are_told_whatever_their_structure(sums):
    with pytest.raises(TypeError, match="returned the sums alone, expected two things"):
        over_all(lambda sums, count: sums, sums, 3)
    assert over_all(lambda sums, count: (sums, count), sums, 3) == (sums, 3)


@pytest.mark.parametrize(
    "door",
    [
        lambda reduce: fisher.fim(f, P, X, layers=LAYERS[f], reduce=reduce),
        lambda reduce: fisher.hessian(lambda p, x: f(p, x).square().sum(1), P, X, reduce=reduce),
        lambda reduce: fisher.recipes.kfac(f, reduce=reduce),
        lambda reduce: growth.statistics(f, P, X, table.PAIR, reduce=reduce),
    ],
)
def test_parentheses_that_were_forgotten_are_told_at_every_door(door):
    with pytest.raises(TypeError, match=r"all_reduce itself"):
        door(fisher.distributed.all_reduce)


def test_rows_need_a_gather():
    with pytest.raises(ValueError, match=r"PMatLowRank keeps the rows .* method gather\(rows\)"):
        fisher.fim(f, P, X, fisher.PMatLowRank, reduce=lambda sums, count: (sums, count))


def test_a_rank_without_examples_needs_layers_and_takes_part_all_the_same():
    calls = []

    def reduce(sums, count):
        calls.append((sums, count))
        return {}, 3

    with pytest.raises(ValueError, match="layers: got None at a rank without examples"):
        fisher.fim(f, P, X[:0], reduce=reduce)
    assert calls == [(None, 0)]


def test_what_comes_once_does_not_count_as_nothing():
    """The second pass of EKFAC over a generator would be silently empty."""
    with pytest.raises(ValueError, match="exhausted generator"):
        fisher.fim(f, P, iter([X]), fisher.PMatEKFAC, layers=LAYERS[f], reduce=Twice())


def test_statistics_of_a_batch_norm_are_not_reduced():
    with pytest.raises(ValueError, match="statistics: got it with reduce"):
        fisher.recipes.kfac(f, statistics=lambda p, x: {}, reduce=Twice())
