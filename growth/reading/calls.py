"""The torch calls between the two layers of a pair, followed by name, for messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import batch_norm, embedding, embedding_bag
from torch.overrides import TorchFunctionMode, resolve_name

from fisher.collector.calls.chains import LARGEST, LINEAR
from fisher.collector.watching.known import tensors
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
    ("batch_norm", "is a norm: name it, Pair(before, after, norm=...)"),
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


def _followed(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any) -> _Between:
    before, after = layers_of(params, pair)
    rows = before.all if before.gate is None else (*before.all, before.gate)
    leaf = lambda layer: trees.get(params, layer.weight_path)
    mode = _Between([leaf(layer) for layer in rows], [leaf(layer) for layer in after.all[:1]])
    mode.leaves = {id(trees.get(params, path)): path for path in trees.paths(params)}
    with mode:
        f(params, x)
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
        self.found.add(_name(func))
        return func(*args, **(kwargs or {}))


class _Between(TorchFunctionMode):
    """Follows what comes of the weights of `before` until a weight of `after` meets it."""

    def __init__(self, before: list[Tensor], after: list[Tensor]) -> None:
        super().__init__()
        self.alive: list[Any] = [*before, *after]  # an id is a name only while its object lives
        self.weights = {id(t): side for side, leaves in (("before", before), ("after", after)) for t in leaves}
        self.reached: dict[int, list[str]] = {}
        self.found: list[str] = []
        self.leaves: dict[int, Path] = {}
        self.met: dict[Path, str] = {}
        self.over = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = tensors(args, kwargs)
        ways = [self.reached[id(t)] for t in met if id(t) in self.reached]
        sides = {self.weights[id(t)] for t in met if id(t) in self.weights}
        out = func(*args, **kwargs)
        results = [t for t in trees.leaves(out) if isinstance(t, Tensor)]
        self.alive.extend(results)
        way = [name for names in ways for name in names]
        entered = [self.leaves[id(t)] for t in met if id(t) in self.leaves]
        if ways and not self.over and "after" not in sides:
            self.met |= {path: _name(func) for path in entered if path not in self.met}
        elif len(entered) == 1 == len(met):  # a view of a leaf
            self.leaves |= {id(t): entered[0] for t in results}
        if "after" in sides and ways:
            self.found, self.over = self.found or list(dict.fromkeys(way)), True
        elif sides and len(met) == 1:  # a view of a weight
            self.weights |= {id(t): next(iter(sides)) for t in results}
        elif "before" in sides or ways:
            self.reached |= {id(t): [] if "before" in sides else [*way, _name(func)] for t in results}
        return out


def _name(func: Any) -> str:
    name = (resolve_name(func) or "").removesuffix(".__get__").rpartition(".")[2]
    own = getattr(func, "__name__", "")
    return (own if name in ("", "fn") else name).strip("_") or "a call"


def refusal(f: Callable[..., Tensor], params: Any, pair: Pair, x: Any, why: str) -> str:
    """The words for a pair between whose layers something else stands than an elementwise function."""
    before, after = layers_of(params, pair)
    calls = calls_between(f, params, pair, x)
    asked = [c for c in calls if pair.norm is None or c != "batch_norm"]
    known = next(((c, cure) for part, cure in KNOWN for c in asked if part in c), None)
    through = f"; it goes through {', '.join(calls)}" if calls else ""
    named = "choose a pair without it" if pair.activation is not None else NAME_IT
    joins = [c for c in calls if c in SPATIAL]
    between = ungrown(f, params, pair, x)
    cure = f"{known[0]} {known[1]}" if known else named
    if between is not None and (known is None or known[0] == "prelu"):
        cure = between.partition(": ")[2]
    if joins and pair.activation is not None:
        cure = f"{joins[0]} joins positions: leave activation=None, so that it is read"
    return (
        f"{pair}: the input of {after.name} {why}; expected an elementwise function of the output of {before.name} alone"
        f"{through}; {cure}"
    )
