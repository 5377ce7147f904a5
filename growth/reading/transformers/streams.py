"""The residual stream of a network: which leaves of params write it, read it, or stand in it.

E its width, of which each leaf has one axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fisher import LayerCollection
from growth.checks.named import layer_name
from growth.reading.layers import layer_at
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names

ROLES = ("embeddings", "writers", "readers", "norms", "scales", "tied")
LOOKUPS = ("embedding", "positions")
Leaf = tuple[Path, int]  # path of a leaf, and its axis of the stream


@dataclasses.dataclass(frozen=True)
class Stream:
    """The leaves of a stream by what they do: each with its axis of the stream, counted from the front.

    into: embeddings, weights and biases of writers; out: weights of readers; gains, shifts: weights and biases of norms;
    scales: factors of its entries; tied: embeddings that are read too, and the norm in front of them.
    """

    width: int
    into: tuple[Leaf, ...]
    out: tuple[Leaf, ...]
    gains: tuple[Leaf, ...] = ()
    shifts: tuple[Leaf, ...] = ()
    scales: tuple[Leaf, ...] = ()
    before_tied: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"stream of width {self.width}"


def stream_of(params: Any, layers: LayerCollection | Mapping[str, Sequence[Any]]) -> Stream:
    """The stream that roles by name, or a LayerCollection, say; ValueError where they do not match, or leave it open.

    >>> import torch
    >>> params = {"e": torch.zeros(9, 4), "w": torch.zeros(4, 3), "r": torch.zeros(3, 4)}
    >>> stream_of(params, {"embeddings": ["e"], "writers": ["w"], "readers": ["r"]}).width
    4
    """
    roles = _found(layers) if isinstance(layers, LayerCollection) else _named(layers)
    at = dict(zip(names(trees.paths(params)), trees.paths(params)))
    leaf = lambda path: _leaf(params, at, path)
    into: list[Leaf] = []
    gains: list[Leaf] = []
    shifts: list[Leaf] = []
    norms: list[Path] = []
    for path in [*roles["embeddings"], *(pair[0] for pair in roles["tied"])]:
        into.append((leaf(path), trees.get(params, leaf(path)).ndim - 1))
    for path in roles["writers"]:
        layer = layer_at(params, path)
        into += [(p, 0) for p in (layer.weight_path, layer.bias_path) if p is not None]
    out = [(layer_at(params, path).weight_path, 1) for path in roles["readers"]]
    for path in roles["norms"]:
        found = [at.get(f"{layer_name(at, path)}.{n}") for n in ("weight", "bias")]
        gains.append((found[0] if found[0] is not None else leaf(path), 0))
        shifts += [] if found[1] is None else [(found[1], 0)]
    scales = [(leaf(path), trees.get(params, leaf(path)).ndim - 1) for path in roles["scales"]]
    known = {p for p, _ in gains}
    for pair in roles["tied"]:
        norms.append(leaf(pair[1]))
        if norms[-1] not in known:
            raise ValueError(f"tied: got the norm {path_str(pair[1])}, expected one of norms={roles['norms']}")
    every = [*into, *out, *gains, *shifts, *scales]
    twice = [path_str(p) for p, _ in every if [q for q, _ in every].count(p) > 1]
    if twice and twice[0] not in [path_str(leaf(path)) for path in roles["embeddings"]]:
        named = [
            r for r in ROLES[1:5] if any(layer_name(at, p) in (twice[0], twice[0].rpartition(".")[0]) for p in roles[r])
        ]
        raise ValueError(
            f"{twice[0]}: is named twice, in {' and '.join(named)}, expected one role: a layer whose outputs are added to the "
            "stream is a writer, one whose inputs are the stream a reader"
        )
    if twice:
        raise ValueError(
            f"{twice[0]}: has two roles, expected one; an embedding that is the last layer too: tied=[(its path, the path of the "
            "norm in front of the last layer)] in place of both"
        )
    if not into or (not out and not norms):
        raise ValueError(
            "layers: nothing writes the stream or nothing reads it, expected embeddings or writers, and readers"
        )
    width = trees.get(params, into[0][0]).shape[into[0][1]]
    for path, axis in every:
        shape = tuple(trees.get(params, path).shape)
        if shape[axis] != width:
            raise ValueError(
                f"{path_str(path)}: got shape {shape}, expected size {width} on axis {axis}, the width of the stream as in "
                f"{path_str(into[0][0])}; readers have it as inputs [out, in], writers as outputs, all others last"
            )
    return Stream(width, tuple(into), tuple(out), tuple(gains), tuple(shifts), tuple(scales), tuple(norms))


def _named(roles: Any) -> dict[str, list[Any]]:
    if not isinstance(roles, Mapping):
        raise TypeError(
            f"layers: got {type(roles).__name__}, expected a fisher.LayerCollection, or paths by role: {ROLES}"
        )
    unknown = [r for r in roles if r not in ROLES]
    if unknown:
        raise ValueError(f"layers: got the role {unknown[0]!r}, expected some of {list(ROLES)}")
    for role, paths in roles.items():
        if not isinstance(paths, (list, tuple)) or not all(isinstance(p, (str, tuple)) for p in paths):
            raise TypeError(f"layers: {role} is {paths!r}, expected a list of paths")
        if role == "tied" and not all(isinstance(p, tuple) and len(p) == 2 for p in paths):
            raise ValueError(f"layers: tied is {paths!r}, expected a list of (path of the embedding, path of the norm)")
    return {role: list(roles.get(role, ())) for role in ROLES}


def _found(layers: LayerCollection) -> dict[str, list[Any]]:
    """The roles of layers by their kinds and shapes; ValueError where these leave them open."""
    roles: dict[str, list[Any]] = {role: [] for role in ROLES}
    stem = lambda p: path_str(p).removesuffix(".weight")
    lookups = [u for u in layers.uses if u.kind in LOOKUPS]
    width = {
        layers.layout.shapes[layers.layout.paths.index(u.weight)][-1] for u in lookups if isinstance(u.weight, tuple)
    }
    if len(width) != 1:
        raise ValueError(
            f"layers: embeddings of widths {sorted(width)}, expected one width, that of the stream; give the roles by name: "
            f"{{'embeddings': [...], 'norms': [...], 'readers': [...], 'writers': [...]}}"
        )
    E = width.pop()
    seen: dict[str, set[str]] = {}
    for use in layers.uses:
        if not isinstance(use.weight, tuple) or not use.weight or not isinstance(use.weight[0], (str, int)):
            raise _open(use.describe(), "is no leaf of params, or a part of one")
        shape = layers.layout.shapes[layers.layout.paths.index(use.weight)]
        name = stem(use.weight)
        if use.part is not None and E in shape:
            raise _open(name, "is used in parts")
        if use.kind in LOOKUPS:
            role = "embeddings"
        elif use.elementwise:
            role = "norms" if shape == (E,) else ""
        elif E not in shape[:2]:
            role = ""
        elif use.transposed or len(shape) < 2:
            raise _open(name, f"is stored [in, out] {shape}")
        elif shape[0] == shape[1]:
            raise _open(name, f"has the width of the stream on both sides, {shape}, so that it may read or write it")
        else:
            role = "writers" if shape[0] == E else "readers"
        seen.setdefault(name, set()).add(role)
        if role and name not in roles[role]:
            roles[role].append(name)
    for name, found in seen.items():
        if len(found) > 1:
            raise _open(name, f"is tied: it is one of {sorted(found)}")
    return roles


def _open(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name}: {why}, expected layers whose part is seen by their shapes; give the roles by name: {{'embeddings': [...], "
        "'norms': [...], 'readers': [...], 'writers': [...], 'tied': [(embedding, norm)]}"
    )


def _leaf(params: Any, at: dict[str, Path], path: Any) -> Path:
    name = path_str(path)
    found = at.get(f"{name}.weight", at.get(name))
    if found is None:
        raise ValueError(f"{name}: no such leaf in params, expected one of {sorted(at)[:12]}")
    t = trees.get(params, found)
    if not (isinstance(t, Tensor) and t.is_floating_point() and t.ndim):
        raise TypeError(
            f"{name}: got {getattr(t, 'dtype', type(t).__name__)}, expected a real floating tensor with axes"
        )
    return found
