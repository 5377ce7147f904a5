"""Gradients of a loss, example by example: the rows of the Jacobian of its losses `[B]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks import agreement, doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.data import NO_EXAMPLE
from fisher.collector.exact_rows import mapped
from fisher.function_space.pfmap import PFMapDense
from fisher.function_space.rows import dense
from fisher.trials import functions, means, weighing
from fisher.trials.data import examples
from linmaps import trees
from linmaps.checks import values
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees.graphs.tracing import traced

NAME = "loss(params, x, y)"
REFUSED = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
)  # what a loss says of shapes it is not made for


@full_precision("loss")
@typed
def example_gradients(
    loss: Callable[..., Tensor],
    params: Any,
    data: Any,
    *,
    chunk_size: int | None = None,
    check: bool = True,
    check_finite: bool = True,
) -> PFMapDense:
    """The gradient of the loss of each example, g_b = d loss(params, x_b, y_b) / d params: a map `[B, 1, d]`.

    loss(params, x, y): of one example, whose x and y have no batch axis, a number; or of a batch, `[B]` (reduction='none', summed
    over the positions of an example).  Whatever it weighs, smooths or ignores is in the gradients.  loss(params, x) where data
    have no targets.  data: `(x, y)` or batches of those, in the order of the result; of `(x, y, weight)` with a weight `[B]` the
    gradients are those of w_b times the loss.
    chunk_size: examples differentiated at once.  check: see that the loss is not random, that examples do not mix, and that the
    rows add up to autograd's gradient (about ten forwards of the largest batch).  check_finite: report NaN in data, params and
    result.

    `J.jacobian` has leaves `[B, 1, *leaf]`; `J.to_torch()[:, 0]` is `[B, d]`; F.solve(J), F.mapTMmap(J) take it as it is.
    Raises ValueError for a loss that gives neither, or another number by itself than in a batch, and for a mean by weights
    (cross_entropy(weight=)), which divide out of the loss of one example.

    >>> import torch, fisher
    >>> loss = lambda p, x, y: 0.5 * (x @ p["w"] - y) ** 2
    >>> J = fisher.example_gradients(loss, {"w": torch.ones(2)}, (torch.eye(2), torch.tensor([0.0, 3.0])))
    >>> J, J.to_torch()[:, 0]
    (PFMapDense(B = 2, C = 1, d = 2), tensor([[ 1.,  0.],
            [ 0., -2.]]))
    """
    loss = doors.function(loss, "loss")
    doors.options(chunk_size=chunk_size)
    params = parameters(params, check_finite)
    parts: list[Any] = []
    weights: list[Tensor | None] = []
    for number, (x, target, weight) in enumerate(examples(data, "example_gradients", check_finite)):
        if weight is not None and weight.ndim > 1:
            raise ValueError(
                f"data: batch {number}: weight has shape {tuple(weight.shape)}, expected [{len(weight)}]: positions are weighed "
                "in the loss"
            )
        part = (x,) if target is None else (x, target)
        _same_length(part, number)
        parts.append(part)
        weights.append(weight)
    full = [part for part in parts if batch_size(part)]
    if not full:
        raise ValueError(NO_EXAMPLE)
    f = losses_of(loss, params, means.largest(full), check)
    J = dense(f, params, parts, chunk_size=chunk_size, check=check, check_finite=check_finite, name=NAME)
    if all(weight is None for weight in weights):
        return J
    like = trees.leaves(J.jacobian)[0]
    w = torch.cat([like.new_ones(batch_size(p)) if t is None else t.to(like) for p, t in zip(parts, weights)])
    return PFMapDense(trees.map(lambda t: w.to(t.dtype).reshape(-1, *[1] * (t.ndim - 1)) * t, J.jacobian), J.layout)


def _same_length(part: tuple[Any, ...], number: int) -> None:
    sizes = [batch_size(one) for one in part]
    if len(set(sizes)) > 1:
        raise ValueError(f"data: batch {number}: got {sizes[1]} targets, expected one for each of {sizes[0]} examples")


def losses_of(
    loss: Callable[..., Tensor], params: Any, part: tuple[Any, ...], check: bool = True, name: str = NAME
) -> Callable[..., Tensor]:
    """f(params, part) -> `[B]`, from a loss of one example or of a batch: by the form that it takes.

    name: what it is called where it is refused.

    >>> import torch
    >>> part = (torch.eye(2), torch.tensor([0.0, 3.0]))
    >>> losses_of(lambda p, x, y: (x @ p - y) ** 2, torch.ones(2), part)(torch.ones(2), part)
    tensor([1., 4.])
    """
    each = lambda params, part: mapped(
        lambda: vmap(lambda one: loss(params, *one))(part),
        lambda: torch.stack([loss(params, *trees.map(lambda t, b=b: t[b], part)) for b in range(batch_size(part))]),
    )
    together = lambda params, part: loss(params, *part)
    one, alone = _tried(loss, params, trees.map(lambda t: t[0], part), ())
    whole, batched = _tried(loss, params, part, (batch_size(part),))
    if batched is None and alone is None:
        raise ValueError(
            f"{name}: of one example {one}, of a batch of {batch_size(part)} {whole}; expected a number of one example (x and y "
            "without a batch axis), or of a batch [B], the loss of each example: use reduction='none', and sum over positions"
        )
    if alone is None:
        return together
    if batched is None:
        if check and not traced():
            weighing.check_counted(loss, params, part, each(params, part), name)
            weighing.check_weights(loss, params, part, name)
        return each
    if traced():  # no numbers to compare: by single examples it is right where both forms are
        return each
    apart = not check or _apart(together, params, part, name)
    if apart and _equal(batched[0], alone):
        return together
    if apart:
        raise ValueError(
            f"{name}: the loss of the first example by itself is {alone:.6g}, in a batch {batched[0]:.6g}, expected one number; "
            "write the loss for one of them: of one example, x.unsqueeze(0) is a batch"
        )
    return each


def _tried(
    loss: Callable[..., Tensor], params: Any, part: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[str, Tensor | None]:
    """(what came out, the losses if they have this shape)."""
    try:
        found = loss(params, *part)
    except REFUSED as error:
        return f"it raises {type(error).__name__} ({str(error).splitlines()[0][:120] if str(error) else ''})", None
    got = tuple(getattr(found, "shape", (type(found).__name__,)))
    return f"it gives shape {got}", found if got == shape else None


def _apart(f: Callable[..., Tensor], params: Any, part: tuple[Any, ...], name: str) -> bool:
    """Whether the losses of a batch are those of its examples, as far as the mixing of others would show."""
    if batch_size(part) == 1:
        return True
    try:
        functions.function(f, params, part, name, finite=False)
    except ValueError:
        return False
    return True


def _equal(one: Tensor, other: Tensor) -> bool:
    a, b = values(one), values(other)
    if a is None or b is None:
        return True
    gap = (a - b).abs()
    tol = agreement.tolerance([a.dtype]) * (1 + a.abs())
    return bool((~gap.isfinite() | (gap <= tol)).all())
