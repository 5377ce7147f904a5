"""The best new units of a gated pair over gate rows: candidates, then steps of gate rows and closed forms in turn.

k new units, c candidates; other axes as in `statistics`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fisher import LayerCollection
from growth.checks.doors import count, door
from growth.closed_form.delta import Delta, optimal_delta
from growth.closed_form.gates import best_of_gates
from growth.closed_form.neurons import Target, optimal_neurons
from growth.closed_form.select import merge_neurons, taken
from growth.closed_form.units import Neurons
from growth.gated.ascent import uphill
from growth.gated.rows import candidate_rows
from growth.moments.accumulation import statistics
from growth.moments.first_order import Statistics
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.losses import Loss, LossName
from growth.reading.observe import observed
from linmaps import trees
from linmaps.checks import size
from linmaps.numerics.dtypes import working

SIZES = (1.0, 0.3, 0.1, 0.03)  # of a step, in units of the row's own size


@door("f", "loss")
def gated_neurons(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    pair: Gated,
    k: int,
    loss: LossName | Loss = "cross_entropy",
    *,
    target: Target = "residual",
    gates: Tensor | None = None,
    generator: torch.Generator | None = None,
    candidates: int = 32,
    steps: int = 4,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    delta: Delta | None = None,
    layers: LayerCollection | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Neurons:
    """k units of a gated pair whose gate rows are searched: each has another gate a, and the best (u, w) for it.

        λ(a)² = max over u, w of E[σ(a x) (u x) (w R)]² / (E[(σ(a x) u x)²] |w|²),    R = -(G - ΔW b1), or -G

    is solved in closed form for each row a (`optimal_neurons` of `statistics(..., gates=)`); the k rows of largest λ are
    kept.  Then `steps` times: the gradient of log λ by a at fixed u, w, in the metric of the inputs, gives a direction; of
    the row and four points along it that of largest λ is taken, so that λ never falls.  gains are slopes as ever.

    gates: rows to start from `[c, r]`, with a bias of the gate `[c, r+1]`, c >= k; None: `candidates` of them, of units
    there are, both signs of the eigenvectors of E[x x'], and with a generator random ones for the rest.
    Units are chosen each by itself: what two of them explain both counts for both.  eigenvalues: λ.
    target, ridge, rtol, delta: as in `optimal_neurons`; loss, layers, progress, check_finite: as in `statistics`; data
    must be re-iterable.  Cost: 2 + 2 steps passes over data.

    Raises ValueError where these do, for fewer rows than units, and negative steps; TypeError for another pair.

    >>> import torch, growth
    >>> from torch.nn.functional import linear, silu
    >>> f = lambda p, x: linear(silu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    >>> p = {"gate": torch.eye(2), "up": torch.ones(2, 2), "down": torch.zeros(1, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([[1.0], [0.0]])), growth.Gated("gate", "up", "down")
    >>> start = growth.gated_neurons(f, p, data, pair, 1, "squared_error", target="gradient", steps=0)
    >>> new = growth.gated_neurons(f, p, data, pair, 1, "squared_error", target="gradient")
    >>> new, bool(new.gain >= start.gain)
    (Neurons(Gated('gate', 'up', 'down'), 1 gated units: 2 -> 1, gain = 0.5, float32, cpu), True)
    """
    count(k)
    size(candidates, "candidates", 1, cure="it counts gate rows")
    size(steps, "steps", 0, cure="each is two passes over data")
    given: dict[str, Any] = {"layers": layers, "check_finite": check_finite}

    def seen(rows: Tensor | None) -> Statistics:
        return statistics(f, params, data, pair, loss, gates=rows, progress=progress, **given)

    def best(stats: Statistics, n: int) -> Neurons:
        solve = lambda one: optimal_neurons(one, 1, target, ridge=ridge, rtol=rtol, delta=change)
        return best_of_gates(stats, n, solve)

    if gates is None:
        gate = cast(Layer, layers_of(params, pair)[0].gate)
        gates = candidate_rows(seen(None), gate, candidates, generator)
    if len(gates) < k:
        raise ValueError(
            f"gates: got {len(gates)} rows, expected at least k = {k}, one for each unit; give more candidates"
        )
    stats = seen(gates)
    change = None
    if target == "residual":
        change = optimal_delta(stats, ridge, rtol) if delta is None else delta
    new = best(stats, k)
    plain = None if change is None else working(change.joined)
    for _ in range(steps if k else 0):
        views = (v for _, _, (v,) in observed(f, params, data, [pair], loss, layers, progress, check_finite))
        moves, rows = uphill(views, new, plain), _rows(new)
        tried = torch.cat([rows, *(rows + t * moves for t in SIZES)])
        new = _best_of_each(seen(tried), k, best)
    return taken(new, new.eigenvalues.argsort(descending=True, stable=True))


def _rows(new: Neurons) -> Tensor:
    return working(cast(Tensor, new.joined_gate))


def _best_of_each(stats: Statistics, k: int, best: Callable[[Statistics, int], Neurons]) -> Neurons:
    """Of the rows j, j + k, j + 2k, ... of each unit j the one of largest λ."""
    part = lambda j: dataclasses.replace(stats, gates=trees.map(lambda t: t[j::k], stats.gates))
    return functools.reduce(merge_neurons, [best(part(j), 1) for j in range(k)])
