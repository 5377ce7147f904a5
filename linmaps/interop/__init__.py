"""Interop: from the modules and the names of other libraries to a spec and its params.  W [in, out].

In reading order:
    conversion     from_module: a module taken over by value
    seen           what a module's attributes and shapes say
    slim           the modules of NeuroMANCER's slim
    slim_factors   those of them that are products of factors
    tltorch        the layers of tensorly-torch
    guide          coming_from: a table of their names beside ours
    guide_slim     the rows for those who come from slim
    guide_tltorch  the rows for those who come from tensorly-torch
"""

from linmaps.interop.conversion import from_module
from linmaps.interop.guide import Guide, coming_from

__all__ = ["Guide", "coming_from", "from_module"]


def __dir__() -> list[str]:
    return sorted(__all__)
