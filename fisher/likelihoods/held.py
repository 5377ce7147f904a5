"""Numbers that a likelihood holds: of the user's numbers nested tuples, of tensors the tensors themselves.

So that a likelihood of plain numbers is a hashable spec, and one of tensors is differentiable in them and has members
under vmap.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import values


class Held:
    """A dataclass with fields that may be tensors: equal and hashed by their values, printed as numbers."""

    def _key(self) -> tuple[Any, ...]:
        return (type(self), *(_plain(getattr(self, f.name)) for f in dataclasses.fields(self)))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shown = [(f.name, _plain(getattr(self, f.name))) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"


def numbers(value: Any, name: str) -> Any:
    """A tensor as it is, of a real dtype; numbers, lists and tuples of them as nested tuples of floats.

    Lists with tensors among the numbers are stacked.  TypeError for what is no number, ValueError for uneven rows.

    >>> numbers([1, 2], "variance")
    (1.0, 2.0)
    """
    if isinstance(value, Tensor):
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} has dtype {value.dtype}, expected real numbers")
        return value if value.is_floating_point() else value.to(torch.float64)
    if isinstance(value, (list, tuple)):
        found = [numbers(v, name) for v in value]
        if any(isinstance(v, Tensor) for v in found):
            like = next(v for v in found if isinstance(v, Tensor))
            parts = [v if isinstance(v, Tensor) else array(v, like) for v in found]
            if len({p.shape for p in parts}) > 1:
                raise ValueError(f"{name} has rows of unequal length, expected a full array")
            return torch.stack(parts)
        if len({_shape(v) for v in found}) > 1:
            raise ValueError(f"{name} has rows of unequal length, expected a full array")
        return tuple(found)
    if hasattr(value, "tolist"):
        return numbers(value.tolist(), name)
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: got {type(value).__name__}, expected numbers or a tensor of them")
    return float(value)


def array(value: Any, like: Tensor | None = None) -> Tensor:
    """What `numbers` gave as a tensor: of the dtype and on the device of `like`, where it is given, else float64.

    >>> array((1.0, 2.0))
    tensor([1., 2.], dtype=torch.float64)
    """
    t = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return t if like is None else t.to(device=like.device, dtype=like.dtype)


def check_values(t: Tensor, name: str, *, low: float, above: bool = False) -> None:
    """Raise a ValueError unless t holds finite numbers >= low (above: > low), at least one."""
    kind = "positive numbers" if above and low == 0 else f"numbers {'>' if above else '>='} {low:g}"
    if t.numel() == 0:
        raise ValueError(f"{name} is empty, expected {kind}")
    seen = values(t)
    if seen is None:
        return
    fine = (seen > low if above else seen >= low) & seen.isfinite()
    if not bool(fine.all()):
        shown = seen.tolist() if seen.numel() < 9 else seen[~fine][:8].tolist()
        raise ValueError(f"{name} is {shown}, expected {kind}")


@trees.static
@dataclasses.dataclass(frozen=True)
class Emptied:
    """A likelihood without its tensors: what of it is static.  `filled` puts them back.

    >>> from fisher.likelihoods import Gaussian
    >>> rest, tensors = emptied(Gaussian(torch.tensor(2.0)))
    >>> rest.filled(tensors)
    Gaussian(variance=2.0, covariance=None, class_axis=1)
    """

    cls: type
    settings: tuple[tuple[str, Any], ...]

    def filled(self, tensors: dict[str, Any]) -> Any:
        """The likelihood, without the checks that it met when it was made."""
        new: Any = object.__new__(self.cls)
        for name, value in {**dict(self.settings), **tensors}.items():
            object.__setattr__(new, name, value)
        return new


def emptied(likelihood: Any) -> tuple[Any, dict[str, Any]]:
    """(the likelihood without its tensors, those tensors by name); itself and none if it holds none."""
    if not dataclasses.is_dataclass(likelihood):
        return likelihood, {}
    fields = {f.name: getattr(likelihood, f.name) for f in dataclasses.fields(likelihood)}
    tensors = {k: v for k, v in fields.items() if any(isinstance(t, Tensor) for t in trees.leaves(v))}
    if not tensors:
        return likelihood, {}
    return Emptied(type(likelihood), tuple((k, v) for k, v in fields.items() if k not in tensors)), tensors


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *_shape(value[0])) if isinstance(value, tuple) and value else (0,) * isinstance(value, tuple)


def _plain(value: Any) -> Any:
    """Tensors as nested tuples of their values; a tensor without values stands for itself."""
    if not isinstance(value, Tensor):
        return value
    seen = values(value)
    return _nested(seen.tolist()) if seen is not None else _Identity(value)


@dataclasses.dataclass(frozen=True, eq=False)
class _Identity:
    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.tensor is other.tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __repr__(self) -> str:
        return f"<tensor {tuple(self.tensor.shape)}>"


def _nested(value: Any) -> Any:
    return tuple(map(_nested, value)) if isinstance(value, list) else value
