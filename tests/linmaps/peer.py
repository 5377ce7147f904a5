"""The peer, NeuroMANCER 1.5.6's sub-package of structured maps, loaded alone; tests and benches compare with it.

It is optional and never a requirement: its other sub-packages need much.  Unpack the wheel anywhere, with
`pip install --no-deps --target DIRECTORY neuromancer==1.5.6`, and set TORCHGROVE_PEERS=DIRECTORY.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import types
import warnings
from typing import Any

ABSENT = "needs the peer: pip install --no-deps --target DIR neuromancer==1.5.6, and TORCHGROVE_PEERS=DIR"


@functools.cache
def slim() -> Any:
    """The sub-package with its Permutation beside it, or None where the peer is not installed."""
    place = _place()
    if place is None:
        return None
    bare = types.ModuleType("neuromancer")  # its own __init__ imports all that the maps do without
    bare.__path__ = [str(place)]
    sys.modules["neuromancer"] = bare
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that its compiled extension is absent
        found = importlib.import_module("neuromancer.slim")
        found.Permutation = importlib.import_module("neuromancer.slim.butterfly.permutation").Permutation
    return found


def _place() -> pathlib.Path | None:
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if (pathlib.Path(directory) / "neuromancer" / "slim").is_dir():
            return pathlib.Path(directory) / "neuromancer"
    spec = importlib.util.find_spec("neuromancer")
    return pathlib.Path(spec.origin).parent if spec is not None and spec.origin else None
