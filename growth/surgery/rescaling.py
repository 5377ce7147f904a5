"""Rescale the layers around a growth step, so that the variance of activations suits the width to come.

p hidden units before the step, p + k after it; r inputs of `before` U, c; `after` is W, b.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.normalization import deviation
from growth.reading.along import norm_leaves
from growth.reading.layers import Layer
from growth.reading.locate import plain_layers
from growth.reading.pairs import Pair
from growth.surgery.same import Check, Function, asked, same_function
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees.keys import path_str
from linmaps.trees.tree import Tree

Kind = Literal["default", "constraint_old", "constraint_new"]
KINDS = get_args(Kind)
POWERS = {"running_mean": 1, "running_var": 2}


@door("f")
def rescale(
    params: Tree,
    pair: Pair,
    k: int,
    *,
    kind: Kind = "default",
    preserve: bool = False,
    f: Function = None,
    x: Any = None,
    check: Check | None = None,
) -> Tree:
    """`params` with (U, c) times α and (W, b) times β, before k units are added; same sizes, a new tree.

        default          α = 1                  β = √(p / (p + k))
        constraint_old   α = (r Var U)^{-1/2}   β = (p Var W)^{-1/2}
        constraint_new   the same α             β = ((p + k) Var W)^{-1/2}

    with sizes times the kernel for convolutions; a variance of 0, or of a single entry, gives factor 1.  running_mean
    and running_var of `pair.norm` go with α and α².  So r Var U = 1 and p Var W = 1, or (p + k) Var W = 1, afterwards.
    The function is not preserved: for a positively homogeneous σ (σ(α z) = α σ(z), as ReLU) the output y = W σ + b of
    `after` becomes αβ y + β (1 - α) b.

    preserve=True keeps the function of such networks exactly, and β: α is 1/β and b stays,

        W σ(U x + c) + b = (β W) σ((U x + c) / β) + b;

    with a `pair.norm`, whose output does not follow U, its weight and bias are divided by β in place of U and c.  For
    other σ it keeps nothing: f=, x=, the function and some inputs, have it compared, as in `growth.widen`.

    Without hidden units (p = 0) params are returned as they are.
    Raises ValueError for an unknown kind, k < 0, and preserve=True with a norm that has no weight; TypeError unless k is
    an int.
    Source: Yuan, Savarese, Maire, "Accelerated training via incrementally growing neural networks using variance
    transfer and learning rate adaptation" (2023).

    >>> import torch, growth
    >>> params = {"a.weight": torch.ones(1, 2), "b.weight": torch.ones(1, 1), "b.bias": torch.ones(1)}
    >>> growth.rescale(params, growth.Pair("a", "b"), 3)
    {'a.weight': tensor([[1., 1.]]), 'b.weight': tensor([[0.5000]]), 'b.bias': tensor([0.5000])}
    """
    held = asked(f, x, check)
    if held is not None:
        if not preserve:
            raise ValueError(
                "f, x (or check): got them with preserve=False, which changes the function; expected preserve=True"
            )
        same_function(held, params, rescale(params, pair, k, kind=kind, preserve=True), pair)
    count(k)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(KINDS)}")
    before, after = plain_layers(params, pair, "rescale")
    p = before.weight.shape[0]
    if p == 0:
        return params
    width = p if kind == "constraint_old" else p + k
    if kind == "default":
        alpha = beta = working(after.weight).new_ones(())
        beta = (p / width) ** 0.5 * beta
    else:
        alpha = _inverse_deviation(before.flat(before.weight), before.inputs // before.rows)
        beta = _inverse_deviation(after.weight, width * after.taps)
    if len(pair.norms) > 1 or pair.depthwise is not None:
        raise ValueError(
            f"{pair}: rescale got a depthwise convolution or several norms between the layers, expected one norm at most: it is "
            "not said which of them takes the factor"
        )
    norm = {path_str(path).rpartition(".")[2]: (path, leaf) for path, leaf, _ in norm_leaves(params, pair)}
    if preserve:
        params = after.put(params, (beta * after.weight).to(after.weight.dtype))
        if pair.norm is None:
            return cast(Tree, _times(params, before, 1 / beta))
        if "weight" not in norm:
            raise ValueError(
                f"{pair}: the norm {path_str(pair.norms[0])} has no weight, expected one to take the factor of {after.name}; "
                "use preserve=False"
            )
        return cast(Tree, _scaled(params, [norm[n] for n in ("weight", "bias") if n in norm], 1 / beta))
    params = _times(_times(params, before, alpha), after, beta)
    for name, power in POWERS.items():
        params = _scaled(params, [norm[name]] if name in norm else [], alpha**power)
    return params


def _inverse_deviation(weight: Tensor, inputs: int) -> Tensor:
    """(inputs Var)^{-1/2}, and 1 where that is infinite."""
    own = inputs**0.5 * deviation(working(weight))
    return torch.where(own > 0, 1 / torch.where(own > 0, own, 1.0), 1.0)


def _times(params: Any, layer: Layer, factor: Tensor) -> Any:
    """params with the weight and the bias of a layer times a factor."""
    bias = None if layer.bias is None else (factor * layer.bias).to(layer.bias.dtype)
    return layer.put_bias(layer.put(params, (factor * layer.weight).to(layer.weight.dtype)), bias)


def _scaled(params: Any, leaves: list[tuple[Any, Tensor]], factor: Tensor) -> Any:
    for path, leaf in leaves:
        params = trees.replace(params, path, (factor * leaf).to(leaf.dtype))
    return params
