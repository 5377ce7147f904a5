"""Where a matrix comes from: the likelihood that `fim` made it of, kept by what is the same matrix in another form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from linmaps.checks.wrapping import at_home

Fn = TypeVar("Fn", bound=Callable[..., Any])


def knowing(decompose: Fn) -> Fn:
    """The method of a PMat, whose result is the same matrix and knows its likelihood too."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = decompose(self, *args, **kwargs)
        found = found if self.known_layers is None else found.on_layers(self.known_layers)
        return found if self.likelihood is None else found.made_of(self.likelihood)

    return at_home(run, decompose)


def keep_origin(cls: type) -> None:
    """`knowing` for the decomposition that a class itself defines; for `__init_subclass__`."""
    if "eigendecomposition" in vars(cls):
        setattr(cls, "eigendecomposition", knowing(vars(cls)["eigendecomposition"]))  # noqa: B010
