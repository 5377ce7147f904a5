"""Trees of tensors: vector-space operations, paths, flat order, records.  The one file that knows the pytree library.

A tree is any optree-registered pytree of tensors.  Vectors in parameter space are trees shaped like `params`; a flat
order exists only in `ravel`: the leaf order of optree (dict keys sorted, as in JAX), row-major inside a leaf.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar, dataclass_transform

import optree
import torch
import torch.utils._pytree as torch_pytree
from optree.registry import __GLOBAL_NAMESPACE as GLOBAL
from torch import Tensor

from linmaps.mappings import conformed
from linmaps.paths import Path, path_str, walk
from linmaps.records import frozen

Tree = Any
T = TypeVar("T")

__all__ = [
    "Layout",
    "add",
    "axpy",
    "check_like",
    "dot",
    "flatten",
    "get",
    "leaves",
    "map",
    "norm",
    "one_level",
    "path_str",
    "paths",
    "ravel",
    "record",
    "replace",
    "scale",
    "stack",
    "static",
    "sub",
    "unravel",
    "unstack",
    "zeros_like",
]


# --- records -----------------------------------------------------------------------------------------------------


def static(cls: type[T]) -> type[T]:
    """Class decorator: `torch.load` of default settings reads this frozen dataclass of plain numbers, strings, tuples.

    >>> import dataclasses
    >>> @static
    ... @dataclasses.dataclass(frozen=True)
    ... class Size:
    ...     rows: int
    >>> Size(3)
    Size(rows=3)
    """
    torch.serialization.add_safe_globals([cls])
    return cls


@dataclass_transform(frozen_default=True)
def record(*, static: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen dataclass whose fields are children of a pytree, but for those named in `static`.

    The class is registered with optree (global namespace) and with torch's own pytrees, so that instances pass through
    `torch.func.vmap`, `grad`, `jacrev`, `optree.tree_map`, `pickle` and `torch.save` / `torch.load`.  Static fields
    must be hashable.  A field that holds None is no leaf.

    >>> import torch, optree
    >>> from linmaps import trees
    >>> @trees.record(static=("unit",))
    ... class Length:
    ...     value: torch.Tensor
    ...     unit: str = "m"
    >>> torch.func.vmap(lambda r: optree.tree_map(lambda t: 2 * t, r))(Length(torch.arange(2.0)))
    Length(value=tensor([0., 2.]), unit='m')
    """

    def decorate(cls: type[T]) -> type[T]:
        made, flatten, rebuild = frozen(cls, static)
        optree.register_pytree_node(made, flatten, rebuild, namespace=GLOBAL)
        torch_pytree.register_pytree_node(
            made,
            lambda r: (list(flatten(r)[0]), flatten(r)[1]),
            lambda children, settings: rebuild(settings, children),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )
        torch.serialization.add_safe_globals([made])
        return made

    return decorate


# --- vector space ------------------------------------------------------------------------------------------------


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` leaf by leaf.

    >>> import torch
    >>> map(torch.neg, {"a": torch.ones(2)})
    {'a': tensor([-1., -1.])}
    """
    return optree.tree_map(fn, tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """Leaves in optree's order (dict keys sorted).

    >>> leaves({"b": 2, "a": [1, 3]})
    [1, 3, 2]
    """
    return optree.tree_leaves(tree)


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """Leaves and structure: `flat, treedef = flatten(tree)`, `treedef.unflatten(flat)` is the tree.

    is_leaf: nodes that are taken whole.

    >>> flat, treedef = flatten({"a": 1})
    >>> treedef.unflatten([2])
    {'a': 2}
    """
    flat, treedef = optree.tree_flatten(tree, is_leaf)
    return flat, treedef


def zeros_like(tree: Tree) -> Tree:
    """The zero vector of the space that `tree` lives in.

    >>> import torch
    >>> zeros_like({"a": torch.ones(2)})
    {'a': tensor([0., 0.])}
    """
    return optree.tree_map(torch.zeros_like, tree)


def add(a: Tree, b: Tree) -> Tree:
    """`a + b`.

    >>> import torch
    >>> add({"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([2., 2.])}
    """
    return _binary(torch.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """`a - b`.

    >>> import torch
    >>> sub({"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([0., 0.])}
    """
    return _binary(torch.sub, a, b)


def scale(alpha: Any, a: Any) -> Tree:
    """`alpha * a` for a number or a scalar tensor `alpha`; a product, so either order will do.

    >>> import torch
    >>> scale(3.0, {"a": torch.ones(2)}), scale({"a": torch.ones(2)}, 3.0)
    ({'a': tensor([3., 3.])}, {'a': tensor([3., 3.])})
    """
    if isinstance(a, (int, float)) or (isinstance(a, Tensor) and a.ndim == 0):
        alpha, a = a, alpha
    return optree.tree_map(lambda t: alpha * t, a)


def axpy(alpha: float | Tensor, x: Tree, y: Tree) -> Tree:
    """`alpha * x + y`.

    >>> import torch
    >>> axpy(2.0, {"a": torch.ones(2)}, {"a": torch.ones(2)})
    {'a': tensor([3., 3.])}
    """
    return _binary(lambda s, t: alpha * s + t, x, y)


def dot(a: Tree, b: Tree) -> Tensor:
    """Inner product `sum_i a_i b_i` (complex: `a` conjugated), a scalar tensor.

    >>> import torch
    >>> dot({"a": torch.ones(2), "b": torch.ones(())}, {"a": torch.ones(2), "b": torch.ones(())})
    tensor(3.)
    """
    b = check_like(b, a, "dot(a, b)")
    terms = [(s.conj() * t).sum() for s, t in zip(optree.tree_leaves(a), optree.tree_leaves(b))]
    return _total(terms)


def norm(a: Tree) -> Tensor:
    """Euclidean norm, with gradient 0 (not NaN) at 0.

    >>> import torch
    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    tensor(5.)
    """
    squared = _total([(t.real**2 + t.imag**2 if t.is_complex() else t * t).sum() for t in optree.tree_leaves(a)])
    positive = squared != 0  # true of NaN too
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _total(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def _binary(fn: Callable[..., Any], a: Tree, b: Tree) -> Tree:
    b = check_like(b, a, "second tree")
    return optree.tree_map(fn, a, b)


def check_like(tree: Tree, like: Tree, name: str, *, shapes: bool = True) -> Tree:
    """`tree` with its mappings as those of `like`; ValueError that names the path unless its structure (and shapes) are.

    >>> import torch
    >>> check_like({"a": torch.ones(3)}, {"a": torch.ones(2)}, "v")
    Traceback (most recent call last):
    ValueError: v: leaf a has shape (3,), expected (2,); give a tree with the shapes of the one it belongs to
    """
    if optree.tree_structure(tree) != optree.tree_structure(like):
        tree = conformed(tree, like, one_level)
    got, want = paths(tree), paths(like)
    if got != want:
        extra = [path_str(p) for p in got if p not in want]
        missing = [path_str(p) for p in want if p not in got]
        raise ValueError(
            f"{name}: leaves do not match: got {len(got)} leaves, expected {len(want)}; missing {missing[:5]}, "
            f"unexpected {extra[:5]}; give a tree of the structure {optree.tree_structure(like)}"
        )
    if shapes:
        for p, t, u in zip(want, optree.tree_leaves(tree), optree.tree_leaves(like)):
            if lost := [v for v in (t, u) if not hasattr(v, "shape")]:
                raise TypeError(f"{name}: leaf {path_str(p)} is {type(lost[0]).__name__}, expected a tensor")
            if tuple(t.shape) != tuple(u.shape):
                raise ValueError(
                    f"{name}: leaf {path_str(p)} has shape {tuple(t.shape)}, expected {tuple(u.shape)}; "
                    "give a tree with the shapes of the one it belongs to"
                )
    return tree


# --- ensembles ---------------------------------------------------------------------------------------------------


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack equal trees along a new leading axis: the ensemble that `torch.func.vmap` maps over.

    >>> import torch
    >>> stack([{"a": torch.zeros(2)}, {"a": torch.ones(2)}])
    {'a': tensor([[0., 0.], [1., 1.]])}
    """
    members = list(trees)
    if not members:
        raise ValueError("stack: got an empty sequence, expected at least one tree")
    for i, member in enumerate(members[1:], 1):
        members[i] = check_like(member, members[0], f"stack: member {i}")
    return optree.tree_map(lambda *ts: torch.stack(ts), *members)


def unstack(tree: Tree) -> list[Tree]:
    """The members of a stacked tree: `unstack(stack(ts)) == ts`.

    >>> import torch
    >>> unstack({"a": torch.arange(2.0)})
    [{'a': tensor(0.)}, {'a': tensor(1.)}]
    """
    flat, treedef = optree.tree_flatten(tree)
    sizes = {tuple(t.shape[:1]) for t in flat}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"unstack: leading sizes {sorted(sizes)} of the leaves differ, expected one common ensemble axis; "
            "stack the members with linmaps.trees.stack"
        )
    return [optree.tree_unflatten(treedef, member) for member in zip(*(t.unbind(0) for t in flat))]


# --- flat order --------------------------------------------------------------------------------------------------


@static
@dataclasses.dataclass(frozen=True)
class Layout:
    """Structure and shapes of a tree, without its tensors; hashable, picklable: `layout.unravel(vector)` is a tree.

    >>> import torch
    >>> layout = Layout.of({"w": torch.zeros(2, 3), "b": torch.zeros(2)})
    >>> layout.numel, layout.paths
    (8, (('b',), ('w',)))
    """

    treedef: optree.PyTreeSpec
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: Tree) -> Layout:
        flat, treedef = optree.tree_flatten(tree)
        for p, t in zip(optree.tree_paths(tree), flat):
            if not isinstance(t, Tensor):
                raise TypeError(f"{path_str(p)}: got {type(t).__name__}, expected a tensor; keep settings out of trees")
        return cls(treedef, tuple(tuple(t.shape) for t in flat))

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(optree.treespec_paths(self.treedef))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(s) for s in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        ends = [0]
        for n in self.sizes:
            ends.append(ends[-1] + n)
        return tuple(ends)

    @property
    def numel(self) -> int:
        return sum(self.sizes)

    def unflatten(self, flat: Sequence[Any]) -> Tree:
        return optree.tree_unflatten(self.treedef, list(flat))

    def unravel(self, vector: Tensor) -> Tree:
        """The tree of a vector `[numel]`."""
        if tuple(vector.shape) != (self.numel,):
            raise ValueError(f"unravel: got shape {tuple(vector.shape)}, expected ({self.numel},)")
        parts = vector.split(list(self.sizes))
        return self.unflatten([t.reshape(s) for t, s in zip(parts, self.shapes)])

    def check(self, tree: Tree, name: str) -> Tree:
        """`check_like` with a tree of this structure and these shapes."""
        return check_like(tree, self.unflatten([SimpleNamespace(shape=s) for s in self.shapes]), name)

    def __getstate__(self) -> tuple[Any, ...]:  # a skeleton of plain containers, which torch.load reads without trust
        return self.treedef.unflatten(range(len(self.shapes))), self.shapes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        object.__setattr__(self, "treedef", optree.tree_structure(state[0]))
        object.__setattr__(self, "shapes", state[1])


def ravel(tree: Tree) -> tuple[Tensor, Callable[[Tensor], Tree]]:
    """The vector `[d]` of a tree in the flat order, and the way back.

    >>> import torch
    >>> vector, unravel = ravel({"a": torch.zeros(1, 2), "b": torch.ones(1)})
    >>> vector, unravel(2 * vector)
    (tensor([0., 0., 1.]), {'a': tensor([[0., 0.]]), 'b': tensor([2.])})
    """
    layout = Layout.of(tree)
    flat = [t.reshape(-1) for t in optree.tree_leaves(tree)]
    return (torch.cat(flat) if flat else torch.zeros(0)), layout.unravel


def unravel(vector: Tensor, like: Tree) -> Tree:
    """The tree with the structure and shapes of `like` whose entries in flat order are those of the vector.

    >>> import torch
    >>> unravel(torch.arange(3.0), {"a": torch.zeros(1, 2), "b": torch.zeros(1)})
    {'a': tensor([[0., 1.]]), 'b': tensor([2.])}
    """
    return Layout.of(like).unravel(vector)


# --- paths -------------------------------------------------------------------------------------------------------


def paths(tree: Tree) -> list[Path]:
    """Path of each leaf, a tuple of keys, in leaf order.

    >>> paths({"b": 0, "a": [1, 2]})
    [('a', 0), ('a', 1), ('b',)]
    """
    return list(optree.tree_paths(tree))


def get(tree: Tree, path: Path | str) -> Any:
    """The subtree at a path: a tuple of keys or a dotted string, in nested or in flat dicts with dotted keys.

    >>> get({"net": {"0.weight": 1}}, "net.0.weight")
    1
    """
    return walk(tree, path, _children)[-1][1]


def replace(tree: Tree, path: Path | str, value: Any) -> Tree:
    """A copy of `tree` in which the subtree at `path` is `value`; the old tree stays valid.

    >>> replace({"a": {"b": 1}, "c": 2}, "a.b", 5)
    {'a': {'b': 5}, 'c': 2}
    """
    steps = walk(tree, path, _children)
    for (_, node), (key, _) in zip(reversed(steps[:-1]), reversed(steps[1:])):
        value = _with_child(node, key, value)
    return value


def one_level(node: Any) -> tuple[list[Any], list[Any], Callable[[list[Any]], Any]] | None:
    """(keys, children, rebuild) of a container, None for a leaf: to walk trees that hold more than tensors.

    >>> keys, children, rebuild = one_level((1, 2))
    >>> keys, rebuild([c + 1 for c in children]), one_level(3)
    ([0, 1], (2, 3), None)
    """
    if isinstance(node, Tensor) or node is None or optree.tree_is_leaf(node):
        return None
    if isinstance(node, dict):  # insertion order, which the flat order is not
        first = (node.default_factory,) if hasattr(node, "default_factory") else ()
        return list(node), list(node.values()), lambda values: type(node)(*first, zip(node, values))  # type: ignore[call-overload]
    children, settings, entries, unflatten = optree.tree_flatten_one_level(node)
    names = getattr(type(node), "_fields", None)
    return [names[i] for i in entries] if names else list(entries), children, lambda values: unflatten(settings, values)


def _children(node: Any) -> dict[Any, Any]:
    keys, children, _ = one_level(node) or ((), (), None)
    named = dict(zip(keys, children))
    return named | dict(enumerate(children)) if hasattr(type(node), "_fields") else named


def _with_child(node: Any, key: Any, value: Any) -> Any:
    keys, children, rebuild = one_level(node)  # type: ignore[misc]
    if key not in keys:  # a named tuple by position
        key = keys[key]
    return rebuild([value if k == key else c for k, c in zip(keys, children)])
