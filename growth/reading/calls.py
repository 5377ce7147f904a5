"""The torch calls between the two layers of a pair, followed by name, for messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import batch_norm, embedding, embedding_bag
from torch.overrides import TorchFunctionMode

from fisher.collector.calls.chains import LARGEST, LINEAR
from fisher.collector.watching.known import tensors
from growth.checks.followed import Between, call_name
from growth.reading.along import FILL, NORM_FILLS, norm_leaves
from growth.reading.gated_pairs import Gated
from growth.reading.layers import layers_of
from growth.reading.leaves import places
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path

KNOWN = (
    (
        "pool",
        "pools positions in a way that growth does not read (averages, maxima and powers of each unit's map it does): put it "
        "behind the layer after, or choose another pair",
    ),
    (
        "instance_norm",
        "gives each unit's map full size, however small the unit, so that a new one does not begin at zero: choose a pair "
        "without it",
    ),
    ("norm", "mixes the hidden units, so that a new one changes the others: choose a pair without it"),
    ("softmax", "mixes the hidden units, so that a new one changes the others: choose a pair without it"),
    ("attention", "mixes positions and splits the units into heads: choose a pair without it"),
    (
        "dropout",
        "drops units: put the model into eval mode (model.eval())",
    ),
    (
        "prelu",
        "has slopes that are not read: give it a leaf of params with one number, or with one for each hidden unit (torch has "
        "them along axis 1), or choose another pair",
    ),
)

SPATIAL = {name.rpartition(".")[2] for name in (*LINEAR, *LARGEST)}
WIDTH = (
    "{0} keeps the width of now, which is a number in it: write x.flatten(1), or {0}(len(x), -1), which follow the number of "
    "units"
)
NAME_IT = "if it is one all the same, name it: Pair(before, after, activation=...), which is compared with what f does"


def calls_between(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> list[str]:
    """The names of the torch calls that lead from the output of `before` to the input of `after`, for messages.

    >>> import torch
    >>> f = lambda p, x: torch.relu(x @ p["a"].T).flip(-1) @ p["b"].T
    >>> params = {"a": torch.eye(2), "b": torch.eye(2)}
    >>> calls_between(f, params, Pair("a", "b"), torch.eye(2))
    ['relu', 'flip']
    """
    return _followed(f, params, pair, x).found


def calls_of(f: Callable[..., Tensor], params: Any, x: Any) -> set[str]:
    """The names of all torch calls that f makes on x, for messages.

    >>> import torch
    >>> sorted(calls_of(lambda p, x: torch.relu(x @ p), torch.eye(2), torch.eye(2)))
    ['matmul', 'relu']
    """
    mode = _Names()
    with mode:
        f(params, x)
    return mode.found


def leaves_between(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> list[str]:
    """The names of the leaves with one number per hidden unit that enter these calls, and do not grow along with the pair.

    >>> import torch
    >>> f = lambda p, x: (torch.relu(x @ p["a"].T) * p["s"]) @ p["b"].T
    >>> leaves_between(f, {"a": torch.eye(2), "s": torch.ones(2), "b": torch.eye(2)}, Pair("a", "b"), torch.eye(2))
    ['s']
    """
    return list(_met(f, params, pair, x))


def as_read(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> Pair:
    """The pair with the leaves of PReLU among these growing along."""
    if isinstance(pair, Gated):
        return pair
    slopes = [name for name, call in _met(f, params, pair, x).items() if call == "prelu"]
    return dataclasses.replace(pair, along=(*pair.along, *slopes)) if slopes else pair


def _met(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> dict[str, str]:
    """Names of the leaves of `leaves_between`, each with the call that it enters first."""
    before, after = layers_of(params, pair)
    own = {path for path, *_ in places(params, pair)}
    sizes = {before.weight.shape[0] * n for n in (1, after.columns)} - {1}
    met = _followed(f, params, pair, x).met
    if any(trees.get(params, p).ndim > 1 for p in met):  # another layer stands between, with a bias of its own
        return {}
    return {path_str(p): call for p, call in met.items() if p not in own and trees.get(params, p).numel() in sizes}


def ungrown(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> str | None:
    """The words for leaves that stay as they are where the pair's units become more or fewer; None without any."""
    names = leaves_between(f, params, pair, x)
    if not names:
        return None
    if isinstance(pair, Gated):
        return (
            f"{pair}: {', '.join(names)} enters what stands between, with as many numbers as there are hidden units, expected "
            "no such leaf: of a gated pair none grows along; give the gate an activation without, or with one number for all"
        )
    return (
        f"{pair}: {', '.join(names)} enters what stands between, with as many numbers as there are hidden units, and does not "
        "change with them; expected no such leaf, or that it grows along: with new entries of "
        f"{FILL}, as of PReLU, by Pair(before, after, along={tuple(names)}), activation= being what it then is to a new unit; "
        "or choose another pair (a scale goes into the rows of the layer before or the columns of the one after)"
    )


def norm_eps(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> float | None:
    """The eps of the pair's batch norm, None where f does not call torch's, or some of its four leaves is none."""
    found = {path_str(path).rpartition(".")[2]: leaf for path, leaf, _ in norm_leaves(params, pair)}
    if len(found) < len(NORM_FILLS) or len(pair.norms) > 1:
        return None
    mode = _Norm(found["weight"])
    with mode:
        f(params, x)
    return mode.eps


def padding_row(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> int | None:
    """The padding row of the table that is the pair's first layer, None without one, or where its uses differ in it.

    >>> import torch
    >>> f = lambda p, i: torch.nn.functional.embedding(i, p["e"], padding_idx=-1).mean(1) @ p["b"].T
    >>> params = {"e": torch.ones(5, 2), "b": torch.ones(1, 2)}
    >>> padding_row(f, params, Pair("e", "b", layout=("in_out", "out_in")), torch.ones(3, 2, dtype=torch.int64))
    4
    """
    table = trees.get(params, layers_of(params, pair)[0].weight_path)
    mode = _Table(table)
    with mode:
        f(params, x)
    one = mode.rows.pop() if len(mode.rows) == 1 else None
    return None if one is None else one % table.shape[0]


def _followed(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> Between:
    before, after = layers_of(params, pair)
    rows = before.all if before.gate is None else (*before.all, before.gate)
    leaf = lambda layer: trees.get(params, layer.weight_path)
    leaves = {id(trees.get(params, path)): path for path in trees.paths(params)}
    mode = Between(
        [leaf(layer) for layer in rows], [leaf(layer) for layer in after.all[:1]], leaves, before.weight.ndim > 2
    )
    with mode:
        y = f(params, x)
    mode.returned(y)
    return mode


class _Norm(TorchFunctionMode):
    """Looks for the batch norm of a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.eps: float | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is batch_norm and any(t is self.weight for t in tensors(args, kwargs)):
            self.eps = kwargs.get("eps", args[7] if len(args) > 7 else 1e-5)
        return func(*args, **kwargs)


class _Table(TorchFunctionMode):
    """Looks for the padding rows of the lookups in a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows: set[int | None] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (embedding, embedding_bag) and any(t is self.table for t in tensors(args, kwargs)):
            self.rows.add(kwargs.get("padding_idx"))
        return func(*args, **kwargs)


class _Names(TorchFunctionMode):
    """Collects the names of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(call_name(func))
        return func(*args, **(kwargs or {}))


def kept_width(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> str | None:
    """The words for a view between the layers whose width is a number; None without one."""
    name = next((call.name for call in _followed(f, params, pair, x).way if call.fixed), None)
    return None if name is None else WIDTH.format(name)


ARITHMETIC = {"abs", "add", "div", "erf", "exp", "mul", "multiply", "neg", "pow", "relu", "rsub", "sigmoid"}
ARITHMETIC |= {"softplus", "square", "sub", "subtract", "tanh", "true_divide"}


def is_arithmetic(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> bool:
    """Whether all that leads to `after`, beside calls that are read, is arithmetic of the entries of the output of `before`."""
    seen = _followed(f, params, pair, x)
    alone = lambda c: not (c.leaves or c.fixed or c.foreign) and (c.name in ARITHMETIC or (c.read and not c.joins))
    return not seen.elsewhere and all(map(alone, seen.way))


def refusal(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any, why: str) -> str:
    """The words for a pair between whose layers something else stands than an elementwise function."""
    before, after = layers_of(params, pair)
    seen = _followed(f, params, pair, x)
    calls = seen.found
    through = f"; it goes through {', '.join(calls)}" if calls else ""
    return (
        f"{pair}: the input of {after.name} {why}; expected an elementwise function of the output of {before.name} alone"
        f"{through}; {_cure(f, params, pair, x, seen)}"
    )


def _cure(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any, seen: Between) -> str:
    """What stands in the way, and what to do about it: the first call that is not read says so."""
    own = {path for path, *_ in places(params, pair)}
    others = {layer.weight_path for layer in layers_of(params, pair)[1].others}
    unread = [c for c in seen.way if not c.read and not (c.leaves and set(c.leaves) <= own and not c.joins)]
    if seen.elsewhere:
        return (
            f"the output of {layers_of(params, pair)[0].name} is also read by {' and by '.join(seen.elsewhere[:3])}, where new "
            "units would have no weights: choose another pair, or a growth.Graph, whose nodes may have several readers"
        )
    for call in unread:
        layer = next((path for path in call.leaves if trees.get(params, path).ndim > 1), None)
        if "batch_norm" in call.name:
            return f"batch_norm is a norm: name it, Pair(before, after, norm={_stem(call.leaves) or '...'})"
        if layer is not None and not call.joins and layer not in others:
            weight = trees.get(params, layer)
            if weight.ndim > 2 and weight.shape[1] == 1:
                return (
                    f"a depthwise convolution, {path_str(layer)}, stands between: name it, Pair(before, after, "
                    f"depthwise={_stem([layer])})"
                )
            return f"{call.name} of {path_str(layer)}, a layer, stands between: choose a pair of layers that follow each other"
    joins = [c.name for c in seen.way if c.name in SPATIAL]
    if joins and pair.activation is not None:
        return f"{joins[0]} joins positions: leave activation=None, so that it is read"
    known = next(((c.name, cure) for c in unread for part, cure in KNOWN if part in c.name), None)
    between = ungrown(f, params, pair, x)
    if between is not None and (known is None or known[0] == "prelu"):
        return between.partition(": ")[2]
    if known is not None:
        return f"{known[0]} {known[1]}"
    named = "choose a pair without it" if pair.activation is not None else NAME_IT
    first = next((c for c in unread if not c.leaves), None)
    if first is None:
        return named
    if first.fixed:
        return WIDTH.format(first.name)
    if first.foreign:
        return f"{first.name} takes another tensor, in which new units have no part (a residual, a mask): choose another pair"
    if first.joins:
        return f"{first.name} takes several of these; {named}"
    return f"{first.name} is not read; {named}"


def _stem(leaves: list[Path]) -> str:
    return repr(path_str(leaves[0]).rpartition(".")[0] or path_str(leaves[0])) if leaves else ""
