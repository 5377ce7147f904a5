"""Of several params the ones whose matrix is nearest to a given one: equations solved at several distances from an edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linmaps.checks import Params
from linmaps.numerics.numeric import frobenius


def nearest_of(candidates: Sequence[Params], weight: Callable[[Params], Tensor], W: Tensor) -> Params:
    """The first of the candidates but for one that is nearer by more than rounding.

    One whose matrix has no finite distance is none.

    >>> W, near = torch.ones(1, 1), {"A": torch.ones(1, 1)}
    >>> nearest_of([{"A": torch.zeros(1, 1)}, near, near], lambda params: params["A"], W)
    {'A': tensor([[1.]])}
    """
    chosen, rest = candidates[0], candidates[1:]
    far = torch.finfo(W.dtype).max
    distance = lambda params: frobenius(weight(params) - W).detach().nan_to_num(far, far)
    least, rounding = distance(chosen), 10 * torch.finfo(W.dtype).eps * frobenius(W.detach())
    for params in rest:
        own = distance(params)
        nearer = own + rounding < 0.9 * least
        chosen = {name: torch.where(nearer, params[name], leaf) for name, leaf in chosen.items()}
        least = torch.where(nearer, own, least)
    return chosen
