"""The peer of tensorized matrices, tensorly-torch 0.5.0 on tensorly 0.10.0; tests and benches compare with it.

It is optional and never a requirement.  Its import sets tensorly's backend for the whole process.
"""

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
    "needs the peer: pip install --no-deps --target DIR tensorly-torch==0.5.0 tensorly==0.10.0 opt_einsum, "
    "and TORCHGROVE_PEERS=DIR"
)


@functools.cache
def tltorch() -> Any:
    """The package, or None where the peer is not installed; tensorly can be imported after it."""
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if (pathlib.Path(directory) / "tltorch").is_dir() and directory not in sys.path:
            sys.path.append(directory)
    if any(importlib.util.find_spec(name) is None for name in ("tltorch", "tensorly", "opt_einsum")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tltorch")
