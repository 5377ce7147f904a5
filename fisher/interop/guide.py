"""The guide for those who come from nngeometry, printed by a function."""

from __future__ import annotations

from fisher.interop import guide_nngeometry
from linmaps.interop.guide import Guide, named

GUIDES = {"nngeometry": Guide.of("nngeometry", "fisher", guide_nngeometry.NOTES, guide_nngeometry.ROWS)}


def coming_from(library: str) -> Guide:
    """The guide of a library: a table of its names beside those of fisher.

    library: "nngeometry".  ValueError for another.

    >>> import fisher
    >>> fisher.interop.coming_from("nngeometry").about("FIM_MonteCarlo").rows
    (('FIM_MonteCarlo(trials, covariance)', 'fim(estimator=, n_samples=, generator=, noise=) "mc"'),)
    """
    return named(GUIDES, library)
