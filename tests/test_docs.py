"""README says what runs: the two commands, the quick start."""

import pathlib
import re

import pytest

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


@pytest.mark.parametrize(("number", "prints"), [(0, "LayerCollection: 4 leaves"), (1, "PMatKFAC")])
def test_python_blocks_run_as_they_stand(number, prints, capsys):
    exec(compile(blocks("python")[number], "README.md", "exec"), {})
    assert prints in capsys.readouterr().out
    assert len(blocks("python")) == 2
