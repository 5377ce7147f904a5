"""The best new units of a gated pair over gate rows, one after the other: candidates, then steps of the row.

k new units, c candidates; other axes as in `statistics`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor

from growth.checks.data import again
from growth.checks.doors import count, door
from growth.checks.losses import Loss, LossName
from growth.closed_form.delta import Delta, make_delta, optimal_delta
from growth.closed_form.gates import best_of_gates
from growth.closed_form.neurons import Target, optimal_neurons
from growth.closed_form.select import merge_neurons, truncate
from growth.closed_form.units import Neurons
from growth.gated.ascent import uphill
from growth.gated.rows import candidate_rows
from growth.moments.accumulation import statistics
from growth.moments.first_order import Statistics
from growth.moments.solvers import pseudo_solve
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.observe import observed
from growth.surgery.enlarge import grow
from linmaps.checks import size
from linmaps.numerics.dtypes import working

MOST = 1024
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
    steps: int = 2,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Neurons:
    """k units of a gated pair whose gate rows are searched, each for what those before it leave of the target R.

        λ(a)² = max over u, w of E[σ(a x) (u x) (w R)]² / (E[(σ(a x) u x)²] |w|²),    R = -(G - ΔW h)

    is solved in closed form for each row a (`optimal_neurons` of `statistics(..., gates=)`), and the row of largest λ is
    kept.  Then `steps` times: the gradient of log λ by a at fixed u, w, in the metric of the inputs, gives a direction; of
    the row and four points along it that of largest λ is taken, so that λ never falls.  ΔW h is what the units found so
    far explain of G by least squares, with target="residual" together with those that are there: no two explain the same.

    gates: rows to start from `[c, r]`, with a bias of the gate `[c, r+1]`; None: `candidates` of them, of units that are
    there, both signs of the eigenvectors of E[x x'], and with a generator random ones for the rest.
    eigenvalues: λ, in the order of the units; gains: slopes of the mean loss as ever.  ridge, rtol: as in
    `optimal_neurons`; loss, progress, check_finite: as in `statistics`; data must be re-iterable.
    Cost: 1 + k (1 + 2 steps) passes over data.

    Raises ValueError where these do, and for negative steps; TypeError for another pair.

    >>> import torch, growth
    >>> from torch.nn.functional import linear, silu
    >>> f = lambda p, x: linear(silu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    >>> p = {"gate": torch.eye(2), "up": torch.ones(2, 2), "down": torch.zeros(1, 2)}
    >>> data, pair = (torch.eye(2), torch.tensor([[1.0], [0.0]])), growth.Gated("gate", "up", "down")
    >>> growth.gated_neurons(f, p, data, pair, 1, "squared_error", target="gradient")
    Neurons(Gated('gate', 'up', 'down'), 1 gated units: 2 -> 1, gain = 0.5, float32, cpu)
    """
    count(k)
    again(data, "gated_neurons")
    if target not in get_args(Target):
        raise ValueError(f'target: got {target!r}, expected "residual" or "gradient"')
    size(candidates, "candidates", 1, MOST, cure="it counts gate rows")
    size(steps, "steps", 0, MOST, cure="each is two passes over data for each unit")
    p = layers_of(params, pair)[0].weight.shape[0]
    options: dict[str, Any] = {"progress": progress, "check_finite": check_finite}
    found: list[Neurons] = []

    def best(stats: Statistics) -> tuple[Neurons, Delta]:
        known = (
            optimal_delta(stats, ridge, rtol) if target == "residual" else _of_new(stats, p, len(found), ridge, rtol)
        )
        solve = lambda one: optimal_neurons(one, 1, ridge=ridge, rtol=rtol, delta=known)
        return best_of_gates(stats, 1, solve), known

    if gates is None:
        gate = cast(Layer, layers_of(params, pair)[0].gate)
        gates = candidate_rows(statistics(f, params, data, pair, loss, **options), gate, candidates, generator)
    for _ in range(max(k, 1)):
        seen = functools.partial(statistics, f, params, data, pair, loss, **options)
        new, known = best(seen(gates=gates))
        for _ in range(steps if k else 0):
            views = (v for *_, (v,) in observed(f, params, data, [pair], loss, None, progress, check_finite))
            row = working(cast(Tensor, new.joined_gate))
            moves = uphill(views, new, working(known.joined))
            new, known = best(seen(gates=torch.cat([row, *(row + t * moves for t in SIZES)])))
        found.append(new)
        params = grow(params, pair, dataclasses.replace(new, fan_out=0 * new.fan_out))
    return functools.reduce(merge_neurons, found) if k else truncate(found[0], 0)


def _of_new(stats: Statistics, p: int, new: int, ridge: float | Tensor, rtol: float | None) -> Delta:
    """The change of the columns of the units behind the first p alone that explains most of G."""
    S, M = working(stats.S), working(stats.M)
    own = pseudo_solve(S[p : p + new, p : p + new], M[p : p + new], ridge, rtol)
    change = torch.cat([torch.zeros_like(M[:p]), own, torch.zeros_like(M[p + new :])])
    return make_delta(stats, change.mT)
