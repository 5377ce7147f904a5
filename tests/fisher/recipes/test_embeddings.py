"""Embeddings of tasks: the mean of the diagonal by unit, and the distance written out; tasks that share digits are near."""

import pytest
import torch

import fisher
from fisher.recipes import task_distance, task_embedding
from tests.fisher.digits import D, digits, mlp, start
from tests.fisher.recipes.test_influence_options import MODELS
from tests.laws import close


@pytest.mark.parametrize("representation", [fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatDense])
def test_is_the_mean_over_each_unit(representation):
    f, p, data, likelihood = MODELS["images"]
    layers = fisher.LayerCollection.from_function(f, p, data[0])
    F = fisher.fim(f, p, data, representation, likelihood)
    diag = F.get_diag()
    filters = torch.cat([diag["c"].flatten(1), diag["b"][:, None]], 1).mean(1)
    by_name = {"c": filters, "q": diag["q"], "w": diag["w"].mean(1)}
    want = torch.cat([by_name[name] for name in layers.names()])
    close(task_embedding(F, layers), want, 1e-12, "embedding")
    some = layers.select(["c"])
    G = fisher.fim(f, p, data, representation, likelihood, layers=some)
    close(task_embedding(G, some), filters, 1e-12, "without a head")
    close(task_embedding(F), want, 1e-12, "layers that it was made with")
    with pytest.raises(ValueError, match=r"layers: got none, and PMatEye knows none"):
        task_embedding(fisher.PMatEye(torch.ones((), dtype=D), F.layout))


def test_the_distance_written_out():
    a, b = torch.tensor([1.0, 2.0, 0.0], dtype=D), torch.tensor([3.0, 0.5, 0.0], dtype=D)
    s, t = torch.tensor([0.25, 0.8], dtype=D), torch.tensor([0.75, 0.2], dtype=D)
    want = 1 - s @ t / (s.norm() * t.norm())
    close(task_distance(a, b), want, 1e-12, "distance")
    close(task_distance(b, a), want, 1e-12, "symmetric")
    close(task_distance(a, a), torch.zeros((), dtype=D), 1e-12, "equal")
    odd = [
        (a, torch.nan * a, ValueError),
        (a / 0, b, ValueError),
        (a, b[:2], ValueError),
        (a[None], a[None], ValueError),
    ]
    for one, other, error in [*odd, (a, b.float(), TypeError)]:
        with pytest.raises(error, match=r"(one|other): "):
            task_distance(one, other)


def test_tasks_that_share_digits_are_nearer():
    """Of one network: digits 0 to 4 in two draws, and digits 5 to 9."""
    x, y = digits(600, features=16)
    net = start(16, 8, 10)
    layers = fisher.LayerCollection.from_function(mlp, net, x[:4])
    low, high = torch.where(y < 5)[0], torch.where(y >= 5)[0]
    embed = lambda which: task_embedding(
        fisher.fim(mlp, net, (x[which], y[which]), fisher.PMatDiag, estimator="empirical", layers=layers), layers
    )
    a, b, c = embed(low[::2]), embed(low[1::2]), embed(high)
    assert task_distance(a, b) < task_distance(a, c)
