"""Tensors that are spread over processes (DTensor, as FSDP2 shards params): whole ones in, and what is like them back.

Without torch.distributed there are none: nothing of it is imported until one is met.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor

from linmaps import trees
from linmaps.checks.wrapping import at_home
from linmaps.trees.tree import Tree

VECTORS = ("mv", "mmap", "solve", "vTMv", "mapTMmap", "project_to_diag", "sample")


def spread(t: Any) -> bool:
    """Whether a tensor is a DTensor.

    >>> import torch
    >>> spread(torch.ones(1))
    False
    """
    return isinstance(t, Tensor) and hasattr(t, "full_tensor") and hasattr(t, "placements")


def whole(tree: Tree) -> Tree:
    """The tree with the full tensor of each DTensor, gathered leaf by leaf: all processes of its mesh take part.

    >>> import torch
    >>> whole({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    if not any(map(spread, trees.leaves(tree))):
        return tree
    made: Tree = trees.map(lambda t: t.full_tensor() if spread(t) else t, tree)
    return made


def placed(tree: Tree, like: Any) -> Tree:
    """The tree with a DTensor, placed as that of `like`, where `like` has one; no process sends anything.

    A partial sum in `like` makes a replica here.

    >>> import torch
    >>> placed({"w": torch.ones(1)}, {"w": torch.zeros(1)})
    {'w': tensor([1.])}
    """
    if not any(map(spread, trees.leaves(like))):
        return tree
    made: Tree = trees.map(lambda t, d: _placed(t, d) if spread(d) else t, tree, like)
    return made


def _placed(t: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)
    wanted = [Replicate() if p.is_partial() else p for p in like.placements]
    made: Tensor = everywhere.redistribute(mesh, wanted)
    return made


def placed_methods(cls: type) -> None:
    """The methods of vectors that a class itself defines take DTensors, and give such back where what they give is like the
    vector; for `__init_subclass__`."""
    for name, member in list(vars(cls).items()):
        if isinstance(member, FunctionType) and name in VECTORS:
            setattr(cls, name, taking(member))


def taking(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A method that takes DTensors in its arguments; what it gives is placed as the first argument with such, where it is a
    tree like that.

    >>> import torch
    >>> taking(lambda self, v: 2 * v)(None, torch.ones(1))
    tensor([2.])
    """

    def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [v for v in (*args[1:], *kwargs.values()) if not isinstance(v, (float, int, str))]
        like = next((v for v in given if any(spread(t) for t in trees.leaves(v) if type(t) is not Tensor)), None)
        if like is None:
            return fn(*args, **kwargs)
        found = fn(args[0], *map(whole, args[1:]), **{name: whole(v) for name, v in kwargs.items()})
        (flat, treedef), (wanted, structure) = trees.flatten(found), trees.flatten(like)
        same = treedef == structure and all(s.shape == t.shape for s, t in zip(flat, wanted))
        return placed(found, like) if same else found

    def run(*args: Any, **kwargs: Any) -> Any:
        return act(args, kwargs)

    return at_home(run, fn)
