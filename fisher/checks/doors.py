"""What f, params, data and options must be, said by name before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import alike, size
from linmaps.checks.uncompiled import original
from linmaps.trees import Layout, path_str
from linmaps.trees.keys import Path
from linmaps.trees.mappings import is_mapping
from linmaps.trees.nodes import one_level
from linmaps.trees.seals import unsealing


def function(f: Any, name: str = "f") -> Callable[..., Any]:
    """f for inputs that hold more than tensors; a TypeError unless it can be called, and for a module.

    >>> function(None)
    Traceback (most recent call last):
    TypeError: f: got NoneType, expected a function
    """
    if isinstance(f, torch.nn.Module):
        raise TypeError(
            f"{name}: got the module {type(f).__name__}, expected a function of params; use {name}, params = "
            "fisher.functional(module)"
        )
    if not callable(f):
        raise TypeError(f"{name}: got {type(f).__name__}, expected a function")
    return unsealing(original(f))  # whose calls can be seen


def of_type(value: Any, kind: type | tuple[type, ...], name: str, expected: str) -> None:
    """Raise a TypeError that says what was expected unless value is an instance of kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {type(value).__name__}, expected {expected}")


def check_parameters(params: Any, name: str = "params") -> None:
    """Raise a TypeError that names the leaf unless params is a tree of dense real floating tensors with at least one leaf."""
    if isinstance(params, (Iterator, torch.nn.Module)) and not hasattr(params, "keys"):
        raise TypeError(
            f"{name}: got {type(params).__name__}, expected a tree of tensors; of a module f, params = "
            "fisher.functional(module)"
        )
    layout = Layout.of(params)
    if not layout.shapes:
        raise TypeError(f"{name}: got {type(params).__name__} without a tensor, expected a tree of tensors")
    for path in nothing(params):
        raise TypeError(
            f"{name}: {path_str(path)}: got None, expected a tensor, as torch.func differentiates by tensors alone; leave the "
            "key out and let f ask for what is there (params.get), or close f over what is None"
        )
    flat = trees.leaves(params)
    if all(t.is_floating_point() and t.layout == torch.strided for t in flat):
        return
    for path, t in zip(layout.paths, flat):
        where = f"{name}: {path_str(path)}" if path else name
        if not t.is_floating_point():
            raise TypeError(
                f"{where}: got dtype {t.dtype}, expected a real floating dtype; keep buffers and integers out of params (close "
                "f over them)"
            )
        if t.layout != torch.strided:
            raise TypeError(f"{where}: got layout {t.layout}, expected a dense tensor; convert it with .to_dense()")


def nothing(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Where a tree holds None in place of a leaf.

    >>> list(nothing({"w": torch.ones(1), "b": [None]}))
    [('b', 0)]
    """
    parts = one_level(tree)
    if parts is not None:
        for key, child in zip(*parts[:2]):
            yield from nothing(child, (*path, key))
    elif tree is None:
        yield path


def options(
    *,
    chunk_size: Any = None,
    n_samples: Any = 1,
    generator: Any = None,
    noise: Any = None,
    dtype: Any = None,
    layers: Any = None,
) -> None:
    """Raise unless each has its type: TypeError, or ValueError for a number out of range."""
    if chunk_size is not None:
        size(chunk_size, "chunk_size", 1, cure="or None for all at once")
    size(n_samples, "n_samples", 1)
    if generator is not None:
        of_type(
            generator,
            torch.Generator,
            "generator",
            "a torch.Generator, or None; pass torch.Generator().manual_seed(seed)",
        )
    if noise is not None:
        of_type(noise, Tensor, "noise", "a tensor [n, *y.shape], or None")
        if not noise.is_floating_point() or noise.layout != torch.strided:
            raise TypeError(f"noise: got {noise.dtype}, {noise.layout}, expected a dense floating tensor [n, *y.shape]")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: got {dtype!r}, expected a floating dtype such as torch.float64, or None")

    if layers is not None and not hasattr(layers, "layout"):
        raise TypeError(f"layers: got {type(layers).__name__}, expected a LayerCollection, or None")
    if layers is not None and hasattr(layers, "names") and not layers.names() and layers.layout.shapes:
        raise ValueError(
            "layers: got a LayerCollection without a layer, expected some; what select is asked is true of none"
        )


def entry(sizes: tuple[int, ...], dim: int | None) -> Any:
    """The sizes, or the one of an axis; ValueError for an axis that is not there.

    >>> entry((4, 2, 7), None), entry((4, 2, 7), -1)
    ((4, 2, 7), 7)
    """
    if dim is None:
        return sizes
    size(dim, "dim", -len(sizes), len(sizes) - 1)
    return sizes[dim]


def rows(y: Any, batch: int, name: str = "f(params, x)") -> None:
    """Raise a ValueError unless y is a tensor with one row per example.

    >>> rows(torch.zeros(3, 2), 4)
    Traceback (most recent call last):
    ValueError: f(params, x): got shape (3, 2), expected a tensor [4, ...] with one row per example
    """
    if not isinstance(y, Tensor) or y.ndim == 0 or y.shape[0] != batch:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}: got {got}, expected a tensor [{batch}, ...] with one row per example")


def one_tensor(y: Any, name: str = "f(params, x)") -> None:
    """Raise a TypeError unless an output is one tensor.

    >>> one_tensor((torch.zeros(2), None))
    Traceback (most recent call last):
    TypeError: f(params, x): got tuple, expected one tensor [B, ...]; take one: lambda params, x: f(params, x)[0] of 0
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: got {type(y).__name__}, expected one tensor [B, ...]{_part_of(y)}")


def _part_of(y: Any) -> str:
    """How to take the tensor out of an output of several."""
    parts: list[tuple[Any, Any]] = list(enumerate(y)) if isinstance(y, (tuple, list)) else []
    parts = list(y.items()) if is_mapping(y) and hasattr(y, "items") else parts
    keys = [repr(key) for key, t in parts if isinstance(t, Tensor) and t.ndim][:3]  # a loss beside them has no axis
    return f"; take one: lambda params, x: f(params, x)[{keys[0]}] of {', '.join(keys)}" if keys else ""


def output(y: Any, params: Any, x: Any, name: str = "f(params, x)") -> None:
    """Raise a TypeError unless y is a floating tensor, not of a wider dtype than params because x is."""
    one_tensor(y, name)
    if not y.is_floating_point():
        raise TypeError(f"{name}: got {y.dtype}, expected a real floating dtype")
    if y.dtype not in {t.dtype for t in trees.leaves(params)} and y.dtype == torch.float64:
        alike(x, "x", params, "params")
