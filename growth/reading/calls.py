"""The torch calls between the two layers of a pair, followed by name, for messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from fisher.collector.calls.chains import LARGEST, LINEAR
from fisher.collector.watching.known import tensors
from growth.reading.layers import layers_of
from growth.reading.pairs import Pair
from linmaps import trees

KNOWN = (
    (
        "pool",
        "pools positions in a way that growth does not read (averages, maxima and powers of each unit's map it does): put it "
        "behind the layer after, or choose another pair",
    ),
    ("batch_norm", "is a norm: name it, Pair(before, after, norm=...)"),
    ("norm", "mixes the hidden units, so that a new one changes the others: choose a pair without it"),
    ("softmax", "mixes the hidden units, so that a new one changes the others: choose a pair without it"),
    ("attention", "mixes positions and splits the units into heads: choose a pair without it"),
    (
        "dropout",
        "drops units: put the model into eval mode (model.eval())",
    ),
    ("prelu", "has parameters: where these are one number for all units name it, Pair(before, after, activation=...)"),
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
    before, after = layers_of(params, pair)
    leaf = lambda layer: trees.get(params, layer.weight_path)
    mode = _Between([leaf(layer) for layer in before.all], [leaf(layer) for layer in after.all[:1]])
    with mode:
        f(params, x)
    return mode.found


class _Between(TorchFunctionMode):
    """Follows what comes of the weights of `before` until a weight of `after` meets it."""

    def __init__(self, before: list[Tensor], after: list[Tensor]) -> None:
        super().__init__()
        self.alive: list[Any] = [*before, *after]  # an id is a name only while its object lives
        self.weights = {id(t): side for side, leaves in (("before", before), ("after", after)) for t in leaves}
        self.reached: dict[int, list[str]] = {}
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = tensors(args, kwargs)
        ways = [self.reached[id(t)] for t in met if id(t) in self.reached]
        sides = {self.weights[id(t)] for t in met if id(t) in self.weights}
        out = func(*args, **kwargs)
        results = [t for t in trees.leaves(out) if isinstance(t, Tensor)]
        self.alive.extend(results)
        way = [name for names in ways for name in names]
        if "after" in sides and ways:
            self.found = self.found or list(dict.fromkeys(way))
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
    known = next(((c, cure) for part, cure in KNOWN for c in calls if part in c), None)
    through = f"; it goes through {', '.join(calls)}" if calls else ""
    named = "choose a pair without it" if pair.activation is not None else NAME_IT
    joins = [c for c in calls if c in SPATIAL]
    cure = f"{known[0]} {known[1]}" if known else named
    if joins and pair.activation is not None:
        cure = f"{joins[0]} joins positions: leave activation=None, so that it is read"
    return (
        f"{pair}: the input of {after.name} {why}; expected an elementwise function of the output of {before.name} alone"
        f"{through}; {cure}"
    )
