"""Tree, the type of a tree in a signature: where it comes back, the tree is built like the one that went in."""

from __future__ import annotations

from typing import TypeVar

Tree = TypeVar("Tree")
