"""Damping: what is added before a matrix is inverted, F + regul: a number, a number for each layer, or a diagonal.

A number, or a tensor without axes, is a multiple of the identity.  A mapping {name of a layer: number} gives each layer its own,
a tree like params of numbers or tensors each leaf or each parameter.  At the door of a matrix's method the last two become
`Amounts`; a block gets what is its own of them, a number or a tensor in the shape of its view.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from linmaps import checks, trees
from linmaps.checks import values
from linmaps.numerics.dtypes import working_dtype
from linmaps.trees import Layout, path_str
from linmaps.trees.mappings import conformed, is_mapping

Scalar = float | Tensor
Regul = float | Tensor | Any  # what a user may give: a number, {layer: number}, or a tree like params
FORMS = "a number >= 0, a mapping {layer: number}, or a tree like params of numbers or tensors"


@dataclasses.dataclass(frozen=True)
class Amounts:
    """A diagonal by leaves: numbers, or tensors in the shape of the leaf; `named`: the numbers of layers that they come from."""

    layout: Layout
    leaves: tuple[Any, ...]
    named: Mapping[str, Scalar] | None = None
    layers: Any = None

    def tensors(self, like: Tensor) -> list[Tensor]:
        """For each leaf in its own shape, on the device of `like`, in its dtype or one to compute in."""
        make = lambda r: torch.as_tensor(r, dtype=working_dtype(like.dtype), device=like.device)
        return [make(r).expand(s) for r, s in zip(self.leaves, self.layout.shapes)]

    def tree(self, like: Tensor) -> Any:
        """The diagonal as a vector of parameter space."""
        return self.layout.unflatten(self.tensors(like))

    def map(self, fn: Callable[[Any], Any]) -> Amounts:
        """fn of each amount."""
        named = None if self.named is None else {name: fn(r) for name, r in self.named.items()}
        return dataclasses.replace(self, leaves=tuple(fn(r) for r in self.leaves), named=named)


def check_number(regul: Any, name: str = "regul") -> None:
    """Raise unless regul is a finite number >= 0, or a tensor of one without axes: TypeError or ValueError."""
    checks.number(regul, name, low=0)


def normal(regul: Any, layout: Layout, layers: Any, like: Tensor | None, name: str = "regul") -> Scalar | Amounts:
    """A number as it is, all else as a Amounts; TypeError or ValueError for what is neither, negative or not finite.

    layers: a LayerCollection, whose names a mapping then has; None: names of leaves, or of what holds several (`hidden` of
    hidden.weight and hidden.bias).

    >>> params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    >>> normal({"w": 0.1, "b": torch.ones(3)}, Layout.of(params), None, torch.ones(())).leaves
    (tensor([1., 1., 1.]), 0.1)
    """
    if isinstance(regul, Amounts):
        return regul
    tree = _like_params(regul, layout)
    if tree is not None:
        return Amounts(layout, tuple(_amount(r, p, s, name) for r, p, s in zip(tree, layout.paths, layout.shapes)))
    if is_mapping(regul):
        return _by_names(regul, layout, layers, cast(Tensor, like), name)
    cure = f"expected {FORMS}" if isinstance(regul, (list, tuple)) else ""
    if cure:
        raise ValueError(f"{name}: got {type(regul).__name__} of {len(regul)}, {cure}, with the structure of params")
    checks.number(regul, name, low=0, cure="a mapping {layer: number} and a tree like params are taken too")
    return regul


def _like_params(regul: Any, layout: Layout) -> list[Any] | None:
    """The leaves of a tree like params, None for anything else; a number for a lone leaf is a number."""
    if isinstance(regul, (float, int, str)) or regul is None:
        return None
    if isinstance(regul, Tensor):
        return [regul] if layout.paths == ((),) and regul.ndim and tuple(regul.shape) == layout.shapes[0] else None
    found = conformed(regul, layout.unflatten(range(len(layout.shapes))))
    return trees.leaves(found) if tuple(trees.paths(found)) == layout.paths else None


def _amount(r: Any, path: Any, shape: tuple[int, ...], name: str) -> Any:
    where = f"{name}: {path_str(path)}" if path else name
    if not isinstance(r, Tensor) or r.ndim == 0:
        checks.number(r, where, low=0, cure=f"a tensor of them has the shape of the leaf, {tuple(shape)}")
        return r
    if r.dtype == torch.bool or r.is_complex():
        raise TypeError(f"{where}: got a tensor of {r.dtype}, expected real numbers >= 0")
    if tuple(r.shape) != tuple(shape):
        raise ValueError(
            f"{where}: got a tensor of shape {tuple(r.shape)}, expected {tuple(shape)} as the leaf has, or a number >= 0"
        )
    seen = values(r)
    wrong = None if seen is None else ~((seen >= 0) & seen.isfinite())
    if seen is not None and wrong is not None and bool(wrong.any()):
        raise ValueError(f"{where}: got {seen[wrong][0].item()}, expected finite numbers >= 0")
    return r


def _by_names(regul: Any, layout: Layout, layers: Any, like: Tensor, name: str) -> Amounts:
    """A mapping {name: number}: of each layer, once."""
    known = _groups(layout, regul) if layers is None else {layer.name: () for layer in layers}
    every = {path_str(p) for p in layout.paths} if layers is None else set(known)
    for key in regul:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(every), 3, 0.3) or sorted(every)[:5]
            raise ValueError(
                f"{name}: got the layer {key!r}, expected one of {len(every)}, as {near}: a number for each layer, or a "
                f"tree like params{_unknown(layers)}"
            )
        checks.number(
            regul[key], f"{name}: {key}", low=0, cure="one for the layer; for each parameter give a tree like params"
        )
    named = {key: regul[key] for key in known if key in regul}
    if layers is not None:
        if missing := [n for n in known if n not in named]:
            raise ValueError(
                f"{name}: got no number for {missing[:5]}, expected one for each of {len(known)} layers; give {{**dict.fromkeys("
                "layers.names(), number), ...}"
            )
        return Amounts(layout, _spread(named, layers, like), named, layers)
    owners = [[key for key in named if n in known[key]] for n in range(len(layout.paths))]
    for path, keys in zip(layout.paths, owners):
        if len(keys) != 1:
            got = f"{keys}, which name it twice" if keys else "no number for it"
            raise ValueError(f"{name}: {path_str(path)}: got {got}, expected one for each leaf{_unknown(layers)}")
    return Amounts(layout, tuple(named[keys[0]] for keys in owners), named)


def _unknown(layers: Any) -> str:
    if layers is not None:
        return ""
    return (
        "; this matrix does not know its layers (fisher.fim tells it, what is made of a matrix forgets them): names are those of "
        "leaves, or of what holds them"
    )


def _groups(layout: Layout, names: Any) -> dict[str, tuple[int, ...]]:
    """{name: numbers of the leaves at or under it}, of those that have any."""
    paths = [path_str(p) for p in layout.paths]
    under = {key: tuple(n for n, p in enumerate(paths) if p == key or p.startswith(f"{key}.")) for key in names}
    return {key: found for key, found in under.items() if found}


def _spread(named: Mapping[str, Scalar], layers: Any, like: Tensor) -> tuple[Tensor, ...]:
    """The numbers of layers as tensors like the leaves, of which several layers may share one."""
    space, dtype = layers.space, working_dtype(like.dtype)
    empty = space.unflatten([torch.empty(s, device="meta") for s in space.shapes])
    views = {
        n: torch.as_tensor(named[n], dtype=dtype, device=like.device).expand(t.shape)
        for n, t in layers.views(empty).items()
    }
    return tuple(trees.leaves(layers.tree(views)))


def flat(regul: Scalar | Amounts, like: Tensor) -> Tensor:
    """A number as a tensor without axes, a Amounts as `[d]`, in the dtype of `like`."""
    if not isinstance(regul, Amounts):
        return torch.as_tensor(regul, dtype=like.dtype, device=like.device)
    return torch.cat([t.reshape(math.prod(t.shape)) for t in regul.tensors(like)]).to(like.dtype)


def unflat(regul: Tensor, layout: Layout) -> Tensor | Amounts:
    """The way back from `flat`."""
    return regul if regul.ndim == 0 else Amounts(layout, tuple(trees.leaves(layout.unravel(regul))))


def detached(r: Any) -> Any:
    """A number or a tensor as a constant."""
    return r.detach() if isinstance(r, Tensor) else r


def plus(regul: Scalar | Amounts, alpha: Scalar) -> Any:
    """regul + alpha I."""
    return regul.map(lambda r: r + alpha) if isinstance(regul, Amounts) else regul + alpha


def times(regul: Scalar | Amounts, v: Any, power: float = 1) -> Any:
    """regul^power v, for a tree v, whose leaves may have leading axes."""
    if not isinstance(regul, Amounts):
        return trees.scale(regul**power, v)
    flat, treedef = trees.flatten(v)
    return treedef.unflatten([(r**power).to(t.dtype) * t for r, t in zip(regul.tensors(flat[0]), flat)])


def uniform(r: Tensor) -> Scalar | None:
    """The number that all entries are; None where they differ, or where nothing can be seen.

    >>> uniform(torch.full((2, 3), 0.5)), uniform(torch.tensor([1.0, 2.0]))
    (tensor(0.5000), None)
    """
    if r.numel() == 0:
        return r.new_zeros(())
    first = r.reshape(r.numel())[0]
    apart = values(r - first)
    if apart is None or bool((apart != 0).any()):
        return None
    return first + (r - first).mean()  # of derivatives each entry has its share
