"""A function on the leaves of some layers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fisher.collector.collection import LayerCollection


def restricted(f: Callable[..., Any], params: Any, layers: LayerCollection | None) -> tuple[Callable[..., Any], Any]:
    """f and params on the leaves of these layers alone, `{path: leaf}`; as they are where that is all of them."""
    if layers is None:
        return f, params
    params = layers.layout.check(params, "params (of the LayerCollection)")
    if layers.complete:
        return f, params
    return (
        lambda own, *args: layers.restricted(lambda whole, args: f(whole, *args), params)(own, args),
        layers.restrict(params),
    )
