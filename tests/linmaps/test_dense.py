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
