"""KFACState: what an optimizer on Kronecker factors keeps between steps, a pytree of tensors and two matrices."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fisher.pmat import PMatEKFAC, PMatKFAC
from linmaps import trees
from linmaps.checks import values
from linmaps.trees.printed import cell, on_a_line


@trees.record(static=("kind", "statistics"))
class KFACState:
    """The state of `recipes.kfac` and `recipes.soap`.

    step: how many steps were made, an integer on the CPU (a plain int will do: a setting of `trees.compiled`, in whose graphs a
    tensor has no value).  factors: the moving average of the factors, without bias.
    weight: how much of the weights 1 that the average tends to it has seen: it is what the bias is corrected by.
    bases: the factors as they were decomposed last, with their eigenvalues or the second moments of gradients there.
    velocity: the last update (of soap: the first moment), in float32 at least.  damping: a scalar.  kind: whose state it is,
    "kfac" or "soap", which keep other numbers in the same fields.  statistics: the paths of the leaves that batch norm takes
    from the batch.

    It passes through vmap, `trees.stack`, `torch.save`, `growth.grow_like` (which gives new units zeros in the factors and
    axes of their own in the bases).  Of a stacked ensemble all members have made the same number of steps.
    """

    step: Tensor
    factors: PMatKFAC
    weight: Tensor
    bases: PMatEKFAC
    velocity: Any
    damping: Tensor
    kind: str = "kfac"
    statistics: tuple[str, ...] = ()

    def __repr__(self) -> str:
        blocks = f"{len(self.factors.layers)} layers, {self.factors.layers.numel():,} parameters"
        return on_a_line(self, [f"step {cell(self.step)}", blocks, f"damping {cell(self.damping)}"])


def step_number(step: Tensor | int, why: str) -> int:
    """The number of steps made as an int, of an ensemble under vmap that of all members.

    Raises ValueError where members differ, and where there are no values to look at (a traced function): what a step does is
    decided by its number.

    >>> import torch
    >>> step_number(torch.tensor(3), "factors_every")
    3
    """
    if isinstance(step, int):
        return step
    found = values(step)
    if found is None:
        raise ValueError(
            f"state.step: has no value here (a traced or compiled function), expected one: {why} decides by it what a step "
            "does; give the state a plain int as step (of a period, so that graphs come again), or set what happens every so "
            "many steps to 1, with adapt=False and numbers in place of schedules, or trace without the update"
        )
    first, *others = found.flatten().unique().tolist() or [0]
    if others:
        raise ValueError(
            f"state.step: got members after {first} and after {others[0]} steps, expected one number for all; map over "
            "those that have made as many steps"
        )
    return int(first)
