"""What a type checker says of calls: a slip of the pen is found on its line, and what comes back is what was asked for.

One run of mypy reads all the lines below as one program.  A comment says what it must answer to its line: `E: words` an
error, `R: type` the type that is revealed, nothing where there is none.
"""

import pathlib
import re
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import torch
from torch import Tensor

import fisher
import growth
import linmaps
from fisher import PMatDense, PMatDiag, PMatEKFAC, PMatImplicit, PMatKFAC
from linmaps import trees


def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ params["w"] + params["b"]


def loss(y: Tensor, target: Tensor) -> Tensor:
    return ((y - target) ** 2).sum(1)


params = {"w": torch.ones(2, 3), "b": torch.zeros(3)}
x = torch.ones(4, 2)
"""
FISHER = """
F = fisher.fim(f, params, x)
reveal_type(F)  # R: PMatKFAC
reveal_type(fisher.fim(f, params, x, PMatDiag))  # R: PMatDiag
reveal_type(fisher.fim(f, params, x, representation=PMatDense, sharing="reduce"))  # R: PMatDense
reveal_type(fisher.hessian(f, params, x))  # R: PMatDense
reveal_type(fisher.ggn(f, loss, params, x, PMatImplicit))  # R: PMatImplicit
reveal_type(fisher.jacobian(f, params, x))  # R: PFMapDense
reveal_type(fisher.jacobian(f, params, x, fisher.PFMapImplicit))  # R: PFMapImplicit
reveal_type(F.inverse())  # R: PMatEKFAC
reveal_type(F.solve(params, regul=1e-3))  # R: dict[str, Tensor]
reveal_type(F @ params)  # R: dict[str, Tensor]
reveal_type(0.5 * F)  # R: PMatKFAC
reveal_type(F.size())  # R: tuple[int, int]
D = fisher.fim(f, params, x, PMatDiag)
reveal_type(D + D)  # R: PMatDiag
reveal_type(D**0.5)  # R: PMatDiag
reveal_type(D.inverse().pinv().eigendecomposition())  # R: PMatDiag
reveal_type(fisher.Mean().add(params, 4).value())  # R: dict[str, Tensor]
reveal_type(fisher.Mean().add(F, 4).value())  # R: PMatKFAC
reveal_type(fisher.ema(D, D, 0.9))  # R: PMatDiag
reveal_type(fisher.ema(F.inverse(), F.inverse(), 0.9))  # R: PMat
layers = fisher.LayerCollection.from_function(f, params, x)
fisher.fim(f, params, x, PMatEKFAC, "gaussian", "mc", layers, torch.Generator(), chunk_size=4, layers_to=None)
fisher.fim(f, params, x, likelihood=fisher.Gaussian(2.0), estimator="empirical")

F.slove(params)  # E: has no attribute "slove"
F.layout.numle  # E: has no attribute "numle"
F.solve(params, kind="lstqs")  # E: No overload variant of "solve"
F.pinv(over="bloc")  # E: "over" to "pinv"
fisher.fim(f, params, x, estimator="exat")  # E: "estimator" to "fim"
fisher.fim(f, params, x, PMatDiag, "categorial")  # E: "fim" has incompatible type "Literal['categorial']"
fisher.fim(f, params, x, sharing="expnd")  # E: "sharing" to "fim"
fisher.fim(f, params, x, chunksize=4)  # E: Unexpected keyword argument "chunksize"
fisher.fim(f, params, x, dict)  # E: "Representation" of "fim" cannot be "dict
fisher.fim(f, params)  # E: Missing positional argument "data"
fisher.gram(f, params, x, kind="ful")  # E: "kind" to "gram"
fisher.Categorical(class_axes=1)  # E: Unexpected keyword argument "class_axes"
"""


def answers(path, said):
    """{line: what mypy says of it}, errors and revealed types."""
    found = {}
    for line in said.splitlines():
        if match := re.match(rf"{re.escape(str(path))}:(\d+): (error|note): (.*)", line):
            number, kind, words = match.groups()
            if kind == "error" or words.startswith("Revealed type is"):
                found.setdefault(int(number), []).append(words)
    return found


def plain(words):
    """A revealed type without the modules that its names are of."""
    return re.sub(r"\b(?:\w+\.)+(\w)", r"\1", words.removeprefix('Revealed type is "').removesuffix('"'))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: pip install '.[lint]'")
    path = tmp_path_factory.mktemp("types") / "program.py"
    path.write_text(PROGRAM + "".join(SNIPPETS.values()) + f"# {time.time_ns()}\n")  # of an old text it keeps no notes
    cache = ROOT / ".mypy_cache"
    where = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    said, broken, _ = api.run([*where, str(path)])
    assert not broken, broken
    return path.read_text().splitlines(), answers(path, said)


SNIPPETS = {"fisher": FISHER}


@pytest.mark.parametrize("part", SNIPPETS)
def test_each_line_is_answered(part, report):
    lines, found = report
    start = lines.index(SNIPPETS[part].strip().splitlines()[0]) + 1
    for number, line in enumerate(SNIPPETS[part].strip().splitlines(), start):
        asked = line.partition("  # ")[2]
        said = found.get(number, [])
        if not asked:
            assert not said, f"{line}: {said}"
            continue
        assert len(said) == 1, f"{line}: {said}"
        if asked.startswith("R: "):
            assert plain(said[0]) == asked[3:], line
        else:
            assert asked[3:] in said[0], line
