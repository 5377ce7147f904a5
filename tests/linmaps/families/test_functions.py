"""Free functions: reflections one by one against all at once, the straight-through derivative in every mode."""

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import linmaps
from tests.linmaps.zoo import generator


@pytest.mark.parametrize("k", [0, 1, 3, 7])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 2, 5), (0, 5)])
def test_reflections_in_order(k, shape):
    U = torch.randn(k, 5, generator=generator(0), dtype=torch.float64)
    x = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    want = x.numpy()
    for u in U.numpy():
        want = want - 2 * np.outer(want @ u, u).reshape(shape) / (u @ u)
    assert np.allclose(linmaps.hprod(x, U).numpy(), want, atol=1e-14)


def test_reflections_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"hprod: x has shape \(3,\) and U \(2, 4\), expected \[..., n\] and \[k, n\]"):
        linmaps.hprod(torch.ones(3), torch.ones(2, 4))


def test_straight_through():
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert torch.equal(linmaps.identity_grad_relu(x), torch.tensor([0.0, 0.0, 3.0]))
    for derivative in (grad, jacrev, jacfwd):
        assert torch.equal(vmap(derivative(linmaps.identity_grad_relu))(x), torch.ones(3))
    assert torch.equal(vmap(grad(grad(linmaps.identity_grad_relu)))(x), torch.zeros(3))
