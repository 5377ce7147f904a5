"""Passes over loaders of any length hold a few batches at a time, and no graph."""

import gc
import weakref

import pytest
import torch
from torch import nn

import fisher
import growth
from fisher.passes import run

P = {
    "a": {"weight": torch.randn(4, 3), "bias": torch.zeros(4)},
    "b": {"weight": torch.randn(3, 4), "bias": torch.zeros(3)},
}


def f(p, x):
    h = torch.tanh(nn.functional.linear(x, p["a"]["weight"], p["a"]["bias"]))
    return nn.functional.linear(h, p["b"]["weight"], p["b"]["bias"])


LAYERS = fisher.LayerCollection.from_function(f, P, torch.randn(4, 3))
entropies = lambda y, t: nn.functional.cross_entropy(y, t, reduction="none")
REPRESENTATIONS = [fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDense, fisher.PMatDiag, fisher.PMatQuasiDiag]
SECOND = [fisher.PMatDense, fisher.PMatDiag, fisher.PMatBlockDiag]
PASSES = {
    **{f"fim {R.__name__}": lambda data, R=R: fisher.fim(f, P, data, R) for R in REPRESENTATIONS},
    **{f"hessian {R.__name__}": lambda data, R=R: fisher.hessian(
        lambda p, x, t: entropies(f(p, x), t), P, data, R, layers=LAYERS) for R in SECOND},
    **{f"ggn {R.__name__}": lambda data, R=R: fisher.ggn(f, entropies, P, data, R, layers=LAYERS) for R in SECOND},
    "statistics": lambda data: growth.statistics(f, P, data, growth.Pair("a", "b")),
}  # fmt: skip


class Loader:
    """Makes its batches when they are asked for; counts those that are still alive at the end of each round."""

    def __init__(self, batches):
        self.batches, self.alive = batches, []

    def __iter__(self):
        made = []
        for _ in range(self.batches):
            x, target = torch.randn(64, 3), torch.arange(64) % 3
            made += [weakref.ref(x), weakref.ref(target)]
            yield x, target
            del x, target
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in made) // 2)


@pytest.mark.parametrize("name", PASSES)
def test_no_batch_outlives_its_turn(name):
    """Nor does a graph, which would hold its batch: the first two are held for trials, and one is at hand."""
    data = Loader(9)
    PASSES[name](data)
    assert max(data.alive) <= 3


def test_what_keeps_its_data_is_seen_to():
    """So that the test could fail."""
    data = Loader(9)
    kept = fisher.fim(f, P, data, fisher.PMatImplicit)
    assert data.alive == [9]
    assert len(kept.batches) == 9


def test_columns_of_a_chunk_are_gone_when_the_next_are_made(monkeypatch):
    """What chunk_size= is for: the gradients at all layers are the most that a pass holds."""
    made, alive, own = [], [], run.column_rows

    def watched(layers, g, batch):
        alive.append(sum(ref() is not None for ref in made))
        rows = own(layers, g, batch)
        made.extend(weakref.ref(t) for t in rows.values())
        return rows

    monkeypatch.setattr(run, "column_rows", watched)
    for representation in REPRESENTATIONS:
        made.clear()
        fisher.fim(f, P, torch.randn(8, 3), representation, layers=LAYERS, chunk_size=1)
    assert len(made) >= 4
    assert not any(alive)
