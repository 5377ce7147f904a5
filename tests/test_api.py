"""The library as a whole: documented public names, nothing that touches global state, no effect of an import."""

import ast
import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import fisher
import growth
import linmaps

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("linmaps", "fisher", "growth")
FACES = ("linmaps", "linmaps.trees", "linmaps.factorized", "fisher", "growth", *(f"{p}.interop" for p in PACKAGES))
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_forbidden(path):
    """Nested forward derivatives of these are silently wrong in torch, or they touch global state."""
    tree = ast.parse(path.read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    banned = {
        "torch.linalg.solve", "torch.linalg.det", "torch.linalg.slogdet", "torch.linalg.householder_product",
        "torch.moveaxis", "torch.manual_seed", "torch.set_default_dtype", "print",
    }  # fmt: skip
    assert not calls & banned
    caught = {n for h in ast.walk(tree) if isinstance(h, ast.ExceptHandler) and h.type for n in ast.walk(h.type)}
    assert not [
        n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "NotImplementedError" and n not in caught
    ]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)] or path.name == "strategies.py"


def public():
    for package in FACES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.ismodule(thing):
                yield pytest.param(thing, id=f"{package}.{name}")


@pytest.mark.parametrize("thing", list(public()))
def test_public_names_are_documented_with_a_running_example(thing):
    doc = inspect.getdoc(thing) or ""
    assert doc, "a public name needs a docstring"
    if inspect.isclass(thing) or inspect.isfunction(thing):
        texts = [doc, *(inspect.getdoc(getattr(thing, n)) or "" for n in vars(thing) if not n.startswith("_"))]
        examples = [e for text in texts for e in doctest.DocTestParser().get_examples(text)]
        abstract = thing.__name__ in {"Map", "PMat", "Layer", "Use"}
        assert examples or abstract, f"{thing.__name__}: no example"


def test_import_has_no_side_effect_on_torch():
    """A fresh interpreter: importing all packages moves neither the generator, nor the dtype, nor the thread count."""
    code = """
import torch
state = torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
import linmaps, fisher, growth
after = torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
assert torch.equal(state[0], after[0]) and state[1:] == after[1:]
import sys
assert not {"hypothesis", "matplotlib", "sklearn"} & set(sys.modules), "heavy modules came along"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_strategies_are_importable():
    for package in PACKAGES:
        assert importlib.import_module(f"{package}.strategies").__doc__


def test_top_level_holds_what_it_should():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {"pyproject.toml", "README.md", "LICENSE", "linmaps", "fisher", "growth", "tests", "notebooks"}


def test_typed_markers():
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_growth_says_when_another_fisher_stands_in_its_way(tmp_path):
    """Distributions of other projects have packages named fisher; what is imported is the first that is found."""
    (tmp_path / "fisher").mkdir()
    (tmp_path / "fisher" / "__init__.py").write_text("def pvalue(a, b, c, d): ...")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import growth"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode
    assert "ImportError: growth: found another package named fisher" in done.stderr
    assert str(tmp_path / "fisher" / "__init__.py") in done.stderr


def test_one_version():
    assert linmaps.__version__ == fisher.__version__ == growth.__version__
