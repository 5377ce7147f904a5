"""Which params and which layers a matrix is about: all of them, or a part of a larger collection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import vmap

from fisher.collector import restriction
from fisher.collector.collection import LayerCollection
from fisher.collector.taps import pull
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.inverses import Inverse
from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.trees import Layout, path_str


@dataclasses.dataclass(frozen=True)
class Space:
    """f on `own`, the params that F acts on; seen: the function and params that the layers (None: not known) are of."""

    f: Callable[..., Tensor]
    own: Any
    layers: LayerCollection | None
    seen: tuple[Callable[..., Tensor], Any]
    restricted: Callable[[Callable[..., Any]], Callable[..., Any]]  # a function of all params as one of own

    def views(self, rows: Any) -> dict[str, Tensor]:
        """Gradients `[K, *leaf]` by layer, `[K, *view]`; by leaf where layers are not known."""
        if self.layers is None:
            return {path_str(p): t for p, t in zip(trees.paths(rows), trees.leaves(rows))}
        found: dict[str, Tensor] = vmap(self.layers.views)(rows)
        return found

    def inverses(self, F: PMat, regul: Regul) -> dict[str, Inverse] | None:
        """(F + regul I)^-1 by layer, None where layers are not known or F is no direct sum over them."""
        if self.layers is None:
            return None
        F.check_vector(self.own, "params")  # gradients are like them
        return F._inverses(self.layers, F._damping(regul))


def space_of(
    f: Callable[..., Tensor], params: Any, F: PMat, layers: LayerCollection | None, x: Any, *, needed: bool
) -> Space:
    """Params as F has them, or as the larger collection that F is a part of; layers those given, or F's own where f still
    uses them as they say, or else, where they are needed, those of f.

    ValueError for params of another structure, and for layers of another space than F's.
    """
    if layers is not None and layers.space != F.layout:
        raise ValueError(
            f"layers: is about {_names(layers.space)}, expected {_names(F.layout)}, the leaves that F acts on; select those "
            "layers: layers.select(names)"
        )
    known = layers if layers is not None else F.known_layers
    whole = None if known is None or known.complete else _like(known.layout, params)
    if known is not None and whole is not None:
        restricted = lambda fn: restriction.restricted(fn, whole, known)[0]
        g, own, seen = restricted(f), known.restrict(whole), (f, whole)
    else:
        own = F.check_vector(params, "params")
        g, restricted, seen = f, (lambda fn: fn), (f, own)
        known = known if known is not None and known.complete else None
    if known is not None and (layers is not None or _fits(*seen, x, known)):
        return Space(g, own, known, seen, restricted)
    return Space(g, own, LayerCollection.from_function(g, own, x) if needed else None, (g, own), restricted)


def _like(layout: Layout, params: Any) -> Any:
    try:
        return layout.check(params, "params")
    except (ValueError, TypeError):
        return None


def _fits(f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection) -> bool:
    """Whether f uses its leaves as these layers say; by one forward."""
    try:
        pull(f, params, x, layers, layers.tapped, lambda k, a: ())
    except (ValueError, RuntimeError):  # what it is refused for is said where the gradients are taken one by one
        return False
    return True


def _names(layout: Layout) -> list[str]:
    return [path_str(p) for p in layout.paths]
