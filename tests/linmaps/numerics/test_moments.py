"""Second moments: by panels they are the product, symmetric to rounding."""

import pytest
import torch

from linmaps.numerics.moments import second_moment


@pytest.mark.parametrize("width", [1, 7, 99, 100, 250, 900])
@pytest.mark.parametrize("over", [1, 5])
def test_a_second_moment_by_panels_is_the_product(width, over):
    R = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    flat = R.reshape(6, width)
    assert torch.allclose(second_moment(R, over), flat.T @ flat / over, rtol=0, atol=1e-12)
    assert torch.allclose(second_moment(R), second_moment(R).T, rtol=0, atol=1e-14)
