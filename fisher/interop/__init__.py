"""Interop: from the names of other libraries to ours.

In reading order:
    guide_nngeometry   the rows for those who come from nngeometry
    guide_laplace      ... from laplace-torch
    guide_kronfluence  ... from kronfluence
    guide_kfac_jax     ... from kfac-jax
    guide_curvlinops   ... from curvlinops
    guide_backpack     ... from BackPACK
    guide              coming_from: a table of their names beside ours
"""

from fisher.interop.guide import coming_from

__all__ = ["coming_from"]


def __dir__() -> list[str]:
    return sorted(__all__)
