"""Addition: terms that one representation holds become one, the others stay side by side in a PMatSum."""

from __future__ import annotations

from typing import Any

from fisher.pmat.algebra.sums import PMatSum
from fisher.pmat.contract.handing import hands_over
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.whole.dense import PMatDense
from linmaps import trees


@hands_over("add")
def add(F: PMat, G: Any) -> PMat:
    """F + G: in a representation that holds it where there is one, else a PMatSum of as few terms as possible."""
    if not isinstance(G, PMat):
        raise TypeError(f"{type(F).__name__} + {type(G).__name__}: expected a PMat on the right")
    same_space(F, G, "+")
    terms = list(F.terms) if isinstance(F, PMatSum) else [F]
    for new in G.terms if isinstance(G, PMatSum) else (G,):
        terms = _with(terms, new)
    return terms[0] if len(terms) == 1 else PMatSum(tuple(terms))


def _with(terms: list[PMat], new: PMat) -> list[PMat]:
    if isinstance(new, PMatDense):
        total: PMat = new
        for F in terms:
            total = new._plus(F) if total is new else total._plus(F)  # type: ignore[assignment]
        return [total]
    for n, F in enumerate(terms):
        found = F._plus(new)
        found = new._plus(F) if found is None else found
        if found is not None:
            return [*terms[:n], found, *terms[n + 1 :]]
    return [*terms, new]


def same_space(F: PMat, G: PMat, sign: str) -> None:
    """Raise a ValueError unless both are matrices of the same params."""
    if F.layout != G.layout:
        raise ValueError(
            f"{type(F).__name__} {sign} {type(G).__name__}: layouts differ, got leaves "
            f"{[trees.path_str(p) for p in G.layout.paths]} {G.layout.shapes}, expected "
            f"{[trees.path_str(p) for p in F.layout.paths]} {F.layout.shapes}; take matrices of the same params"
        )
