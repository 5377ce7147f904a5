"""Passes over loaders of any length hold a few batches at a time, and no graph."""

import gc
import weakref

import pytest
import torch
from torch import nn

import fisher
import growth
from fisher.collector import backwards
from fisher.passes import run
from fisher.reducers.base import Reducer
from tests.bench.bench_fisher import peak
from tests.laws import close

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


IMAGES = torch.randn(8, 3, 12, 12)


def images(classes, dtype=torch.float32):
    g = torch.Generator().manual_seed(classes)
    randn = lambda *shape: torch.randn(shape, generator=g, dtype=dtype) / 5
    return {
        "a": {"weight": randn(16, 3, 3, 3), "bias": randn(16)},
        "g": {"weight": randn(16, 4, 3, 3), "bias": randn(16)},
        "b": {"weight": randn(16, 16, 3, 3)},
        "c": {"weight": randn(classes, 16), "bias": randn(classes)},
    }


def convolutional(p, x):
    h = torch.relu(nn.functional.conv2d(x, p["a"]["weight"], p["a"]["bias"], padding=1))
    h = torch.relu(nn.functional.conv2d(h, p["g"]["weight"], p["g"]["bias"], padding=1, groups=4))
    h = torch.relu(nn.functional.conv2d(h, p["b"]["weight"], padding=1)).mean((2, 3))
    return nn.functional.linear(h, p["c"]["weight"], p["c"]["bias"])


@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatQuasiDiag])
def test_a_pass_holds_neither_all_columns_nor_unfolded_inputs(representation, monkeypatch):
    """The peak is that of the activations, of a few columns and of a few examples, whatever the number of classes."""
    for reducer in (fisher.reducers.kfac.KFAC, fisher.reducers.rows.Diag):
        monkeypatch.setattr(reducer, "held", lambda self, batch: 2**12)
    monkeypatch.setattr(Reducer, "unfolds", 2**12)
    found = {}
    for classes in (4, 32):
        p = images(classes)
        layers = fisher.LayerCollection.from_function(convolutional, p, IMAGES)
        way = lambda p=p, layers=layers: fisher.fim(
            convolutional, p, IMAGES, representation, layers=layers, check_finite=False
        )
        way()
        found[classes] = peak(way)
    one = 8 * 16 * 144 * 4  # bytes of the output of a convolution
    assert found[32] < found[4] + one
    assert found[32] < 14 * one  # activations and gradients are 6 to 9 of them, the inputs unfolded alone would be 20


@pytest.mark.parametrize("representation", [*REPRESENTATIONS, fisher.PMatBlockDiag])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_what_is_made_piece_by_piece_is_the_whole(representation, sharing, monkeypatch):
    """Columns one by one, inputs of one example at a time, sums in place."""
    p, x = images(5, torch.float64), IMAGES.double()
    weight = torch.arange(8.0, dtype=torch.float64)
    made = []
    for large, unfolds, held in ((2**40, 2**40, 2**40), (0, 1, 1), (0, 1, 3 * 8 * 16 * 144 * 3)):
        monkeypatch.setattr(backwards, "LARGE", large)
        monkeypatch.setattr(Reducer, "unfolds", unfolds)
        for reducer in (Reducer, fisher.reducers.kfac.KFAC, fisher.reducers.rows.Diag):
            monkeypatch.setattr(reducer, "held", lambda self, batch, held=held: held)
        for data in (x, (x, None, weight)):
            made.append(fisher.fim(convolutional, p, data, representation, sharing=sharing))
    v = {k: {n: torch.randn_like(t) for n, t in leaf.items()} for k, leaf in p.items()}
    for k in range(2, len(made)):
        close(made[k].mv(v), made[k % 2].mv(v), 1e-10, f"run {k}")
