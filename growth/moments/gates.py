"""Moments of gated units: what the statistics of a pair are for units whose gate rows are given.

c gate rows a, r inputs x, p hidden units, q outputs; x and b1 with a last 1 where up and `after` have a bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisher.checks.agreement import generic
from growth.checks.records import Axes
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.observe import View
from growth.reading.pairs import Pair
from linmaps.checks import values
from linmaps.numerics.dtypes import working
from linmaps.trees import record
from linmaps.trees.printed import on_a_line, sizes

MEANS = ("S", "M", "P")
MOST = 16  # gate rows taken where none are given


@record()
class GateMoments:
    """Moments of the rows s x of units whose gates let s = σ(a x + a0) through; means over samples.

        S = E[s² x x'] [c, r+1, r+1],    M = E[s x G'] [c, r+1, q],    P = E[s x b1'] [c, r+1, p+1]

    rows: the gates a `[c, r]`; bias: a0 `[c]`, None for a gate without.  To the units of one gate these are S_prev, M_prev
    and P of a pair without activation.

    >>> import torch
    >>> GateMoments(torch.ones(3, 2), None, torch.ones(3, 2, 2), torch.ones(3, 2, 1), torch.ones(3, 2, 4))
    GateMoments(3 x 2, float32, cpu)
    """

    rows: Tensor
    bias: Tensor | None
    S: Tensor
    M: Tensor
    P: Tensor

    axes: ClassVar[Axes] = Axes({"rows": "cr", "bias?": "c", "S": "cbb", "M": "cbq", "P": "cba"})

    def __repr__(self) -> str:
        return on_a_line(self, [sizes(self.rows, wider=" + bias" if self.bias is not None else "")], self.rows)


def given_rows(params: Any, pair: Pair, gates: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """(rows `[c, r]`, bias `[c]`) of the gates that are given, or of the units there are; None for a pair without a gate.

    Raises ValueError for gates of a pair without, and for rows of another size.
    """
    if not isinstance(pair, Gated):
        if gates is not None:
            raise ValueError(f"gates: got gate rows for {pair}, expected None; they belong to a growth.Gated")
        return None
    gate = cast(Layer, layers_of(params, pair)[0].gate)
    r, bias = gate.weight.shape[1], gate.bias
    if gates is None:
        p = gate.weight.shape[0]
        own = gate.weight if bias is None else torch.cat([gate.weight, bias[:, None]], 1)
        at = torch.arange(min(p, MOST), device=own.device) * p // max(1, min(p, MOST))
        gates = own.index_select(0, at) if p else generic(own.new_empty(MOST, own.shape[1]))
    want = r + (bias is not None)
    if not gates.is_floating_point() or gates.ndim != 2 or gates.shape[1] != want or not gates.shape[0]:
        what = f"the {r} inputs" + (" and the bias of the gate last" if bias is not None else "")
        raise ValueError(
            f"gates: got {gates.dtype} {tuple(gates.shape)}, expected real rows [c, {want}], c > 0: {what} of {pair}"
        )
    gates = working(gates)
    return (gates, None) if bias is None else (gates[:, :r], gates[:, r])


def of_view(
    view: View, bias_up: bool, bias_after: bool, gates: tuple[Tensor, Tensor | None] | None
) -> GateMoments | None:
    """The sums over one batch."""
    if gates is None:
        return None
    rows, bias = (None if t is None else t.to(view.b2) for t in gates)
    opened = view.opened(rows, bias).flatten(0, 1)  # type: ignore[arg-type]
    x, b1, g = pad(view.b2, (0, int(bias_up)), value=1.0), pad(view.b1, (0, int(bias_after)), value=1.0), view.g
    x, b1, g = (t.flatten(0, 1) for t in (x, b1, g))
    found: list[tuple[Tensor, ...]] = []
    for s in opened.unbind(1):
        own = s[:, None] * x
        found.append((own.mT @ own, own.mT @ g, own.mT @ b1))
    return GateMoments(rows, bias, *map(torch.stack, zip(*found)))  # type: ignore[arg-type]


def total(a: GateMoments | None, b: GateMoments | None) -> GateMoments | None:
    """The sums over two batches."""
    if a is None or b is None:
        return None
    return dataclasses.replace(a, **{n: getattr(a, n) + getattr(b, n) for n in MEANS})


def scaled(a: GateMoments | None, count: Tensor) -> GateMoments | None:
    """The means, from sums over count samples."""
    return None if a is None else dataclasses.replace(a, **{n: getattr(a, n) / count for n in MEANS})


def merged(a: GateMoments | None, b: GateMoments | None, share: Tensor) -> GateMoments | None:
    """The means over two sets of samples, of which the second is this share; of the same rows."""
    if a is None or b is None:
        return None
    one, other = values(a.rows), values(b.rows)
    if one is not None and other is not None and not torch.equal(one, other):
        raise ValueError(
            "Statistics + Statistics: got moments of other gate rows, expected the same; give both passes gates="
        )
    return dataclasses.replace(a, **{n: torch.lerp(getattr(a, n), getattr(b, n), share) for n in MEANS})
