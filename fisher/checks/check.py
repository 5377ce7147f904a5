"""Checks at the door: finite data, floating leaves, a function that is not random and keeps its examples apart.

They look at raw values (under vmap and grad at those of all members), only to raise; no result depends on them.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap, vjp
from torch.overrides import TorchFunctionMode

from fisher.checks.doors import explained
from linmaps import trees
from linmaps.checks import values
from linmaps.trees import path_str


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

    with no_random_call(name), explained(params, x=x):
        y, back = vjp(of_both, params, [flat[i] for i in free])  # type: ignore[misc]
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
        floor = rounding(one)
    if len(one) != len(other) or not all(repeats(s, t, floor) for s, t in zip(one, other)):
        raise _random(name)
    return y, back


@contextmanager
def no_random_call(name: str = "f(params, x)") -> Iterator[None]:
    """torch's refusal of a random call under vmap, as the ValueError that `repeatable` raises; and other refusals of torch
    whose cause is a choice of f's, as a ValueError that names it."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, RuntimeError) and "called random operation while in randomness error mode" in text:
            raise _random(name) from error
        for words, cause in _CAUSES.items():
            if isinstance(error, RuntimeError) and words in text:
                raise ValueError(f"{name}: {cause}") from error
        if _within(error, os.sep.join(("torch", "_dynamo"))):
            raise ValueError(
                f"{name}: calls what torch.compile made, whose inside cannot be seen, expected plain calls of torch; give the "
                "function or module that was compiled (of a compiled module `module._orig_mod`)"
            ) from error
        raise


_CAUSES = {
    "mutate a captured Tensor": "changes a tensor that it closes over, as batch norm in train mode changes its running "
    "statistics, where the output of one example depends on other examples; expected a pure function: put the model into eval "
    "mode (model.eval())",
    "don't yet support saved tensor hooks": "keeps its activations by hooks, as gradient checkpointing does "
    "(torch.utils.checkpoint), which torch.func does not differentiate, expected plain calls; run it without checkpointing",
    "must override the setup_context": "calls an autograd.Function without setup_context, as gradient checkpointing with "
    "use_reentrant=True does, which torch.func does not differentiate, expected plain calls; run it without checkpointing, "
    "or give the autograd.Function a setup_context",
    "does not have vmap support": "calls an autograd.Function without a rule for vmap, expected one that vmap takes; set its "
    "generate_vmap_rule = True",
}


def _within(error: Exception, place: str) -> bool:
    """Whether an error was raised in a file of this place."""
    frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
    return any(place in name for name in frames)


def _random(name: str) -> ValueError:
    return ValueError(
        f"{name}: is random: two runs on the same input differ, expected a deterministic function; put dropout into eval "
        "mode (model.eval()), or pass its noise as an input"
    )


def generic(y: Tensor) -> Tensor:
    """A cotangent of y that nothing is orthogonal to by accident."""
    return torch.cos(1.7 * torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y.dtype)


def rounding(tensors: list[Tensor]) -> float:
    """What rounding may leave of a zero beside these numbers."""
    sizes = [(raw(t).nan_to_num(0.0, 0.0, 0.0), t.dtype) for t in tensors if t.is_floating_point() and t.numel()]
    return max((100 * torch.finfo(dtype).eps * float(t.abs().amax()) for t, dtype in sizes), default=0.0)


def repeats(one: Tensor, other: Tensor, floor: float = 0.0) -> bool:
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
    same = (a == b) | (a.isnan() & b.isnan()) | (finite & ((a - b).abs() <= tol * scale + floor))
    return bool(same.all())


def steady(f: Callable[..., Tensor], params: Any, x: Any) -> None:
    """Raise where f is random, as `repeatable` does: two runs on a few examples, and whether torch's generator has moved."""
    with no_random_call():
        before = torch.get_rng_state()
        few = trees.map(lambda t: t[:FEW], x)
        same = repeats(f(params, few), f(params, few)) and torch.equal(before, torch.get_rng_state())
    if not same:
        repeatable(f, params, x)


FEW = 16


class _Dtypes(TorchFunctionMode):
    """The floating dtypes that calls return."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.met.add(out.dtype)
        return out


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """What rounding may do, relatively: half the digits of the coarsest of these dtypes, of half precision all but four bits."""
    eps = max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)
    return min(10 * eps**0.5, 16 * eps) if eps > 1e-4 else 10 * eps**0.5


def tolerance_of(f: Callable[..., Any], *args: Any) -> float:
    """The same of a function that may compute in another precision than that of its arguments, as under autocast."""
    with _Dtypes() as seen:
        f(*args)
    return tolerance(seen.met)


def apart(apart: bool, name: str = "f(params, x)") -> None:
    """Raise a ValueError unless the examples are apart."""
    if not apart:
        raise ValueError(
            f"{name}: the output of one example depends on other examples, expected examples apart, the batch axis in front; "
            "batch norm in train mode or without running statistics mixes them: use its running statistics (model.eval())"
        )


def same(one: Tensor, other: Tensor, tol: float) -> bool:
    """Whether raw values agree up to tol, relative to the largest (at least 1)."""
    a, b = values(one), values(other)
    if a is None or b is None or not b.numel():
        return True
    scale = torch.maximum(b.abs().amax(), torch.ones_like(b.amax()))
    return a.shape == b.shape and bool(((a - b).abs() <= tol * scale).all())


def vanishes(t: Tensor) -> bool:
    """Whether raw values are zero; an overflow is not a finding: the result's own check reports it."""
    found = raw(t)
    return not bool(((found != 0) & found.isfinite()).any())
