"""Data of every kind give the same batches; Mean over batches is the mean over examples, however it was split."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fisher
from fisher.checks.data import batches, check_finite
from fisher.passes.fold import Mean, ema
from linmaps import trees
from tests.laws import close

D = torch.float64


def randn(seed, *shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X, T = randn(0, 10, 3), torch.arange(10)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, T))


def generated():
    for start in range(0, 10, 4):
        yield X[start : start + 4], T[start : start + 4]


@pytest.mark.parametrize(
    "data",
    [
        (X, T),
        [(X[:3], T[:3]), (X[3:], T[3:])],
        [[X[:3], T[:3]], [X[3:], T[3:]]],
        DataLoader(TensorDataset(X, T), batch_size=4),
        DataLoader(TensorDataset(X, T), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0)),
        DataLoader(Stream(), batch_size=4),
        generated(),
        (pair for pair in [(X, T)]),
    ],
    ids=["tuple", "tuples", "lists", "loader", "shuffled", "stream", "generator", "expression"],
)
def test_every_kind_of_data_gives_all_examples_once(data):
    seen = list(batches(data))
    x, t = torch.cat([x for x, _ in seen]), torch.cat([t for _, t in seen])
    order = t.argsort()
    assert torch.equal(x[order], X)
    assert torch.equal(t[order], T)


def test_examples_are_counted_as_seen():
    """A loader that drops the last batch, or repeats examples, gives what it gives; nothing asks for its length."""
    seen = lambda data: sum(len(x) for x, _ in batches(data))
    assert seen(DataLoader(TensorDataset(X, T), batch_size=4, drop_last=True)) == 8
    assert seen(DataLoader(TensorDataset(X, T), sampler=[0, 0, 1], batch_size=2)) == 3


def test_inputs_alone_and_several_inputs():
    assert list(batches(X)) == [(X, None)]
    assert list(batches((X,))) == [(X, None)]
    assert [t for _, t in batches(DataLoader(TensorDataset(X), batch_size=5))] == [None, None]
    for x in [(X, T), {"a": X, "b": T}]:
        assert list(batches((x, T))) == [(x, T)]
        assert list(batches([(x, T), (x, T)])) == [(x, T)] * 2


def test_batches_refuse_what_they_cannot_read():
    with pytest.raises(TypeError, match="batch 1: got a mapping, expected tuple as in batch 0"):
        list(batches([(X, T), {"x": X, "target": T}]))
    with pytest.raises(TypeError, match=r"data: got TensorDataset.*DataLoader"):
        list(batches(TensorDataset(X, T)))
    with pytest.raises(TypeError, match=r"data: got tuple of length 3.*\(\(x1, x2\), target\)"):
        list(batches((X, X, T)))
    with pytest.raises(ValueError, match=r"batch 1: got a tensor of 1 axes, torch.int64.*as a tuple \(x, target\)"):
        list(batches([X, T]))
    exhausted = generated()
    list(exhausted)
    with pytest.raises(ValueError, match=r"got no batch.*make a list"):
        list(batches(exhausted))
    with pytest.raises(ValueError, match="data: got 1 of 2 entries NaN"):
        check_finite(torch.tensor([0.0, float("nan")]), "data")
    assert len(list(batches([(X, T)], progress=True, what="test"))) == 1


def tree_of(x):
    """A mean over examples: what a fold is of."""
    return {"m": x.T @ x / len(x), "s": (x**3).mean(), "empty": x.new_zeros(0, 2)}


def folded(x, sizes, **options):
    mean = Mean(**options)
    for part in x.split(sizes):
        mean = mean.add(tree_of(part), len(part))
    return mean


@st.composite
def splits(draw, total=12):
    sizes = []
    while sum(sizes) < total:
        sizes.append(draw(st.integers(1, total - sum(sizes))))
    return sizes


@given(st.integers(0, 99), splits())
def test_mean_over_batches_is_the_mean_over_examples(seed, sizes):
    x = randn(seed, 12, 3)
    mean = folded(x, sizes)
    close(mean.value(), tree_of(x), 1e-14, "mean")
    assert mean.count == 12


@given(st.integers(0, 99), splits(), splits())
def test_merge_is_associative_and_has_a_neutral_element(seed, first, second):
    x = randn(seed, 36, 3)
    a, b, c = folded(x[:12], first), folded(x[12:24], second), folded(x[24:], first)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    close(left, right, 1e-14, "associative")
    close(a.merge(b), b.merge(a), 1e-14, "commutative")
    close(left.value(), tree_of(x), 1e-14, "one pass")
    for same in (Mean().merge(a), a.merge(Mean()), a.add(tree_of(x), 0)):
        close(same, a, 0.0, "neutral")


def test_accumulation_in_double_precision():
    """20,000 float32 means: the float64 fold is right to float32 rounding, and back in float32."""
    values = 1 + randn(0, 20_000, dtype=torch.float32)
    single, double = Mean(), Mean(dtype=D)
    for v in values.split(1):
        single, double = single.add((v,), 1), double.add((v,), 1)
    want = values.double().mean()
    assert double.mean[0].dtype == D
    assert double.value()[0].dtype == torch.float32
    assert abs(double.value()[0].item() - want) < 1e-7
    assert abs(double.mean[0].item() - want) < 1e-12
    assert abs(single.value()[0].item() - want) > 1e-8
    assert Mean(dtype=D).add(torch.ones(2, dtype=torch.complex64), 1).mean.dtype == torch.complex128


@pytest.mark.parametrize("options", [{}, {"dtype": D}])
def test_a_pass_that_was_interrupted_goes_on(options):
    x = randn(0, 12, 3, dtype=torch.float32)
    whole = folded(x, 3, **options)
    buffer = io.BytesIO()
    torch.save(folded(x[:6], 3, **options), buffer)
    buffer.seek(0)
    mean = torch.load(buffer)
    for part in x[6:].split(3):
        mean = mean.add(tree_of(part), 3)
    close(mean, whole, 0.0, "resumed")
    assert (mean.dtype, mean.dtypes) == (whole.dtype, whole.dtypes)
    close(mean.value(), whole.value(), 0.0, "value")


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatDiag, fisher.PMatKFAC])
def test_a_matrix_folded_over_batches_is_that_of_all_examples(representation):
    f = lambda p, x: torch.tanh(x @ p["w"].T + p["b"])
    params = {"w": randn(1, 2, 3), "b": randn(2, 2)}
    layers = fisher.LayerCollection.from_function(f, params, X)
    fim = lambda x: fisher.fim(f, params, x, representation, "gaussian", layers=layers)
    mean = Mean().add(fim(X[:6]), 6).add(fim(X[6:]), 4)
    close(mean.value(), fim(X), 1e-12, "mean")
    buffer = io.BytesIO()
    torch.save(mean, buffer)
    buffer.seek(0)
    close(torch.load(buffer).value().to_torch(), fim(X).to_torch(), 1e-12, "saved")
    want = trees.map(lambda s, t: 0.9 * s + 0.1 * t, fim(X), fim(2 * X))
    close(ema(fim(X), fim(2 * X), 0.9), want, 1e-12, "ema")


def test_mean_and_ema_of_ensembles_and_their_derivatives():
    x = randn(1, 4, 12, 3)
    first = vmap(lambda x: folded(x[:6], [2, 4]))(x)
    resumed = vmap(lambda m, x: m.add(tree_of(x[6:]), 6))(first, x)
    close(vmap(Mean.value)(resumed), vmap(tree_of)(x), 1e-14, "ensemble")
    counts = torch.tensor([1.0, 2.0, 3.0, 0.0])
    weighted = vmap(lambda n, x: Mean().add(x[:3], n).add(x[3:6], 1).value())(counts, x)
    want = (counts[:, None, None] * x[:, :3] + x[:, 3:6]) / (1 + counts)[:, None, None]
    close(weighted, want, 1e-14, "counts as tensors")
    close(grad(lambda x: folded(x, [5, 7]).value()["s"])(x[0]), 3 * x[0] ** 2 / 36, 1e-14, "derivative")
    decay = torch.tensor(0.9, dtype=D)
    close(vmap(lambda a, b: ema(a, b, decay))(x, x.cos()), 0.9 * x + 0.1 * x.cos(), 1e-14, "ema")
    close(grad(lambda d: ema(x, x.cos(), d).sum())(decay), (x - x.cos()).sum(), 1e-12, "in the decay")
    single = ema({"a": x.float()}, {"a": x.float()}, decay)["a"]
    assert single.dtype == torch.float32


def test_a_scalar_leaf_keeps_its_dtype():
    mean = Mean().add(torch.tensor(1.0), 1).add(torch.tensor(2.0), 1)
    assert mean.mean.dtype == torch.float32
    assert mean.value() == 1.5


def test_nothing_is_changed_in_place():
    start, x = Mean(), randn(0, 4, 3)
    one = start.add(tree_of(x), 4)
    before = trees.map(torch.clone, one)
    one.add(tree_of(2 * x), 4)
    one.merge(one)
    close(one, before, 0.0, "the old mean")
    assert start.mean is None


@trees.record(static=("size",))
class Linked:
    value: torch.Tensor
    size: int


def test_mean_refuses_what_it_cannot_average():
    one = Mean().add({"a": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="has seen no example"):
        Mean().value()
    with pytest.raises(ValueError, match="n: got -1"):
        one.add({"a": torch.zeros(2)}, -1)
    with pytest.raises(TypeError, match=r"a: got torch.int64, expected a floating tensor"):
        Mean().add({"a": torch.arange(2)}, 1)
    with pytest.raises(ValueError, match="leaf a has shape"):
        one.add({"a": torch.zeros(3)}, 1)
    with pytest.raises(ValueError, match="missing"):
        one.add({"b": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="convert it first"):
        one.add({"a": torch.zeros(2, dtype=D)}, 1)
    with pytest.raises(ValueError, match=r"other settings, expected those of the first; .*layers=layers"):
        Mean().add(Linked(torch.zeros(2), 1), 1).add(Linked(torch.zeros(2), 2), 1)
    with pytest.raises(ValueError, match="merge: got Mean"):
        one.merge(Mean(dtype=D))
    with pytest.raises(ValueError, match=r"decay: got 1.5"):
        ema(torch.zeros(1), torch.zeros(1), 1.5)


def test_a_mean_goes_on_from_a_file(tmp_path):
    f, p = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"], {"w": randn(1, 3, 2), "v": randn(2, 2, 4)}
    parts = [(fisher.fim(f, p, x), len(x)) for x in X.split(3)]
    whole = Mean(dtype=torch.float64)
    for n, (F, size) in enumerate(parts):
        whole = whole.add(F, size)
        if n == 0:
            whole.save(tmp_path / "mean")
    again = Mean.load(tmp_path / "mean")
    for F, size in parts[1:]:
        again = again.add(F, size)
    assert all(map(torch.equal, trees.leaves(again), trees.leaves(whole)))
    assert (again.dtype, again.dtypes) == (whole.dtype, whole.dtypes)
    trees.save(1, tmp_path / "other")
    with pytest.raises(ValueError, match="other: got int, expected Mean"):
        Mean.load(tmp_path / "other")
