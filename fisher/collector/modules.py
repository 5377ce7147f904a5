"""A torch.nn.Module as a pure function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def called(module: nn.Module) -> Callable[[Mapping[str, Tensor], Any], Any]:
    """`f(params, x)`: the module run with these parameters, `{name: tensor}` as `named_parameters` has them, left as it was.

    A parameter that two modules share is one leaf; so is that of a module registered under two names, which torch's own
    tying of weights would replace twice and restore wrongly.

    >>> import torch
    >>> one = nn.Linear(2, 2, bias=False)
    >>> f = called(nn.ModuleDict({"a": one, "b": nn.Sequential(one, nn.Tanh())})["b"])
    >>> f({"0.weight": torch.eye(2)}, torch.zeros(1, 2))
    tensor([[0., 0.]])
    """
    first = {id(t): name for name, t in module.named_parameters()}
    known = {name: first[id(t)] for name, t in module.named_parameters(remove_duplicate=False)}
    places: dict[str, list[str]] = {}
    for prefix, part in module.named_modules():
        for own, t in part.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(first[id(t)], []).append(f"{prefix}.{own}" if prefix else own)

    def f(params: Mapping[str, Tensor], x: Any) -> Any:
        whole: dict[str, Tensor] = {}
        for name, t in params.items():
            shared = places.get(known.get(name, name), [name])
            whole |= {place: t for place in shared if place == name or place not in params}
        return functional_call(module, whole, (x,), tie_weights=False)

    return f
