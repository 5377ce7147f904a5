"""One growth step: statistics, closed forms, signs, amplitudes, surgery and the state that goes along, as one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic

import torch
from torch import Tensor

from fisher.checks.arguments import detached
from growth.carry.state import carried
from growth.checks.buffers import buffers_fixed
from growth.checks.data import again, examples
from growth.checks.doors import door
from growth.checks.losses import Loss, LossName, per_sample
from growth.closed_form.delta import Delta
from growth.closed_form.sides import awake
from growth.reading.pairs import Pair, as_list, check_pairs
from growth.reading.probe import wider
from growth.surgery.enlarge import Scale, added, grow
from growth.training.proposals import Method, Proposal, proposed
from growth.training.search import line_search
from linmaps.checks import number
from linmaps.trees import record
from linmaps.trees.printed import cell, on_a_line
from linmaps.trees.tree import Tree


@record()
class GrowthStep(Generic[Tree]):
    """What `step` gives: params and state to go on with; before, grown: mean losses; amplitudes (t_delta, t_neurons).

    decrease: the slope of the mean loss along the delta.  gain: the slope of the units alone, as measured, per unit of
    amplitude: their entries are sqrt(t_neurons) times those of the units; it may be negative (`Neurons`).  Scalars, sums over
    the pairs.

    >>> import torch
    >>> one = torch.ones(())
    >>> GrowthStep({}, {}, 2 * one, one, (one, one), one, one)
    GrowthStep(loss 2 -> 1, amplitudes 1, 1, decrease = 1, gain = 1)
    """

    params: Tree
    state: Any
    before: Tensor
    grown: Tensor
    amplitudes: tuple[Tensor, Tensor]
    decrease: Tensor
    gain: Tensor

    def __repr__(self) -> str:
        s, t = (cell(a) for a in self.amplitudes)
        said = [f"loss {cell(self.before)} -> {cell(self.grown)}", f"amplitudes {s}, {t}"]
        return on_a_line(self, [*said, f"decrease = {cell(self.decrease)}", f"gain = {cell(self.gain)}"])


@door("f", "loss")
def step(
    f: Callable[..., Tensor],
    params: Tree,
    data: Any,
    pair: Pair | Sequence[Pair],
    k: int | list[int],
    loss: LossName | Loss = "cross_entropy",
    *,
    state: Any = None,
    scale: Scale | None = None,
    method: Method | None = None,
    delta: bool = True,
    ridge: float = 0.1,
    progress: bool = False,
    check_finite: bool = True,
) -> GrowthStep[Tree]:
    """Grow a pair of layers by k units: data in, larger params and the optimizer's state out.

    `statistics`, `optimal_delta`, `method(stats, k)`, `choose_sign`, `line_search`, `grow` and `grow_like`: two passes over the
    data with a backward, seven without.

    data: `(x, target)`, or batches of those that can be gone through several times (a list, a DataLoader), one in memory at a
    time.  pair: one or several, neighbours too, which share the amplitudes; then k may be a list.
    state: what `grow_like` takes, of an optimizer or an average; None stays None.  scale: amplitudes as in `grow`; None: by
    `line_search`.  method: (stats, k) -> Neurons; None: `optimal_neurons` with the output metric "fisher" (shrinkage 0.1).
    delta: also change the weights that are there.  ridge: relative, times the mean of the diagonals of S and S_prev.
    Units without gain, or of amplitude 0, get generic incoming weights and zero outgoing ones, so that none is dead.

    Raises ValueError or TypeError where its parts do.  Maps over stacked params with `vmap`; differentiable at given
    amplitudes.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2)[:1], "b.weight": torch.zeros(2, 1)}
    >>> made = growth.step(f, p, (torch.eye(2), torch.tensor([0, 1])), growth.Pair("a", "b"), k=1)
    >>> made.params["a.weight"].shape, bool(made.grown < made.before)
    (torch.Size([2, 2]), True)
    """
    params, f = detached(params), buffers_fixed(f)
    number(ridge, "ridge", low=0, tensor=False)
    again(data, "growth.step")
    pairs, _ = check_pairs(pair)
    units = as_list(k, len(pairs), "k")
    found = proposed(
        f, params, data, pairs, units, loss, method=method, ridge=ridge, progress=progress, check_finite=check_finite
    )
    made = taken(f, params, data, found, loss, scale=scale, delta=delta, check_finite=check_finite)
    return made if state is None else dataclasses.replace(made, state=carried(state, params, made.params, pairs))


def taken(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    steps: Sequence[Proposal],
    loss: LossName | Loss,
    *,
    scale: Scale | None,
    delta: bool,
    check_finite: bool,
) -> GrowthStep[Any]:
    """The steps that pairs proposed, taken at one amplitude for all; without a state."""
    pairs, news = [s.pair for s in steps], [s.new for s in steps]
    given: list[Delta | None] = [s.change if delta else None for s in steps]
    gain = torch.stack([new.gain for new in news]).sum()
    decrease = torch.stack([s.change.decrease for s in steps]).sum()
    if scale is None:
        found = line_search(f, params, data, pairs, news, given, loss, check_finite=check_finite)
        (s, t), before = found.scale, found.start
    else:
        both = scale if isinstance(scale, tuple) else (scale, scale)
        before = mean_loss(f, params, data, loss)
        s, t = (torch.zeros_like(before) + amplitude for amplitude in both)
    awakened = [awake(one.new, t, one.stats) for one in steps]
    amplitudes: Any = [(s, amplitude) for _, amplitude in awakened]
    larger = grow(params, pairs, [new for new, _ in awakened], delta=given, scale=amplitudes)

    def at_larger(larger: Any, x: Any) -> Tensor:
        with wider(f, params, added(pairs, news), x):
            return f(larger, x)

    after = mean_loss(at_larger, larger, data, loss)
    return GrowthStep(larger, None, before, after, (s, t), decrease if delta else torch.zeros_like(decrease), gain)


def mean_loss(f: Callable[..., Tensor], params: Any, data: Any, loss: LossName | Loss) -> Tensor:
    """The mean loss over all samples."""
    each, totals, count = per_sample(loss), [], 0
    for _, x, target, samples in examples(data, params, progress=False, check_finite=False):
        totals.append(each(f(params, x), target).sum())
        count += samples
    return torch.stack(totals).sum() / count
