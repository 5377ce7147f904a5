"""Notebooks as a reader meets them: findings first, narrow outputs, figures drawn elsewhere, in step with the scripts."""

import ast
import copy
import json
import pathlib
import re

import pytest

HERE = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
SCRIPTS = sorted(HERE.glob("[0-9]*.py"))
FINDINGS, WIDEST, LARGEST, DRAWING = 5, 110, 1_500_000, 10

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
    return json.loads(path.read_text())


def source(cell):
    return "".join(cell["source"])


def outputs(notebook):
    return [o for cell in notebook["cells"] if cell["cell_type"] == "code" for o in cell["outputs"]]


def texts(notebook):
    """What cells print, and the plain texts of what they show."""
    found = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in outputs(notebook)]
    return ["".join(text) for text in found]


# What is asked of a notebook: each function says what is wrong, in lines.


def wrong_findings(notebook):
    """The first cell has a title, a paragraph and a quoted list of five; each number in it is printed below, rounded."""
    first = notebook["cells"][0]
    lines = source(first).split("\n") if first["cell_type"] == "markdown" else [""]
    quoted = [line[1:].strip() for line in lines if line.startswith(">")]
    told = [line for line in quoted if line[:2] in ("* ", "- ")]
    if not lines[0].startswith("# ") or len(told) != FINDINGS:
        return [f"a title and a quoted list of {FINDINGS} findings come first, got {lines[0]!r} and {len(told)}"]
    before = [line for line in lines[1 : lines.index(next(q for q in lines if q.startswith(">")))] if line.strip()]
    wrong = [] if 1 <= len(before) <= 6 else [f"one short paragraph before the findings, got {len(before)} lines"]
    findings = re.split(r"^[*-] ", "\n".join(quoted), flags=re.M)[1:]
    printed = [
        float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "\n".join(texts(notebook)).replace(",", ""))
    ]
    for finding in findings:
        numbers = re.findall(r"\d+\.\d+(?:e[+-]?\d+)?", finding)
        wrong += [] if re.search(r"\d", finding) else [f"no number in the finding {finding[:60]!r}"]
        wrong += [
            f"{n} is among the findings, and printed nowhere" for n in numbers if not any(same(n, p) for p in printed)
        ]
    return wrong


def same(told, printed):
    """Whether the number printed rounds to the one told, at its digits."""
    mantissa, _, exponent = told.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(told) - printed) <= 0.5001 * step


def wrong_outputs(notebook):
    """No line is wide, nothing is from stderr or an error, no path of a machine."""
    lines = [line for text in texts(notebook) for line in text.split("\n")]
    wrong = [f"{len(line)} characters: {line[:60]}..." for line in lines if len(line) > WIDEST]
    wrong += [f"stderr: {''.join(o['text'])[:60]}" for o in outputs(notebook) if o.get("name") == "stderr"]
    wrong += [f"error: {o['evalue']}" for o in outputs(notebook) if o["output_type"] == "error"]
    paths = re.findall(r"(?:/home/|/tmp/|/root/|/Users/|/usr/|site-packages|[A-Z]:\\\\)\S*", "\n".join(texts(notebook)))
    wrong += [f"path of a machine: {path}" for path in paths]
    return wrong if lines else ["no output is kept"]


SEEDS = {"plt", "pyplot", "pylab", "matplotlib", "mpl", "ax", "axs", "axes", "fig", "figure"}
DRAWS = {"plot", "scatter", "imshow", "contourf", "fill_between", "bar", "hist", "axhline", "axvline", "legend", "set"}
DRAWS |= {"colorbar", "twinx", "savefig", "subplots", "subplot_mosaic", "set_title", "set_xlabel", "set_ylabel"}


def mentions(node, names):
    """Whether code uses one of the names, or a method that draws; functions of the files of figures do not count."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in names:
            return True
        if isinstance(inner, ast.Attribute) and inner.attr in DRAWS and not ast.unparse(inner).startswith("figures"):
            return True
    return False


def bindings(tree):
    """What is given a name by assignments, loops and with, and the targets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield node.value, node.targets
        elif isinstance(node, ast.For):
            yield node.iter, [node.target]
        elif isinstance(node, ast.withitem) and node.optional_vars:
            yield node.context_expr, [node.optional_vars]


def plotting_lines(code):
    """The lines of a cell that touch matplotlib, figures, axes, or what was made of them."""
    tree, names, lines = ast.parse(code), set(SEEDS), set()
    for _ in range(3):  # of names made of names
        for made, targets in bindings(tree):
            if mentions(made, names):
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, ast.Import | ast.ImportFrom):
            continue
        inside = getattr(node, "body", None)  # of a loop, a function: its own lines are looked at one by one
        head = [node] if inside is None else [getattr(node, key) for key in ("iter", "test") if hasattr(node, key)]
        if any(mentions(part, names) for part in head):
            last = node.end_lineno if inside is None else inside[0].lineno - 1
            lines |= set(range(node.lineno, last + 1))
    return lines


def wrong_code(notebook):
    """Cells that draw more than ten lines, wherever in the cell."""
    cells = [source(c) for c in notebook["cells"] if c["cell_type"] == "code"]
    counts = [(len(plotting_lines(code)), code) for code in cells]
    return [f"{n} lines that draw, for notebooks/figures.py, in: {code[:50]!r}" for n, code in counts if n > DRAWING]


def cells_of(script):
    """The cells of a script in the percent format: kind and text."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.M)[1:]
    cells = [("markdown" if "[markdown]" in head else "code", text) for head, text in zip(parts[::2], parts[1::2])]
    bare = lambda text: "\n".join(re.sub(r"^# ?", "", line) for line in text.strip().split("\n"))
    return [(kind, bare(text) if kind == "markdown" else text.strip()) for kind, text in cells]


def wrong_source(notebook, script):
    """Cells that differ between the notebook and its script."""
    here = [(cell["cell_type"], source(cell).strip()) for cell in notebook["cells"]]
    there = cells_of(script)
    wrong = [] if len(here) == len(there) else [f"{len(here)} cells in the notebook, {len(there)} in the script"]
    pairs = enumerate(zip(here, there))
    return wrong + [f"cell {k} differs, run python notebooks/make.py: {b[1][:50]!r}" for k, (a, b) in pairs if a != b]


# Every notebook


def test_every_script_has_its_notebook_and_every_notebook_its_script():
    assert [p.stem for p in NOTEBOOKS] == [p.stem for p in SCRIPTS]
    assert len(NOTEBOOKS) >= 5


@each
def test_findings_come_first_and_are_what_is_printed(path):
    assert not wrong_findings(read(path))


@each
def test_outputs_are_narrow_and_clean(path):
    assert not wrong_outputs(read(path))
    assert path.stat().st_size < LARGEST


@each
def test_figures_are_drawn_in_files_of_figures(path):
    assert not wrong_code(read(path))


@each
def test_a_notebook_is_its_script(path):
    """Made from the script by python notebooks/make.py: same cells, markdown too."""
    assert not wrong_source(read(path), path.with_suffix(".py").read_text())


@pytest.mark.parametrize("path", sorted(HERE.glob("figures*.py")), ids=lambda p: p.stem)
def test_functions_of_figures_say_what_they_draw(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef))
    assert "pyplot" not in path.read_text()  # its figures outlive the call that drew them, and its state is everybody's


# What these tests would find, on a notebook made for it


BOX = "\n".join(
    ["# A title", "", "One paragraph.", "", "> **Findings**", ">", *[f"> * {k}.50 of them" for k in range(5)]]
)
SAMPLE = {
    "cells": [
        {"cell_type": "markdown", "source": [BOX]},
        {
            "cell_type": "code",
            "source": ["figures.show(figures.f(x))"],
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["0.5 1.5 2.4999 3.50 4.5049"]}],
        },
    ]
}
SCRIPT = "# %% [markdown]\n" + "".join(f"# {line}".rstrip() + "\n" for line in BOX.split("\n"))
SCRIPT += "\n# %%\nfigures.show(figures.f(x))\n"


def planted(**changes):
    """The sample with another text in its first cell, or another source or output of its second."""
    found = copy.deepcopy(SAMPLE)
    for key, value in changes.items():
        if key == "first":
            found["cells"][0]["source"] = [value]
        elif key == "code":
            found["cells"][1]["source"] = [value]
        else:
            found["cells"][1]["outputs"].append(value)
    return found


def test_a_good_notebook_passes():
    assert not wrong_findings(SAMPLE) + wrong_outputs(SAMPLE) + wrong_code(SAMPLE) + wrong_source(SAMPLE, SCRIPT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOX.replace("> * 4.50 of them", ""), "and 4"),
        (BOX.replace("> *", "*"), "and 0"),
        (BOX.replace("4.50 of them", "many of them"), "no number"),
        (BOX.replace("4.50 of them", "4.51 of them"), "4.51 is among the findings"),
        (BOX.replace("One paragraph.", "Words.\n" * 9), "one short paragraph"),
    ],
)
def test_planted_findings_are_found(text, says):
    assert says in " ".join(wrong_findings(planted(first=text)))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"output_type": "stream", "name": "stdout", "text": ["x" * 111]}, "111 characters"),
        ({"output_type": "execute_result", "data": {"text/plain": ["x" * 111]}}, "111 characters"),
        ({"output_type": "stream", "name": "stderr", "text": ["a warning"]}, "stderr"),
        ({"output_type": "error", "evalue": "no"}, "error"),
        ({"output_type": "stream", "name": "stdout", "text": ["/tmp/somewhere"]}, "path of a machine"),
    ],
)
def test_planted_outputs_are_found(output, says):
    assert says in " ".join(wrong_outputs(planted(output=output)))


@pytest.mark.parametrize(
    "code",
    [
        "figure, axes = plt.subplots(1, 2)\n" + "axes[0].plot(x)\n" * 10,
        "for panel in figure.axes:\n" + "    panel.margins(0)\n" * 10,
        "def draw(ax):\n" + "    ax.margins(0)\n" * 11,
        "left, right = plt.subplots(1, 2)[1]\n" + "y = f(x)\nleft.margins(0)\n" * 10,
        "shown.set(\n" + "    a=1,\n" * 10 + ").legend()\n",
    ],
)
def test_planted_drawing_is_found(code):
    assert wrong_code(planted(code=code))


def test_calls_of_figures_and_work_on_numbers_are_no_drawing():
    many = "".join(f"    {name!r}: {name},\n" for name in "abcdefghijklm")
    assert not wrong_code(
        planted(code=f"figures.show(figures.f({{\n{many}}}), 'name')\n" + "y = x.mean(axis=0)\n" * 12)
    )


def test_planted_drift_is_found():
    assert wrong_source(SAMPLE, SCRIPT.replace("f(x)", "f(y)"))
    assert wrong_source(SAMPLE, SCRIPT.replace("One paragraph", "Two paragraphs"))
    assert wrong_source(SAMPLE, SCRIPT + "\n# %%\nmore = 1\n")
