"""From the modules of other libraries to a spec and its params, by value: nothing is shared with the module."""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.base import Map
from linmaps.dense import Linear


def from_module(module: torch.nn.Module) -> tuple[Map, dict[str, Tensor]]:
    """The spec and params with `spec.apply(params, x) == module(x)` for a `torch.nn.Linear`.

    W [in, out] is a copy of the transposed weight [out, in]; the bias, if the module has one, is copied too.

    TypeError for any other module.

    >>> import torch, linmaps
    >>> module = torch.nn.Linear(3, 2)
    >>> spec, params = linmaps.from_module(module)
    >>> spec
    Linear(in_features=3, out_features=2, bias=True)
    >>> x = torch.ones(4, 3)
    >>> torch.allclose(spec.apply(params, x), module(x))
    True
    """
    if not isinstance(module, torch.nn.Linear) or isinstance(module.weight, torch.nn.UninitializedParameter):
        raise TypeError(
            f"from_module: got {type(module).__name__}, expected an initialised torch.nn.Linear; for anything else "
            "choose a spec of linmaps.maps and copy its leaves, whose shapes spec.shapes() tells"
        )
    params = {"W": module.weight.detach().mT.clone(memory_format=torch.contiguous_format)}
    if module.bias is not None:
        params["bias"] = module.bias.detach().clone()
    return Linear(module.in_features, module.out_features, bias=module.bias is not None), params
