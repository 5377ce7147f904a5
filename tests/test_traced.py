"""The table of transforms once more, traced: a graph gives the numbers of the function, at params that it was not made at.

Each row is traced for itself; a part of the rows, drawn by their names, is run here, all by `HYPOTHESIS_PROFILE=deep`.
Layers are found before: a row that lets them be found inside is run once as it is, and gets these while it is traced.
"""

import dataclasses
import os
import zlib

import pytest
import torch
from torch.func import grad, vmap

import fisher
from linmaps import trees
from linmaps.trees.graphs.tracing import traced
from tests.laws import Case, close, noise_like, perturbed, scalar
from tests.test_transforms import TABLE

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
EVERY, DERIVED = 24, 240  # one row of so many: its numbers; its derivative and its vmap too
NO_GRAPH = {
    "growth.compact": "how many units are kept is a value",
    "growth.statistics/packed": "an activation that is not named is found among numbers",
    "growth.statistics/gated": "the same",
    "growth.gated_neurons": "the same",
    "growth.choose_sign/gated": "the same",
    "fisher.recipes.kfac": "the number of a step decides what it does",
    "fisher.recipes.soap": "the same",
}
ROWS = {n: c for n, c in TABLE.items() if isinstance(c, Case)}


def drawn(every):
    return [n for n in ROWS if DEEP or not zlib.crc32(n.encode()) % every]


def has_graph(name):
    return not any(name == n or name.startswith(f"{n}/") for n in NO_GRAPH)


@pytest.fixture
def given(monkeypatch):
    """Layers that are found in a plain call are given to the traced one."""
    found, find = [], fisher.LayerCollection.from_function.__func__

    def from_function(cls, *args, **options):
        if traced():
            return found.pop(0)
        found.append(find(cls, *args, **options))
        return found[-1]

    monkeypatch.setattr(fisher.LayerCollection, "from_function", classmethod(from_function))
    return found


def moved(case):
    return tuple(perturbed(a, 10 + i) for i, a in enumerate(case.args))


def alike(args):
    """In memory of one order: strides are part of what a graph is for."""
    return trees.map(torch.Tensor.contiguous, args)


def tensors(tree):
    return [t for t in trees.leaves(tree) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("name", [n for n in drawn(EVERY) if has_graph(n)])
def test_a_graph_gives_the_same_numbers(name, given):
    case = ROWS[name]
    case, other = dataclasses.replace(case, args=alike(case.args)), alike(moved(case))
    want, elsewhere = case.fn(*case.args), case.fn(*other)
    fast = trees.compiled(case.fn, backend="eager")
    close(tensors(fast(*case.args)), tensors(want), 1e-11, "traced")
    close(tensors(fast(*other)), tensors(elsewhere), 1e-11, "the same graph elsewhere")
    assert len(fast.graphs) == 1


@pytest.mark.parametrize("name", [n for n in drawn(DERIVED) if has_graph(n) and "grad" not in ROWS[n].skip])
def test_derivatives_and_batches_go_through(name, given):
    case = ROWS[name]
    along, stacked = tuple(noise_like(a, 7) for a in case.args), trees.stack([case.args, moved(case)])
    slope = lambda fn: trees.dot(grad(scalar(fn), argnums=tuple(range(len(case.args))))(*case.args), along)
    want = slope(case.fn), vmap(case.fn)(*stacked)
    fast = trees.compiled(case.fn, backend="eager")
    many = list(given)
    close(slope(fast), want[0], case.tol, "the derivative of a graph")
    given[:] = many[len(many) // 2 :] + given
    close(tensors(vmap(fast)(*stacked)), tensors(want[1]), 1e-10, "a graph under vmap")


@pytest.mark.parametrize("name", [n for n in ROWS if not has_graph(n)])
def test_what_has_no_graph_says_so(name, given):
    case = ROWS[name]
    case.fn(*case.args)
    with pytest.raises(ValueError, match=r"graph|compiled|traced"):
        trees.compiled(case.fn, backend="eager")(*case.args)
