"""The doors of function space and of second derivatives: what each entry point does with what it should refuse."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fisher import check
from linmaps import trees


def model(*layers: nn.Module) -> tuple:
    net = nn.Sequential(*layers).double()
    params = {
        k: torch.cos(torch.arange(1.0, t.numel() + 1).double()).reshape(t.shape) for k, t in net.named_parameters()
    }
    return net, params, lambda p, x: functional_call(net, p, (x,))


def inputs(batch: int = 6) -> Tensor:
    return torch.sin(torch.arange(batch * 3.0).double() ** 2).reshape(batch, 3)


def zero_after_dropout() -> tuple:
    """Noise that shows in gradients alone: dropout before weights that start at zero."""
    net, params, f = model(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    return net, params | {"2.weight": torch.zeros(2, 8).double()}, f


RANDOM = {
    "dropout": lambda: model(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)),
    "little dropout": lambda: model(nn.Linear(3, 64), nn.Dropout(0.05), nn.Tanh(), nn.Linear(64, 2)),
    "feature dropout": lambda: model(nn.Linear(3, 8), nn.FeatureAlphaDropout(0.5), nn.Tanh(), nn.Linear(8, 2)),
    "before zeros": zero_after_dropout,
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_function_does_not_repeat(name):
    _, params, f = RANDOM[name]()
    with pytest.raises(ValueError, match=r"is random.*eval"):
        check.repeatable(f, params, inputs())


def test_a_random_member_does_not_repeat_under_vmap():
    _, params, f = RANDOM["dropout"]()
    both = trees.stack([params, params])
    for randomness in ("error", "same", "different"):
        with pytest.raises(ValueError, match=r"is random.*eval"):
            vmap(lambda p: check.repeatable(f, p, inputs())[0], randomness=randomness)(both)


def test_deterministic_functions_repeat():
    """In eval mode, with NaN in the data, and where drawn numbers are not used: what repeats passes, unchanged."""
    net, params, f = RANDOM["dropout"]()
    net.eval()
    x = inputs()
    y, back = check.repeatable(f, params, x)
    assert torch.equal(y, f(params, x))
    assert torch.equal(
        back(torch.ones_like(y))[0]["0.bias"], vjp(lambda p: f(p, x), params)[1](torch.ones_like(y))[0]["0.bias"]
    )
    broken = x.clone()
    broken[0, 0] = torch.nan
    check.repeatable(f, params, broken)
    drawn = lambda p, x: functional_call(nn.Linear(3, 2), p, (x,))  # draws what params replace
    check.repeatable(drawn, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, x.float())
    vmap(lambda p: check.repeatable(f, p, x)[0])(trees.stack([params, params]))


def test_rounding_is_no_randomness():
    t = torch.linspace(-1, 1, 50)
    assert check.repeats(t, t * (1 + 1e-6))
    assert not check.repeats(t, t * (1 + 1e-3))
    assert check.repeats(t[:0], t[:0])
    assert not check.repeats(t, t[:3])
