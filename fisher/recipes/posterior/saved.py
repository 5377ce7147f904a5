"""Posteriors in files: all but the function, which is code that torch.load does not trust, and is given back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from fisher.checks import doors
from fisher.likelihoods.held import Emptied
from linmaps import trees
from linmaps.checks.annotations import typed


@trees.static
@dataclasses.dataclass(frozen=True)
class Unsaved:
    """In place of a function that was not saved: a ValueError that says how it is given back.

    >>> Unsaved()(None, None)
    Traceback (most recent call last):
    ValueError: f: a posterior is saved without its function, expected it again; posterior.on_function(f)
    """

    def __call__(self, *_: Any) -> Any:
        raise ValueError("f: a posterior is saved without its function, expected it again; posterior.on_function(f)")


class Savable:
    """A record with a function f and a likelihood `kind`, which are left out of files; copies have them."""

    f: Callable[..., Tensor]

    @typed
    def on_function(self, f: Callable[..., Tensor]) -> Self:
        """The same posterior of this function, f(params, x): after `torch.load`, as files hold no functions.

        Of another function of the same params, as a reward after the difference of two, give `predict` its layers too,
        `LayerCollection.from_function(f, params, x)`; of `functional_laplace` none, whose training inputs go through f.

        >>> import torch, fisher
        >>> reward, p = lambda p, x: (x @ p["w"])[:, 0], {"w": torch.ones(2, 1)}
        >>> better = lambda p, x: reward(p, x[0]) - reward(p, x[1])
        >>> pairs, x = (torch.eye(2), torch.zeros(2, 2)), torch.eye(2)
        >>> F = fisher.fim(better, p, (pairs, torch.ones(2)), fisher.PMatDense, "bernoulli")
        >>> posterior = fisher.recipes.laplace(better, p, F, 2).on_function(reward)
        >>> posterior.predict(x, layers=fisher.LayerCollection.from_function(reward, p, x))[1].flatten()
        tensor([0.8357, 0.8357])
        """
        made: Self = dataclasses.replace(self, f=doors.function(f))  # type: ignore[type-var]
        return made

    def __getstate__(self) -> dict[str, Any]:
        kind = self.__dict__["kind"]
        cls = kind.cls if isinstance(kind, Emptied) else type(kind)
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        return {**self.__dict__, "f": Unsaved(), "kind": kind if ours else None}

    def __copy__(self) -> Self:
        return self._made(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._made(lambda value: copy.deepcopy(value, memo))

    def _made(self, of: Callable[[Any], Any]) -> Self:
        new: Self = object.__new__(type(self))
        for name, value in self.__dict__.items():
            object.__setattr__(new, name, of(value))
        return new
