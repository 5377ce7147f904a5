"""How far to go: the amplitudes of a growth step by evaluation of the loss, two at once.  n points (s, t) tried.

The useful amplitudes lie far outside the first-order regime, so a coarse logarithmic grid finds the valley, and a
quadratic model in the logarithms its bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks.finiteness import finite
from growth.checks.data import DIVERGED, again, examples
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName, per_sample
from growth.closed_form.delta import Delta
from growth.reading.pairs import Pair, as_list, check_pairs
from growth.surgery.enlarge import New, apply_extended
from linmaps import trees
from linmaps.checks import number, size
from linmaps.numerics import lapack
from linmaps.numerics.numeric import differentiated
from linmaps.trees import record
from linmaps.trees.printed import aligned, plain

GRID = (1 / 64, 1 / 8, 1.0, 8.0, 64.0)
FINE = 33


@record()
class Search:
    """What `line_search` found: scale = (t_delta, t_neurons) `[]` each, loss `[]` there and start `[]` at scale 0.

    amplitudes `[n, 2]`, losses `[n]`: all points tried, in order; the first is (0, 0).  at_edge, bool `[2]`: whether the chosen
    t_delta, t_neurons is the largest or the smallest positive one of all that were tried, beyond which a wider grid may find
    less; never of an amplitude 0.  Prints as a table, of a search under `vmap` only start and choice, with mean ± standard
    deviation over the members.

    >>> import torch
    >>> one = torch.ones(())
    >>> Search((one, 2 * one), 0.5 * one, one, torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([1.0, 0.5]))
    t_delta  t_neurons  loss
          0          0     1
          1          2   0.5
          1          2   0.5  chosen, at the edge of what was tried in t_delta, t_neurons
    """

    scale: tuple[Tensor, Tensor]
    loss: Tensor
    start: Tensor
    amplitudes: Tensor
    losses: Tensor

    @property
    def at_edge(self) -> Tensor:
        best = torch.stack(self.scale, -1)
        most = self.amplitudes.amax(-2)
        least = torch.where(self.amplitudes > 0, self.amplitudes, torch.inf).amin(-2)
        return (best > 0) & ((best >= most) | (best <= least))

    def _choice(self) -> str:
        edge = plain(self.at_edge).reshape(-1, 2)
        names = [n for n, at in zip(("t_delta", "t_neurons"), edge.any(0).tolist()) if at]
        members = f" of {int(edge.any(1).sum())} in {len(edge)} members" if len(edge) > 1 else ""
        return f"chosen, at the edge of what was tried in {', '.join(names)}{members}" if names else "chosen"

    def __repr__(self) -> str:
        tried: list[list[Any]] = [[0, 0, self.start, ""]]
        if self.losses.ndim == 1:
            tried = [[*point, value, ""] for point, value in zip(self.amplitudes.tolist(), self.losses.tolist())]
        return aligned(["t_delta", "t_neurons", "loss", ""], [*tried, [*self.scale, self.loss, self._choice()]])


@door("f", "loss")
def line_search(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Pair | Sequence[Pair],
    new: New,
    delta: Delta | list[Delta] | list[Delta | None] | None,
    loss: LossName | Loss = "cross_entropy",
    *,
    tied: bool = False,
    grid: Sequence[float] = GRID,
    chunk_size: int | None = None,
    check_finite: bool = True,
) -> Search:
    """The amplitudes (t_delta, t_neurons) for `grow` with the least mean loss, among few that are evaluated.

    First all pairs of {0, *grid}, in the ratio g; then twice, g^{1/2} and g^{1/4} apart, 3 x 3 points around the best and
    the minimum of the quadratic model of these in (log t_delta, log t_neurons), in their box.  56 evaluations of f with
    the default grid, 14 where new or delta is None or tied=True, in five passes over data, each one batched call.  The
    best of all points is taken, (0, 0) among them: never worse than no growth; without a better one the scale is (0, 0).
    `Search.at_edge` says where the best is the last that was tried.

    tied: one amplitude for both (as a joint solution wants it).  Lists of pairs, new and delta share the amplitudes.
    grid: ascending positive amplitudes; useful ones were measured from 10 to 60 for plain units and from 0.1 to 2 for
    those with an output metric.  chunk_size: points evaluated at once; None: all (memory of that many batches).
    data: as in `statistics`, but re-iterable.  Amplitudes are constants for derivatives; `loss` is differentiable at them.

    A loss that overflows at some amplitude counts as infinite; check_finite: look for NaN and infinity in params, new, delta
    and data, and in the loss without growth, which nothing could be compared with.

    Raises ValueError for a grid that is not positive and ascending, for what is not finite, and where `grow` does.
    Source: Verbockhaven et al., "Growing tiny networks" (2024), for the need of a search; here in two amplitudes.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.zeros(1, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([[1.0], [3.0]])), growth.Pair("a", "b")
    >>> stats = growth.statistics(f, p, data, pair, "squared_error")
    >>> found = line_search(f, p, data, pair, None, growth.optimal_delta(stats), "squared_error")
    >>> found.scale[0], len(found.losses)
    (tensor(1.), 14)
    """
    again(data, "line_search")
    pairs, _ = check_pairs(pair)
    deltas, units = as_list(delta, len(pairs), "delta"), as_list(new, len(pairs), "new")
    given = [any(v is not None for v in side) for side in (deltas, units)]
    grid = _checked(grid, given, tied, chunk_size)
    each = per_sample(loss)
    like = next(t for t in trees.leaves([deltas, units]) if t.is_floating_point())

    if check_finite:
        finite(params, "params", DIVERGED)
        finite({"new": units, "delta": deltas}, "line_search", "statistics of finite data give finite ones")

    def mean_loss(points: Tensor) -> Tensor:
        total, count = points.new_zeros(()), 0
        for _, x, target, samples in examples(data, (), progress=False, check_finite=check_finite):

            def one(point: Tensor, x: Any = x, target: Any = target) -> Tensor:
                scale = (point[0], point[1])
                return each(apply_extended(f, params, pairs, units, deltas, [scale] * len(pairs), x), target).sum()

            total, count = total + vmap(one, chunk_size=chunk_size)(points), count + samples
        mean = total / count
        return torch.where(mean.isnan(), torch.inf, mean)

    values = lambda rows: torch.tensor(rows, dtype=like.dtype, device=like.device)
    points = values(_product((0.0, *grid), given, tied))
    losses = mean_loss(points).detach()
    if check_finite:
        finite(
            losses[0], "line_search: the loss without growth", "f or loss overflows here; or pass check_finite=False"
        )
    ratio = max(b / a for a, b in zip(grid, grid[1:])) if len(grid) > 1 else 4.0
    offsets = values(_product((-1.0, 0.0, 1.0), given, tied))
    for power in (1 / 2, 1 / 4):
        step = ratio**power
        centre, _ = _best(points, losses)
        around = centre * step**offsets
        near = mean_loss(around).detach()
        bottom = (centre * step ** _bottom(offsets, near.clamp(max=losses[0]), tied))[None]
        points = torch.cat([points, around, bottom])
        losses = torch.cat([losses, near, mean_loss(bottom).detach()])
    best, least = _best(points, losses)
    if any(differentiated(t) for t in trees.leaves([params, deltas, units])):
        there = mean_loss(best[None])[0]
        least = least + (there - there.detach())
    return Search((best[0], best[1]), least, losses[0], points, losses)


def _checked(grid: Sequence[float], given: list[bool], tied: bool, chunk_size: int | None) -> tuple[float, ...]:
    if chunk_size is not None:
        size(chunk_size, "chunk_size", 1)
    for t in grid:
        number(t, "grid", low=0, above=True, tensor=False)
    grid = tuple(float(t) for t in grid)
    if not grid or not all(a < b for a, b in zip((0.0, *grid), grid)) or grid[-1] == float("inf"):
        raise ValueError(f"grid: got {grid}, expected ascending positive amplitudes; 0 is always tried")
    if not any(given):
        raise ValueError("line_search: got neither new units nor a delta, expected at least one")
    if tied and not all(given):
        raise ValueError("tied=True: got new units or a delta alone, expected both; one amplitude needs no tie")
    return grid


def _product(values: Sequence[float], given: list[bool], tied: bool) -> list[tuple[float, float]]:
    """Pairs of values, 0 where there is nothing to scale; (0, 0) comes first if 0 does."""
    if tied:
        return [(v, v) for v in values]
    first, second = (values if g else (0.0,) for g in given)
    return [(s, t) for s in first for t in second]


def _best(points: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The point of least loss, and the loss; the first point unless another is better."""
    i = losses.argmin()
    i = torch.where(losses.gather(0, i[None])[0] < losses[0], i, 0)[None]
    return points.index_select(0, i)[0], losses.gather(0, i)[0]


def _bottom(offsets: Tensor, losses: Tensor, tied: bool) -> Tensor:
    """The minimum in the box [-1, 1]² of the quadratic least-squares model of losses at offsets, on a fine grid."""
    fine = torch.linspace(-1, 1, FINE, dtype=offsets.dtype, device=offsets.device)
    box = torch.stack([fine, fine], 1) if tied else torch.cartesian_prod(fine, fine)
    model = _features(box) @ (lapack.pinv(_features(offsets)) @ losses.to(offsets.dtype))
    return box.index_select(0, model.argmin()[None])[0]


def _features(u: Tensor) -> Tensor:
    a, b = u.unbind(1)
    return torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], 1)
