"""Moments of rows [..., F]: products over many rows, by the way of BLAS that is quickest for their shapes.

Second moments are symmetric, so that little more than one half is computed where that is quicker.  Of few rows the product
costs less than the memory that its panels would pass through: there it is one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linmaps.trees.graphs.tracing import traced

FEW, PANELS, WIDTH = 128, 4, 100  # rows of which the product is whole; panels at most; columns of a panel at least
LINES = 512  # of a product that are made at a time
NARROW = 4  # times as many columns of the other


def second_moment(rows: Tensor, over: int = 1) -> Tensor:
    """R'R / over of rows `[..., F]`, by its upper panels: up to nearly half less than the whole product.

    Each panel is put where it belongs once it is made, itself and transposed: beside the result one panel is held.
    """
    R = rows.flatten(0, -2)
    size, step = R.shape[1], _step(R)
    if step >= size:
        return _product(R, R, over)
    if traced():  # joined, not written to: what is compiled goes on with it in one loop
        made = [_product(R[:, start : start + step], R[:, start:], over) for start in range(0, size, step)]
        above = lambda i: [made[j][:, (i - j) * step : (i - j + 1) * step].mT for j in range(i)]
        return torch.cat([torch.cat([*above(i), panel], 1) for i, panel in enumerate(made)])
    found = R.new_empty(size, size)
    _fill(found, R, over, step)
    return found


def bordered_moment(rows: Tensor, over: int = 1) -> Tensor:
    """The second moment of (r, 1) over rows r `[..., F]`, `[F + 1, F + 1]`: that of r beside their sum, over `over`.

    It is made where it lies, so that neither the rows nor their moment are copied for a column of ones.

    >>> import torch
    >>> bordered_moment(torch.tensor([[1.0], [3.0]]))
    tensor([[10.,  4.],
            [ 4.,  2.]])
    """
    R = rows.flatten(0, -2)
    n, size = R.shape
    first = R.sum(0) / over
    if traced():
        last = first.new_full((1,), n / over)
        above = torch.cat([second_moment(R, over), first[:, None]], 1)
        return torch.cat([above, torch.cat([first, last])[None]])
    found = R.new_empty(size + 1, size + 1)
    _fill(found[:size, :size], R, over, _step(R))
    found[size, :size] = first
    found[:size, size] = first
    found[size, size] = n / over
    return found


def add_moment(found: Tensor, rows: Tensor) -> None:
    """found `[F, F]` += R'R of rows `[..., F]`, on and above its diagonal alone: `mirror` it after the last of them.

    >>> import torch
    >>> found = torch.zeros(2, 2)
    >>> add_moment(found, torch.eye(2))
    >>> mirror(found)
    >>> found
    tensor([[1., 0.],
            [0., 1.]])
    """
    R = rows.flatten(0, -2)
    step = max(1, _step(R))
    for start in range(0, R.shape[1], step):
        end = start + step
        found[start:end, start:].addmm_(R[:, start:end].mT, R[:, start:])


def mirror(found: Tensor) -> None:
    """found `[F, F]` := the symmetric matrix that it is above its diagonal."""
    size = len(found)
    step = max(1, -(-size // max(1, min(PANELS, size // WIDTH))))
    for end in range(step, size, step):
        found[end:, end - step : end] = found[end - step : end, end:].mT


def cross_moment(x: Tensor, y: Tensor) -> Tensor:
    """x'y `[F, G]` of rows `[n, F]` and `[n, G]`; a y of few columns goes first, which takes a sixth of the time.

    >>> import torch
    >>> cross_moment(torch.eye(3), torch.ones(3, 1)).T
    tensor([[1., 1., 1.]])
    """
    return (y.mT @ x).mT.contiguous() if NARROW * y.shape[1] <= x.shape[1] else x.mT @ y


def _step(R: Tensor) -> int:
    """Columns of a panel."""
    n, size = R.shape
    panels = 1 if n < FEW else max(1, min(PANELS, size // WIDTH))
    return -(-size // panels)


def _fill(found: Tensor, R: Tensor, over: int, step: int) -> None:
    """found `[F, F]` := R'R / over, a panel of so many columns after the other."""
    size = R.shape[1]
    if step >= size:  # few rows: whole, without a copy as large as it is
        for start in range(0, size, LINES):
            found[start : start + LINES] = _product(R[:, start : start + LINES], R, over)
        return
    for start in range(0, size, step):
        end = min(start + step, size)
        panel = _product(R[:, start:end], R[:, start:], over)
        found[start:end, start:] = panel
        found[end:, start:end] = panel[:, end - start :].mT


def _product(left: Tensor, right: Tensor, over: int) -> Tensor:
    """left' right / over, the smaller one of factor and product divided."""
    if over == 1:
        return left.mT @ right
    return (left / over).mT @ right if left.shape[0] <= right.shape[1] else left.mT @ right / over
