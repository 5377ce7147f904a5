"""Interop: from the modules and the names of other libraries to a spec and its params.  W [in, out].

In reading order:
    seen           what a module's attributes and shapes say
    slim_factors   the modules of NeuroMANCER's slim that are products of factors
    slim           its other modules, and all of them by name
    tltorch        the layers of tensorly-torch
    conversion     from_module: a module taken over by value
    modules        a map as a torch.nn.Module, and as the parametrization of a weight
    guide_slim     the rows for those who come from slim
    guide_tltorch  the rows for those who come from tensorly-torch
    guide_geotorch the rows for those who come from geotorch and torch's parametrizations
    guide          coming_from: a table of their names beside ours
"""

from linmaps.interop.conversion import from_module
from linmaps.interop.guide import Guide, coming_from
from linmaps.interop.modules import Module, parametrize

__all__ = ["Guide", "Module", "coming_from", "from_module", "parametrize"]


def __dir__() -> list[str]:
    return sorted(__all__)
