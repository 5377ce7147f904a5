"""Make each notebook from its script: convert, run, keep the outputs.  `python notebooks/make.py [01_tour ...]`."""

import pathlib
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def tidy(outputs: list) -> list:
    """Without what is for the terminal (progress bars), which cuts what is printed in pieces."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == "stdout" == kept[-1].get("name"):
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def make(script: pathlib.Path) -> None:
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for k, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{k}"
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    for script in sorted(HERE.glob("[0-9]*.py")):
        if len(sys.argv) == 1 or script.stem in sys.argv[1:]:
            make(script)
