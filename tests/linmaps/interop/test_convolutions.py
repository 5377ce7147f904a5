"""Laws of maps as the weights of convolutions."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

import linmaps
from tests.laws import close


def seeded(module):
    generator = torch.Generator().manual_seed(7)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator) / math.sqrt(p[0].numel())
    return module


CASES = {
    "Lipschitz 1d": (nn.Conv1d(3, 4, 5, stride=2), linmaps.LipschitzConv(3, 4, (5,), bias=False)),
    "Lipschitz 2d, circular": (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        linmaps.LipschitzConv(3, 4, (3, 3), bias=False, bound=0.5),
    ),
    "Lipschitz, groups": (nn.Conv2d(4, 6, 3, groups=2, dilation=2), linmaps.LipschitzConv(2, 6, (3, 3), bias=False)),
    "CP 3d": (nn.Conv3d(2, 3, 2, bias=False), linmaps.FactorizedConv(2, 3, (2, 2, 2), rank=2, bias=False)),
    "train, transposed": (
        nn.ConvTranspose2d(4, 3, 3),
        linmaps.FactorizedConv(3, 4, (3, 3), factorization="tt", rank=2, bias=False),
    ),
    "patches, orthogonal": (nn.Conv2d(2, 5, 3, padding=1), linmaps.Orthogonal(18, 5)),
    "patches, stochastic": (nn.Conv1d(3, 4, 2), linmaps.LeftStochastic(6, 4)),
    "patches, train": (nn.Conv1d(4, 6, 4), linmaps.Factorized((4, 4), (2, 3), factorization="tt", rank=2, bias=False)),
    "pointwise": (nn.Conv2d(4, 4, 1), linmaps.Symmetric(4)),
}
each = pytest.mark.parametrize("name", CASES)


def kernel_of(spec, params, shape):
    if isinstance(spec, linmaps.Map):
        return spec.effective_W(params).mT.reshape(shape)
    return spec.kernel(params) if isinstance(spec, linmaps.FactorizedConv) else spec.effective_kernel(params)


def inputs(module):
    return torch.randn(
        2, module.in_channels, *[7] * (module.weight.ndim - 2), generator=torch.Generator().manual_seed(1)
    )


@each
def test_the_kernel_is_that_of_the_nearest_params_and_the_module_goes_on_with_it(name):
    module, spec = CASES[name]
    layer = seeded(copy.deepcopy(module))
    before, x = layer.weight.detach().clone(), inputs(module)
    linmaps.parametrize(layer, "weight", spec)
    params = (spec.from_matrix(before.flatten(1).mT) if isinstance(spec, linmaps.Map) else spec.from_kernel(before))[0]
    want = kernel_of(spec, params, before.shape)
    close(layer.weight.detach(), want, 0.0, "kernel")
    plain = copy.deepcopy(module)
    plain.load_state_dict({k: t for k, t in layer.state_dict().items() if k == "bias"} | {"weight": want})
    close(layer(x).detach(), plain(x).detach(), 1e-6, "convolved")
    layer(x).square().sum().backward()
    assert all(t.grad is not None and t.grad.any() for t in layer.parameters())


@each
def test_assigning_goes_the_same_way_and_members_stay(name):
    module, spec = CASES[name]
    layer = linmaps.parametrize(seeded(copy.deepcopy(module)), "weight", spec)
    member = kernel_of(spec, spec.init(torch.Generator().manual_seed(3)), layer.weight.shape)
    layer.weight = member
    assert float((layer.weight - member).norm()) <= 2e-3 * float(member.norm())  # CP by sweeps
    again = layer.weight.detach().clone()
    layer.weight = again
    assert float((layer.weight - again).norm()) <= 1e-4 * float(again.norm())
    remove_parametrizations(layer, "weight")
    close(layer.weight.detach(), again, 2e-3, "left behind")


def test_the_bound_holds_with_groups_and_transposed():
    for module in (nn.Conv1d(4, 6, 3, groups=2, padding=2), nn.ConvTranspose1d(6, 4, 3, groups=2)):
        out, c, _ = module.weight.shape
        layer = seeded(copy.deepcopy(module))
        linmaps.parametrize(layer, "weight", linmaps.LipschitzConv(c, out, (3,), bias=False, bound=0.7))
        eye = torch.eye(module.in_channels * 12).reshape(-1, module.in_channels, 12)
        matrix = (layer(eye) - layer.bias[:, None]).flatten(1)
        assert 0.3 < float(torch.linalg.matrix_norm(matrix, 2)) <= 0.7 * (1 + 1e-5)


WRONG = [
    (nn.Conv2d(3, 4, 3), linmaps.LipschitzConv(4, 4, (3, 3), bias=False), r"expected \[out, in, \*k\]"),
    (nn.Conv2d(4, 4, 3, groups=2), linmaps.LipschitzConv(4, 4, (3, 3), bias=False), "in is in_channels / 2"),
    (nn.Conv2d(3, 4, 3), linmaps.LipschitzConv(3, 4, (3, 3), bias=True), "bias=False"),
    (nn.Conv2d(3, 4, 3), linmaps.Orthogonal(3, 4), r"as a matrix \[4, 27\], expected \[out, in prod\(k\)\]"),
    (nn.Conv1d(3, 4, 3), linmaps.FactorizedConv(3, 4, (3,), n_layers=2, bias=False), "select"),
    (nn.Linear(4, 4), linmaps.Factorized((2, 2), n_layers=2, bias=False), "select"),
]


@pytest.mark.parametrize(("module", "spec", "message"), WRONG)
def test_what_does_not_fit_is_refused(module, spec, message):
    with pytest.raises(ValueError, match=message):
        linmaps.parametrize(copy.deepcopy(module), "weight", spec)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_bound_is_not_promised_where_entries_are_repeated(mode):
    layer, spec = nn.Conv1d(3, 4, 3, padding=2, padding_mode=mode), linmaps.LipschitzConv(3, 4, (3,), bias=False)
    with pytest.raises(ValueError, match="'zeros' or 'circular'"):
        linmaps.parametrize(layer, "weight", spec)
    linmaps.parametrize(layer, "weight", linmaps.FactorizedConv(3, 4, (3,), bias=False))


AROUND = [(1, 1, 3, True), (0, 1, 2, True), (2, 2, 3, True), ("same", 1, 2, True), ("same", 2, 4, True),
          (1, 1, 2, False), (2, 1, 3, False), (1, 1, 1, False), (3, 2, 3, False)]  # fmt: skip


@pytest.mark.parametrize(("padding", "dilation", "k", "fine"), AROUND)
def test_a_bound_is_promised_around_a_circle_where_no_output_comes_twice(padding, dilation, k, fine):
    layer = nn.Conv1d(1, 1, k, padding=padding, dilation=dilation, padding_mode="circular", bias=False).double()
    nn.init.ones_(layer.weight)
    spec = linmaps.LipschitzConv(1, 1, (k,), bias=False)
    if fine:
        linmaps.parametrize(layer, "weight", spec)
    else:
        with pytest.raises(ValueError, match=r"gives outputs twice.*padding='same'"):
            linmaps.parametrize(layer, "weight", spec)
        with torch.no_grad():
            layer.weight.copy_(spec.from_kernel(layer.weight)[0]["kernel"])
    norm = torch.linalg.matrix_norm(torch.func.jacrev(layer)(torch.zeros(1, 8, dtype=torch.float64))[0, :, 0], 2)
    assert bool(norm <= 1 + 1e-12) == fine


def test_a_spec_says_that_it_is_no_weight():
    spec = dataclasses.replace(linmaps.Orthogonal(18, 5), bias=True)
    with pytest.raises(ValueError, match="bias=False"):
        linmaps.parametrize(nn.Conv2d(2, 5, 3), "weight", spec)
