"""The guides for those who come from another library, printed by a function."""

from __future__ import annotations

from fisher.interop import (
    guide_backpack,
    guide_curvlinops,
    guide_kfac_jax,
    guide_kronfluence,
    guide_laplace,
    guide_nngeometry,
)
from linmaps.interop.guide import Guide, named

TABLES = {
    "backpack": guide_backpack,
    "curvlinops": guide_curvlinops,
    "kfac-jax": guide_kfac_jax,
    "kronfluence": guide_kronfluence,
    "laplace-torch": guide_laplace,
    "nngeometry": guide_nngeometry,
}
GUIDES = {library: Guide.of(library, "fisher", table.NOTES, table.ROWS) for library, table in TABLES.items()}


def coming_from(library: str) -> Guide:
    """The guide of a library: a table of its names beside those of fisher.

    library: "backpack", "curvlinops", "kfac-jax", "kronfluence", "laplace-torch" or "nngeometry".  ValueError for another.

    >>> import fisher
    >>> fisher.interop.coming_from("nngeometry").about("FIM_MonteCarlo").rows
    (('FIM_MonteCarlo(trials, covariance)', 'fim(estimator=, n_samples=, generator=, noise=) "mc"'),)
    """
    return named(GUIDES, library)
