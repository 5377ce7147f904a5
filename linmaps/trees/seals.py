"""What is no tensor in an input: carried along as structure, so that trees hold tensors alone, and given back to functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optree
import torch.utils._pytree as torch_pytree
from optree.registry import __GLOBAL_NAMESPACE as GLOBAL
from torch import Tensor

from linmaps.trees.keys import Path, path_str
from linmaps.trees.mappings import is_mapping
from linmaps.trees.nodes import one_level
from linmaps.trees.records import static


@static
@dataclasses.dataclass(frozen=True)
class Sealed:
    """A value that is no tensor, as a node without leaves: transforms pass it by."""

    value: Any


def _rebuilt(settings: Any, children: Any) -> Sealed:
    return Sealed(settings[0])


_register: Any = optree.register_pytree_node
_register(Sealed, lambda s: ((), (s.value,), ()), _rebuilt, namespace=GLOBAL)
torch_pytree.register_pytree_node(
    Sealed,
    lambda s: ([], (s.value,)),
    lambda children, settings: _rebuilt(settings, children),
    serialized_type_name="linmaps.trees.seals.Sealed",
)


def sealed(tree: Any, name: str = "x", path: Path = ()) -> Any:
    """The tree with a dict for each mapping, and text, numbers, None and other objects sealed; TypeError for arrays of numpy.

    >>> import torch
    >>> sealed({"ids": torch.ones(1), "text": ["a"], "mask": None})
    {'ids': tensor([1.]), 'text': [Sealed(value='a')], 'mask': Sealed(value=None)}
    """
    if isinstance(tree, Tensor):
        return tree
    parts = None if isinstance(tree, Sealed) else one_level(tree)
    if parts is not None:
        keys, children, rebuild = parts
        made = [sealed(child, name, (*path, key)) for key, child in zip(keys, children)]
        return tree if all(s is t for s, t in zip(made, children)) else rebuild(made)
    if is_mapping(tree):
        return {key: sealed(tree[key], name, (*path, key)) for key in tree.keys()}  # noqa: SIM118
    if hasattr(tree, "__array__") and hasattr(tree, "shape") and len(tree.shape):
        where = f"{name}: {path_str(path)}" if path else name
        raise TypeError(
            f"{where}: got {type(tree).__module__.split('.')[0]}.{type(tree).__name__} of shape {tuple(tree.shape)}, expected "
            "a tensor; convert it with torch.as_tensor(...) (float32 as params are, not float64)"
        )
    return tree if isinstance(tree, Sealed) else Sealed(tree)


def unsealed(tree: Any) -> Any:
    """The tree as it was before `sealed`; mappings stay dicts.

    >>> unsealed(sealed({"n": 3, "names": ("a", "b")}))
    {'n': 3, 'names': ('a', 'b')}
    """
    if isinstance(tree, Sealed):
        return tree.value
    parts = one_level(tree)
    if parts is None:
        return tree
    _, children, rebuild = parts
    made = [unsealed(child) for child in children]
    return tree if all(s is t for s, t in zip(made, children)) else rebuild(made)


@static
@dataclasses.dataclass(frozen=True)
class Unsealing:
    """A function whose arguments after the first (params) may hold what is sealed: it gets the values."""

    f: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.f(*args[:1], *(unsealed(a) for a in args[1:]), **options)

    def __getattr__(self, name: str) -> Any:  # its name, its docstring
        if name == "f" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.f, name)

    def __repr__(self) -> str:
        return repr(self.f)


def unsealing(f: Callable[..., Any]) -> Callable[..., Any]:
    """f for inputs that `sealed` went over.

    >>> unsealing(lambda params, x: params * x["n"])(2, sealed({"n": 3}))
    6
    """
    return f if isinstance(f, Unsealing) else Unsealing(f)
