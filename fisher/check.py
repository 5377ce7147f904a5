"""Checks at the door: finite data, floating leaves, and that the uses found explain autograd's gradient.

They look at raw values (under vmap and grad at those of all members), only to raise; no result depends on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import debug_unwrap, vjp

from fisher.axes import batch_axes
from fisher.doors import explained
from fisher.products import gradient
from fisher.taps import pull
from fisher.uses import EXACT, NEVER_MET
from linmaps import trees
from linmaps.checks import values
from linmaps.trees import path_str

if TYPE_CHECKING:
    from fisher.layers import LayerCollection


def raw(t: Tensor) -> Tensor:
    """The values under every transform."""
    return debug_unwrap(t, recurse=True).detach()


def finite(tree: Any, name: str, cure: str) -> None:
    """Raise a ValueError that names the path if a floating tensor of the tree has a NaN or an infinity.

    >>> import torch
    >>> finite({"x": torch.tensor([0.0, float("nan")])}, "data", "drop the row")
    Traceback (most recent call last):
    ValueError: data: x: got 1 of 2 entries NaN or infinite, expected finite numbers; drop the row
    """
    for path, t in zip(trees.paths(tree), trees.leaves(tree)):
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()):
            found = values(t)
            if found is None or bool(found.sum().isfinite()):
                continue
            bad = ~found.isfinite()
            count = int(bad.sum())
            if count:
                where = f"{name}: {path_str(path)}" if path else name
                raise ValueError(
                    f"{where}: got {count} of {bad.numel()} entries NaN or infinite, expected finite numbers; {cure}"
                )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What two backward passes say: by cotangent 0 (a generic one) and 1 (the same on the first example alone).

    gradients: of params and of x; inputs, taps: of each use, as `pull` gives them with the axes of `layers`; alone: whether
    the others give the same outputs without the last example (asked where x has no gradient).
    """

    layers: LayerCollection
    gradients: tuple[tuple[Any, list[Tensor]], tuple[Any, list[Tensor]]]
    inputs: dict[int, Tensor]
    taps: dict[int, Tensor]
    alone: bool


def watched(
    run: Callable[[Any, Any], Tensor], params: Any, x: Any, name: str = "f(params, x)"
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """`y = run(params, x)` and its backward pass `(gradient of params, those of x's floating tensors)`.

    Under vjp the bodies of custom autograd functions stay closed, as they do when matrices are made.
    """
    flat, treedef = trees.flatten(x)
    free = [i for i, t in enumerate(flat) if t.is_floating_point()]

    def of_both(params: Any, inputs: list[Tensor]) -> Tensor:
        whole = dict(enumerate(flat)) | dict(zip(free, inputs))
        return run(params, treedef.unflatten(whole.values()))

    try:
        with explained(params, x=x), no_random_call(name):
            y, back = vjp(of_both, params, [flat[i] for i in free])  # type: ignore[misc]
    except RuntimeError as error:
        if "mutate a captured Tensor" not in str(error):
            raise
        raise ValueError(
            f"{name}: changes a tensor that it closes over, as batch norm in train mode changes its running statistics, "
            "where the output of one example depends on other examples; expected a pure function: put the model into eval mode "
            "(model.eval())"
        ) from error
    return y, back


def repeatable(
    run: Callable[[Any, Any], Tensor], params: Any, x: Any, name: str = "f(params, x)"
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """`watched(run, params, x)`, after a second run on the same input: ValueError where their outputs or gradients differ.

    Gradients too, since noise that zero weights multiply (dropout before a layer that starts at zero) shows in them alone.

    >>> import torch
    >>> repeatable(lambda p, x: p * torch.rand_like(x), torch.ones(()), torch.ones(2))
    Traceback (most recent call last):
    ValueError: f(params, x): is random: two runs on the same input differ, ...
    """
    y, back = watched(run, params, x, name)
    again, back_again = watched(run, params, x, name)
    with no_random_call(name):
        ramp = trees.map(generic, y)
        one, other = trees.leaves((y, back(ramp))), trees.leaves((again, back_again(ramp)))
    if len(one) != len(other) or not all(repeats(s, t) for s, t in zip(one, other)):
        raise _random(name)
    return y, back


@contextmanager
def no_random_call(name: str = "f(params, x)") -> Iterator[None]:
    """torch's refusal of a random call under vmap, as the ValueError that `repeatable` raises."""
    try:
        yield
    except RuntimeError as error:
        if "called random operation while in randomness error mode" not in str(error):
            raise
        raise _random(name) from error


def _random(name: str) -> ValueError:
    return ValueError(
        f"{name}: is random: two runs on the same input differ, expected a deterministic function; put dropout into eval "
        "mode (model.eval()), or pass its noise as an input"
    )


def generic(y: Tensor) -> Tensor:
    """A cotangent of y that nothing is orthogonal to by accident."""
    return torch.cos(1.7 * torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y.dtype)


def repeats(one: Tensor, other: Tensor) -> bool:
    """Whether two results of one computation differ by rounding at most (threads and atomics sum in any order)."""
    a, b = values(one), values(other)
    if a is None or b is None:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return bool((a == b).all())
    finite = a.isfinite() & b.isfinite()
    scale = torch.where(finite, b, torch.zeros_like(b)).abs().amax() if b.numel() else 0.0
    tol = min(0.1, 1000 * torch.finfo(a.dtype).eps)
    same = (a == b) | (a.isnan() & b.isnan()) | (finite & ((a - b).abs() <= tol * scale))
    return bool(same.all())


def evidence(
    f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection, y: Tensor, back: Callable[[Tensor], Any]
) -> Evidence:
    """One tapped forward, one backward over two columns, and two backward passes of the first pass."""
    finite(y, "f(params, x)", "f overflows at these params and data")
    ramp = generic(y)
    first = torch.zeros_like(ramp)
    first[:1] = ramp[:1]
    _, inputs, tap_back = pull(f, params, x, layers, layers.tapped, lambda k, a: a)
    with_gradient = any(t.is_floating_point() for t in trees.leaves(x))
    alone = with_gradient or len(y) < 2 or _same(f(params, trees.map(lambda t: t[:-1], x)), y[:-1])
    return Evidence(layers, (back(ramp), back(first)), inputs, tap_back(torch.stack([ramp, first])), alone)


def _same(one: Tensor, other: Tensor) -> bool:
    a, b = raw(one), raw(other)
    tol = 10 * torch.finfo(a.dtype).eps ** 0.5
    return a.shape == b.shape and bool(
        (a - b).abs().amax() <= tol * torch.maximum(b.abs().amax(), torch.ones_like(b.amax()))
    )


def batch_axis(seen: Evidence, batch: int) -> dict[int, int | None]:
    """Where the examples are in the output of each use; None where no axis fits.  Raises if examples mix.

    The cotangent is zero but for the first example, so all others must have gradient zero, in x as in every use.
    """
    if batch < 2:
        return {}
    of_x = seen.gradients[1][1]
    _apart(seen.alone and all(_zero(t[1:]) for t in of_x), "f(params, x)")
    found: dict[int, int | None] = {}
    for k, g in seen.taps.items():
        use = seen.layers.uses[k]
        axes = batch_axes(use.shared, batch)
        found[k] = next((axis for axis in axes if _zero(use.outputs(g[1], batch, axis)[1:])), None)
    return found


def _zero(t: Tensor) -> bool:
    values = raw(t)  # an overflow is not a finding: the result's own check reports it
    return not bool(((values != 0) & values.isfinite()).any())


def _apart(apart: bool, name: str) -> None:
    if not apart:
        raise ValueError(
            f"{name}: the output of one example depends on other examples, expected examples apart; put batch norm into "
            "eval mode (model.eval()) and the batch axis in front"
        )


def complete(layers: LayerCollection, seen: Evidence, batch: int) -> set[int]:
    """For each leaf: autograd's gradient = sum over uses of g'a.  Returns the numbers of the leaves without gradient."""
    uses = seen.layers.uses
    g = {k: uses[k].outputs(t[0], batch) for k, t in seen.taps.items()}  # a sum: any axis, but one for both
    flat, unused = trees.leaves(seen.gradients[0][0]), set()
    for layer in layers:
        if layer.uses and layer.family != EXACT:
            got = gradient(layer, [seen.inputs[k] for k in layer.uses], [g[k] for k in layer.uses])
            _agree(layers, layer, raw(layer.matrix(flat)), raw(got))
        elif layer.note == NEVER_MET:
            if not _zero(flat[layer.leaves[0]]):
                raise ValueError(
                    f"{layer.name}: has a gradient but is used by no torch call that can be seen (an autograd.Function, "
                    "a scripted or compiled callable), expected uses that explain the gradient; call torch functions "
                    f"on the leaf, or pass exact=({layer.name!r},) to give it an exact block"
                )
            unused.add(layer.leaves[0])
    return unused


def _agree(layers: LayerCollection, layer: Any, want: Tensor, got: Tensor) -> None:
    scale = torch.maximum(want.abs().amax(), got.abs().amax()) if want.numel() else want.new_zeros(())
    tol = min(0.3, 10 * torch.finfo(want.dtype).eps ** 0.5)
    if want.numel() and bool(scale.isfinite()) and bool((want - got).abs().amax() > tol * scale):
        raise ValueError(
            f"{layer.name}: the uses seen ({', '.join(layers.uses[k].describe() for k in layer.uses)}) explain only part "
            "of its gradient, expected all of it; some use is hidden in an autograd.Function, or a scripted or compiled "
            f"callable: call torch functions on the leaf, or pass exact=({layer.name!r},) to give it an exact block"
        )
