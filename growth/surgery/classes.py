"""More classes for an output layer, the old logits kept.  C old classes, n new ones, p inputs of the layer."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.reading.layers import Layer, layer_at
from growth.reading.pairs import LayoutName, check_layout
from growth.surgery.resize import MOST
from linmaps import trees
from linmaps.checks import number, size
from linmaps.numerics.dtypes import working
from linmaps.trees.keys import Path
from linmaps.trees.tree import Tree

Rows = Literal["mean", "zero"]


@door()
def add_classes(
    params: Tree,
    layer: str | Path,
    n: int,
    *,
    weight: Rows | Tensor = "mean",
    bias: float | Tensor | None = None,
    probability: float | Tensor | None = None,
    layout: LayoutName = "out_in",
) -> Tree:
    """`params` with n more outputs of a layer, behind the old ones, whose logits are the same to rounding.

        W [C, p] -> [W; X],   b [C] -> [b; c]

    Old entries stay bit by bit; their products may be summed in another order where the matrix has more rows.
    weight: "mean", X_j the mean of the old rows, and c_j that of the old biases, so that each new logit is the mean z̄ of the
    old ones; "zero", X = 0 and c = 0, so that it is the bias alone; or X `[n, p]` itself.
    probability: for "mean", a bound P on what softmax gives to all new classes together, whatever the input:

        c_j = mean b + log(P / (1 - P)) + log(C / n);    without it P is n / (C + n),

    since exp z̄ is at most the mean of exp z.  The old classes keep their ratios exactly, and 1 - P of their probability.
    bias: c, a number or `[n]`, in place of these.  Any layer of `[out, in]`, of `[out, in, *kernel]` as heads of segmentation
    are, or, with layout="in_out", of x @ W and of transposed convolutions.  State goes along by `grow_like`, a module by
    `into_module`; f must take the number of classes from params.

    Raises ValueError (path, got, expected) for a layer that is not there, n < 0, a probability or a bias where there is none to
    take it, a probability outside (0, 1) or beside other weights, weights of another shape.
    Source of the bound: the inequality of arithmetic and geometric means.

    >>> import torch
    >>> params = {"head.weight": torch.eye(2), "head.bias": torch.zeros(2)}
    >>> wider = add_classes(params, "head", 1, probability=0.5)
    >>> wider["head.weight"], wider["head.bias"]
    (tensor([[1.0000, 0.0000],
            [0.0000, 1.0000],
            [0.5000, 0.5000]]), tensor([0.0000, 0.0000, 0.6931]))
    """
    size(n, "n", 0, MOST, cure="it counts classes; to remove rows index the leaves")
    check_layout(layout)
    head = layer_at(params, layer, layout)
    rows = _rows(head, n, weight)
    if probability is not None:
        number(probability, "probability", low=0, high=1, above=True, below=True)
        if not isinstance(weight, str) or weight != "mean" or bias is not None:
            raise ValueError(
                'probability: got one beside other weights or a bias, expected it with weight="mean" alone'
            )
    if head.bias is None and (probability is not None or bias is not None):
        what = "probability" if bias is None else "bias"
        raise ValueError(
            f"{what}: got one, {head.name} has no bias to take it, expected None; give the layer a bias of zeros"
        )
    if not n:
        return params
    new = head.put(params, torch.cat([head.weight, rows.to(head.weight)]))
    if head.bias is None or head.bias_path is None:
        return cast(Tree, new)
    more = _biases(head, n, weight, bias, probability)
    return cast(Tree, trees.replace(new, head.bias_path, torch.cat([head.bias, more.to(head.bias)])))


def _rows(head: Layer, n: int, weight: Rows | Tensor) -> Tensor:
    shape = (n, *head.weight.shape[1:])
    if isinstance(weight, Tensor):
        if tuple(weight.shape) != shape or not weight.is_floating_point():
            raise ValueError(
                f"weight: got {weight.dtype} {tuple(weight.shape)}, expected real rows {shape}, [new, in], for {head.name}"
            )
        return weight
    if weight not in get_args(Rows):
        raise ValueError(f"weight: got {weight!r}, expected one of {list(get_args(Rows))} or rows {shape}")
    return (_mean(head.weight) if weight == "mean" else torch.zeros_like(_mean(head.weight))).expand(shape)


def _biases(
    head: Layer, n: int, weight: Rows | Tensor, bias: float | Tensor | None, probability: float | Tensor | None
) -> Tensor:
    old = cast(Tensor, head.bias)
    if bias is not None:
        if isinstance(bias, Tensor) and bias.ndim:
            if tuple(bias.shape) != (n,):
                raise ValueError(
                    f"bias: got shape {tuple(bias.shape)}, expected a number or ({n},), one for each new class"
                )
            return bias
        number(bias, "bias")
        return bias * old.new_ones(n)
    if not isinstance(weight, str) or weight == "zero":
        return old.new_zeros(n)
    mean = _mean(old)
    if probability is not None:
        P = torch.as_tensor(probability, dtype=mean.dtype, device=mean.device)
        mean = mean + P.logit() + torch.tensor(max(1, len(old)) / n, dtype=mean.dtype, device=mean.device).log()
    return mean.expand(n)


def _mean(t: Tensor) -> Tensor:
    """The mean over the first axis, of nothing 0."""
    return working(t).sum(0) / max(1, len(t))
