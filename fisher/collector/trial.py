"""Functions and losses are tried before matrices are made of them: repeated, with other examples, by both modes.

B examples.  Raw values are looked at only to raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement, doors, finiteness, purity
from fisher.checks.axes import batch_size
from fisher.checks.data import Batch, batches, check_finite
from fisher.collector.layers import LayerCollection
from linmaps import trees
from linmaps.checks import values


def examples(data: Any, what: str, finite: bool = True) -> Iterator[Batch]:
    """The batches `(x, target)` of data, finite if asked."""
    for number, pair in enumerate(batches(data, what=what)):
        if finite:
            check_finite(pair, f"data: batch {number}")
        yield pair


def inputs(data: Any, name: str, what: str, finite: bool = True) -> list[Any]:
    """The inputs of each batch; ValueError where there is a target, which function space has no use for."""
    found = []
    for x, target in examples(data, what, finite):
        if target is not None:
            raise ValueError(
                f"{name}: got a pair (x, target), expected inputs alone: {what} has no use for a target; give x, or [x for x, "
                "target in data]; several inputs are one x in a tuple of its own: ((x1, x2),)"
            )
        found.append(x)
    return found


def restricted(f: Callable[..., Any], params: Any, layers: LayerCollection | None) -> tuple[Callable[..., Any], Any]:
    """f and params on the leaves of these layers alone, `{path: leaf}`; as they are where that is all of them."""
    if layers is None:
        return f, params
    params = layers.layout.check(params, "params (of the LayerCollection)")
    if layers.complete:
        return f, params
    return (
        lambda own, *args: layers.restricted(lambda whole, args: f(whole, *args), params)(own, args),
        layers.restrict(params),
    )


def several(parts: Sequence[Any]) -> Any:
    """The inputs of the most examples, twice if it is one: those that mix show only among several."""
    x = max(parts, key=batch_size)
    return trees.map(lambda t: torch.cat([t, t]), x) if batch_size(x) == 1 else x


# --- functions ---------------------------------------------------------------------------------------------------


def function(
    run: Callable[[Any, Any], Tensor], params: Any, x: Any, name: str = "f(params, x)", finite: bool = True
) -> Tensor:
    """y = run(params, x) `[B, ...]`; ValueError if it is random, has not one row per example, or if examples mix.

    Examples are apart if the first and the last output have a gradient in their own inputs alone, and if half of the rows
    stay what they are with other examples in the other half.  Two forwards and four backwards; four more forwards.

    >>> import torch
    >>> function(lambda p, x: p * (x - x.mean()), torch.ones(()), torch.arange(3.0))
    Traceback (most recent call last):
    ValueError: f(params, x): the output of one example depends on other examples, ...
    """
    batch = batch_size(x)
    y, back = purity.repeatable(run, params, x, name)
    doors.rows(y, batch, name)
    if finite:
        finiteness.finite(y, name, "it overflows at these params and data (or pass check_finite=False)")
    apart = all(_vanish(back(one)[1], rows) for one, rows in _cotangents(y)) if batch > 1 else True
    for mask in _masks(batch):
        for replaced in (mask, _not(mask)):
            again = run(params, _replace(x, replaced))
            apart = apart and agreement.repeats(_rows(again, _not(replaced)), _rows(y, _not(replaced)))
    purity.apart(apart, name)
    return y


def _cotangents(y: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """A generic cotangent of the first and of the last example alone, and the rows of all others."""
    ramp, row = agreement.generic(y), torch.arange(len(y), device=y.device).reshape(-1, *[1] * (y.ndim - 1))
    yield ramp * (row == 0), slice(1, None)
    yield ramp * (row == len(y) - 1), slice(None, -1)


def _vanish(gradients: list[Tensor], rows: slice) -> bool:
    found = [values(t[rows]) for t in gradients]
    return not any(bool(((t != 0) & t.isfinite()).any()) for t in found if t is not None)


Mask = list[bool]


def _masks(batch: int) -> list[Mask]:
    """Two ways to choose half of the examples; none of a single one."""
    return [[b < (batch + 1) // 2 for b in range(batch)], [b % 2 == 0 for b in range(batch)]] if batch > 1 else []


def _replace(x: Any, mask: Mask) -> Any:
    """x with the first of the other examples in place of those of the mask."""
    first = mask.index(False)
    return _where(mask, trees.map(lambda t: t[first : first + 1], x), x)


def _where(mask: Mask, one: Any, other: Any) -> Any:
    pick = lambda s, t: torch.where(torch.tensor(mask, device=t.device).reshape(-1, *[1] * (t.ndim - 1)), s, t)
    return trees.map(pick, one, other)


def _not(mask: Mask) -> Mask:
    return [not b for b in mask]


def _rows(y: Tensor, mask: Mask) -> Tensor:
    return y[torch.tensor([b for b, chosen in enumerate(mask) if chosen], device=y.device)]


# --- losses ------------------------------------------------------------------------------------------------------


def losses(loss: Callable[..., Tensor], y: Tensor, rest: tuple[Any, ...], finite: bool = True) -> None:
    """Raise a ValueError unless loss(y, target) is `[B]`: one number for each example."""
    made = purity.repeatable(lambda y, rest: loss(y, *rest), y, rest, "loss(y, target)")[0]
    shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    if shape != (len(y),):
        raise ValueError(
            f"loss(y, target): got a result of shape {shape}, expected [{len(y)}], the loss of each example: use "
            "reduction='none', and sum over the positions of an example"
        )
    if finite:
        finiteness.finite(made, "loss(y, target)", "it overflows at these outputs (or pass check_finite=False)")
    function(lambda y, y2: loss(y2, *rest), y, y, "loss(y, target)", finite)


def mean_loss(loss: Callable[..., Tensor], params: Any, parts: Sequence[Batch], finite: bool = True) -> None:
    """Raise a ValueError unless loss(params, x, y) is the loss of each example `[B]`, or a scalar, their mean.

    A scalar L is tried on the two parts of a batch at three places: L = (B1 L1 + B2 L2) / B.
    """
    name = "loss(params, x, y)" if len(parts[0]) > 1 else "loss(params, x)"
    part = _largest(parts)
    batch = batch_size(part[0])
    run = lambda params, part: loss(params, *part)
    whole = purity.repeatable(run, params, part, name)[0]
    shape = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
    if shape == (batch,):
        function(lambda params, x: loss(params, x, *part[1:]), params, part[0], name, finite)
        return
    if shape != ():
        raise ValueError(
            f"{name}: got a result of shape {shape}, expected a scalar, the mean over the batch, or [{batch}], the loss of each "
            "example"
        )
    if finite:
        finiteness.finite(whole, name, "it overflows at these params and data (or pass check_finite=False)")
    for mask in _masks(batch):
        one, other = _replace(part[0], mask), _replace(part[0], _not(mask))
        found = [loss(params, x, *part[1:]) for x in (one, other, _where(mask, one, other))]
        purity.apart(_equal(whole + found[2], found[0] + found[1], [whole, *found]), name)
    for k in sorted({1, batch // 2, batch - 1} - {0}):
        first, second = (
            loss(params, *trees.map(lambda t, rows=rows: t[rows], part)) for rows in (slice(k), slice(k, None))
        )
        if not _equal(whole, (k * first + (batch - k) * second) / batch, [whole, first, second]):
            raise ValueError(
                f"{name}: of {batch} examples it is not the mean of those of its first {k} and last {batch - k}, expected a mean "
                "over examples; a sum, or a mean that is weighted (weight=, ignore_index=), has another normaliser in each "
                "batch: return the loss of each example, [B] (reduction='none')"
            )


def _largest(parts: Sequence[Batch]) -> Batch:
    """The batch of the most examples; two together where they have one each."""
    found = max(parts, key=lambda part: batch_size(part[0]))
    full = [part for part in parts if batch_size(part[0])]
    if batch_size(found[0]) == 1 and len(full) > 1:
        return trees.map(lambda s, t: torch.cat([s, t]), full[0], full[1])
    return found


def _equal(one: Tensor, other: Tensor, terms: list[Tensor]) -> bool:
    """Whether two sums of these terms are equal to rounding."""
    a, b, scale = (values(t) for t in (one, other, torch.stack([t.detach().abs() for t in terms]).amax(0)))
    if a is None or b is None or scale is None:
        return True
    gap = (a - b).abs()  # of NaN nothing is known
    return bool((~gap.isfinite() | (gap <= min(0.1, 1000 * torch.finfo(a.dtype).eps) * scale)).all())


# --- results -----------------------------------------------------------------------------------------------------


def symmetric(F: Any, name: str, finite: bool = True) -> None:
    """Raise a ValueError unless w'F v = v'F w for generic v and w: torch's forward and reverse mode agree, and are finite."""
    v, w = (trees.map(lambda t, k=k: torch.cos(k + agreement.generic(t)), F.params) for k in (1.0, 2.0))
    try:
        Fv, Fw = F.mv(v), F.mv(w)
    except NotImplementedError:  # torch has no forward mode of some call: products will say so, others need none
        return
    if finite:
        finiteness.finite(Fv, name, NO_DERIVATIVE)
    scale = trees.norm(w) * trees.norm(Fv)
    if adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale):
        return
    if not adjoint(trees.dot(w, Fv), trees.dot(v, Fw), scale, agreement.tolerance_of(F.mv, v)):  # f in half precision
        raise ValueError(f"{name}: {MODES}")


def adjoint(one: Tensor, other: Tensor, scale: Tensor, tol: float | None = None) -> bool:
    """Whether two ways to one inner product agree to tol, half of the digits by default."""
    a, b, s = values(one), values(other), values(scale)
    if a is None or b is None or s is None:
        return True
    gap = (a - b).abs()
    return bool((~(gap + s).isfinite() | (gap <= (agreement.tolerance([a.dtype]) if tol is None else tol) * s)).all())


NO_DERIVATIVE = (
    "it overflows at these params and data, or torch has no such derivative there (sqrt and norm at 0, svd, det and eigh where "
    "values repeat); pass check_finite=False to have it as it is"
)
MODES = (
    "products by torch's forward mode and by its reverse mode differ, expected one derivative; a torch call or an "
    "autograd.Function in the function has a wrong forward (jvp) or second derivative: write it by other calls"
)
