"""Weights of examples and of positions: F = 1/B sum over b of w_b J_b' H_b J_b, B the number of examples whatever they weigh.

A weight `[B]` is that of an example, `[B, *positions]` of each position of an output `[B, C, *positions]`; where coordinates are
independent it may have the shape of y, a weight for each.  Columns r of H are taken times sqrt(w), so that their squares, in
every representation, have the weight w; a weight 0 is a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.likelihoods.arrays import Independent, class_axis_of
from linmaps.numerics.numeric import positive_root


def spread(likelihood: Any, y: Tensor, weight: Tensor) -> Tensor:
    """The weight in the dtype of y, in a shape that expands to y's; ValueError unless it is `[B]` or `[B, *positions]`.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> spread(Categorical(class_axis=-1), torch.zeros(2, 3, 5), torch.ones(2, 3)).shape
    torch.Size([2, 3, 1])
    """
    w = weight.to(device=y.device, dtype=y.dtype)
    shape, out = tuple(w.shape), tuple(y.shape)
    if shape == out[:1]:
        return w.reshape(*shape, *(1,) * (y.ndim - 1))
    if shape == out and getattr(likelihood, "coordinatewise", False):
        return w
    axes = class_axes(likelihood, y)
    fitting = [k for k in axes if out[:k] + out[k + 1 :] == shape]
    if len(fitting) == 1:
        return w.unsqueeze(fitting[0])
    name, b = type(likelihood).__name__, out[0]
    if fitting:
        raise ValueError(
            f"weight: got shape {shape}, which are positions of the output {out} by its axis {' or '.join(map(str, fitting))}, "
            f"expected one that says which; give weight.unsqueeze(axis).expand{out}"
        )
    positions = [f"({', '.join(map(str, out[:k] + out[k + 1 :]))})" for k in axes if y.ndim > 2]
    known = [f"({b},), a number for each example", *(f"{p}, for each position" for p in positions)]
    known += [f"{out}, for each coordinate"] if getattr(likelihood, "coordinatewise", False) else []
    raise ValueError(
        f"weight: got shape {shape}, expected {'; or '.join(known)}: the output has shape {out}, likelihood {name} "
        f"{f'with class_axis={likelihood.class_axis}' if hasattr(likelihood, 'class_axis') else ''}".rstrip()
    )


def class_axes(likelihood: Any, y: Tensor) -> list[int]:
    """The axes of y that may be that of the classes."""
    if hasattr(likelihood, "class_axis"):
        return [class_axis_of(y, likelihood.class_axis, type(likelihood).__name__.lower())] if y.ndim > 1 else []
    return list(range(1, y.ndim)) if isinstance(likelihood, Independent) else []


def weighed(columns: Tensor, likelihood: Any, y: Tensor, weight: Tensor | None, *, squared: bool = True) -> Tensor:
    """Columns `[K, B, *out]` times sqrt(w), or times w (squared=False: they are no roots); zeros where w is 0.

    The derivative of a root in a weight of 0 counts as 0.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> weighed(torch.ones(1, 2, 1), Gaussian(), torch.zeros(2, 1), torch.tensor([4.0, 0.0])).flatten()
    tensor([2., 0.])
    """
    if weight is None:
        return columns
    w = spread(likelihood, y, weight)
    return torch.where(w == 0, 0.0, columns * (positive_root(w) if squared else w))
