"""Products of maps with data, and their matrices, as calls that a TorchFunctionMode sees whole.

Whatever way a map computes, `product(Use(...), params, x)` is one call for those who watch: a use of the matrix
`use.weight(params)` by the torch call `use.call`.  Without a mode it is `use.run(params, x)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from linmaps import trees


@dataclass(frozen=True)
class Use:
    """How a map is used: `run(params, x)` equals `call(x, weight(params), *rest)`.

    name: of the map, in snake case; shape: of its matrix; bias: the key of params that is the first of `rest`, if any; lends:
    keys of params that say a dtype and a device, and nothing of the matrix.
    """

    name: str
    run: Callable[[Any, Tensor], Tensor]
    weight: Callable[[Any], Tensor]
    shape: tuple[int, ...]
    call: Callable[..., Tensor] = torch.matmul
    rest: tuple[Any, ...] = ()
    bias: str | None = None
    lends: tuple[str, ...] = ()


def product(use: Use, params: Any, x: Tensor) -> Tensor:
    """`use.run(params, x)`, one call for a mode that watches.

    >>> import torch
    >>> product(Use("twice", lambda p, x: 2 * (x @ p), lambda p: 2 * p, (2, 2)), torch.eye(2), torch.ones(1, 2))
    tensor([[2., 2.]])
    """
    if has_torch_function((x,)):
        return handle_torch_function(product, (x,), use, params, x)
    return use.run(params, x)


def matrix(use: Use, params: Any) -> Tensor:
    """`use.weight(params)`, one call for a mode that watches."""
    leaves = trees.leaves(params)
    if leaves and has_torch_function((leaves[0],)):
        return handle_torch_function(matrix, (leaves[0],), use, params)
    return use.weight(params)


def watched(params: Any) -> bool:
    """Whether a mode may watch a call with these params: without one, `matrix` and `product` are their functions alone."""
    leaf = next(iter(params.values()), None) if type(params) is dict else params
    return has_torch_function((leaf if isinstance(leaf, Tensor) else next(iter(trees.leaves(params)), None),))
