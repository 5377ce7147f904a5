"""Modules become specs and params by value."""

import pytest
import torch

import linmaps


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_module(bias, dtype):
    module = torch.nn.Linear(4, 3, bias=bias, dtype=dtype)
    x = torch.linspace(-1, 1, 20, dtype=dtype).reshape(5, 4)
    spec, params = linmaps.from_module(module)
    assert spec == linmaps.Linear(4, 3, bias=bias)
    assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
    want = module(x).detach()
    assert torch.allclose(spec.apply(params, x), want, rtol=0, atol=1e-6)
    assert not any(t.requires_grad for t in params.values())
    assert all(t.is_contiguous() for t in params.values())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.allclose(spec.apply(params, x), want, rtol=0, atol=1e-6), "shares memory with the module"


def test_a_parametrized_linear_module():
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
    spec, params = linmaps.from_module(module)
    assert torch.allclose(spec.effective_W(params), module.weight.T)


@pytest.mark.parametrize("module", [torch.nn.Conv1d(2, 2, 1), torch.nn.LazyLinear(3), torch.nn.Sequential(), 3])
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=r"expected an initialised torch.nn.Linear; .* choose a spec of linmaps.maps"):
        linmaps.from_module(module)
