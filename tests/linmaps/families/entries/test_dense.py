"""Dense maps against torch.nn.Linear."""

import torch

import linmaps
from tests.linmaps.zoo import generator, random_params


def test_same_function_as_the_layer_of_torch():
    spec = linmaps.Linear(4, 3, bias=True)
    params, x = random_params(spec, 0), torch.randn(5, 4, generator=generator(1), dtype=torch.float64)
    want = torch.nn.functional.linear(x, params["W"].T, params["bias"])
    assert torch.allclose(spec.apply(params, x), want, rtol=0, atol=1e-15)
    assert spec.violation(100 * params["W"]) == 0


def test_init_bound_is_the_fan_in():
    for rows, columns in ((400, 3), (3, 400)):
        W = random_params(linmaps.Linear(rows, columns), 0)["W"]
        assert 0.98 * rows**-0.5 <= W.abs().max() <= rows**-0.5


def test_identity_follows_x():
    spec = linmaps.Identity(3, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        y = spec.apply({}, torch.ones(2, 3, dtype=dtype))
        assert y.dtype == dtype
        assert torch.equal(y, torch.tensor([1.0, 1, 1, 0, 0], dtype=dtype).expand(2, 5))
        assert spec.effective_W({}, dtype=dtype).dtype == dtype
    assert spec.effective_W({}).dtype == torch.get_default_dtype()
    assert spec.effective_W({}, device="meta").device.type == "meta"
    assert spec.init(torch.Generator()) == {}
    assert linmaps.Identity(2, bias=True).shapes() == {"bias": (2,)}
    assert torch.equal(linmaps.Identity(5, 3).apply({}, torch.arange(5.0)), torch.arange(3.0))


def test_identity_over_an_ensemble_of_inputs():
    assert torch.equal(torch.func.vmap(lambda x: linmaps.Identity(2).apply({}, x))(torch.eye(2)), torch.eye(2))
