"""README and notebooks say what runs: the two commands, the quick start, the tour and its outputs."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


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


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_its_script_with_outputs(script):
    """The notebook is made from the script (python notebooks/make.py): same cells, outputs kept, no error."""
    cells = json.loads(script.with_suffix(".ipynb").read_text())["cells"]
    code = ["".join(c["source"]).strip() for c in cells if c["cell_type"] == "code"]
    parts = re.split(r"^# %%.*$", script.read_text(), flags=re.M)[1:]
    heads = re.findall(r"^# %%(.*)$", script.read_text(), flags=re.M)
    assert code == [p.strip() for p, h in zip(parts, heads) if "markdown" not in h]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert any(o["output_type"] in ("stream", "display_data") for o in outputs)
    assert not any(o["output_type"] == "error" for o in outputs)
    assert "/home/" not in script.with_suffix(".ipynb").read_text()
