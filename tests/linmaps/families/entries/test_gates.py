"""Hard-concrete gates: the sampled law against its closed form, noise as an argument, granularity, a descent to zeros."""

import math

import pytest
import torch
from torch.func import grad, vmap

import linmaps
from tests.linmaps.zoo import generator, random_params

D = torch.float64


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=D)


@pytest.mark.parametrize("q", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_probability_of_an_open_gate(q):
    spec = linmaps.L0(1)
    params = {"W": torch.ones(1, 1, dtype=D), "q": torch.full((1, 1), q, dtype=D)}
    W = vmap(lambda u: spec.effective_W(params, noise=u))(noise(40_000, 1, 1))
    assert (W != 0).double().mean().item() == pytest.approx(spec.expected_l0(params).item(), abs=0.01)
    assert (W >= 0).all()
    assert (W <= 1).all()


def test_distribution_of_the_gate():
    """P(z <= x) = sigmoid(temperature logit((x + .1) / 1.2) - q) inside (0, 1)."""
    spec = linmaps.L0(1, temperature=0.4)
    params = {"W": torch.ones(1, 1, dtype=D), "q": torch.full((1, 1), 0.5, dtype=D)}
    z = vmap(lambda u: spec.effective_W(params, noise=u))(noise(40_000, 1, 1))
    for x in (0.1, 0.5, 0.9):
        y = (x + 0.1) / 1.2
        want = 1 / (1 + math.exp(0.5 - 0.4 * math.log(y / (1 - y))))
        assert (z <= x).double().mean().item() == pytest.approx(want, abs=0.01)


@pytest.mark.parametrize("gate", ["weight", "input", "output"])
def test_penalty_by_hand(gate):
    spec = linmaps.L0(3, 4, gate=gate, bias=True, lamda=0.7, weight_decay=0.3)
    params = random_params(spec, 0)
    W, q = params["W"], params["q"]
    full = {"weight": lambda: q, "input": lambda: q[:, None], "output": lambda: q[None, :]}[gate]().expand(3, 4)
    is_open = 1 / (1 + torch.exp(-(full - 2 / 3 * math.log(0.1 / 1.1))))
    want = (is_open * (0.7 + 0.15 * W**2)).sum() + 0.15 * (params["bias"] ** 2).sum()
    assert torch.allclose(spec.reg_error(params), want, rtol=1e-13)
    assert torch.allclose(spec.expected_l0(params), is_open.sum(), rtol=1e-13)
    assert spec.reg_error(params) > 0


@pytest.mark.parametrize("gate", ["weight", "input", "output"])
def test_noise_is_an_argument_of_apply(gate):
    spec = linmaps.L0(3, 4, gate=gate, bias=True)
    params, x = random_params(spec, 0), torch.randn(5, 3, generator=generator(1), dtype=D)
    u = noise(*spec.shapes()["q"])
    W = spec.effective_W(params, noise=u)
    assert torch.allclose(spec.apply(params, x, noise=u), x @ W + params["bias"], atol=1e-14)
    assert not torch.equal(W, spec.effective_W(params))
    assert torch.equal(W, spec.effective_W(params, noise=u))


@pytest.mark.parametrize(("gate", "shape"), [("input", (3, 1)), ("output", (1, 4))])
def test_noise_may_keep_the_axis_of_the_matrix(gate, shape):
    spec = linmaps.L0(3, 4, gate=gate)
    params, u = random_params(spec, 0), noise(*shape)
    assert torch.equal(spec.effective_W(params, noise=u), spec.effective_W(params, noise=u.flatten()))


def test_a_mask_for_each_example():
    spec = linmaps.L0(3, 2, gate="input")
    params, x, u = random_params(spec, 0), torch.randn(5, 3, generator=generator(1), dtype=D), noise(5, 3)
    each = vmap(lambda xi, ui: spec.apply(params, xi, noise=ui))(x, u)
    assert torch.allclose(spec.apply(params, x, noise=u), each, atol=1e-14)


def test_training_with_noise_closes_the_gates_of_useless_inputs():
    g = generator(3)
    X = torch.randn(200, 6, generator=g, dtype=D)
    Y = X[:, :2] @ torch.tensor([[2.0], [-3.0]], dtype=D)
    spec = linmaps.L0(6, 1, gate="input", lamda=0.02, weight_decay=0.0)
    params = random_params(spec, 0)
    leaves = list(params.values())
    optimizer = torch.optim.Adam(leaves, lr=0.03)
    slope = grad(lambda p, u: (spec.apply(p, X, noise=u) - Y).square().mean() + spec.reg_error(p))
    for _ in range(1500):
        for k, gradient in slope(params, torch.rand(6, generator=g, dtype=D)).items():
            params[k].grad = gradient
        optimizer.step()
        with torch.no_grad():
            for k, t in spec.project(params).items():
                params[k].copy_(t)
    W = spec.effective_W(params)[:, 0]
    assert torch.equal((W != 0).nonzero()[:, 0], torch.tensor([0, 1]))
    assert torch.allclose(W[:2], torch.tensor([2.0, -3.0], dtype=D), atol=0.1)
    assert (params["q"].abs() <= math.log(100) + 1e-12).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: linmaps.L0(2, droprate_init=1.0), r"droprate_init: got 1.0, expected a number below 1"),
        (lambda: linmaps.L0(2, droprate_init=0.0), r"droprate_init: got 0.0, expected a finite number > 0"),
        (lambda: linmaps.L0(2, temperature=0), r"temperature: got 0, expected a finite number > 0"),
        (lambda: linmaps.L0(2, lamda=-1.0), r"lamda: got -1.0, expected a finite number >= 0"),
        (lambda: linmaps.L0(2, gate="unit"), r"gate: got 'unit', expected one of \('weight', 'input', 'output'\)"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_noise_of_another_shape():
    spec = linmaps.L0(2, 3)
    params = random_params(spec, 0)
    with pytest.raises(ValueError, match=r"noise is \(2,\), expected uniform numbers of shape \(2, 3\)"):
        spec.effective_W(params, noise=torch.rand(2, generator=generator(0)))
    with pytest.raises(ValueError, match=r"noise is int, expected"):
        spec.apply(params, torch.zeros(2, dtype=D), noise=1)
