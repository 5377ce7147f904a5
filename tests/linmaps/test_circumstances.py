"""Laws of maps about what surrounds a call: entries that are not finite, autocast, inference mode, defaults, other dtypes.

Every public method of every member of the zoo is called, found by the names of its arguments.
"""

import ast
import inspect
import pathlib

import pytest
import torch

import fisher
import growth
import linmaps
from linmaps import trees
from tests.linmaps import zoo

over_the_zoo = pytest.mark.parametrize("entry", zoo.ENTRIES, ids=zoo.label)
PACKAGES = (linmaps, fisher, growth)
RISKY = {"cond", "eig", "eigh", "eigvals", "eigvalsh", "lstsq", "matrix_rank", "pinv", "svd", "svdvals"}
STATIC = {"shapes", "plan", "diagonal"}  # compute with no tensor


def randn(*shape, seed, dtype):
    return torch.randn(shape, generator=zoo.generator(seed), dtype=torch.float64).to(dtype)


def calls(spec, dtype=torch.float32, change=lambda tree: tree):
    """{name: call} of all public methods; change: what is done to the arguments before."""
    n, m = spec.in_features, spec.out_features
    params = spec.init(zoo.generator(0), dtype=dtype)
    shape = (2, *spec.in_shape) if hasattr(spec, "in_shape") else ()
    given = change(
        {
            "params": params,
            "x": randn(2, n, seed=1, dtype=dtype),
            "y": randn(2, m, seed=2, dtype=dtype),
            "W": randn(*spec._W_shape, seed=3, dtype=dtype),
            "tensor": randn(*shape, seed=4, dtype=dtype),
        }
    )
    given |= {"idx": torch.arange(n), "layer": 0, "generator": None, "rows": 3}
    several = getattr(spec, "n_layers", 1) > 1
    found = {}
    for name, method in inspect.getmembers(spec, inspect.isroutine):
        if name.startswith("_") or name in STATIC:
            continue
        if several and name in ("eig", "singular_values", "solve", "inverse", "logabsdet"):
            continue
        if n != m and name in ("eig", "solve", "inverse", "logabsdet"):
            continue
        if name == "from_matrix" and not zoo.closed_form(spec):
            continue
        taken = inspect.signature(method).parameters.values()
        needed = [p.name for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if several and name in ("apply", "rows"):
            needed.append("layer")
        if name == "apply_tensor":
            needed[-1] = "tensor"
            needed += ["layer"] * several
        if name == "init":
            found[name] = lambda method=method: method(zoo.generator(1), dtype=dtype)
            continue
        args = [given[key] for key in needed]
        found[name] = lambda method=method, args=args: method(*args)
        if name == "eig":
            found["eig, vectors"] = lambda method=method, args=args: method(*args, vectors=True)
    return found


def tensors(result):
    """The tensors in what a method returns, in order: params, pairs, specs beside params, iterators of such."""
    found = trees.leaves(list(result) if inspect.isgenerator(result) else result)
    return [t for t in found if isinstance(t, torch.Tensor)]


def spoiled(value):
    """Trees of tensors to the same with `value` as first entry."""
    first = lambda t: torch.arange(t.numel()).reshape(t.shape) == 0
    return lambda tree: trees.map(lambda t: torch.where(first(t), value, t), tree)


NOT_OF_ENTRIES = {"argmax", "bounds", "expected_l0", "init"}  # choices and counts, or of no params


@over_the_zoo
def test_nan_in_params_and_matrices_comes_out_again(entry):
    """Also where LAPACK would raise, or end the process."""
    spec = entry.spec
    exempt = NOT_OF_ENTRIES | ({"reg_error"} if spec.guaranteed else set())
    if torch.equal(*(spec.effective_W(zoo.random_params(spec, seed)) for seed in (0, 1))):
        exempt |= calls(spec).keys() - {"violation"}
    for name, call in calls(spec, torch.float64, spoiled(torch.nan)).items():
        assert name in exempt or any(t.isnan().any() for t in tensors(call())), name


@over_the_zoo
def test_infinities_raise_nothing(entry):
    for call in calls(entry.spec, torch.float64, spoiled(torch.inf)).values():
        call()


def test_decompositions_are_reached_by_one_door():
    """Those of torch.linalg that raise or end the process on NaN are used by linmaps.lapack alone."""
    used = {}
    for file in (file for package in PACKAGES for file in pathlib.Path(package.__file__).parent.rglob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text()))
        named = {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "torch.linalg"}
        used |= {file.name: names} if (names := named & RISKY) else {}
    assert used == {"lapack.py": {"eig", "eigh", "eigvals", "eigvalsh", "svd", "svdvals", "pinv"}}
