"""Laws of modules that are read: one that does more than its class says is refused, and none is moved."""

import copy

import pytest
import torch
from torch import nn

from linmaps.checks.modules import check_untouched, has_forward_of, initialised, value_of


def hooked():
    module = nn.Linear(2, 2)
    module.register_forward_pre_hook(lambda module, args: args)
    return module


def shadowed():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x
    return module


def parametrized():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))


REFUSED = {
    hooked: (ValueError, "forward hooks"),
    shadowed: (TypeError, "a forward of its own"),
    parametrized: (ValueError, "is parametrized"),
}


@pytest.mark.parametrize("make", REFUSED)
def test_what_does_more_than_its_class_says_is_refused(make):
    error, message = REFUSED[make]
    with pytest.raises(
        error, match=rf"^reader: (Parametrized)?Linear .*{message}|^reader: (Parametrized)?Linear {message}"
    ):
        check_untouched(make(), "reader")


def test_a_plain_module_is_taken():
    check_untouched(nn.Linear(2, 2), "reader")
    check_untouched(parametrized(), "reader", parametrized=True)


def test_a_value_is_read_without_moving_the_module():
    module = parametrized().train()
    before = copy.deepcopy(module.state_dict())
    value = value_of(module, "weight")
    assert not value.requires_grad
    assert all(torch.equal(t, before[k]) for k, t in module.state_dict().items())


def test_a_derived_class_counts_unless_it_changes_forward():
    class Same(nn.Linear):
        pass

    class Other(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert has_forward_of(Same(2, 2), nn.Linear)
    assert not has_forward_of(Other(2, 2), nn.Linear)
    assert not has_forward_of(nn.Tanh(), nn.Linear)


def test_lazy_modules_are_not_initialised():
    assert initialised(nn.Linear(2, 2))
    assert not initialised(nn.LazyLinear(2))
