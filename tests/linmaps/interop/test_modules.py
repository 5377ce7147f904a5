"""Laws of maps inside modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

import linmaps
from linmaps import trees
from tests.laws import close

SPECS = {
    "orthogonal": linmaps.Orthogonal(4),
    "spectral": linmaps.Spectral(4, 3, bias=True),
    "schur": linmaps.Schur(4),
    "product": linmaps.Product(linmaps.Orthogonal(4), linmaps.LowRank(4, 3, rank=2)),
    "affine": linmaps.Affine(linmaps.Symmetric(4)),
    "train": linmaps.Factorized((2, 2), (3, 1), factorization="tt", rank=2),
}
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SPECS)
def test_the_module_is_the_map(name):
    spec = SPECS[name]
    layer = linmaps.Module(spec, torch.Generator().manual_seed(1))
    params = spec.init(torch.Generator().manual_seed(1))
    close(trees.map(lambda t: t.detach(), layer.params()), params, 0.0, "params")
    close(layer(X).detach(), spec.apply(params, X), 0.0, "forward")
    assert repr(spec) in repr(layer)
    layer(X).square().sum().backward()
    assert all(t.grad is not None for t in layer.parameters())
    other = linmaps.Module(spec, torch.Generator().manual_seed(2))
    other.load_state_dict(layer.state_dict())
    close(other(X).detach(), layer(X).detach(), 0.0, "state")
    close(copy.deepcopy(layer)(X).detach(), layer(X).detach(), 0.0, "copied")


def test_params_are_copied_and_checked():
    spec = SPECS["orthogonal"]
    params = spec.init(torch.Generator().manual_seed(1))
    layer = linmaps.Module(spec, params=params)
    with torch.no_grad():
        layer.V.add_(1)
    close(params, spec.init(torch.Generator().manual_seed(1)), 0.0, "as they were")
    with pytest.raises(ValueError, match="leaf"):
        linmaps.Module(spec, params={"V": torch.zeros(5, 2)})
    with pytest.raises(TypeError, match="expected a map"):
        linmaps.Module(nn.Linear(2, 2))


def test_a_cell_and_a_convolution_are_modules_too():
    cell = linmaps.RNNCell(linmaps.Spectral(3, sigma_max=0.9), linmaps.Linear(4, 3, bias=True))
    layer = linmaps.Module(cell, torch.Generator().manual_seed(0), batch_first=True)
    xs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    hs, last = layer(xs)
    want, end = linmaps.rnn(cell, cell.init(torch.Generator().manual_seed(0)), xs.transpose(0, 1))
    close(hs.detach(), want.transpose(0, 1), 0.0, "states, the batch first")
    close(last.detach(), end, 0.0, "last state")
    close(layer(xs, torch.ones(3))[0].detach()[:, :0], hs.detach()[:, :0], 0.0, "from another state")
    assert "batch_first=True" in repr(layer)
    assert set(dict(layer.named_parameters())) == {
        f"{part}.{name}" for part, own in layer.params().items() for name in own
    }
    conv = linmaps.FactorizedConv(4, 5, (3, 3), rank=3, bias=True)
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    module = linmaps.Module(conv, torch.Generator().manual_seed(0), padding=1, stride=2)
    params = conv.init(torch.Generator().manual_seed(0))
    close(module(images).detach(), conv.apply_conv(params, images, padding=1, stride=2), 0.0, "convolution")
    assert nn.Sequential(module, nn.ReLU(), nn.Flatten())(images).shape == (2, 80)
    for options, spec in (({"stirde": 2}, conv), ({"stride": 2}, SPECS["orthogonal"]), ({"padding": 1}, cell)):
        with pytest.raises(TypeError, match=r"Module: got options \["):
            linmaps.Module(spec, **options)


def test_without_a_generator_the_seed_is_that_of_torch():
    draw = lambda seed: (torch.manual_seed(seed), linmaps.Module(SPECS["orthogonal"]).V.detach())[1]
    close(draw(3), draw(3), 0.0, "same seed")
    assert not torch.equal(draw(3), draw(4))


def test_it_trains_and_keeps_its_promise():
    net = nn.Sequential(linmaps.Module(linmaps.Orthogonal(4)), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    target, losses = X[:, :1].sin(), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(X) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert net[0].spec.violation(net[0].spec.effective_W(net[0].params())) < 1e-5


PARAMETRIZED = {
    "orthogonal": linmaps.Orthogonal(4, 3),
    "spectral": linmaps.Spectral(4, 3),
    "low rank": linmaps.LowRank(4, 3, 3),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_weight_becomes_a_map(name):
    spec, layer = PARAMETRIZED[name], nn.Linear(4, 3)
    nearest = spec.effective_W(spec.from_matrix(layer.weight.detach().mT)[0]).mT
    assert linmaps.parametrize(layer, "weight", spec) is layer
    assert is_parametrized(layer, "weight")
    close(layer.weight.detach(), nearest, 1e-5, "starts at the nearest matrix")
    layer(X).square().sum().backward()
    assert all(t.grad is not None for t in layer.parameters())
    other = linmaps.parametrize(nn.Linear(4, 3), "weight", spec)
    other.load_state_dict(layer.state_dict())
    close(other.weight.detach(), layer.weight.detach(), 0.0, "state")
    before = layer.weight.detach().clone()
    remove_parametrizations(layer, "weight")
    close(layer.weight.detach(), before, 0.0, "removed")
    assert isinstance(layer.weight, nn.Parameter)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("weight", linmaps.Orthogonal(4), r"has shape \(3, 4\), expected \[out, in\] = \[4, 4\]"),
        ("weight", linmaps.Spectral(4, 3, bias=True), "has a bias"),
        ("bias", linmaps.Spectral(4, 3), r"no parameter \[out, in\] of Linear, expected one of \['weight'\]"),
        ("weigth", linmaps.Spectral(4, 3), "no parameter"),
    ],
)
def test_what_does_not_fit_is_refused(name, spec, message):
    layer = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=message):
        linmaps.parametrize(layer, name, spec)
    assert not is_parametrized(layer)


def test_maps_without_a_closed_form_and_without_leaves_are_refused():
    with pytest.raises(ValueError, match="no params"):
        linmaps.parametrize(nn.Linear(4, 4), "weight", linmaps.Identity(4))
