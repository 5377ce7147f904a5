"""The bench harness: ratios to the base, taken round by round; every bench has a main."""

import importlib
import pathlib
import time

import pytest
import torch

from tests.bench.harness import race

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
