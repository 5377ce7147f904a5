"""Where to grow: the steps of several pairs side by side, by the first-order decrease of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growth.checks.records import owned
from growth.closed_form.delta import Delta
from growth.closed_form.units import Neurons
from growth.reading.along import joined
from growth.reading.leaves import unit_size
from growth.reading.pairs import Pair, as_list, check_pairs
from linmaps.checks.annotations import typed
from linmaps.trees import record
from linmaps.trees.printed import aligned, plain


@typed
def improvement(new: Neurons | None, delta: Delta | None) -> Tensor:
    """The first-order decrease of the mean loss by a growth step, per unit of amplitude: delta.decrease + new.gain.

    Both are true slopes, so that improvements of different layers compare; of an activation with a kink at 0 after
    `choose_sign`, before it the gain is the mean over both signs of each unit.  Either part may be None.

    >>> import torch
    >>> improvement(None, Delta(torch.ones(1, 2), None, torch.tensor(0.5)))
    tensor(0.5000)
    """
    if new is not None:
        owned(new, "new", None, Neurons, "optimal_neurons")
    if delta is not None:
        owned(delta, "delta", new, Delta, "optimal_delta")
    if new is None and delta is None:
        raise ValueError("improvement: got neither new units nor a delta, expected at least one")
    parts = [t for t in (None if delta is None else delta.decrease, None if new is None else new.gain) if t is not None]
    return sum(parts[1:], parts[0])


@record(static=("names", "units", "parameters"))
class Comparison:
    """Growth steps side by side, one per pair: decreases `[n]` of the deltas, gains `[n]` of the new units.

    improvements is their sum, best the index `[]` of the largest.  parameters: how many the units of each step bring (None: not
    known); slopes `[n]` are the gains of units per parameter, 0 of steps that bring none, steepest the index `[]` of the largest.
    Prints as a table; of an ensemble (fields `[members, n]`) mean ± standard deviation.

    >>> import torch
    >>> Comparison(("a - b", "b - c"), (2, 2), torch.tensor([0.5, 0.25]), torch.tensor([1.0, 3.0]))
     pair  units  decrease  gain  improvement
    a - b      2       0.5     1          1.5
    b - c      2      0.25     3         3.25  best
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    decreases: Tensor
    gains: Tensor
    parameters: tuple[int, ...] | None = None

    @property
    def slopes(self) -> Tensor:
        if self.parameters is None:
            raise ValueError("slopes: got steps of unknown size, expected compare(pairs, news, deltas, params=params)")
        inverse = [1 / n if n else 0.0 for n in self.parameters]
        return self.gains * torch.tensor(inverse, dtype=self.gains.dtype, device=self.gains.device)

    @property
    def steepest(self) -> Tensor:
        return self.slopes.argmax(-1)

    @property
    def improvements(self) -> Tensor:
        return self.decreases + self.gains

    @property
    def best(self) -> Tensor:
        return self.improvements.argmax(-1)

    def __repr__(self) -> str:
        d, g, total = (plain(t).movedim(-1, 0) for t in (self.decreases, self.gains, self.improvements))
        best = int(total.reshape(len(total), -1).mean(1).argmax())
        rows = [
            [name, k, d[i], g[i], total[i], "best" if i == best else ""]
            for i, (name, k) in enumerate(zip(self.names, self.units))
        ]
        head = ["pair", "units", "decrease", "gain", "improvement"]
        if self.parameters is not None:
            head += ["parameters", "gain / parameter"]
            slopes = plain(self.slopes).movedim(-1, 0)
            steepest = int(slopes.reshape(len(slopes), -1).mean(1).argmax())
            for i, row in enumerate(rows):
                said = [w for w, at in (("best", best), ("steepest", steepest)) if i == at]
                row[-1:] = [self.parameters[i], slopes[i], ", ".join(said)]
        return aligned([*head, ""], rows)


@typed
def compare(pairs: Sequence[Pair], news: Any, deltas: Any, *, params: Any = None) -> Comparison:
    """The growth steps of several pairs as a `Comparison`: lists of new units and of deltas, entries may be None.

    params: those that grow; then slopes per new parameter are known, by which `fit_and_grow(choose="slope")` chooses.

    Raises ValueError for lists of other lengths, pairs without any step, and params without these layers.

    >>> import torch
    >>> change = Delta(torch.ones(1, 2), None, torch.tensor(0.5))
    >>> compare([Pair("a", "b"), Pair("b", "c")], None, [change, change]).improvements
    tensor([0.5000, 0.5000])
    """
    each, _ = check_pairs(pairs)
    units, changes = as_list(news, len(each), "news"), as_list(deltas, len(each), "deltas")
    for pair, n, d in zip(each, units, changes):
        for step, name, kind, made in ((n, "news", Neurons, "optimal_neurons"), (d, "deltas", Delta, "optimal_delta")):
            if step is not None:
                owned(step, name, pair, kind, made)
    totals = [improvement(n, d) for n, d in zip(units, changes)]
    zero = torch.zeros_like(totals[0])
    return Comparison(
        tuple(f"{p.before} - {p.after}" for p in each),
        tuple(0 if n is None else n.size for n in units),
        torch.stack([zero if d is None else d.decrease for d in changes]),
        torch.stack([zero if n is None else n.gain for n in units]),
        None
        if params is None
        else tuple(0 if n is None else n.size * unit_size(params, joined(p, n)) for p, n in zip(each, units)),
    )
