"""Maps of non-negative entries: the lasso solved, no dead entries, closed forms, errors."""

import numpy as np
import pytest
import torch
from torch.func import grad

import linmaps
from tests.linmaps import zoo
from tests.linmaps.zoo import generator, random_params

D = torch.float64


def lasso_problem():
    """A sparse regression and its solution by iterated soft thresholds (ISTA), to machine precision."""
    g = generator(0)
    X = torch.linalg.qr(torch.randn(100, 8, generator=g, dtype=D)).Q * torch.linspace(9, 11, 8, dtype=D)
    truth = torch.randn(8, 5, generator=g, dtype=D) * (torch.rand(8, 5, generator=g, dtype=D) < 0.25)
    Y = X @ truth + 0.1 * torch.randn(100, 5, generator=g, dtype=D)
    gamma, step = 5.0, 1 / 121
    W = torch.zeros(8, 5, dtype=D)
    for _ in range(300):
        W = W - step * X.T @ (X @ W - Y)
        W = W.sign() * (W.abs() - step * gamma).clamp(min=0)
    return X, Y, gamma, step, W


@pytest.mark.parametrize("cls", [linmaps.Lasso, linmaps.LassoReLU])
def test_projected_descent_solves_the_lasso_with_its_exact_zeros(cls):
    X, Y, gamma, step, want = lasso_problem()
    spec = cls(8, 5, gamma=gamma)
    slope = grad(lambda p: (spec.apply(p, X) - Y).square().sum() / 2 + spec.reg_error(p))
    params = random_params(spec, 1)
    for _ in range(400):
        g = slope(params)
        params = spec.project({k: params[k] - step / 2 * g[k] for k in params})
    W = spec.effective_W(params)
    assert 0.4 < (want == 0).double().mean() < 0.95
    assert torch.equal(W == 0, want == 0)
    assert (W - want).abs().max() < 1e-9
    assert torch.minimum(params["u"], params["v"]).max() == 0, "both parts are positive only before the optimum"
    assert abs(spec.reg_error(params) - gamma * W.abs().sum()) < 1e-9


@pytest.mark.parametrize("cls", [linmaps.Lasso, linmaps.LassoReLU])
def test_an_entry_at_zero_is_not_dead(cls):
    spec = cls(1)
    zeros = {"u": torch.zeros(1, 1), "v": torch.zeros(1, 1)}
    slopes = grad(lambda p: (spec.effective_W(p) - 1).square().sum())(zeros)
    assert slopes["u"].item() == -2
    assert slopes["v"].item() == 2


@pytest.mark.parametrize("method", ["softplus", "relu", "square", "exp"])
def test_entries_come_back_after_a_push_towards_negative_targets(method):
    spec = linmaps.NonNegative(6, 5, method=method)
    params = random_params(spec, 0)
    target = torch.rand(6, 5, generator=generator(1), dtype=D) + 0.5
    for aim, steps in ((-target, 100), (target, 3000)):
        loss = lambda p, aim=aim: (spec.effective_W(p) - aim).square().sum()
        for _ in range(steps):
            slope = grad(loss)(params)
            params = spec.project({"W": params["W"] - 0.05 * slope["W"]})
            assert (spec.effective_W(params) >= 0).all()
    assert (spec.effective_W(params) - target).abs().max() < 1e-6 or method == "square"
    if method == "square":  # where w reaches 0 it stays, by symmetry: documented
        assert (spec.effective_W(params) - target).abs().median() < 1e-3


def test_relu_projection_leaves_exact_zeros():
    spec = linmaps.NonNegative(2, method="relu")
    params = {"W": torch.tensor([[1.0, -1.0], [0.0, -3.0]])}
    assert torch.equal(spec.project(params)["W"], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(spec.project(params)["W"], spec.effective_W(params))


def test_split_overlap_vanishes_by_descent():
    spec = linmaps.Split(3, 2)
    target = torch.randn(3, 2, generator=generator(0), dtype=D)
    loss = lambda p: (spec.effective_W(p) - target).square().sum() + spec.reg_error(p)
    params = zoo.minimize(loss, random_params(spec, 1), 0.05, 3000)
    B, C = spec.parts(params)
    assert (spec.effective_W(params) - target).abs().max() < 1e-2
    assert torch.minimum(B, C).max() < 1e-2
    assert spec.reg_error(params) < 1e-2


@pytest.mark.parametrize("method", ["softplus", "relu", "square", "exp"])
def test_entries_at_init_are_uniform(method):
    spec = linmaps.NonNegative(100, 50, method=method)
    W = spec.effective_W(random_params(spec, 0)) * 10
    assert W.min() >= 0.05
    assert W.max() <= 1.0 + 1e-12
    assert np.quantile(W.numpy(), [0.25, 0.5, 0.75]) == pytest.approx([0.2875, 0.525, 0.7625], abs=0.02)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: linmaps.NonNegative(2, method="abs"), ValueError, r"NonNegative.method: got 'abs', expected one of"),
        (lambda: linmaps.Split(2, method="abs"), ValueError, r"Split.method: got 'abs', expected one of"),
        (lambda: linmaps.Lasso(2, gamma=-1.0), ValueError, r"Lasso.gamma: got -1.0, expected a finite number >= 0"),
        (lambda: linmaps.Lasso(2, gamma="1"), TypeError, r"Lasso.gamma: got '1', expected a number"),
        (lambda: linmaps.Lasso(2, gama=1), TypeError, r"unexpected keyword argument 'gama'"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("name", ["Lasso", "LassoReLU"])
def test_the_lasso_penalty_is_the_l1_norm_of_the_parts_at_any_params(name):
    spec = getattr(linmaps, name)(3, 2, gamma=0.5)
    params = {"u": torch.tensor([[-1.0, 0.0], [2.0, -3.0], [0.0, 1.0]]), "v": -torch.ones(3, 2)}
    total = sum(t.clamp(min=0).sum() if name == "LassoReLU" else t.abs().sum() for t in params.values())
    assert spec.reg_error(params) == 0.5 * total


def test_descent_without_projection_is_bounded():
    """The objective has a minimum over all params; at 0, the slope of the penalty is that of the orthant."""
    spec = linmaps.Lasso(4, 3, gamma=0.1)
    target = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    loss = lambda p: (spec.effective_W(p) - target).square().sum() + spec.reg_error(p)
    assert loss(zoo.minimize(loss, random_params(spec, 0), 0.05, 800)) > 0
    zero = {k: torch.zeros(4, 3, dtype=torch.float64) for k in ("u", "v")}
    assert all((t == 0.1).all() for t in grad(spec.reg_error)(zero).values())


@pytest.mark.parametrize("widths", [[16], [64], [64, 128, 32]], ids=str)
@pytest.mark.parametrize("method", ["softplus", "relu", "square", "exp"])
def test_twenty_non_negative_layers_keep_the_scale(widths, method):
    """After a first layer on inputs of mean 0 and a ReLU, on the way back too; without `deep` they grow by sqrt(in) / 2 each."""
    kept, grown, back = [], [], []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        first = linmaps.NonNegative(widths[0])
        h = start = first.apply(first.init(generator), torch.randn(256, widths[0], generator=generator)).relu()
        other, Ws = h, []
        for layer in range(20):
            sizes = widths[layer % len(widths)], widths[(layer + 1) % len(widths)]
            deep, usual = linmaps.NonNegative(*sizes, method=method, deep=True), linmaps.NonNegative(*sizes)
            Ws.append(deep.effective_W(deep.init(generator)))
            h, other = (h @ Ws[-1]).relu(), usual.apply(usual.init(generator), other)
        g = torch.ones(h.shape[1])
        for W in reversed(Ws):
            g = W @ g
        rms = lambda t: t.square().mean().sqrt().item()
        kept.append(rms(h) / rms(start))
        grown.append(rms(other) / rms(start))
        back.append(rms(g))
    assert 0.7 < sum(kept) / 6 < 1.4
    assert 0.3 < sum(back) / 6 < 3
    assert min(grown) > 1e5
