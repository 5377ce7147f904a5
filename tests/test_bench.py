"""The bench harness: ratios to the base, taken round by round; every bench has a main."""

import importlib
import json
import pathlib
import time

import pytest
import torch

from tests.bench import bench_sweeps, theory
from tests.bench.bench_sweeps import Cell, exponent, verdict
from tests.bench.harness import race
from tests.bench.theory import Cost, Net

BENCHES = sorted(p.stem for p in (pathlib.Path(__file__).parent / "bench").glob("bench_*.py"))


def test_race_prints_ratios_and_leaves_the_threads_alone(capsys):
    threads = torch.get_num_threads()
    ratios = race("sleep", {"one": lambda: time.sleep(0.002), "five": lambda: time.sleep(0.01)}, base="one", rounds=5)
    assert ratios["one"] == 1.0
    assert 2 < ratios["five"] < 8
    out = capsys.readouterr().out
    assert "sleep  (median of 5 interleaved rounds, 1 thread(s))" in out
    assert "       1 x one" in out
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", BENCHES)
def test_benches_can_be_run_by_name(name):
    assert callable(importlib.import_module(f"tests.bench.{name}").main)


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_exponents_are_those_of_the_upper_end(power):
    sizes = (2, 16, 32, 64)
    assert exponent(sizes, [1e9, *(3 * n**power for n in sizes[1:])]) == pytest.approx(power)


@pytest.mark.parametrize(
    ("way", "what", "power"),
    [
        ("kfac", "width", 2),
        ("ekfac", "width", 3),
        ("diagonal", "batch", 1),
        ("kfac", "classes", 3),
        ("implicit", "depth", 1),
    ],
)
def test_formulas_grow_as_their_leading_terms(way, what, power):
    sizes, cost = (10**4, 2 * 10**4, 4 * 10**4), getattr(theory, way)
    rates = theory.Rates(flops=1e11, numbers=1e10, cubes=5e9)
    seconds = [rates.seconds(cost(Net(**{"width": 256, "batch": 64, what: n}))) for n in sizes]
    assert exponent(sizes, seconds) == pytest.approx(power, abs=0.05)


@pytest.mark.parametrize(("power", "word"), [(1, "as the formula"), (2, "FASTER")])
def test_a_cell_that_grows_faster_than_its_formula_is_marked(monkeypatch, tmp_path, capsys, power, word):
    cell = Cell((4, 8, 16, 32), lambda n: lambda: n**power, lambda n: Cost(flops=1e6 * n))
    monkeypatch.setattr(bench_sweeps, "cells", lambda: {"sum size": cell, "other": cell})
    monkeypatch.setattr(bench_sweeps, "fastest", lambda way, seconds: 1e-3 * way())
    monkeypatch.setattr(theory, "rates", lambda largest: theory.Rates(1e9, 1e9, 1e9))
    curves = bench_sweeps.main(("size", str(tmp_path / "curves.json")))
    assert list(curves) == ["sum size"]
    assert list(curves["sum size"]["sizes"]) == [4, 8, 16, 32][: len(curves["sum size"]["seconds"])]
    assert word in capsys.readouterr().out
    assert json.loads((tmp_path / "curves.json").read_text())["sum size"]["exponents"]["seconds"] == pytest.approx(
        power
    )


def test_a_curve_ends_where_a_call_takes_too_long(monkeypatch):
    monkeypatch.setattr(bench_sweeps, "fastest", lambda way, seconds: way())
    monkeypatch.setattr(theory, "rates", lambda largest: theory.Rates(1e9, 1e9, 1e9))
    cell = Cell((1, 2, 4, 8, 16), lambda n: lambda: n * bench_sweeps.LONGEST / 3, lambda n: Cost(flops=n))
    assert bench_sweeps.curve(cell)["sizes"] == (1, 2, 4)


@pytest.mark.parametrize("name", ["kfac depth", "implicit classes", "statistics batch", "cayley width", "train batch"])
def test_cells_of_sweeps_run(name):
    cell = bench_sweeps.cells()[name]
    cell.call(cell.sizes[0])()
    assert theory.Rates(1, 1, 1).seconds(cell.cost(cell.sizes[0])) > 0


def test_verdicts_tell_the_formula_from_what_memory_explains():
    assert verdict({"seconds": 1.05, "cached": 1.0, "large": 0.5}) == "as the formula"
    assert verdict({"seconds": 1.2, "cached": 1.0, "large": 1.15}) == "faster, as large products do"
    assert verdict({"seconds": 1.2, "cached": 1.0, "large": 0.5}) == "FASTER"
