"""Functions with batch norm in train mode: normalized by the batch, and the statistics that did it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fisher.checks import doors
from fisher.collector.rules.match import bind
from fisher.recipes.optimizers.batchnorm import Statistics
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees.keys import names

CALLS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}


def in_train_mode(f: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], Statistics]:
    """`(trained, statistics)` of an f with batch norm in eval mode whose running averages are leaves of params.

    trained(params, x): f with x normalized by the means and variances of x, as in train mode, whose gradient goes through
    them; its rows depend on each other.  statistics(params, x): `{path: value}`, what the leaves that are running averages
    would be of this batch alone; the variances are those that it is normalized by, over n and not over n - 1.

    Together they train a network with `kfac` as torch does in train mode: `kfac(f, statistics=statistics)`, given gradients of
    the loss of `trained`.  Dropout stays off.  Maps by vmap over stacked params.

    Both raise ValueError where no batch norm reads leaves of params, and for one that is called twice, whose statistics
    would be two.

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
        self.alive = list(leaves)
        self.found: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CALLS:
            given = dict(zip(CALLS[func], bind(CALLS[func], args, kwargs, (None,) * 6 + (0.1, 1e-5))))
            if not given["training"] and id(given["running_mean"]) in self.paths:
                return self._normalized(**given)
        out = func(*args, **kwargs)
        if func is torch.Tensor.detach and id(args[0]) in self.paths:  # the same leaf, without a derivative
            self.paths[id(out)] = self.paths[id(args[0])]
            self.alive.append(out)
        return out

    def _normalized(
        self, input: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float, **_: Any
    ) -> Tensor:
        axes = [k for k in range(input.ndim) if k != 1]
        wide = working(input)
        if wide.numel() <= wide.shape[1]:
            raise ValueError(
                f"{self.paths[id(running_mean)]}: got {tuple(input.shape)}, a single value for each channel, expected several: "
                "their variance is 0"
            )
        mean, var = wide.mean(axes, keepdim=True), wide.var(axes, correction=0, keepdim=True)
        for leaf, value in ((running_mean, mean), (running_var, var)):
            path = self.paths.get(id(leaf), "")
            if path in self.found:
                raise ValueError(
                    f"{path}: the batch norm of it is called twice, with statistics of its own each time, expected once"
                )
            self.found |= {path: value.flatten()} if path else {}
        out = (wide - mean) * (
            var + eps
        ).rsqrt()  # by formula: torch's call has other second derivatives in forward mode
        shape = (-1, *[1] * (input.ndim - 2))
        out = out if weight is None else out * weight.reshape(shape)
        return (out if bias is None else out + bias.reshape(shape)).to(input.dtype)
