"""Whether a torch module does what its class says, and its tensors, read without moving anything."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

REMOVE = "handle.remove(), torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove"


def check_untouched(module: torch.nn.Module, who: str, *, parametrized: bool = False) -> None:
    """Raise unless what the module does is what its class says: no hook, no forward of the instance, no parametrization.

    parametrized: allow the last, where the value of the weight is all that matters.
    """
    title = f"{who}: {type(module).__name__}"
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooks:
        names = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks)
        raise ValueError(
            f"{title} has forward hooks ({names}), expected none, as what they do to weights and results is not seen; remove "
            f"them before ({REMOVE})"
        )
    if "forward" in vars(module) or type(module).__call__ is not torch.nn.Module.__call__:
        raise TypeError(f"{title} has a forward of its own, expected that of its class; give its weight as a tensor")
    if is_parametrized(module) and not parametrized:
        made = {name: [type(p).__name__ for p in found] for name, found in module.parametrizations.items()}  # type: ignore[union-attr, operator]
        raise ValueError(
            f"{title} is parametrized, {made}, and no spec of this name keeps what that promises; take the map of "
            "linmaps.maps that does and its from_matrix(weight.T), or drop the promise before, by "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        )


def parametrized(module: torch.nn.Module) -> list[str]:
    """The names of its tensors that are."""
    return list(module.parametrizations) if is_parametrized(module) else []  # type: ignore[arg-type]


def has_forward_of(module: torch.nn.Module, base: type[torch.nn.Module]) -> bool:
    """Whether module is a base that does what base does: itself, or of a derived class that changes no forward."""
    return isinstance(module, base) and type(module).forward is base.forward


def initialised(module: torch.nn.Module) -> bool:
    """Whether its parameters have values, as those of lazy modules have not."""
    return not any(is_lazy(p) for p in module._parameters.values() if p is not None)


def check_whole(module: torch.nn.Module, who: str) -> None:
    """Raise unless the module has parameters with values, and code that can be run with others."""
    for name, part in module.named_modules():
        title = f"{who}: {name or type(part).__name__}"
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{title} is a program of torch.jit ({type(part).__name__}), expected the torch.nn.Module that it was made of"
            )
        if not initialised(part):
            raise ValueError(f"{title} has no values yet, expected a module that has seen data; run it once before")


def value_of(module: torch.nn.Module, name: str) -> Tensor:
    """A tensor of the module, detached; a parametrization that counts its calls, as that of spectral norm, is not moved."""
    t: Tensor = getattr(copy.deepcopy(module) if is_parametrized(module) else module, name)
    return t.detach()
