"""Chains: the calls that lead from one layer's output to the next layer's input, unit by unit, as a callable value.

B batch, C channels (units).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from fisher.collector.calls.batching import prelu
from linmaps.trees import static

_FUNCTIONAL = """
    relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid hardtanh hardswish hardsigmoid
    logsigmoid tanhshrink hardshrink softshrink threshold rrelu
""".split()  # noqa: SIM905
_POINTWISE = """
    relu selu celu tanh sigmoid sin cos exp expm1 log1p abs square sqrt rsqrt neg erf erfc atan arctan asinh sinh cosh
    sinc softplus clamp clip pow logit sign positive clone contiguous reciprocal add sub mul div
""".split()  # noqa: SIM905
_OPERATORS = ["add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "pow", "neg"]

ELEMENTWISE: dict[str, Any] = {
    **{f"torch.nn.functional.{n}": getattr(torch.nn.functional, n) for n in _FUNCTIONAL},
    **{f"torch.{n}": getattr(torch, n) for n in _POINTWISE if hasattr(torch, n)},
    **{f"torch.Tensor.{n}": getattr(torch.Tensor, n) for n in _POINTWISE if hasattr(torch.Tensor, n)},
    **{f"torch.Tensor.__{n}__": getattr(torch.Tensor, f"__{n}__") for n in _OPERATORS},
    "torch.nn.functional.prelu": prelu,  # with a tensor, so only in chains that are put together from uses
}
_OF_CALL = {
    **{func: name for name, func in ELEMENTWISE.items()},
    **{
        getattr(space, n + "_"): f"{prefix}.{n}"  # the in-place form is replayed out of place
        for prefix, space, names in (
            ("torch.nn.functional", torch.nn.functional, _FUNCTIONAL),
            ("torch", torch, _POINTWISE),
            ("torch.Tensor", torch.Tensor, _POINTWISE),
        )
        for n in names
        if hasattr(space, n + "_")
    },
}

DROPOUTS = {f"torch.nn.functional.{n}" for n in (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
)} | {"torch.dropout"}  # fmt: skip
_LINEAR = [f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg") for n in (1, 2, 3)] + ["pad", "interpolate"]
_OTHERS = [f"{kind}_pool{n}d" for kind in ("max", "adaptive_max", "lp") for n in (1, 2, 3)]
# over the positions of each unit's map [B, C, *space]: linear in the map, and not
LINEAR: dict[str, Any] = {f"torch.nn.functional.{n}": getattr(torch.nn.functional, n) for n in _LINEAR}
LINEAR |= {
    "torch.Tensor.mean": torch.mean,
    "torch.mean": torch.mean,
    "torch.Tensor.sum": torch.sum,
    "torch.sum": torch.sum,
}
LARGEST: dict[str, Any] = {f"torch.nn.functional.{n}": getattr(torch.nn.functional, n) for n in _OTHERS}
LARGEST |= {"torch.Tensor.amax": torch.amax, "torch.amax": torch.amax}


def _largest(z: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return torch.max(z, dim[0] if isinstance(dim, tuple) else dim, keepdim)[0]


def _picked(z: Tensor, *index: Any) -> Tensor:
    """The entries at an index of the axes behind the channels: numbers, and slices as (start, stop, step)."""
    return z[(slice(None), slice(None), *(slice(*i) if isinstance(i, tuple) else i for i in index))]


def _laid_out(z: Tensor, *space: int) -> Tensor:
    return z.reshape(*z.shape[:2], *space)


LARGEST |= {"torch.Tensor.max": _largest, "torch.max": _largest}
LINEAR |= {"torch.Tensor.getitem": _picked, "torch.Tensor.reshape": _laid_out}  # as `_positions` has them

NORM = "torch.nn.functional.batch_norm"  # by the leaves at these paths alone: it stays in chains that are taken apart
REDUCE = ("mean", "amax", "sum", "max")
SQUEEZE: tuple[Any, ...] = (torch.squeeze, torch.Tensor.squeeze)
REGROUP: tuple[Any, ...] = (torch.reshape, torch.Tensor.reshape, torch.Tensor.view)
REGROUP += (torch.flatten, torch.Tensor.flatten, torch.unflatten, torch.Tensor.unflatten)

Step = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...]]


def step(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], map_ndim: int = 0, rows: tuple[int, ...] = ()
) -> Step | None:
    """The call as data if it acts on each unit alone and all else in it is a plain constant: elementwise, or over the positions
    of a map `[B, C, *space]` of so many axes, or of rows `[B, S, C]` of this shape, as the call that does so on `[B, C, S]`."""
    name = resolve_name(func) or ""
    if rows and args[0].shape[-1:] == rows[-1:] and _regroups(func, args, kwargs):
        return "torch.clone", (), ()
    if _flattens(func, args, kwargs):  # entries keep their order, so a later layer sees the same numbers
        return "torch.clone", (), ()
    is_map = map_ndim > 2 and args[0].ndim > 2
    if func is torch.Tensor.__getitem__ or func in REGROUP or func in SQUEEZE:
        return _positions(func, args, kwargs) if is_map else None
    if name in LINEAR or name in LARGEST:
        if len(rows) == 3:
            return _over_rows(name, args, kwargs) if args[0].ndim == 3 else None
        return _spatial(name, args, kwargs) if is_map else None
    rest = {k: v for k, v in kwargs.items() if k != "inplace"}
    constants = (*args[1:], *rest.values())
    if any(not (c is None or isinstance(c, (int, float, bool, str))) for c in constants):
        return None
    if name in DROPOUTS:
        training = rest.get("training", args[2] if len(args) > 2 else "alpha" not in name)
        drops = training and rest.get("p", args[1] if len(args) > 1 else 0.5) != 0
        return None if drops else ("torch.clone", (), ())
    if name.endswith(".rrelu") and (args[3] if len(args) > 3 else rest.get("training", False)):
        return None
    name = _OF_CALL.get(func) or _OF_CALL.get(getattr(func, "__func__", None))
    return None if name is None else (name, args[1:], tuple(sorted(rest.items())))


def _spatial(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
    x, own = args[0], name.rpartition(".")[2]
    plain = tuple(tuple(a) if isinstance(a, list) else a for a in args[1:])
    rest = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    numbers = [n for c in (*plain, *rest.values()) for n in (c if isinstance(c, tuple) else (c,))]
    if any(not (n is None or isinstance(n, (int, float, bool, str))) for n in numbers):
        return None
    if own in REDUCE:
        axes = _axes(x, plain, rest)
        if not axes or min(axes) < 2 or rest.get("dtype") is not None:
            return None
    if own.endswith("d") and own[-2].isdigit() and int(own[-2]) != x.ndim - 2:  # of a map without a batch axis
        return None
    if own == "pad":
        widths = plain[0] if plain else rest["pad"]
        value = rest.get("value", plain[2] if len(plain) > 2 else None)
        if len(widths) > 2 * (x.ndim - 2) or value not in (None, 0, 0.0):
            return None
    return name, plain, tuple(sorted(rest.items()))


def _positions(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
    """A call that picks positions of a map `[B, C, *space]`, or lays them out otherwise, in their order."""
    x = args[0]
    if func is torch.Tensor.__getitem__:
        index = _index(args[1], x.ndim)
        return None if index is None else ("torch.Tensor.getitem", index, ())
    out = func(torch.empty(x.shape, device="meta"), *args[1:], **kwargs)
    kept = out.shape[:2] == x.shape[:2] and out.ndim > 1
    return ("torch.Tensor.reshape", tuple(out.shape[2:]), ()) if kept else None


def _index(index: Any, ndim: int) -> tuple[Any, ...] | None:
    """Numbers and slices of the axes behind the first two, which are taken whole; None for any other index."""
    index = index if isinstance(index, tuple) else (index,)
    if sum(i is Ellipsis for i in index) > 1 or any(isinstance(i, (bool, Tensor, list)) or i is None for i in index):
        return None
    at = next((n for n, i in enumerate(index) if i is Ellipsis), len(index))
    full = (*index[:at], *[slice(None)] * (ndim - len([i for i in index if i is not Ellipsis])), *index[at + 1 :])
    if any(i != slice(None) for i in full[:2]):
        return None
    found = tuple((i.start, i.stop, i.step) if isinstance(i, slice) else i for i in full[2:])
    plain = all(n is None or type(n) is int for i in found for n in (i if isinstance(i, tuple) else (i,)))
    return found if plain else None


def _axes(x: Tensor, plain: tuple[Any, ...], rest: dict[str, Any]) -> set[int]:
    """The axes that a mean, sum or maximum is over; of all none."""
    dims = rest.get("dim", plain[0] if plain else ())
    return {d % x.ndim for d in (dims if isinstance(dims, tuple) else (dims,))} if dims not in ((), None) else set()


def _over_rows(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
    """A mean, sum or maximum of rows `[B, S, C]` over S, as one of maps `[B, C, S]`."""
    plain = tuple(tuple(a) if isinstance(a, list) else a for a in args[1:])
    rest = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    if name.rpartition(".")[2] not in REDUCE or _axes(args[0], plain, rest) != {1} or rest.get("dtype") is not None:
        return None
    return name, ((2,),), ()


def _regroups(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call lays out positions otherwise and leaves the last axis as it is: rows keep their order."""
    if func not in REGROUP:
        return False
    x = args[0]
    out = func(torch.empty(x.shape, device="meta"), *args[1:], **kwargs)
    return bool(out.shape[-1:] == x.shape[-1:] and out.ndim > 1)


def _flattens(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call lays out the entries of each example in a row, `[B, everything]`."""
    x, rest = args[0], args[1:]
    if func in (torch.flatten, torch.Tensor.flatten):
        start = rest[0] if rest else kwargs.get("start_dim", 0)
        end = rest[1] if len(rest) > 1 else kwargs.get("end_dim", -1)
        return start == 1 and end in (-1, x.ndim - 1)
    if func in (torch.reshape, torch.Tensor.reshape, torch.Tensor.view) and not kwargs:
        shape = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(shape) == 2 and shape[0] == x.shape[0] and x.ndim > 2
    return False


@static
@dataclasses.dataclass(frozen=True)
class Chain:
    """A composition of torch calls that act on each unit alone; calling it applies them, out of place.

    >>> import torch
    >>> Chain((("torch.nn.functional.leaky_relu", (), (("negative_slope", 0.5),)),))(torch.tensor([-2.0, 2.0]))
    tensor([-1.,  2.])
    """

    steps: tuple[Step, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        for one in self.steps:
            z = run(one, z)
        return z

    @property
    def spatial(self) -> bool:
        """Whether some step joins positions."""
        return any(name not in ELEMENTWISE for name, _, _ in self.steps)

    @property
    def holds_tensors(self) -> bool:
        """Whether some step has a tensor of the params in it, as the slopes of a PReLU."""
        return any(isinstance(a, Tensor) for _, args, kwargs in self.steps for a in (*args, *dict(kwargs).values()))

    @property
    def pointwise(self) -> Chain:
        """The elementwise steps alone."""
        return Chain(tuple(s for s in self.steps if s[0] in ELEMENTWISE))

    def __str__(self) -> str:
        return " > ".join(name.rpartition(".")[2].strip("_") for name, _, _ in self.steps) or "identity"


def run(step: Step, z: Tensor) -> Tensor:
    """One step of a chain, applied."""
    name, args, kwargs = step
    return (ELEMENTWISE.get(name) or LINEAR.get(name) or LARGEST[name])(z, *args, **dict(kwargs))


@functools.lru_cache(4096)
def call_name(func: Any) -> str:
    """A torch call's name, for messages and tables; empty for a custom autograd function."""
    own = getattr(func, "__name__", "")
    return resolve_name(func) or (f"torch.{own}" if own and getattr(torch, own, None) is func else "")
