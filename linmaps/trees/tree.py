"""Tree, the type of a tree in a signature: where it comes back, the tree is built like the one that went in.

A record that holds a tree is a class over it, `Mean[Tree]`; of a tree that nothing is known of it is Any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Tree = TypeVar("Tree", default=Any)
else:
    from typing import TypeVar

    Tree = TypeVar("Tree")
