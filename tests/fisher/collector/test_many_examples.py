"""Witnesses where one weight for each example is not enough: more examples than FEW, in float32 and float64."""

import pytest
import torch

import fisher
from fisher.collector.witness import FEW
from tests.fisher.collector.test_rules import randn
from tests.laws import close

DTYPES = [torch.float32, torch.float64]
SIZES = [FEW, FEW + 1, 150]


def params(dtype):
    return {"w": randn(3, 4).to(dtype), "v": randn(4, 2).to(dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_the_axis_of_the_examples_is_found_beside_one_as_long(n, dtype):
    """Positions first inside f, as many as examples; read at the first alone."""
    f = lambda p, x: (torch.tanh(x.transpose(0, 1) @ p["w"])[0] + x.mean(1) @ p["w"]) @ p["v"]
    x = randn(n, n, 3).to(dtype)
    layers = fisher.LayerCollection.from_function(f, params(dtype), x)
    assert [layers.uses[k].axis for k in layers["w"].uses] == [1, 0]
    diag = fisher.fim(f, params(dtype), x[:5], fisher.PMatDiag, "gaussian", layers=layers).get_diag()
    J = fisher.jacobian(f, params(dtype), x[:5]).jacobian
    for name, t in diag.items():
        close(t, (J[name] ** 2).sum((0, 1)) / 5, 1e-4 if dtype == torch.float32 else 1e-12, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("neighbours", ["two in the middle", "all"])
def test_examples_that_mix_are_refused(n, dtype, neighbours):
    """Also where neither the first nor the last takes part."""

    def f(p, x):
        z = torch.tanh(x @ p["w"])
        k = n // 2
        if neighbours == "all":
            return (z + 0.1 * z.mean(0)) @ p["v"]
        mixed = torch.cat([z[:k], z[k + 1 : k + 2] + z[k : k + 1], z[k + 1 :]])
        return mixed @ p["v"]

    with pytest.raises(ValueError, match="examples"):
        fisher.LayerCollection.from_function(f, params(dtype), randn(n, 3).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_two_examples_that_change_places_are_no_batch(n, dtype):
    """What is computed for one example stands at the place of another one, and is brought back."""

    def f(p, x):
        order = torch.arange(len(x))
        if len(x) == n:
            order[n // 2], order[n // 2 + 1] = n // 2 + 1, n // 2
        return torch.tanh(x[order] @ p["w"])[order] @ p["v"]

    layers = fisher.LayerCollection.from_function(f, params(dtype), randn(n, 3).to(dtype))
    assert layers["w"].note == "its batch axis was not found"
    assert layers["v"].kronecker
