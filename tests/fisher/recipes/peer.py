"""laplace-torch, the peer of Laplace approximations; optional and never a requirement."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import warnings
from typing import Any

ABSENT = (
    "needs the peer: pip install --no-deps --target DIR laplace-torch==0.3 torchmetrics lightning-utilities "
    "curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 einops einconv unfoldNd linear_operator opt_einsum, and "
    "TORCHGROVE_PEERS=DIR"
)


@functools.cache
def laplace_torch() -> Any:
    """The package, or None where it or what it needs is not installed."""
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if pathlib.Path(directory).is_dir() and directory not in sys.path:
            sys.path.append(directory)
    if any(importlib.util.find_spec(need) is None for need in ("laplace", "torchmetrics", "scipy", "curvlinops")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("laplace")
