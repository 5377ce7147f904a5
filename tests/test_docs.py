"""README says what runs: the two commands, the quick start."""

import pathlib
import re

import pytest

import fisher
import growth
import linmaps

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_first_two_bash_blocks_are_the_two_commands():
    main, tests = blocks("bash")[:2]
    assert "notebooks/01_tour.py" in main
    assert "[notebooks]" in main
    assert "pytest" in tests
    assert "[test]" in tests


@pytest.mark.parametrize(
    ("number", "prints"), [(0, "Linear(in_features=20, out_features=12"), (1, "through    orthogonal")]
)
def test_python_blocks_run_as_they_stand(number, prints, capsys):
    exec(compile(blocks("python")[number], "README.md", "exec"), {})
    assert prints in capsys.readouterr().out
    assert len(blocks("python")) == 2


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.split()) <= 1200
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]
    table = README.split("## Measured")[1].split("\n## ")[0]
    assert len([line for line in table.splitlines() if line.startswith("|")]) <= 2 + 10


@pytest.mark.parametrize("name", ["promises", "contributing"])
def test_tests_that_hold_promises_are_there(name):
    """Links, and names of files and folders in code."""
    text = (ROOT / ".docs" / f"{name}.md").read_text()
    found = [ROOT / ".docs" / link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    found += [ROOT / path for path in re.findall(r"`(tests/[\w/]+(?:\.py)?)`", text)]
    assert found
    assert not [path for path in found if not path.exists()]


def test_functions_that_readme_names_are_there():
    """Each name in code in its table of tasks is public."""
    table = README.split("## What for")[1].split("\n## ")[0]
    public = {n for package in (linmaps, linmaps.trees, fisher, growth, fisher.recipes) for n in package.__all__}
    public |= {"maps", "solve", "coming_from", "fisher", "growth"}
    for code in re.findall(r"`([^`]+)`", table):
        assert re.sub(r"\(.*", "", code).split(".")[-1].split("…")[0] in public, code
