"""What when: units per growth step from a first to a last width, without losing any to rounding; samples per batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fisher.checks.finiteness import finite
from growth.checks.doors import MOST, count
from linmaps.checks import number, size
from linmaps.checks.annotations import typed

INDICES = 2**28


@typed
def fixed_proportional(initial: int, target: int, steps: int) -> list[int]:
    """Units per step, as equal as integers allow, that lead from width `initial` to exactly `target`.

        n_i = ⌊(i + 1) m / steps⌋ - ⌊i m / steps⌋,    m = target - initial

    Raises ValueError for steps < 1 and target < initial (see `growth.prune`).

    >>> fixed_proportional(2, 32, 4)
    [7, 8, 7, 8]
    """
    missing = _missing(initial, target, steps)
    return [(i + 1) * missing // steps - i * missing // steps for i in range(steps)]


@typed
def geometric(initial: int, target: int, steps: int) -> list[int]:
    """Units per step for widths that grow by a constant factor, rounded, from `initial` >= 1 to exactly `target`.

        width_i = initial (target / initial)^(i / steps)

    Raises ValueError for initial < 1 and where `fixed_proportional` does.

    >>> geometric(2, 32, 4)
    [2, 4, 8, 16]
    """
    _missing(initial, target, steps)
    if initial < 1:
        raise ValueError(f"initial: got {initial}, expected >= 1; add first units with fixed_proportional(0, ...)")
    widths = [round(initial * (target / initial) ** (i / steps)) for i in range(steps + 1)]
    return [b - a for a, b in zip(widths, widths[1:])]


@typed
def in_steps_of(initial: int, target: int, k: int) -> list[int]:
    """Units per step of at most k from `initial` to exactly `target`; the last step takes what is left.

    Raises ValueError for k < 1 and target < initial.

    >>> in_steps_of(2, 32, 7)
    [7, 7, 7, 7, 2]
    """
    size(k, "k", 1, MOST, cure="units per step")
    missing = _missing(initial, target, 1)
    return [min(k, missing - done) for done in range(0, missing, k)]


@typed
def to_target(current: int, target: int, most: int | None = None) -> int:
    """How many units to add now: those that are missing, 0 where none is, at most `most`.

    >>> to_target(28, 32), to_target(8, 32, 6), to_target(40, 32)
    (4, 6, 0)
    """
    for value, name in ((current, "current"), (target, "target"), (0 if most is None else most, "most")):
        size(value, name, 0, MOST)
    missing = max(0, target - current)
    return missing if most is None else min(missing, most)


@typed
def by_gain(gains: Tensor, *, least: float | Tensor = 0.0, relative: float = 0.0, most: int | None = None) -> Tensor:
    """How many units are worth adding, an integer tensor in [0, most]: those whose gain is more than

        max(least, relative · max_j gains_j)

    gains `[k]`: of `Neurons`, slopes of the mean loss.  most: a static limit, None for k.  `growth.keep` masks the other
    units, those of least gain, so that sizes stay static under `vmap`.

    Raises ValueError for gains without one axis, relative outside [0, 1], most < 0.

    >>> by_gain(torch.tensor([3.0, 1.0, 0.2, 0.0]), relative=0.1), by_gain(torch.tensor([3.0, 1.0]), most=1)
    (tensor(2), tensor(1))
    """
    if gains.ndim != 1:
        raise ValueError(f"gains: got shape {tuple(gains.shape)}, expected [k]; map over an ensemble with vmap")
    number(least, "least")
    number(relative, "relative", low=0, high=1)
    if most is not None:
        size(most, "most", 0, MOST, cure="None is no limit")
    finite(gains, "gains", "compute them at finite params and data")
    gains = gains.detach()
    if len(gains) == 0:
        return torch.zeros((), dtype=torch.int64, device=gains.device)
    floor = torch.maximum(relative * gains.amax(), torch.as_tensor(least, dtype=gains.dtype, device=gains.device))
    worth = (gains > floor).sum()
    return worth if most is None else worth.clamp(max=most)


@typed
def shuffles(n: int, epochs: Sequence[int], batch: int, *, generator: torch.Generator) -> list[Tensor]:
    """Indices of batches for each phase of training, `[steps, batch]` each: a stream of permutations of n samples.

    epochs: per phase, one more phase than growth steps.  steps = ⌊n epochs / batch⌋ batches of full size.

    >>> import torch
    >>> [t.shape for t in shuffles(10, [1, 2], 4, generator=torch.Generator().manual_seed(0))]
    [torch.Size([2, 4]), torch.Size([5, 4])]
    """
    size(n, "n", 1, INDICES)
    size(batch, "batch", 1, n, cure="samples in a batch")
    for i, times in enumerate(epochs):
        size(times, f"epochs[{i}]", 0, INDICES // n, cure="all indices of a phase are made at once")
    out = []
    for times in epochs:
        stream = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(times)]
        steps = n * times // batch
        joined = torch.cat(stream) if stream else torch.zeros(0, dtype=torch.int64, device=generator.device)
        out.append(joined[: steps * batch].reshape(steps, batch))
    return out


def plans(widths: list[int], target: int | Sequence[int], k: int | Sequence[int], phases: int) -> list[list[int]]:
    """Units per step, for each pair, of a fit of so many phases: one before each step and one at the end.

    >>> plans([1, 2], 4, 2, 3)
    [[2, 1], [2, 0]]
    """
    for value, name in ((target, "target"), (k, "k")):
        for n in [value] if isinstance(value, int) else value:
            count(n, name)
    targets = [target] * len(widths) if isinstance(target, int) else list(target)
    if len(targets) != len(widths):
        raise ValueError(f"target: got {len(targets)}, expected {len(widths)}, one per pair")
    each = [in_steps_of(w, n, k) if isinstance(k, int) else list(k) for w, n in zip(widths, targets)]
    most = max(map(len, each))
    each = [plan + [0] * (most - len(plan)) for plan in each]
    for width, plan, n in zip(widths, each, targets):
        if width + sum(plan) != n or any(u < 0 for u in plan):
            raise ValueError(
                f"k: got steps {plan} from width {width}, expected units >= 0 that add up to {n} - {width}"
            )
    if phases != most + 1:
        raise ValueError(
            f"order: got {phases} phases, expected {most + 1}: one before each of the growth steps {each[0]} and one "
            "at the end; make them with shuffles(n, epochs, batch, generator=...)"
        )
    return each


def _missing(initial: int, target: int, steps: int) -> int:
    size(steps, "steps", 1, MOST)
    size(initial, "initial", 0, MOST)
    size(target, "target", initial, MOST, cure="use growth.prune to shrink")
    return target - initial
