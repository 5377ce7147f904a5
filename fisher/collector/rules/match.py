"""A match: what a call does with parameter leaves.  Everything else (taps, factors, blocks) follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fisher.collector.rules.forms import Form
from fisher.collector.rules.forms import Lookup as LookupForm
from linmaps.trees import path_str, static
from linmaps.trees.keys import Path

PLAIN = Form()


@static
@dataclasses.dataclass(frozen=True)
class Derived:
    """A weight that f computes from leaves alone: its number among all that f computes so, the leaves, its shape, and what makes
    it."""

    number: int
    leaves: tuple[Path, ...]
    shape: tuple[int, ...]
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {', '.join(map(path_str, self.leaves))}"


def spoken(path: Path | Derived | None) -> str:
    """The name of a weight, for messages."""
    return str(path) if isinstance(path, Derived) else path_str(path or ())


def leaves_of(path: Path | Derived | None) -> tuple[Path, ...]:
    """The leaves that a weight is made of."""
    return path.leaves if isinstance(path, Derived) else () if path is None else (path,)


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor object with the entries of a leaf, up to a constant that is added and a factor: the leaf, its transpose, the
    rows start..stop of it, or these in another shape, in their order (an axis along which they are repeated counts as 1)."""

    path: Path | Derived
    transposed: bool = False
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    factor: float = 1.0
    leaf: tuple[int, ...] = ()  # its shape
    index: Tensor | None = dataclasses.field(
        default=None, compare=False
    )  # which rows, where any, in the order of positions

    @property
    def whole(self) -> bool:
        """Whether it is the leaf as it is."""
        return not self.transposed and self.rows is None and self.shape is None and self.index is None


@dataclasses.dataclass(frozen=True)
class Match:
    """What a call does with leaves: z = W x (+ b) in the sense of its form.

    kind: a name for the table; "scale" and "shift" are elementwise, "embedding" a lookup, all others products.
    weight, bias: views of the leaves (None: no leaf); inputs: the tensor x (None for a bias or a shift alone);
    feature: what makes of x the factor of the weight, where that is not x (a norm's normalized x);
    added_to: for a bias alone, the tensor that it is added to.
    constant: the number of this call among the products with constants, if it is one; free: no data enter x, and examples none.
    """

    kind: str
    weight: View | None
    bias: View | None
    inputs: Tensor | None
    form: Form = PLAIN
    feature: Callable[[Tensor], Tensor] | None = None
    added_to: Tensor | None = None
    in_place: bool = False
    constant: int | None = None
    free: bool = False

    def with_factors(self) -> Match | None:
        """The same with the factor of the weight's view in its feature; None where a factor has no place."""
        if self.bias is not None and self.bias.factor != 1:
            return None
        if self.weight is None or self.weight.factor == 1:
            return self
        if isinstance(self.form, LookupForm):
            return None
        c, feature = self.weight.factor, self.feature
        return dataclasses.replace(self, feature=lambda x: c * (x if feature is None else feature(x)))


Lookup = Callable[[Any], View | None]
Rule = Callable[[tuple[Any, ...], dict[str, Any], Lookup], Match | None]


def bind(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], defaults: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The arguments of a call by their names, in this order."""
    bound = dict(zip(names, defaults)) | dict(zip(names, args)) | kwargs
    return tuple(bound.get(n) for n in names)


def is_input(x: Any) -> bool:
    """A tensor with a batch axis and features."""
    return isinstance(x, Tensor) and x.ndim >= 2
