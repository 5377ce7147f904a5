"""One pass over data: moments summed over batches, then means over samples.

B samples of a batch, r inputs of `before`, p of `after`, q outputs of `after`, each with a column of ones where a bias is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.arguments import detached
from fisher.checks.placements import whole
from fisher.distributed.stages import Reduce, callable_or_none
from fisher.passes.checkpoints import Path, opened
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName
from growth.moments import norms
from growth.moments.across import over_ranks
from growth.moments.first_order import MEANS, Statistics
from growth.moments.gates import given_rows, of_view, scaled, total
from growth.reading.activations import at_zero, sloped
from growth.reading.layers import layers_of
from growth.reading.link import Taps
from growth.reading.observe import View, observed
from growth.reading.once import Reading
from growth.reading.pairs import Pair, as_list, bare, check_pairs
from linmaps.checks import values
from linmaps.numerics.moments import cross_moment, second_moment

Gates = Tensor | list[Tensor] | list[Tensor | None] | None


@overload
def statistics(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair,
    loss: LossName | Loss = ...,
    *,
    layers: LayerCollection | Reading | None = ...,
    gates: Gates = ...,
    taps: Taps = ...,
    progress: bool = ...,
    check_finite: bool = ...,
    reduce: Reduce | None = ...,
    checkpoint: Path | None = ...,
    every: int = ...,
) -> Statistics: ...
@overload
def statistics(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Sequence[Pair],
    loss: LossName | Loss = ...,
    *,
    layers: LayerCollection | Reading | None = ...,
    gates: Gates = ...,
    taps: Taps = ...,
    progress: bool = ...,
    check_finite: bool = ...,
    reduce: Reduce | None = ...,
    checkpoint: Path | None = ...,
    every: int = ...,
) -> list[Statistics]: ...
@door("f", "loss")
def statistics(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    loss: LossName | Loss = "cross_entropy",
    *,
    layers: LayerCollection | Reading | None = None,
    gates: Gates = None,
    taps: Taps = "all",
    progress: bool = False,
    check_finite: bool = True,
    reduce: Reduce | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
) -> Any:
    """The `Statistics` of a pair of layers of `f(params, x)` on `data`; for a list of pairs a list, in one pass.

    The loss that is differentiated is the sum over samples of the losses of the samples, whatever the batches; the
    statistics are means over samples (sums over positions), so they do not depend on how data are split, ordered or
    repeated.
    Cost: one forward, one backward and six matrix products per batch, memory of one batch.

    data: `(x, target)`, or an iterable of those.  loss: "cross_entropy" (logits `[B, ..., C]`, classes `[B, ...]`),
    "squared_error" (half the sum of squares of a sample), or a callable (y, target) -> `[B]`.
    layers: the LayerCollection of f, or a `Reading`, which spares verifying the pair too; None makes it from the first 32
    samples, so f must take any number of them.
    gates: of a `Gated` pair (a list for several pairs) rows of the gate for new units, `[c, r]`, with a bias of the gate
    `[c, r+1]`; each costs three matrix products more.  None: those of at most 16 units that are there, evenly spread (of
    none 16 generic ones).
    taps: of a convolution `after`, "all": new units get whole kernels, of which the best rank-k choice takes the taps as
    if they did not overlap (slopes stay exact); "centre": kernels that are zero but at their centre, for which all
    closed forms are exact.
    progress: a bar on standard error.
    check_finite: look for NaN and infinity, and name the batch.
    reduce: `(sums, count) -> (sums, count)`, called once before the means are taken, adds over processes:
    `fisher.distributed.all_reduce()`.  A rank may have no sample (`[]`, or `(x[:0], target[:0])`).
    checkpoint, every: as of `fisher.fim`: a file that the sums are written to after each `every` batches, from which the same
    call goes on after the process has ended in mid-pass, to the same bits; removed when the pass is complete.
    Half-precision networks get statistics in float32.  Differentiable in params, and maps over stacked params.

    Raises ValueError: layers that are not there or do not match, an activation that cannot be read, one with sigma(0)
    != 0 before a layer without a bias (its constant could not be compensated), a loss that is not per sample, data
    without a sample or not finite.

    >>> import torch, growth
    >>> f = lambda p, x: torch.relu(x @ p["a"]["weight"].T + p["a"]["bias"]) @ p["b"]["weight"].T
    >>> p = {"a": {"weight": torch.eye(2), "bias": torch.zeros(2)}, "b": {"weight": torch.ones(3, 2)}}
    >>> s = growth.statistics(f, p, (torch.eye(2), torch.tensor([0, 2])), growth.Pair("a", "b"))
    >>> s.S.shape, s.S_prev.shape, s.P.shape, s.M.shape
    (torch.Size([2, 2]), torch.Size([3, 3]), torch.Size([3, 2]), torch.Size([2, 3]))
    """
    how: dict[str, Any] = {
        "layers": layers,
        "gates": gates,
        "taps": taps,
        "progress": progress,
        "check_finite": check_finite,
    }
    return accumulated(f, params, data, pair, loss, reduce=reduce, checkpoint=checkpoint, every=every, **how)


def accumulated(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    loss: LossName | Loss,
    *,
    layers: LayerCollection | Reading | None = None,
    gates: Gates = None,
    taps: Taps = "all",
    progress: bool = False,
    check_finite: bool = True,
    reduce: Reduce | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
    held: list[Reading] | None = None,
) -> Any:
    """`statistics` of arguments that a door has looked at; held: to it is added what was read of the first batch."""
    callable_or_none(reduce)
    pairs, alone = check_pairs(pair)
    params = whole(params)
    bias = [(before.biased, after.biased) for before, after in (layers_of(params, p) for p in pairs)]
    rows = [given_rows(params, p, g) for p, g in zip(pairs, as_list(gates, len(pairs), "gates"))]
    kept = opened(
        checkpoint,
        every,
        f,
        detached(params),
        pairs=pairs,
        loss=loss,
        layers=layers.layers if isinstance(layers, Reading) else layers,
        gates=gates,
        taps=taps,
        alone=alone,
    )
    stage = kept.stage()
    sums: list[Statistics] = stage.sums or []
    none = reduce is not None
    for name, samples, views in observed(
        f, params, data, pairs, loss, layers, progress, check_finite, taps, stage, none, held
    ):
        moments: dict[tuple[tuple[int, ...], bool], Tensor] = {}  # neighbouring pairs share one
        new = [_sums(v, samples, *b, moments) for v, b in zip(views, bias)]
        new = [dataclasses.replace(s, gates=of_view(v, *b, g)) for s, v, b, g in zip(new, views, bias, rows)]
        if not sums:
            new = [_with_constants(s, v, v.pair) for s, v in zip(new, views)]
        if check_finite:
            _check(new, name)
        sums = [_total(s, t) for s, t in zip(sums, new)] if sums else new
        stage.keep(sums)
    if reduce is not None:
        sums = over_ranks(reduce, sums, rows)
    out = [
        dataclasses.replace(
            s,
            gates=scaled(s.gates, s.count),
            norm=norms.scaled(s.norm, s.count),
            **{n: getattr(s, n) / s.count for n in MEANS},
        )
        for s in sums
    ]
    kept.end()
    return out[0] if alone else out


def _sums(
    view: View, samples: int, bias_before: bool, bias_after: bool, moments: dict[tuple[tuple[int, ...], bool], Tensor]
) -> Statistics:
    b1, g = view.b1.flatten(0, 1), view.g.flatten(0, 1)
    first, last = b1.sum(0), g.sum(0)

    def moment(use: tuple[int, ...], rows: Tensor, sums: Tensor, one: bool) -> Tensor:
        if (use, one) not in moments:
            moments[use, one] = _with_ones(second_moment(rows), len(rows), sums, sums, one, one)
        return moments[use, one]

    direct = view.link.index is None and view.passage is None
    if direct:
        b2 = view.b2.flatten(0, 1)
        n, entering = len(b2), b2.sum(0)
        S_prev = moment(view.uses[0], b2, entering, bias_before)
        M_prev = _with_ones(cross_moment(b2, g), n, entering, last, bias_before, False)
        P = _with_ones(cross_moment(b2, b1), n, entering, first, bias_before, bias_after)
    else:
        hidden, inputs = view.pooled(_ones_beside(view.b2, bias_before)), _ones_beside(view.b1, bias_after)
        S_prev = view.link.own(hidden)
        M_prev = view.link.cross(hidden, view.g).permute(1, 2, 0).flatten(1)
        P = view.link.cross(hidden, inputs)
        P = P[0] if view.link.taps == 1 else P
    zero = b1.new_zeros(())
    return Statistics(
        S=moment(view.uses[1], b1, first, bias_after),
        M=_with_ones(cross_moment(b1, g), len(b1), first, last, bias_after, False),
        S_prev=S_prev,
        M_prev=M_prev,
        P=P,
        E=second_moment(g),
        count=torch.full((), float(samples), dtype=b1.dtype, device=b1.device),
        positions=torch.full((), float(b1.shape[0]), dtype=b1.dtype, device=b1.device),
        sigma0=zero,
        slope_plus=zero,
        slope_minus=zero,
        bias_before=bias_before,
        bias_after=bias_after,
        taps=view.link.taps,
        norm=norms.seen_by_norm(view, S_prev if direct and bias_before else None),
    )


def _with_ones(product: Tensor, n: int, sum_x: Tensor, sum_y: Tensor, one_x: bool, one_y: bool) -> Tensor:
    """`[x 1]' [y 1]` from x' y of n rows and their sums, without building the column of ones."""
    if one_y:
        product = torch.cat([product, sum_x[:, None]], 1)
    if one_x:
        last = [sum_y, *([sum_y.new_full((1,), float(n))] if one_y else [])]
        product = torch.cat([product, torch.cat(last)[None]], 0)
    return product


def _ones_beside(t: Tensor, one: bool) -> Tensor:
    return torch.nn.functional.pad(t, (0, 1), value=1.0) if one else t


def _total(a: Statistics, b: Statistics) -> Statistics:
    fields = (*MEANS, "count", "positions")
    sums = {n: getattr(a, n) + getattr(b, n) for n in fields}
    return dataclasses.replace(a, gates=total(a.gates, b.gates), norm=norms.total(a.norm, b.norm), **sums)


def _with_constants(sums: Statistics, view: View, pair: Pair) -> Statistics:
    sigma0, plus, minus = sloped(view.activation, view.b1, str(pair))
    value = at_zero(view.activation, sigma0)
    shifted = bool(value)
    uneven = view.passage is not None and not view.passage.even(view.b1)
    if shifted and (view.link.bordered or uneven):
        raise ValueError(
            f"{pair}: the activation is {value:.4g} at 0 and {pair.after} pads its input with zeros, "
            "expected 0 or no padding: new units would add another constant at the border than inside, which no bias "
            'takes away; use taps="centre" where the centre never falls on padding'
        )
    if shifted and not sums.bias_after:
        raise ValueError(
            f"{pair}: the activation is {value:.4g} at 0 and the layer "
            "after has no bias, expected 0 or a bias: new units would add a constant that nothing compensates; give "
            f"{pair.after} a bias (zero is enough)"
        )
    return dataclasses.replace(sums, sigma0=sigma0, slope_plus=plus, slope_minus=minus, pair=bare(pair))


def _check(sums: list[Statistics], name: str) -> None:
    held = [getattr(s, n) for s in sums for n in (*MEANS, "sigma0")]
    known = [t.sum() for t in map(values, held) if t is not None]
    if not known or bool(torch.stack([t.to(known[0].device, known[0].dtype) for t in known]).isfinite().all()):
        return
    finite = lambda t: (seen := values(t)) is None or bool(seen.sum().isfinite()) or bool(seen.isfinite().all())
    bad = [n for n in (*MEANS, "sigma0") if not all(finite(getattr(s, n)) for s in sums)]
    if bad:
        raise ValueError(
            f"{name}: x and target are finite but the statistics {bad} are not, expected finite layer inputs and "
            "gradients; look for an overflow in f or loss, or pass check_finite=False"
        )
