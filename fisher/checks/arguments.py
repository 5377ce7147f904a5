"""Params and inputs as matrices take them: a dict for any mapping, parameters of modules without their graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fisher.checks import doors, finiteness
from fisher.checks.placements import whole
from linmaps import trees
from linmaps.trees.mappings import plain
from linmaps.trees.seals import sealed

DIVERGED = "the training has diverged: go back to finite parameters"


def parameters(params: Any, finite: bool = False) -> Any:
    """params with a dict for any mapping and each nn.Parameter detached; TypeError for leaves that are not floating.

    Any other tensor that requires a gradient keeps its graph; a DTensor is gathered.
    finite: ValueError for NaN and infinite entries.

    >>> import torch
    >>> parameters(torch.nn.ParameterDict({"w": torch.ones(2)}))
    {'w': tensor([1., 1.])}
    """
    if type(params) is dict and params and all(map(_kept, params.values())):
        params = dict(params)  # as nearly always
    else:
        params = plain(params)
        doors.check_parameters(params)
        params = detached(params)
    if finite:
        finiteness.finite(params, "params", DIVERGED)
    return params


def _kept(t: Any) -> bool:
    """Whether a leaf is taken as it is: a dense floating tensor, and none of a class of its own."""
    return type(t) is Tensor and t.is_floating_point() and t.layout == torch.strided


def inputs(x: Any, name: str = "x") -> Any:
    """x as f takes it, `sealed`; TypeError for a tensor that is not dense.

    >>> inputs(torch.eye(2).to_sparse())
    Traceback (most recent call last):
    TypeError: x: got a tensor of layout torch.sparse_coo, expected a dense one; convert it with .to_dense()
    """
    x = sealed(x, name)
    for path, t in zip(trees.paths(x), trees.leaves(x)):
        if isinstance(t, Tensor) and t.layout != torch.strided:
            where = f"{name}: {trees.path_str(path)}" if path else name
            raise TypeError(
                f"{where}: got a tensor of layout {t.layout}, expected a dense one; convert it with .to_dense()"
            )
    return x


def detached(params: Any) -> Any:
    """params with each nn.Parameter detached, so that no result keeps the graph of a batch; other tensors keep theirs.

    Of a DTensor (as FSDP2 shards params) the full tensor is gathered, by all processes of its mesh.

    >>> import torch
    >>> detached({"w": nn.Parameter(torch.ones(1))})["w"].requires_grad
    False
    """
    return whole(trees.map(lambda t: t.detach() if isinstance(t, nn.Parameter) else t, params))
