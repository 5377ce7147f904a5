"""What each phase of a fit came to, and all of them as a table."""

from __future__ import annotations

from typing import Any, Generic

from torch import Tensor

from linmaps.trees import record
from linmaps.trees.printed import aligned, cell, on_a_line, plain
from linmaps.trees.tree import Tree


@record(static=("width", "parameters"))
class Step:
    """One phase: width p after growth (of several pairs a tuple), number of parameters, and scalars; losses are means.

    before: loss at the start; grown: after growth; trained: after training; scale: amplitudes (t_delta, t_neurons); gain,
    decrease: slopes of units and delta; score: what the callable `score` gave after training (NaN without).

    >>> import torch
    >>> one = torch.ones(())
    >>> Step(2, 20, one, one, one, (one, one), one, one, one)
    Step(width 2, 20 parameters, loss 1 -> 1 -> 1, score 1)
    """

    width: int | tuple[int, ...]
    parameters: int
    before: Tensor
    grown: Tensor
    trained: Tensor
    scale: tuple[Tensor, Tensor]
    gain: Tensor
    decrease: Tensor
    score: Tensor

    def __repr__(self) -> str:
        without = not isinstance(self.score, Tensor) or bool(plain(self.score).isnan().all())
        score = [] if without else [f"score {cell(self.score)}"]
        losses = " -> ".join(cell(t) for t in (self.before, self.grown, self.trained))
        said = [f"width {self.width}", f"{self.parameters} parameters", f"loss {losses}", *score]
        return on_a_line(self, said)


@record()
class Fit(Generic[Tree]):
    """The grown params, the optimizer's state, and one `Step` per phase; prints as a table of the steps.

    >>> import torch
    >>> one = torch.ones(())
    >>> Fit({}, {}, (Step(2, 20, one, one, one / 2, (0 * one, 0 * one), 0 * one, 0 * one, one),))
    width  parameters  before  grown  trained  t_delta  t_neurons  gain  decrease  score
        2          20       1      1      0.5        0          0     0         0      1
    """

    params: Tree
    state: Any
    steps: tuple[Step, ...]

    def __repr__(self) -> str:
        head = [
            "width",
            "parameters",
            "before",
            "grown",
            "trained",
            "t_delta",
            "t_neurons",
            "gain",
            "decrease",
            "score",
        ]
        rows = [
            [s.width, s.parameters, s.before, s.grown, s.trained, *s.scale, s.gain, s.decrease, s.score]
            for s in self.steps
        ]
        return aligned(head, rows)
