"""Passes over one loader: where the order of its examples is that of the result, each pass has the same or is refused."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fisher
from fisher.recipes import influence, self_influence
from tests.laws import close

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
T = torch.arange(12) % 2
P = {
    "w": torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=D),
    "v": torch.ones(4, 2, dtype=D).cumsum(0),
}


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


F = fisher.fim(f, P, X, fisher.PMatKFAC)
TESTS = (X[:5], T[:5])
OPTIONS = [{}, {"per_layer": True}, {"rank": 1}, {"measurement": lambda p, x, y: f(p, x[None])[0, y]}]


def loader(shuffle):
    return DataLoader(TensorDataset(X, T), batch_size=5, shuffle=shuffle, generator=torch.Generator().manual_seed(3))


def noisy():
    g = torch.Generator().manual_seed(0)

    def augmented(batch):
        x, t = (torch.stack(one) for one in zip(*batch))
        return x + torch.randn(x.shape, generator=g, dtype=D), t

    return DataLoader(TensorDataset(X, T), batch_size=5, collate_fn=augmented)


class Growing:
    """One batch more in each pass, or one less."""

    def __init__(self, counts):
        self.counts = iter(counts)

    def __iter__(self):
        yield from [(X[k : k + 3], T[k : k + 3]) for k in range(0, 3 * next(self.counts), 3)]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
def test_one_order_or_none(options):
    run = lambda data, **more: influence(f, P, data, F, TESTS, regul=0.1, **options, **more)
    want = run((X, T))
    for data in (loader(False), [(X[:7], T[:7]), (X[7:], T[7:])]):
        close(run(data, chunk_size=2), want, 1e-10, "in order")
    for data in (loader(True), noisy(), Growing([4, 3, 4]), Growing([3, 4, 4])):
        with pytest.raises(
            ValueError, match=r"data: batch .: of pass 2 holds other examples.*shuffle=False.*chunk_size=None"
        ):
            run(data, chunk_size=2)


def test_sums_and_single_passes_take_any_order():
    for aggregate in ("test", "data", "both"):
        run = lambda data: influence(f, P, data, F, TESTS, regul=0.1, aggregate=aggregate, chunk_size=2)  # noqa: B023
        close(run(loader(True)).sort().values, run((X, T)).sort().values, 1e-10, aggregate)
    own = self_influence(f, P, loader(True), F, regul=0.1, chunk_size=2)
    close(own.sort().values, self_influence(f, P, (X, T), F, regul=0.1).sort().values, 1e-10, "self")


def test_members_of_an_ensemble_share_a_pass():
    data = [(X[:7], T[:7]), (X[7:], T[7:])]
    run = lambda s: influence(f, {**P, "v": s * P["v"]}, data, F, TESTS, regul=0.1, chunk_size=2)
    scales = torch.tensor([0.5, 1.0], dtype=D)
    close(torch.func.vmap(run)(scales), torch.stack([run(s) for s in scales]), 1e-9, "vmap")
