"""Run the benches: all of them, or those named on the command line."""

import importlib
import pkgutil
import sys

import tests.bench

names = [m.name for m in pkgutil.iter_modules(tests.bench.__path__) if m.name.startswith("bench_")]
for name in names:
    if len(sys.argv) == 1 or name.removeprefix("bench_") in sys.argv[1:]:
        print(f"== {name.removeprefix('bench_')}")
        importlib.import_module(f"tests.bench.{name}").main()
