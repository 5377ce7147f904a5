"""The peer geotorch, of parametrizations by manifolds; tests and benches compare with it.

It is optional and never a requirement: `pip install --no-deps --target DIRECTORY geotorch`, and TORCHGROVE_PEERS=DIRECTORY.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
from typing import Any

ABSENT = "needs the peer: pip install --no-deps --target DIR geotorch, and TORCHGROVE_PEERS=DIR"


@functools.cache
def geotorch() -> Any:
    """The package, or None where it is not installed."""
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if (pathlib.Path(directory) / "geotorch").is_dir():
            sys.path.append(directory)
            try:
                return importlib.import_module("geotorch")
            finally:
                sys.path.remove(directory)
    return importlib.import_module("geotorch") if importlib.util.find_spec("geotorch") is not None else None
