"""Guides print as tables, are searched by a word, and refuse a library that they do not know."""

import pytest

import fisher
import growth
import linmaps

GUIDES = [
    (package, library)
    for package, libraries in (
        (linmaps, ["slim", "neuromancer", "tensorly-torch", "tltorch"]),
        (fisher, ["backpack", "curvlinops", "kfac-jax", "kronfluence", "laplace-torch", "nngeometry"]),
        (growth, ["gromo"]),
    )
    for library in libraries
]
over_guides = pytest.mark.parametrize(("package", "library"), GUIDES, ids=[library for _, library in GUIDES])


@over_guides
def test_a_guide_prints_each_row_once_aligned_and_fits_a_terminal(package, library):
    guide = package.interop.coming_from(library)
    lines = str(guide).split("\n")
    table = lines[-len(guide.rows) - 2 :]
    assert lines[: -len(table)] == [
        f"Coming from {guide.library} to {package.__name__}.",
        "",
        *guide.notes.split("\n"),
        "",
    ]
    assert table[0].split() == [guide.library, package.__name__]
    column = table[0].index(package.__name__)
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in (table[0], *table[2:]))
    assert max(map(len, lines)) <= 130
    assert len(set(guide.rows)) == len(guide.rows)


@over_guides
def test_a_word_finds_its_rows(package, library):
    guide = package.interop.coming_from(library)
    word = guide.rows[3][0].split("(")[0].split(",")[0]
    assert guide.rows[3] in guide.about(word).rows
    assert len(guide.about(word).rows) < len(guide.rows)
    assert guide.about("no such word").rows == ()


@over_guides
def test_a_library_is_found_as_it_writes_its_name(package, library):
    of = package.interop.coming_from
    assert of(library.upper()) is of(library.replace("-", "_")) is of(library.title()) is of(library)


@pytest.mark.parametrize("package", [linmaps, fisher, growth])
def test_an_unknown_library_is_refused_by_name(package):
    with pytest.raises(ValueError, match=r"coming_from: got 'numpy', expected one of \["):
        package.interop.coming_from("numpy")


@pytest.mark.parametrize("package", [linmaps, fisher, growth, linmaps.factorized, fisher.recipes])
def test_help_starts_with_a_page_that_fits_a_screen(package):
    lines = package.__doc__.strip().split("\n")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
