"""Base: what a map is.  W [in, out] is used as `x @ W + b`, x [..., in]; params are a dict of tensors.

In reading order:
    checked   what a spec says when it is misused
    casts     dtypes and devices around hooks
    products  a map's product with data as one call, for those who watch
    hooks     what a concrete map fills, with defaults that follow from W
    contract  Map: sizes and options in a frozen record, the public methods
    registry  all maps by name, and the decorator that enters one
"""

from linmaps.base.contract import Map
from linmaps.base.products import Use, matrix, product
from linmaps.base.registry import Registry, maps, register

__all__ = ["Map", "Registry", "Use", "maps", "matrix", "product", "register"]


def __dir__() -> list[str]:
    return sorted(__all__)
