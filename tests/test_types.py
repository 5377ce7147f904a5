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


def doubled(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return trees.scale(2.0, p)


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
reveal_type(fisher.example_gradients(loss, params, (x, x)))  # R: PFMapDense
reveal_type(fisher.jacobian(f, params, x, fisher.PFMapImplicit))  # R: PFMapImplicit
reveal_type(F.inverse())  # R: PMatEKFAC
reveal_type(F.relative(0.1))  # R: dict[str, Tensor]
reveal_type(F.solve(params, regul=1e-3))  # R: dict[str, Tensor]
reveal_type(F @ params)  # R: dict[str, Tensor]
reveal_type(0.5 * F)  # R: PMatKFAC
reveal_type(trees.compiled(doubled)(params))  # R: dict[str, Tensor]
reveal_type(F.size())  # R: tuple[int, int]
D = fisher.fim(f, params, x, PMatDiag)
reveal_type(D + D)  # R: PMatDiag
reveal_type(D**0.5)  # R: PMatDiag
reveal_type(D.inverse().pinv().eigendecomposition())  # R: PMatDiag
reveal_type(fisher.Mean().add(params, 4).value())  # R: dict[str, Tensor]
reveal_type(fisher.Mean().add(F, 4).value())  # R: PMatKFAC
reveal_type(fisher.recipes.influence(f, params, x, F, x))  # R: Tensor
reveal_type(fisher.recipes.influence(f, params, x, F, x, per_layer=True))  # R: dict[str, Tensor]
reveal_type(fisher.recipes.self_influence(f, params, x, F))  # R: Tensor
reveal_type(fisher.recipes.surgeon_step(F, params, params))  # R: dict[str, Tensor]
reveal_type(fisher.recipes.merge([params], [F]))  # R: dict[str, Tensor]
posterior = fisher.recipes.laplace(f, params, F, n_examples=4)
reveal_type(posterior.sample(torch.Generator()))  # R: dict[str, Tensor]
reveal_type(posterior.params)  # R: dict[str, Tensor]
optimizer = fisher.recipes.kfac(f, "gaussian", rate=lambda step: 0.1 / (1 + step))
growth.fit_and_grow(f, params, (x, x), growth.Pair("w", "v"), order=[], target=2, k=1, optimizer=optimizer)
reveal_type(fisher.recipes.compiled_step(lambda p, b: f(p, b).mean(), optimizer))  # R: CompiledStep
reveal_type(posterior.update(F, 4).params)  # R: dict[str, Tensor]
reveal_type(fisher.recipes.tune_prior_precision(posterior, by="layer").params)  # R: dict[str, Tensor]
reveal_type(posterior.predict(x, joint=True))  # R: tuple[Tensor, Tensor]
reveal_type(fisher.recipes.functional_laplace(f, params, x).params)  # R: dict[str, Tensor]
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
fisher.recipes.kfac(f, kind="tikhonov")  # E: "kind" to "kfac"
fisher.recipes.kfac(f, bases_evry=3)  # E: Unexpected keyword argument "bases_evry"
fisher.fim(f, params, x, chunksize=4)  # E: Unexpected keyword argument "chunksize"
fisher.fim(f, params, x, dict)  # E: "Representation" of "fim" cannot be "dict
fisher.recipes.influence(f, params, x, F, x, aggregate="query")  # E: No overload variant of "influence"
fisher.fim(f, params)  # E: Missing positional argument "data"
fisher.gram(f, params, x, kind="ful")  # E: "kind" to "gram"
fisher.Categorical(class_axes=1)  # E: Unexpected keyword argument "class_axes"
"""


LINMAPS = """
spec = linmaps.Spectral(8, 4, sigma_max=2.0, det=None)
reveal_type(spec)  # R: Spectral
leaves = spec.init(torch.Generator())
reveal_type(leaves)  # R: dict[str, Tensor]
reveal_type(spec.apply(leaves, x))  # R: Tensor
reveal_type(linmaps.Symmetric(3).eig(leaves))  # R: Tensor
reveal_type(linmaps.Symmetric(3).eig(leaves, vectors=True))  # R: tuple[Tensor, Tensor]
reveal_type(trees.axpy(-0.1, params, params))  # R: dict[str, Tensor]
reveal_type(trees.scale(2.0, params))  # R: dict[str, Tensor]
reveal_type(trees.stack([params, params]))  # R: dict[str, Tensor]
reveal_type(trees.unstack(params))  # R: list[dict[str, Tensor]]
reveal_type(trees.replace(params, "b", x))  # R: dict[str, Tensor]
reveal_type(linmaps.maps["spectral"])  # R: type[Map]
cell = linmaps.RNNCell(linmaps.Orthogonal(4, method="exp"), linmaps.Linear(3, 4))
reveal_type(linmaps.rnn(cell, leaves, x))  # R: tuple[Tensor, Tensor]
reveal_type(linmaps.rnn([cell], [leaves], x))  # R: tuple[Tensor, list[Tensor]]
reveal_type(linmaps.factorize(x, factorization="cp", rank=0.5)[0])  # R: Factorized
linmaps.Factorized((4, 4), rank=3, factorization="tt")

spec.aply(leaves, x)  # E: has no attribute "aply"
linmaps.Spectral(8, 4, sigma_mx=2.0)  # E: Unexpected keyword argument "sigma_mx"
linmaps.Spectral("8")  # E: "Spectral" has incompatible type "str"
linmaps.Orthogonal(4, method="cayly")  # E: "method" to "Orthogonal"
linmaps.Orthogonal(4, det=2)  # E: "det" to "Orthogonal"
linmaps.BoundedNorm(4, p="fr0")  # E: "p" to "BoundedNorm"
linmaps.Factorized((4, 4), factorization="tuker")  # E: "factorization" to "Factorized"
linmaps.Factorized((4, 4), rank="sam")  # E: "rank" to "Factorized"
linmaps.factorize(x, implementation="atuo")  # E: "implementation" to "factorize"
trees.sacle(2.0, params)  # E: has no attribute "sacle"
"""
GROWTH = """
pair = growth.Pair("hidden", "output")
nested = {"hidden": params, "output": params}
stats = growth.statistics(f, nested, (x, x), pair)
reveal_type(stats)  # R: Statistics
reveal_type(growth.statistics(f, nested, (x, x), [pair], "squared_error"))  # R: list[Statistics]
new = growth.optimal_neurons(stats, k=2)
reveal_type(new)  # R: Neurons
reveal_type(growth.statistics(f, nested, (x, x), growth.Gated("hidden", "up", "output")))  # R: Statistics
reveal_type(growth.grow(nested, pair, new, scale=0.1))  # R: dict[str, dict[str, Tensor]]
reveal_type(growth.prune(nested, pair, [0]))  # R: dict[str, dict[str, Tensor]]
reveal_type(growth.cut(nested, pair, [0])[0])  # R: dict[str, dict[str, Tensor]]
reveal_type(growth.widen(nested, pair, 2, method="pair"))  # R: dict[str, dict[str, Tensor]]
reveal_type(growth.fit_and_grow(f, nested, (x, x), pair, order=[], target=4, k=2).params)  # R: dict[str, dict[str, Tensor]]
reveal_type(growth.grow_like(F, nested, nested))  # R: PMatKFAC
reveal_type(growth.choose_sign(f, nested, (x, x), pair, new))  # R: Neurons
reveal_type(growth.Reading.from_function(f, nested, x, [pair]))  # R: Reading
reveal_type(growth.statistics(f, nested, x, pair, layers=growth.Reading.from_function(f, nested, x, pair)))  # R: Statistics
reveal_type(growth.grow_rank(linmaps.LowRank(4, 4, 2), leaves, 1)[0])  # R: LowRank

stats.slop  # E: has no attribute "slop"
growth.optimal_neurons(stats, k=2, target="residul")  # E: "target" to "optimal_neurons"
growth.optimal_neurons(stats, k=2, output_metric="fihser")  # E: "output_metric" to "optimal_neurons"
growth.initialize(nested, pair, 2, fan_in="zero")  # E: "fan_in" to "initialize"
growth.widen(nested, pair, 2, method="splt")  # E: "method" to "widen"
growth.rescale(nested, pair, 2, kind="defualt")  # E: "kind" to "rescale"
growth.normalize(new, None, nested, pair, kind="befor")  # E: "kind" to "normalize"
growth.grow_like(F, nested, nested, fill="one")  # E: "fill" to "grow_like"
growth.line_search(f, nested, (x, x), pair, new, None, "cross_entrpy")  # E: "line_search" has incompatible type
growth.grow(nested, pair, stats)  # E: "grow" has incompatible type "Statistics"
growth.optimal_neurons(stats, n=2)  # E: Unexpected keyword argument "n"
"""
SNIPPETS = FISHER + LINMAPS + GROWTH


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


def test_what_mypy_says(tmp_path):
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: pip install '.[test]'")
    path = tmp_path / "program.py"
    path.write_text(f"{PROGRAM}{SNIPPETS}# {time.time_ns()}\n")  # of a text that it has read before it keeps no notes
    where = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    said, broken, _ = api.run([*where, str(path)])
    assert not broken, broken
    found, wrong = answers(path, said), []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        asked, got = line.partition("  # ")[2], found.get(number, [])
        if asked.startswith("R: "):
            fine = [plain(words) for words in got] == [asked[3:]]
        else:
            fine = len(got) == bool(asked) and all(asked[3:] in words for words in got)
        wrong += [] if fine else [f"{line}\n    got {got}"]
    assert not wrong, "\n".join(wrong)
