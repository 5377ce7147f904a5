"""Influence: the derivative of the minimum itself, leave-one-out retraining of ridge and logistic models of digits."""

from collections import OrderedDict

import pytest
import torch
from torch.func import grad, jacfwd, vmap

import fisher
from fisher.recipes import influence, leave_one_out, self_influence
from linmaps import trees
from tests.fisher.digits import D, digits, linear, start, trained
from tests.laws import close

SQUARED = {"loss": "squared_error"}


def ridge(n=20, regul=0.1):
    """f, params at the minimum of the mean of (f - y)^2/2 + regul/2 |w|^2, data, test data, F, and the minimum for weights."""
    x, label = digits(n + 5, features=4)
    y = torch.stack([torch.sin(label.to(D)), torch.cos(label.to(D))], 1)
    f = lambda p, x: x @ p["w"]
    X, Y = x[:n], y[:n]

    def minimum(weights):
        A = X.T @ (weights[:, None] * X) / n + regul * torch.eye(4, dtype=D)
        return {"w": torch.linalg.inv(A) @ X.T @ (weights[:, None] * Y) / n}

    p = minimum(torch.ones(n, dtype=D))
    F = fisher.fim(f, p, X, fisher.PMatDense, "gaussian")
    return f, p, (X, Y), (x[n:], y[n:]), F, minimum


def test_is_the_derivative_of_the_test_loss_in_the_weight_of_an_example():
    f, p, data, (x, y), F, minimum = ridge()
    ones = torch.ones(20, dtype=D)
    test_loss = lambda e: ((f(minimum(ones + 20 * e), x) - y) ** 2).sum(1) / 2
    want = jacfwd(test_loss)(torch.zeros(20, dtype=D))
    got = influence(f, p, data, F, (x, y), **SQUARED, regul=0.1)
    close(got, want, 1e-10, "influence")
    halves = [(data[0][:8], data[1][:8]), (data[0][8:], data[1][8:])]
    close(influence(f, p, halves, F, (x, y), **SQUARED, regul=0.1), got, 1e-12, "batches")
    own = influence(f, p, data, F, data, **SQUARED, regul=0.1)
    close(self_influence(f, p, data, F, **SQUARED, regul=0.1), own.diagonal(), 1e-12, "self-influence")
    assert (own.diagonal() < 0).all()


def test_leave_one_out_of_ridge_is_exact():
    f, p, data, _, F, minimum = ridge()
    got = leave_one_out(f, p, data, F, n_examples=20, **SQUARED, likelihood="gaussian", regul=0.1)
    for b in range(20):
        close(got["w"][b], minimum(1 - torch.eye(20, dtype=D)[b])["w"], 1e-10, f"without {b}")
    some = leave_one_out(
        f, p, (data[0][3:5], data[1][3:5]), F, n_examples=20, **SQUARED, likelihood="gaussian", regul=0.1
    )
    close(some["w"], got["w"][3:5], 1e-12, "some examples")


def test_logistic_regression_of_digits():
    """Retrained without an example: its params, and the change of the test loss, are foreseen."""
    n, regul = 60, 0.02
    x, y = digits(n + 20, features=5)
    data, test = (x[:n], y[:n]), (x[n:], y[n:])
    p = trained(linear, start(5, 10), *data, ridge=regul, steps=25)
    F = fisher.fim(linear, p, data[0], fisher.PMatDense)
    total = influence(linear, p, data, F, test, regul=regul).sum(0)
    moved = leave_one_out(linear, p, data, F, n_examples=n, regul=regul)
    loss = lambda p: torch.nn.functional.cross_entropy(linear(p, test[0]), test[1], reduction="sum")
    actual, errors = [], []
    chosen = [*total.argsort()[:4].tolist(), *total.argsort()[-4:].tolist(), 0, 1, 2, 3]
    for b in chosen:
        keep = torch.arange(n) != b
        without = trained(linear, p, data[0][keep], data[1][keep], ridge=regul * n / (n - 1), steps=12)
        actual.append(loss(without) - loss(p))
        change = trees.sub(without, p)
        errors.append(trees.norm(trees.sub(trees.map(lambda t, b=b: t[b], moved), without)) / trees.norm(change))
    foreseen = -total[chosen] / n
    assert torch.corrcoef(torch.stack([torch.stack(actual), foreseen]))[0, 1] > 0.98
    assert torch.stack(errors).median() < 0.1


def test_weights_are_those_of_the_losses():
    """Of a minimum with weights: derivatives in the weight of w_b l_b, and the minimum without each example."""
    f, _, (X, Y), (x, y), _, minimum = ridge()
    w = torch.arange(20, dtype=D) % 4 / 2
    p = minimum(w)
    F = fisher.fim(f, p, (X, None, w), fisher.PMatDense, "gaussian")
    run = lambda data, test=(x, y), **options: influence(f, p, data, F, test, **SQUARED, regul=0.1, **options)
    test_loss = lambda e: ((f(minimum(w + 20 * e * w), x) - y) ** 2).sum(1) / 2
    got = run((X, Y, w))
    close(got, jacfwd(test_loss)(torch.zeros(20, dtype=D)), 1e-10, "influence")
    batches = [(X[:8], Y[:8], w[:8]), (X[8:], Y[8:], w[8:])]
    v = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=D)
    for options, of in (
        ({}, lambda t: t),
        ({"chunk_size": 2}, lambda t: t),
        ({"aggregate": "test"}, lambda t: t.sum(0)),
        ({"aggregate": "data"}, lambda t: t.sum(1)),
        ({"aggregate": "both"}, lambda t: t.sum()),
        ({"layers": fisher.LayerCollection.from_function(f, p, X), "rank": 1}, lambda t: t),
    ):
        plain = run((X, Y), **({"rank": 1, "layers": options["layers"]} if "rank" in options else {}))
        close(run(batches, (x, y, v), **options), of(v[:, None] * plain * w), 1e-10, f"both sides {options}")
    output = lambda p, x, y: f(p, x)[:, 0]
    close(
        run((X, Y, w), (x, y, v), measurement=output), v[:, None] * run((X, Y), measurement=output) * w, 1e-10, "output"
    )
    own = self_influence(f, p, batches, F, **SQUARED, regul=0.1, chunk_size=3)
    close(own, run((X, Y, w), (X, Y)).diagonal(), 1e-12, "self-influence")
    close(own, w * self_influence(f, p, (X, Y), F, **SQUARED, regul=0.1), 1e-12, "scales by the weight")
    options = {"n_examples": 20, **SQUARED, "likelihood": "gaussian", "regul": 0.1}
    for b, moved in enumerate(leave_one_out(f, p, batches, F, **options)["w"]):
        close(moved, minimum(w * (1 - torch.eye(20, dtype=D)[b]))["w"], 1e-10, f"without {b}")
    members = torch.stack([w, 2 * w])
    close(vmap(lambda w: run((X, Y, w)))(members), torch.stack([got, 2 * got]), 1e-10, "ensemble of weights")
    slope = jacfwd(lambda w: run((X, Y, w)).sum())(w)
    close(slope, run((X, Y)).sum(0), 1e-10, "derivative in the weights")


def test_weights_that_no_loss_of_an_example_has_are_refused():
    f, p, (X, Y), (x, y), F, _ = ridge()
    run = lambda data, test=(x, y), **options: influence(f, p, data, F, test, **SQUARED, regul=0.1, **options)
    for call, message in [
        (lambda: run((X, Y, torch.ones(20, 2, dtype=D))), r"weight has shape \(20, 2\), expected \[20\]: one number"),
        (lambda: run((X, Y, -torch.ones(20, dtype=D))), "weight: got -1.0, expected numbers >= 0"),
        (
            lambda: run((X, Y), (x, None, torch.ones(5, dtype=D)), measurement=lambda p, x: f(p, x).sum()),
            "without a target",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_wrong_label_stands_out():
    x, y = digits(150, features=16)
    wrong = torch.arange(5) * 29
    y = y.clone()
    y[wrong] = (y[wrong] + 3) % 10
    p = trained(linear, start(16, 10), x, y, ridge=0.02, steps=15)
    for representation in (fisher.PMatDense, fisher.PMatKFAC):
        own = self_influence(linear, p, (x, y), fisher.fim(linear, p, x, representation), regul=0.02)
        assert len(set(own.argsort()[:15].tolist()) & set(wrong.tolist())) >= 4


def test_ensembles_and_derivatives():
    f, p, data, test, F, _ = ridge()
    members = [trees.scale(c, p) for c in (1.0, 0.5, 2.0)]
    run = lambda p: influence(f, p, data, F, test, **SQUARED, regul=0.1)
    close(vmap(run)(trees.stack(members)), torch.stack([run(p) for p in members]), 1e-10, "ensemble")
    both = lambda p: leave_one_out(f, p, data, F, n_examples=20, **SQUARED, likelihood="gaussian", regul=0.1)
    close(vmap(both)(trees.stack(members)), trees.stack([both(p) for p in members]), 1e-10, "ensemble")
    total = lambda s: influence(f, p, data, F, test, **SQUARED, regul=s).sum()
    s, h = torch.tensor(0.1, dtype=D), 1e-5
    close(grad(total)(s), (total(s + h) - total(s - h)) / (2 * h), 1e-6, "d / d regul")


# --- outputs of any shape ----------------------------------------------------------------------------------------------

_g = torch.Generator().manual_seed(0)
_X = torch.randn(6, 4, generator=_g, dtype=D)
SHAPES = {  # loss by name and as a likelihood, shape of one output, target
    "[B]": ("squared_error", "gaussian", (), torch.randn(6, generator=_g, dtype=D)),
    "[B, C] regression": ("squared_error", "gaussian", (3,), torch.randn(6, 3, generator=_g, dtype=D)),
    "[B, T, C] regression": ("squared_error", "gaussian", (2, 3), torch.randn(6, 2, 3, generator=_g, dtype=D)),
    "[B, C]": ("cross_entropy", fisher.Categorical(), (3,), torch.arange(6) % 3),
    "[B, T, C]": ("cross_entropy", fisher.Categorical(-1), (2, 3), torch.arange(12).reshape(6, 2) % 3),
    "[B, C, T]": ("cross_entropy", fisher.Categorical(), (3, 2), torch.arange(12).reshape(6, 2) % 3),
    "padded": ("cross_entropy", fisher.Categorical(-1), (2, 3), torch.tensor([[0, 1], [2, -100]] * 3)),
    "pixels": ("cross_entropy", fisher.Segmentation(), (2, 2, 3), torch.arange(36).reshape(6, 2, 3) % 2),
    "labels": (fisher.Bernoulli(), fisher.Bernoulli(), (3,), torch.randint(2, (6, 3), generator=_g).to(D)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_influence_and_leave_one_out_on_outputs_of_any_shape(name):
    """Against gradients and solves written out; leave_one_out against the Newton step on the objective without b."""
    loss, likelihood, shape, target = SHAPES[name]
    size = torch.Size(shape).numel()
    p = {"w": torch.randn(4, size, generator=torch.Generator().manual_seed(1), dtype=D)}
    f = lambda p, x: (x @ p["w"]).reshape(len(x), *shape)
    which = fisher.likelihoods.likelihood(likelihood)
    of = lambda p, b: -which.log_prob(f(p, _X[b : b + 1]), target[b : b + 1]).sum()
    G = torch.stack([grad(of)(p, b)["w"].flatten() for b in range(6)])
    F = fisher.fim(f, p, (_X, target), fisher.PMatDense, likelihood)
    P = F.to_torch() + 0.1 * torch.eye(4 * size, dtype=D)
    want = -G @ torch.linalg.solve(P, G.T)
    close(influence(f, p, (_X, target), F, (_X, target), loss=loss, regul=0.1), want, 1e-10, "by name")
    close(influence(f, p, (_X, target), F, (_X, target), loss=which, regul=0.1), want, 1e-10, "by likelihood")
    close(self_influence(f, p, (_X, target), F, loss=loss, regul=0.1), want.diagonal(), 1e-10, "self")
    moved = leave_one_out(f, p, (_X, target), F, n_examples=6, loss=loss, likelihood=likelihood, regul=0.1)
    for b in range(6):
        own = fisher.fim(f, p, (_X[b : b + 1], target[b : b + 1]), fisher.PMatDense, likelihood).to_torch()
        step = torch.linalg.solve(6 * P - own, G[b])
        close(moved["w"][b].flatten(), p["w"].flatten() + step, 1e-10, f"without {b}")


def test_what_does_not_fit_is_refused():
    p = {"w": torch.ones(4, 3, dtype=D)}
    f = lambda p, x: x @ p["w"]
    F = fisher.fim(f, p, _X, fisher.PMatDense)
    y, t = torch.ones(6, 3, dtype=D), torch.arange(6) % 3
    run = lambda target, loss="cross_entropy", x=_X, p=p, f=f: self_influence(
        f, p, (x, target), F, loss=loss, regul=0.1
    )
    square = lambda p, x: f(p, x)[:, None].expand(-1, 3, -1)
    nan = torch.where(torch.arange(4) > 2, torch.nan, _X)
    for call, message in [
        (lambda: run(t[:, None]), r"target has shape \(1, 1\), expected \(1,\)"),
        (lambda: run(t + 1), "holds class 3"),
        (lambda: run(t.to(D), "squared_error"), r"squared_error: target has shape"),
        (lambda: run(t[:5]), "data: batch 0: got 5 targets, expected 6"),
        (lambda: run(y, lambda y, t: ((y - t) ** 2).mean()), r"loss: got a result of shape \(\) for a batch of one"),
        (lambda: run(y, lambda y, t: (y - t) ** 2), r"loss: got a result of shape \(1, 3\)"),
        (lambda: run(t[:, None].expand(-1, 3), f=square), r"may be axis 1 or the last.*Categorical\(class_axis=1\)"),
        (lambda: run(t, x=nan), "data: batch 0: 0: got 6 of 24 entries NaN"),
        (lambda: run(t, p={"w": p["w"] * 1e308}), "gradients of the loss: w: got"),
        (lambda: influence(f, p, (_X, t), F, (nan, t)), "test: batch 0"),
        (lambda: leave_one_out(f, p, (_X, t), F, n_examples=-6), "n_examples: got -6"),
        (lambda: run(t, p={"w": p["w"][:2]}, x=_X[:, :2]), "params: leaf w has shape"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    singular = fisher.PMatDense(torch.zeros(12, 12, dtype=D), F.layout)
    with pytest.raises(ValueError, match="use a larger regul"):
        self_influence(f, p, (_X, t), singular, regul=0.0)


def test_errors():
    f, p, data, test, F, _ = ridge()
    with pytest.raises(ValueError, match="loss: got 'hinge', expected one of"):
        influence(f, p, data, F, test, loss="hinge")
    with pytest.raises(ValueError, match="batch 0 has no target"):
        self_influence(f, p, data[0], F)
    close(
        self_influence(f, p, data, F, loss=lambda y, t: ((y - t) ** 2).sum(1) / 2, regul=0.1),
        self_influence(f, p, data, F, **SQUARED, regul=0.1),
        1e-13,
        "a function as loss",
    )


def test_the_order_of_params_does_not_matter():
    """F of an OrderedDict in its own order, params a plain dict: equal shapes must not change places."""
    r = torch.Generator().manual_seed(3)
    p = {name: torch.randn(4, 4, generator=r, dtype=D) for name in ("a", "w")}
    other = OrderedDict((name, p[name]) for name in ("w", "a"))
    x, t = torch.randn(8, 4, generator=r, dtype=D), torch.arange(8) % 4
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["a"]
    for F in (fisher.fim(f, q, x, kind) for q in (p, other) for kind in (fisher.PMatDense, fisher.PMatKFAC)):
        want, got = (influence(f, q, (x, t), F, (x[:2], t[:2]), regul=0.1) for q in (p, other))
        close(got, want, 1e-12, "influence")
        close(self_influence(f, p, (x, t), F, regul=0.1), self_influence(f, other, (x, t), F, regul=0.1), 1e-12, "own")
        one, two = (leave_one_out(f, q, (x, t), F, n_examples=8, regul=0.1) for q in (p, other))
        close(one["w"], two["w"], 1e-12, "left out")
        moments = [fisher.recipes.laplace(f, q, F, 8, 1.0).predict(x)[1] for q in (p, other)]
        close(moments[0], moments[1], 1e-12, "laplace")
    dense = [influence(f, p, (x, t), fisher.fim(f, q, x, fisher.PMatDense), (x, t), regul=0.1) for q in (p, other)]
    close(dense[0], dense[1], 1e-12, "F of another order")
