"""example_gradients: the gradient of the loss of each example, by hand one by one, with the options of the loss itself."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, embedding

import fisher
from linmaps import trees
from tests.laws import close

D = torch.float64
_r = torch.Generator().manual_seed(0)
_randn = lambda *shape: torch.randn(shape, generator=_r, dtype=D)
P = {"w": _randn(3, 4), "b": _randn(4), "v": _randn(4, 3), "e": _randn(7, 3), "unused": _randn(2)}
X, Y = _randn(6, 3), torch.tensor([0, 1, -100, 2, 1, 0])
TOKENS = torch.randint(0, 7, (6, 4), generator=_r)
LABELS = torch.where(torch.rand(6, 4, generator=_r) < 0.3, -100, torch.randint(0, 3, (6, 4), generator=_r))
WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=D)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"]


def net(p, x):
    return f(p, embedding(x, p["e"]))


SOFT = torch.softmax(_randn(6, 3), -1)
LOSSES = {
    "classes": (lambda p, x, y: cross_entropy(f(p, x), y, reduction="none"), X, Y),
    "weighed and smoothed": (
        lambda p, x, y: cross_entropy(f(p, x), y, WEIGHT, label_smoothing=0.1, reduction="none"), X, Y,
    ),
    "probabilities": (lambda p, x, y: cross_entropy(f(p, x), y, reduction="none"), X, SOFT),
    "tokens": (lambda p, x, y: cross_entropy(net(p, x).movedim(-1, 1), y, reduction="none").sum(1), TOKENS, LABELS),
    "square": (lambda p, x, y: (f(p, x) - y).square().mean(1), X, _randn(6, 3)),
}  # fmt: skip


def by_hand(loss, params, x, y, weight=None):
    """One backward of a batch of one, example by example."""
    rows = []
    for b in range(len(x)):
        own = trees.map(lambda t: t.clone().requires_grad_(), params)
        total = loss(own, x[b : b + 1], y[b : b + 1]).sum() * (1 if weight is None else weight[b])
        found = torch.autograd.grad(total, trees.leaves(own), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([t.flatten() for t in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", LOSSES)
def test_rows_are_gradients_of_single_examples(kind):
    loss, x, y = LOSSES[kind]
    want = by_hand(loss, P, x, y)
    J = fisher.example_gradients(loss, P, (x, y))
    assert isinstance(J, fisher.PFMapDense)
    assert J.size() == (6, 1, want.shape[1])
    assert J.jacobian["w"].shape == (6, 1, 3, 4)
    close(J.to_torch()[:, 0], want, 1e-13, "rows")
    one = lambda p, x, y: loss(p, x[None], y[None])[0]
    close(fisher.example_gradients(one, P, (x, y)).to_torch()[:, 0], want, 1e-13, "a loss of one example")
    batches = [(x[:1], y[:1]), [x[1:4], y[1:4]], (x[4:], y[4:])]
    close(fisher.example_gradients(loss, P, batches, chunk_size=2).to_torch()[:, 0], want, 1e-13, "batches")
    w = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=D)
    close(fisher.example_gradients(loss, P, (x, y, w)).to_torch()[:, 0], by_hand(loss, P, x, y, w), 1e-13, "weights")


def test_a_loss_of_one_example_without_a_batch_axis():
    """Reductions of torch over one example: its mean or sum over positions."""
    for reduction in ("mean", "sum"):
        one = lambda p, x, y, r=reduction: cross_entropy(net(p, x), y, ignore_index=-100, reduction=r)
        labels = LABELS.clamp_min(0)
        rows = torch.stack([trees.ravel(grad(one)(P, x, y))[0] for x, y in zip(TOKENS, labels)])
        close(fisher.example_gradients(one, P, (TOKENS, labels)).to_torch()[:, 0], rows, 1e-13, reduction)
    square = lambda p, x, y: ((f(p, x) - y) ** 2).sum(0)  # of a batch of 3 examples [3, C]: a sum over examples
    y = _randn(3, 3)
    rows = torch.stack([trees.ravel(grad(square)(P, a, b))[0] for a, b in zip(X[:3], y)])
    close(fisher.example_gradients(square, P, (X[:3], y)).to_torch()[:, 0], rows, 1e-13, "as many outputs as examples")


def test_without_targets_and_of_modules():
    energy = lambda p, x: f(p, x).logsumexp(-1)
    rows = torch.stack([trees.ravel(grad(energy)(P, x))[0] for x in X])
    close(fisher.example_gradients(energy, P, X).to_torch()[:, 0], rows, 1e-13, "no target")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 2, 2), nn.PReLU(), nn.Flatten(), nn.Linear(4, 3)).double()
    g, params = fisher.functional(module)
    loss = lambda p, x, y: cross_entropy(g(p, x), y, reduction="none")
    x, y = X[:, None], Y.clamp_min(0)
    close(fisher.example_gradients(loss, params, (x, y)).to_torch()[:, 0], by_hand(loss, params, x, y), 1e-12, "module")


def test_it_is_what_the_empirical_fisher_is_made_of():
    loss, _, _ = LOSSES["classes"]
    J = fisher.example_gradients(loss, P, (X, Y))
    F = fisher.fim(lambda p, x: f(p, x), P, (X, Y), fisher.PMatDense, estimator="empirical")
    G = J.to_torch()[:, 0]
    close(G.T @ G / 6, F.to_torch(), 1e-13, "F")
    close(F.mapTMmap(J), torch.einsum("bi,ij,bj->b", G, F.to_torch(), G), 1e-12, "mapTMmap")
    T = F.to_torch() + 0.1 * torch.eye(G.shape[1], dtype=D)
    close(F.solve(J, 0.1).to_torch()[:, 0], torch.linalg.solve(T, G.T).T, 1e-9, "solve")


def test_ensembles_and_precision():
    loss, x, y = LOSSES["weighed and smoothed"]
    members = [trees.scale(c, P) for c in (1.0, 0.5)]
    run = lambda p: fisher.example_gradients(loss, p, (x, y)).to_torch()
    close(vmap(run)(trees.stack(members)), torch.stack([run(p) for p in members]), 1e-12, "ensemble")
    single = trees.map(lambda t: t.float(), P)
    plain = lambda p, x, y: cross_entropy(f(p, x), y, reduction="none")
    J = fisher.example_gradients(plain, single, (x.float(), y)).to_torch()
    assert J.dtype == torch.float32
    close(J.double(), fisher.example_gradients(plain, P, (x, y)).to_torch(), 1e-5, "single")


def test_losses_that_are_refused():
    mean = lambda p, x, y: cross_entropy(f(p, x.flatten(1)), y)
    with pytest.raises(ValueError, match=r"of one example it raises .*; expected a number.*reduction='none'"):
        fisher.example_gradients(mean, P, (X, Y.clamp_min(0)))
    with pytest.raises(ValueError, match=r"of a batch of 6 it gives shape \(6, 3\)"):
        fisher.example_gradients(lambda p, x, y: f(p, x), P, (X, Y))
    scaled = lambda p, x, y: f(p, x).square().sum(-1) * (1.0 if x.ndim > 1 else 2.0)
    with pytest.raises(ValueError, match="the loss of the first example by itself is"):
        fisher.example_gradients(scaled, P, (X, Y))
    centered = lambda p, x, y: cross_entropy(f(p, x.view(-1, 3) - x.mean(0)), y, reduction="none")
    with pytest.raises(ValueError, match=r"loss\(params, x, y\).*depends on other examples"):
        fisher.example_gradients(centered, P, (X, Y.clamp_min(0)))
    with pytest.raises(ValueError, match="got 5 targets, expected one for each of 6 examples"):
        fisher.example_gradients(mean, P, (X, Y[:5]))
    with pytest.raises(ValueError, match="positions are weighed in the loss"):
        fisher.example_gradients(mean, P, (X, Y, torch.ones(6, 1)))
    with pytest.raises(ValueError, match="got no example"):
        fisher.example_gradients(LOSSES["classes"][0], P, (X[:0], Y[:0]))
    with pytest.raises(TypeError, match="loss: got NoneType"):
        fisher.example_gradients(None, P, (X, Y))
