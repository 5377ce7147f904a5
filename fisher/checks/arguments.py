"""Params and inputs as matrices take them: a dict for any mapping, parameters of modules without their graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from fisher.checks import doors, finiteness
from fisher.checks.placements import whole
from linmaps import trees
from linmaps.trees.mappings import plain


def parameters(params: Any, finite: bool = False) -> Any:
    """params with a dict for any mapping and each nn.Parameter detached; TypeError for leaves that are not floating.

    Any other tensor that requires a gradient keeps its graph; a DTensor is gathered.
    finite: ValueError for NaN and infinite entries.

    >>> import torch
    >>> parameters(torch.nn.ParameterDict({"w": torch.ones(2)}))
    {'w': tensor([1., 1.])}
    """
    params = plain(params)
    doors.check_parameters(params)
    params = detached(params)
    if finite:
        finiteness.finite(params, "params", "the training has diverged: go back to finite parameters")
    return params


def detached(params: Any) -> Any:
    """params with each nn.Parameter detached, so that no result keeps the graph of a batch; other tensors keep theirs.

    Of a DTensor (as FSDP2 shards params) the full tensor is gathered, by all processes of its mesh.

    >>> import torch
    >>> detached({"w": nn.Parameter(torch.ones(1))})["w"].requires_grad
    False
    """
    return whole(trees.map(lambda t: t.detach() if isinstance(t, nn.Parameter) else t, params))
