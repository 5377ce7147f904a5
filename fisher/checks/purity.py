"""Functions that are run twice: f is not random, keeps its examples apart, and what torch says of it is said by cause."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fisher.checks.agreement import generic, repeats, rounding
from fisher.checks.mixed import explained
from fisher.checks.reverse_mode import CHECKPOINTED, reverse
from linmaps import trees
from linmaps.trees.graphs.tracing import traced


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
        y, back = reverse(of_both, params, [flat[i] for i in free])
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
    "don't yet support saved tensor hooks": CHECKPOINTED,
    "must override the setup_context": "calls an autograd.Function whose forward takes ctx, as hooks of modules at their "
    "backward do, which vmap, grad and other transforms do not run, expected one with setup_context; outside of transforms it "
    "serves",
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
        "mode (model.eval(), and then fisher.functional(model), which keeps the mode of its call), or pass its noise as an input"
    )


def in_front(x: Any) -> str:
    """What x of one axis is taken for, as one example by itself may be given for a batch; of others nothing.

    >>> in_front(torch.ones(3)), in_front(torch.ones(3, 2))
    (': x of shape (3,) is 3 examples of a number each, and a single example of 3 numbers is x[None]', '')
    """
    shapes = {tuple(t.shape) for t in trees.leaves(x) if isinstance(t, Tensor)}
    if not shapes or any(len(s) != 1 for s in shapes):
        return ""
    n = next(iter(shapes))[0]
    return f": x of shape ({n},) is {n} examples of a number each, and a single example of {n} numbers is x[None]"


def steady(f: Callable[..., Tensor], params: Any, x: Any) -> None:
    """Raise where f is random, as `repeatable` does: two runs on a few examples, and whether torch's generators have moved."""
    if traced():  # a graph with random numbers is refused as a whole
        return
    with no_random_call():
        leaves = trees.leaves((params, x))
        devices = {t.device for t in leaves if t.device.type in ("cuda", "xpu")}
        before = _generators(devices)
        count = max(1, max((len(t) for t in trees.leaves(x)), default=1))
        each = sum(t.numel() for t in trees.leaves(x)) // count
        few = trees.map(lambda t: t[: max(FEWEST, min(FEW, NUMBERS // max(1, each)))], x)
        same = repeats(f(params, few), f(params, few))
        same = same and all(map(torch.equal, before, _generators(devices)))
    if not same:
        repeatable(f, params, x)


def _generators(devices: set[torch.device]) -> list[Tensor]:
    """The states of torch's generators, of the CPU and of these devices."""
    return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in devices)]


FEWEST, FEW, NUMBERS = 4, 16, 2**12  # examples: so few, of large ones so few that they hold so many numbers


def apart(apart: bool, name: str = "f(params, x)", x: Any = None) -> None:
    """Raise a ValueError unless the examples of x are apart."""
    if not apart:
        raise ValueError(
            f"{name}: the output of one example depends on other examples, expected examples apart, the batch axis in front"
            f"{in_front(x)}; batch norm in train mode or without running statistics mixes them: use its running statistics "
            "(model.eval()); so does a tensor with a row for each example that f closes over: it belongs into x"
        )
