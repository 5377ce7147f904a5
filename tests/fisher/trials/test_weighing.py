"""Weights that divide out of the loss of one example are seen in the losses of two, whatever the loss is written as."""

import pytest
import torch
from torch.nn import functional as nnf

import fisher
from fisher.recipes import influence, self_influence
from tests.laws import close

D = torch.float64
G = torch.Generator().manual_seed(0)
X, T = torch.randn(40, 3, generator=G, dtype=D), torch.arange(40) % 4
P = {"w": torch.randn(3, 4, generator=G, dtype=D)}
ZERO = {"w": torch.zeros(3, 4, dtype=D)}
W = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=D)
PADDED = torch.where(T == 2, -100, T)


def f(p, x):
    return x @ p["w"]


def by_hand(p, x, y):
    found = nnf.cross_entropy(f(p, x), y, reduction="none")
    return (W[y] * found).sum() / W[y].sum()


WEIGHING = {
    "of a batch or of one": lambda p, x, y: nnf.cross_entropy(f(p, x), y, weight=W),
    "of one": lambda p, x, y: nnf.cross_entropy(f(p, x[None]), y[None], W),
    "a module": lambda p, x, y: torch.nn.CrossEntropyLoss(weight=W)(f(p, x), y),
    "nll": lambda p, x, y: nnf.nll_loss(f(p, x).log_softmax(-1), y, weight=W),
    "by hand": by_hand,
    "by importance": lambda p, x, y: ((f(p, x) ** 2).sum(-1) * x[..., 0] ** 2).sum() / (x[..., 0] ** 2).sum(),
}
PLAIN = {
    "mean": lambda p, x, y: nnf.cross_entropy(f(p, x), y),
    "weighted, each": lambda p, x, y: nnf.cross_entropy(f(p, x), y, weight=W, reduction="none"),
    "weighted sum": lambda p, x, y: nnf.cross_entropy(f(p, x), y, weight=W, reduction="sum"),
    "of one": lambda p, x, y: nnf.cross_entropy(f(p, x[None]), y[None]),
    "norm": lambda p, x, y: (f(p, x) - 1).norm(),
    "root of the mean square": lambda p, x, y: ((f(p, x) - 1) ** 2).mean().sqrt(),
    "largest": lambda p, x, y: (f(p, x) - x.sum()).amax(),
    "logsumexp": lambda p, x, y: f(p, x).logsumexp(tuple(range(x.ndim))),
    "of one alone": lambda p, x, y: f(p, x.reshape(3))[y.reshape(())],
    "variance": lambda p, x, y: f(p, x).var(),
}


AT = [(name, P) for name in WEIGHING] + [
    (name, ZERO) for name in WEIGHING if name != "by importance"
]  # of slopes 0 there


@pytest.mark.parametrize(("name", "params"), AT)
@pytest.mark.parametrize("count", [2, 7, 40])
def test_a_mean_by_weights_is_refused(name, params, count):
    for data in ((X[:count], T[:count]), [(x[None], t[None]) for x, t in zip(X[:count], T[:count])]):
        with pytest.raises(ValueError, match=r"loss\(params, x, y\): .* by (the )?weights .*reduction='none'"):
            fisher.example_gradients(WEIGHING[name], params, data)


@pytest.mark.parametrize("name", PLAIN)
def test_other_losses_of_one_example_are_what_they_were(name):
    loss = PLAIN[name]
    J = fisher.example_gradients(loss, P, (X, T)).jacobian["w"][:, 0]
    single = lambda b: torch.func.grad(lambda p: loss(p, X[b], T[b]))(P)["w"]
    if name == "weighted, each":
        single = lambda b: W[T[b]] * torch.func.grad(lambda p: PLAIN["mean"](p, X[b], T[b]))(P)["w"]
    close(J, torch.stack([single(b) for b in range(40)]), 1e-10, name)


def test_measurements_run_through_the_same():
    F = fisher.fim(f, P, X, fisher.PMatDense)
    for run in (
        lambda m: influence(f, P, (X, T), F, (X[:9], T[:9]), regul=0.1, measurement=m),
        lambda m: self_influence(f, P, (X, T), F, regul=0.1, measurement=m),
    ):
        for loss in WEIGHING.values():
            with pytest.raises(
                ValueError, match=r"measurement\(params, x, y\): .* by (the )?weights .*reduction='none'"
            ):
                run(loss)
        run(PLAIN["weighted, each"])


@pytest.mark.parametrize("name", ["mean", "of one"])
def test_a_mean_over_no_target(name):
    with pytest.raises(ValueError, match=r"NaN|divides 0 by 0") as told:
        fisher.example_gradients(PLAIN[name], P, (X, PADDED))
    assert "reduction='none'" in str(told.value)
    if name == "mean":
        assert "of 10 of 40 examples it is NaN by itself, and of them together a number" in str(told.value)
    each = lambda p, x, y: nnf.cross_entropy(f(p, x), y, reduction="none")
    J = fisher.example_gradients(each, P, (X, PADDED)).jacobian["w"]
    assert bool((J[T == 2] == 0).all())
    with pytest.raises(ValueError, match="divides 0 by 0, as a mean over no target"):
        fisher.hessian(PLAIN["mean"], P, (X, torch.full_like(T, -100)))


def test_members_of_an_ensemble():
    run = lambda p: fisher.example_gradients(PLAIN["mean"], p, (X, T)).jacobian["w"]
    both = torch.stack([P["w"], 2 * P["w"]])
    close(torch.func.vmap(lambda w: run({"w": w}))(both), torch.stack([run({"w": w}) for w in both]), 1e-10, "vmap")
    for loss in WEIGHING.values():
        with pytest.raises(ValueError, match=r"by (the )?weights"):
            torch.func.vmap(lambda w: fisher.example_gradients(loss, {"w": w}, (X, T)).jacobian["w"])(both)  # noqa: B023
