"""Hypothesis profiles (read from pyproject.toml), and two threads in all, whether one process runs or two."""

import os
import pathlib
import tomllib

import torch
from hypothesis import HealthCheck, settings

_TOOL = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["torchgrove"]
for _name, _options in _TOOL["hypothesis"].items():
    settings.register_profile(
        _name,
        max_examples=_options["max_examples"],
        deadline=None,
        derandomize=_options["derandomize"],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
