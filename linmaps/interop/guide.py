"""Guides for those who come from another library: a table of its names beside ours, printed by a function."""

from __future__ import annotations

import dataclasses

from linmaps.interop import guide_geotorch, guide_slim, guide_tltorch


@dataclasses.dataclass(frozen=True, repr=False)
class Guide:
    """Where a library's names have gone: prints as a table.

    >>> Guide.of("theirs", "ours", "A note.", "Thing(size) | make(size)")
    Coming from theirs to ours.
    <BLANKLINE>
    A note.
    <BLANKLINE>
    theirs       ours
    -----------  ----------
    Thing(size)  make(size)
    """

    library: str
    package: str
    notes: str
    rows: tuple[tuple[str, str], ...]  # (theirs, ours)

    @classmethod
    def of(cls, library: str, package: str, notes: str, rows: str) -> Guide:
        """Of a text with one row in a line, `theirs | ours`."""
        pairs = [line.split(" | ") for line in rows.strip().split("\n")]
        return cls(library, package, notes.strip(), tuple((theirs.strip(), ours.strip()) for theirs, ours in pairs))

    def about(self, word: str) -> Guide:
        """The rows in which a word occurs, on either side.

        >>> coming_from("slim").about("Schur").rows
        (('SchurDecompositionLinear(l2)', 'Schur(gamma_max=, nonnormal=); bounds in place of the penalty'),)
        """
        found = tuple(row for row in self.rows if word.lower() in " ".join(row).lower())
        return dataclasses.replace(self, rows=found)

    def __repr__(self) -> str:
        table = [(self.library, self.package), *self.rows]
        width = max(len(theirs) for theirs, _ in table)
        table.insert(1, ("-" * width, "-" * max(len(ours) for _, ours in table)))
        lines = "\n".join(f"{theirs.ljust(width)}  {ours}" for theirs, ours in table)
        return f"Coming from {self.library} to {self.package}.\n\n{self.notes}\n\n{lines}"


def named(guides: dict[str, Guide], library: str) -> Guide:
    """The guide of that name, in any case, with - or _; ValueError that names the others."""
    plain = library.lower().replace("_", "-") if isinstance(library, str) else library
    if plain not in guides:
        raise ValueError(f"coming_from: got {library!r}, expected one of {sorted(guides)}")
    return guides[plain]


SLIM = Guide.of("slim", "linmaps", guide_slim.NOTES, guide_slim.ROWS)
TLTORCH = Guide.of("tensorly-torch", "linmaps", guide_tltorch.NOTES, guide_tltorch.ROWS)
GEOTORCH = Guide.of("geotorch and torch", "linmaps", guide_geotorch.NOTES, guide_geotorch.ROWS)
GUIDES = {"geotorch": GEOTORCH, "slim": SLIM, "neuromancer": SLIM, "tensorly-torch": TLTORCH, "tltorch": TLTORCH}


def coming_from(library: str) -> Guide:
    """The guide of a library: a table of its names beside those of linmaps.

    library: "slim" ("neuromancer"), "tensorly-torch" ("tltorch") or "geotorch", with torch's own parametrizations.
    ValueError for another.

    >>> import linmaps
    >>> linmaps.interop.coming_from("slim").about("OrthogonalLinear")
    Coming from slim to linmaps.
    ...
    slim              linmaps
    ----------------  ----------------------------------------
    OrthogonalLinear  Orthogonal(method=, n_reflectors=, det=)
    """
    return named(GUIDES, library)
