"""Statistics of the batch, as batch norm in train mode takes them: constants of the curvature, running averages of params."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fisher.collector.collection import LayerCollection
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import names

Statistics = Callable[[Any, Any], Mapping[Any, Tensor]]


def of_batch(statistics: Statistics | None, params: Any, x: Any) -> dict[str, Tensor]:
    """{path: value} of the leaves that are statistics of the batch, without derivatives.

    Raises TypeError for no mapping, ValueError for paths that are no leaves and for other shapes.

    >>> import torch
    >>> of_batch(lambda p, x: {"mean": x.mean(0)}, {"w": torch.ones(1), "mean": torch.zeros(2)}, torch.ones(3, 2))
    {'mean': tensor([1., 1.])}
    """
    if statistics is None:
        return {}
    found = statistics(params, x)
    if not isinstance(found, Mapping):
        raise TypeError(f"statistics: returned {type(found).__name__}, expected a mapping {{path of a leaf: tensor}}")
    known = dict(zip(names(trees.paths(params)), trees.leaves(params)))
    made = {path_str(path): value for path, value in found.items()}
    for path, value in made.items():
        if path not in known:
            raise ValueError(f"statistics: {path}: no such leaf of params, expected some of {list(known)}")
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if got != tuple(known[path].shape):
            raise ValueError(
                f"statistics: {path}: got {got}, expected the shape of the leaf {tuple(known[path].shape)}"
            )
    return {path: value.detach().to(known[path].dtype) for path, value in made.items()}


def standing_in(params: Any, values: Mapping[str, Tensor]) -> Any:
    """params with these values at their paths.

    >>> import torch
    >>> standing_in({"w": torch.ones(1), "mean": torch.zeros(1)}, {"mean": torch.ones(1)})
    {'w': tensor([1.]), 'mean': tensor([1.])}
    """
    if not values:
        return params
    flat, treedef = trees.flatten(params)
    return treedef.unflatten([values.get(path, t) for path, t in zip(names(trees.paths(params)), flat)])


def held(f: Callable[..., Tensor], values: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """f with the leaves at these paths as constants: torch's batch norm has no derivative by them.

    >>> import torch
    >>> f = held(lambda p, x: x * p["w"] + p["mean"], {"mean": torch.ones(1)})
    >>> torch.func.grad(lambda p: f(p, torch.ones(1)).sum())({"w": torch.ones(1), "mean": torch.ones(1)})
    {'w': tensor([1.]), 'mean': tensor([0.])}
    """
    if not values:
        return f

    def fixed(params: Any, x: Any) -> Tensor:
        flat, treedef = trees.flatten(params)
        paths = names(trees.paths(params))
        return f(treedef.unflatten([t.detach() if p in values else t for p, t in zip(paths, flat)]), x)

    return fixed


def without(layers: LayerCollection, values: Mapping[str, Tensor], given: bool) -> LayerCollection:
    """The layers of which no leaf is a statistic; ValueError for given ones with such a leaf."""
    if not values:
        return layers
    every = names(layers.layout.paths)
    touched = [layer.name for layer in layers if any(every[n] in values for n in layer.leaves)]
    if touched and given:
        raise ValueError(
            f"layers: {touched[0]} holds statistics of the batch, expected layers without; use layers.remove({touched[0]!r})"
        )
    return layers.select(lambda layer: layer.name not in touched)
