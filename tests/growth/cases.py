"""The transform table of growth: its rows, one file for each part of the package."""

import importlib

from tests.laws import Case, Exempt

PARTS = ("step", "closed", "convolution", "presets", "surgery", "graph", "rank", "scores", "gated", "ends")

CASES: dict[str, Case | Exempt] = {}
for part in PARTS:
    CASES |= importlib.import_module(f"tests.growth.rows_{part}").CASES
