"""Statistics of the batch, as batch norm in train mode takes them: constants of the curvature, running averages of params.

A function is normalized by its batch by `in_train_mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.checks import doors
from fisher.collector.collection import LayerCollection
from fisher.collector.rules.match import bind
from fisher.collector.watching.known import Known, tensors, tensors_of
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees import path_str
from linmaps.trees.keys import names

Statistics = Callable[[Any, Any], Mapping[Any, Tensor]]
CALLS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}

OTHERS = (F.instance_norm, torch.instance_norm)
DATA: Any = torch.Tensor.data
SAME = (torch.Tensor.detach, DATA.__get__)  # the same leaf, without a derivative


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
            f"layers: {touched[0]} holds statistics of the batch, expected layers without; use "
            f"layers.remove({', '.join(map(repr, touched))})"
        )
    return layers.select(lambda layer: layer.name not in touched)


def in_train_mode(f: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Statistics]:
    """`(trained, statistics)` of an f with batch norm in eval mode whose running averages are leaves of params.

    trained(params, x): f with x normalized by the means and variances of x, as in train mode, whose gradient goes through
    them; its rows depend on each other.  statistics(params, x): `{path: value}`, what the leaves that are running averages
    would be of this batch alone; the variances are those that it is normalized by, over n and not over n - 1.

    Together they train a network with `kfac` as torch does in train mode: `kfac(f, statistics=statistics)`, given gradients of
    the loss of `trained`.  Dropout stays off.  Maps by vmap over stacked params.

    A batch norm whose running averages are constants of f stays as it is.  Both raise ValueError where no batch norm reads
    leaves of params; where one is in train mode, reads a leaf beside a constant, or what is made of leaves; and for one that
    is called twice, whose statistics would be two.

    Ioffe and Szegedy (2015).

    >>> import torch, fisher
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    ... )
    >>> f, params = fisher.functional(model.eval(), buffers=True)
    >>> trained, statistics = in_train_mode(f)
    >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(trained(params, x), model.train()(x)), list(statistics(params, x))
    (True, ['1.running_mean', '1.running_var'])
    """
    f = doors.function(f)

    def run(params: Any, x: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with _Normalizing(params) as mode:
            y = f(params, x)
        if not mode.found:
            raise ValueError(
                "f: calls no batch norm in eval mode whose running averages are leaves of params, expected one; for a module "
                "f, params = fisher.functional(module.eval(), buffers=True)"
            )
        return y, mode.found

    return (lambda params, x: run(params, x)[0]), (lambda params, x: run(params, x)[1])


class _Normalizing(TorchFunctionMode):
    """Batch norms by the batch; `found` are the means and variances that stand in for leaves."""

    def __init__(self, params: Any) -> None:
        super().__init__()
        leaves = trees.leaves(params)
        self.paths = dict(zip(map(id, leaves), names(trees.paths(params))))
        self.made = Known()  # of leaves alone
        self.alive = list(leaves)
        self.found: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            given = dict(zip(CALLS[func], bind(CALLS[func], args, kwargs, (None,) * 6 + (0.1, 1e-5))))
            if self._reads_leaves(**given):
                return self._normalized(**given)
        if func in OTHERS:
            mean = bind(("input", "running_mean"), args[:2], kwargs, (None, None))[1]
            if id(mean) in self.paths:
                raise ValueError(
                    f"{self.paths[id(mean)]}: is the running mean of an instance norm, which in train mode takes those of each "
                    "example, expected batch norms alone"
                )
        out = func(*args, **kwargs)
        if func in SAME and id(args[0]) in self.paths:
            self.paths[id(out)] = self.paths[id(args[0])]
            self.alive.append(out)
        elif (held := tensors(args, kwargs)) and all(id(t) in self.paths or t in self.made for t in held):
            self.made.update(t for t in tensors_of(out) if id(t) not in self.paths)
        return out

    def _reads_leaves(self, running_mean: Any, running_var: Any, training: Any, **_: Any) -> bool:
        """Whether the running averages are leaves; ValueError for those of which a part is."""
        pair = {"mean": running_mean, "variance": running_var}
        own = {name: self.paths.get(id(t)) for name, t in pair.items()}
        path = own["mean"] or own["variance"]
        if path is None:
            for name, t in pair.items():
                if isinstance(t, Tensor) and t in self.made:
                    raise ValueError(
                        f"f: the running {name} of a batch norm is made of leaves of params, expected a leaf, which statistics "
                        "name by its path"
                    )
            return False
        if training:
            raise ValueError(
                f"{path}: its batch norm is in train mode, in which it changes what it is given, expected eval mode; for a "
                "module f, params = fisher.functional(module.eval(), buffers=True)"
            )
        if None in own.values():
            raise ValueError(
                f"{path}: the running {'variance' if own['mean'] else 'mean'} beside it is no leaf of params, expected mean and "
                "variance to be leaves, or neither"
            )
        return True

    def _normalized(
        self, input: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float, **_: Any
    ) -> Tensor:
        axes = [k for k in range(input.ndim) if k != 1]
        wide = working(input)
        if wide.numel() <= wide.shape[1]:
            raise ValueError(
                f"{self.paths[id(running_mean)]}: got {tuple(input.shape)}, fewer than two values for each channel, expected "
                "several: they have no variance"
            )
        mean, var = wide.mean(axes, keepdim=True), wide.var(axes, correction=0, keepdim=True)
        for leaf, value in ((running_mean, mean), (running_var, var)):
            path = self.paths[id(leaf)]
            if path in self.found:
                raise ValueError(
                    f"{path}: the batch norm of it is called twice, with statistics of its own each time, expected once"
                )
            self.found[path] = value.flatten()
        out = (wide - mean) * (
            var + eps
        ).rsqrt()  # by formula: torch's call has other second derivatives in forward mode
        shape = (-1, *[1] * (input.ndim - 2))
        out = out if weight is None else out * weight.reshape(shape)
        return (out if bias is None else out + bias.reshape(shape)).to(input.dtype)
