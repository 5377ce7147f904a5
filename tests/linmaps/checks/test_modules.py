"""Laws of modules that are read: one that does more than its class says is refused, and none is moved."""

import copy

import pytest
import torch
from torch import nn

import fisher
import growth
import linmaps
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


UNREADY = {
    "script": (lambda: torch.jit.script(nn.Linear(3, 3)), TypeError, "a program of torch.jit"),
    "trace": (lambda: torch.jit.trace(nn.Linear(3, 3), torch.ones(1, 3)), TypeError, "a program of torch.jit"),
    "lazy": (lambda: nn.LazyLinear(3), ValueError, "LazyLinear has no values yet"),
    "holds a lazy one": (lambda: nn.Sequential(nn.Tanh(), nn.LazyLinear(3)), ValueError, "1 has no values yet"),
}
DOORS = {
    "functional": lambda module: fisher.functional(module),
    "into_module": lambda module: growth.into_module(module, {}),
    "parametrize": lambda module: linmaps.parametrize(module, "weight", linmaps.Linear(3)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", UNREADY)
def test_every_door_for_modules_says_what_is_no_whole_module(kind, door):
    make, error, message = UNREADY[kind]
    with pytest.raises(error, match=message):
        DOORS[door](make())


def test_a_module_that_copies_its_parameters_is_refused():
    with pytest.raises(TypeError, match=r"^module: got DataParallel, .* expected the module in it: module.module$"):
        fisher.functional(nn.Sequential(nn.DataParallel(nn.Linear(3, 3))))


def test_a_complex_weight_takes_no_map_of_real_matrices():
    layer = nn.Linear(3, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"^Orthogonal.*has real matrices, .* for weight of torch.complex64$"):
        linmaps.parametrize(layer, "weight", linmaps.Orthogonal(3))
    linmaps.parametrize(layer, "weight", linmaps.Unitary(3))
    linmaps.parametrize(nn.Linear(4, 4, dtype=torch.complex64), "weight", linmaps.Factorized((2, 2), bias=False))
