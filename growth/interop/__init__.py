"""Interop: params into modules, and from the names of other libraries to ours.

In reading order:
    guide_gromo  the rows for those who come from gromo
    modules      into_module: params into a torch.nn.Module
    guide        coming_from: a table of their names beside ours
"""

from growth.interop.guide import coming_from

__all__ = ["coming_from"]


def __dir__() -> list[str]:
    return sorted(__all__)
