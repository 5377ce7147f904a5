"""Make each notebook from its script: convert, run, keep the outputs.  `python notebooks/make.py [01_tour ...]`."""

import pathlib
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def make(script: pathlib.Path) -> None:
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # progress bars are for the terminal
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    for script in sorted(HERE.glob("[0-9]*.py")):
        if len(sys.argv) == 1 or script.stem in sys.argv[1:]:
            make(script)
