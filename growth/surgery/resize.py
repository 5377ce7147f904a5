"""Resize one layer by hand, or gather the hidden units of a pair.

q outputs of a layer, p its inputs, weight `[q, p]` or `[q, p, *kernel]`; k new features, u hidden units of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import debug_unwrap

from growth.reading.leaves import places, spread
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads, head_axes
from linmaps import trees
from linmaps.checks import size, values
from linmaps.checks.annotations import typed
from linmaps.numerics.numeric import positive_root
from linmaps.trees.keys import Path
from linmaps.trees.tree import Tree

MOST = 2**20  # new features: more is a mistake, to be met before memory is
Extension = Tensor | tuple[Tensor, Tensor] | None


@typed
def add_parameters(
    layer: Tree,
    *,
    added_in_features: int = 0,
    added_out_features: int = 0,
    matrix_extension: Extension = None,
    bias_extension: Tensor | None = None,
) -> Tree:
    """`layer` with new inputs (columns, behind the old ones) or new outputs (rows, below the old ones), or both.

        in:  W [q, p] -> [W, X],  X [q, k]            out:  W -> [W; X],  X [k, p],   b -> [b; x],  x [k]

    layer: `{"weight": W, "bias": b}`, the bias may be absent, other entries are kept; or the weight alone.  Convolutions
    `[q, p, *kernel]` take extensions `[q, k, *kernel]`, `[k, p, *kernel]`.  None stands for zeros.
    Both at once: matrix_extension is None or a tuple (columns `[q, k_in]`, rows `[k_out, p + k_in]`).
    One side of one layer: a neighbour must change with it, see `grow`, `widen`.

    Raises ValueError (path, got, expected) for negative sizes, extensions of another shape, a bias_extension of a layer
    without a bias or without new outputs; TypeError for a layer of another kind.

    >>> import torch
    >>> layer = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    >>> add_parameters(layer, added_out_features=1, bias_extension=torch.tensor([5.0]))
    {'weight': tensor([[1., 1.],
            [0., 0.]]), 'bias': tensor([1., 5.])}
    >>> add_parameters(layer["weight"], added_in_features=1)
    tensor([[1., 1., 0.]])
    """
    weight, bias = _parts(layer)
    for name, number in (("added_in_features", added_in_features), ("added_out_features", added_out_features)):
        size(number, name, 0, MOST, cure="to remove features use growth.prune")
    columns, rows = _sides(matrix_extension, added_in_features, added_out_features)
    weight = _extended(weight, columns, added_in_features, 1, "matrix_extension")
    weight = _extended(weight, rows, added_out_features, 0, "matrix_extension")
    if bias_extension is not None and (bias is None or not added_out_features):
        why = "the layer has no bias" if bias is None else "added_out_features is 0"
        raise ValueError(
            f"bias_extension: got shape {tuple(bias_extension.shape)}, expected None, since {why}; leave it out"
        )
    if isinstance(layer, Tensor):
        return cast(Tree, weight)
    new = {"weight": weight}
    if bias is not None:
        new["bias"] = _extended(bias, bias_extension, added_out_features, 0, "bias_extension")
    own: Any = layer
    return cast(Tree, type(own)((k, new.get(k, v)) for k, v in own.items()))


@typed
def layer_in_extension(layer: Tree, weight: Tensor) -> Tree:
    """`layer` with the columns `weight` `[q, k]` (`[q, k, *kernel]`) behind its own: k new inputs.

    Raises as `add_parameters`.

    >>> import torch
    >>> layer_in_extension({"weight": torch.ones(1, 2)}, torch.zeros(1, 1))
    {'weight': tensor([[1., 1., 0.]])}
    """
    k = _size(weight, 1)
    return add_parameters(layer, added_in_features=k, matrix_extension=weight if k else None)


@typed
def layer_out_extension(layer: Tree, weight: Tensor, bias: Tensor | None = None) -> Tree:
    """`layer` with the rows `weight` `[k, p]` (`[k, p, *kernel]`) below its own, and `bias` `[k]` (None: zeros).

    Raises as `add_parameters`.

    >>> import torch
    >>> layer_out_extension({"weight": torch.ones(1, 2)}, torch.zeros(1, 2))
    {'weight': tensor([[1., 1.],
            [0., 0.]])}
    """
    k = _size(weight, 0)
    if not k:
        return add_parameters(layer)
    return add_parameters(layer, added_out_features=k, matrix_extension=weight, bias_extension=bias)


# --- hidden units of a pair ----------------------------------------------------------------------------------------


def gathered(params: Any, pair: Pair | Heads, units: Tensor) -> Any:
    """`params` with the hidden units (or heads) `units` `[u]` (indices, also with repetitions) of a pair in place of all.

    >>> import torch
    >>> params = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[3.0, 4.0]])}
    >>> gathered(params, Pair("a", "b"), torch.tensor([1, 1]))
    {'a': tensor([[2.],
            [2.]]), 'b': tensor([[4., 4.]])}
    """
    for path, axis, index in entries(params, pair, units):
        leaf = trees.get(params, path)
        params = trees.replace(params, path, leaf.index_select(axis, index.to(leaf.device)))
    return params


def entries(params: Any, pair: Pair | Heads, units: Tensor) -> list[tuple[Path, int, Tensor]]:
    """Where hidden units (or heads) are: (path of a leaf, axis, indices on it).

    >>> import torch
    >>> params = {"qkv": torch.zeros(12, 3), "out": torch.zeros(3, 4)}
    >>> entries(params, Heads(None, None, None, "out", 2, packed="qkv"), torch.tensor([1]))
    [(('qkv',), 0, tensor([ 2,  3,  6,  7, 10, 11])), (('out',), 1, tensor([2, 3]))]
    """
    if not isinstance(pair, Heads):
        return [
            (p.path, p.axis, p.numbers(units, trees.get(params, p.path).shape[p.axis])) for p in places(params, pair)
        ]
    found = []
    for a in head_axes(params, pair):
        starts = [sum(s.size for s in a.segments[:n]) for n in range(len(a.segments))]
        each = [spread(units, s.size // pair.groups) + start for s, start in zip(a.segments, starts)]
        found.append((a.path, 2 - a.bias + a.axis, torch.cat(each)))
    return found


def magnitude(leaf: Tensor) -> Tensor:
    """The root mean square of a weight `[out, in, *kernel]` (or bias), fan-in^-1/2 where it is empty or zero.

    >>> magnitude(torch.tensor([[1.0, 7.0]])), magnitude(torch.zeros(3, 4))
    (tensor(5.), tensor(0.5000))
    """
    usual = max(1, math.prod(leaf.shape[1:])) ** -0.5
    square = leaf.square().sum() / max(1, leaf.numel())
    return torch.where(square > 0, positive_root(square), usual)


def indices(units: Sequence[int] | Tensor, count: int, name: str, device: torch.device) -> Tensor:
    """Indices of units as a tensor `[u]` from 0 to count - 1; a bool tensor `[count]` names those where it is True.

    Raises ValueError for indices out of range and masks of another length, TypeError for other tensors.

    >>> import torch
    >>> indices([0, -1], 4, "units", torch.device("cpu")), indices(torch.tensor([False, True]), 2, "units", None)
    (tensor([0, 3]), tensor([1]))
    """
    if not isinstance(units, Tensor) and any(isinstance(u, int) and abs(u) > MOST * MOST for u in units):
        raise ValueError(
            f"{name}: got {list(units)}, expected indices [u] of {count} units; a mask must be a bool tensor"
        )
    at = units if isinstance(units, Tensor) else torch.as_tensor(list(units), device=device)
    if not isinstance(units, Tensor) and not len(units):
        at = at.long()
    if at.is_floating_point() or at.is_complex():
        raise TypeError(
            f"{name}: got {at.dtype}, expected indices, or a bool mask that is True for the units meant (mask > 0)"
        )
    seen = values(at)
    if at.dtype == torch.bool:
        if tuple(at.shape) != (count,) or seen is None or debug_unwrap(at) is not at:
            shape = tuple(at.shape if seen is None else seen.shape)
            raise ValueError(
                f"{name}: got a mask of shape {shape}, expected ({count},), one entry per unit, outside of "
                "transforms (how many units it names is a value); under vmap and in a graph give indices: growth.weakest_units"
            )
        at = seen = at.nonzero()[:, 0]
    if seen is None and not isinstance(units, Tensor):  # numbers, in a graph
        wrong = any(not -count <= int(u) < count for u in units)
    else:
        wrong = seen is not None and bool(((seen < -count) | (seen >= count)).any())
    if at.ndim != 1 or wrong:
        got = units if seen is None else seen.tolist()
        raise ValueError(f"{name}: got {got}, expected indices [u] of {count} units; a mask must be a bool tensor")
    return torch.where(at < 0, at + count, at).long().to(device)


def check_once(units: Sequence[int] | Tensor, at: Tensor, count: int) -> None:
    """Raise a ValueError where a unit is named twice by indices that can be seen; of members under vmap each has its own."""
    seen = values(at)
    if seen is None:
        numbers = [] if isinstance(units, Tensor) else [int(u) % count for u in units]
    else:
        numbers = seen.tolist() if debug_unwrap(at) is at else []
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"units: got {numbers}, expected each unit once")


# --- parts ---------------------------------------------------------------------------------------------------------


def _parts(layer: Any) -> tuple[Tensor, Tensor | None]:
    found: tuple[Any, Any] = (layer.get("weight"), layer.get("bias")) if isinstance(layer, dict) else (layer, None)
    weight, bias = found
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        got = f"keys {sorted(map(str, layer))[:8]}" if isinstance(layer, dict) else type(layer).__name__
        raise TypeError(
            f"layer: got {got}, expected a weight tensor or a dict with 'weight' (and 'bias'); of nested params give the "
            "subtree of the layer"
        )
    if weight.ndim < 2:
        raise ValueError(
            f"layer.weight: got shape {tuple(weight.shape)}, expected [out, in] or [out, in, *kernel]; leaves of norms "
            "grow with the pair around them: Pair(before, after, norm=...)"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"layer.bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},), one entry per row of the weight "
            f"{tuple(weight.shape)}; map over an ensemble with torch.func.vmap"
        )
    return weight, bias


def _sides(extension: Extension, into: int, out: int) -> tuple[Tensor | None, Tensor | None]:
    """The columns and the rows of a matrix extension."""
    if extension is None:
        return None, None
    if isinstance(extension, tuple):
        if into and out and len(extension) == 2:
            return extension
    elif bool(into) != bool(out):
        return (extension, None) if into else (None, extension)
    got = f"{len(extension)} tensors" if isinstance(extension, tuple) else f"a tensor {tuple(extension.shape)}"
    want = (
        "a tuple (columns [q, k_in], rows [k_out, p + k_in])" if into and out else "a tensor for the one enlarged side"
    )
    raise ValueError(
        f"matrix_extension: got {got} for {into} new inputs and {out} new outputs, expected {want}, or None for zeros; "
        "say how many with added_in_features, added_out_features"
    )


def _extended(t: Tensor, extension: Tensor | None, k: int, axis: int, name: str) -> Tensor:
    """`t` with k more entries on an axis."""
    shape = (*t.shape[:axis], k, *t.shape[axis + 1 :])
    if extension is None:
        extension = t.new_zeros(shape)
    elif tuple(extension.shape) != shape:
        raise ValueError(
            f"{name}: got shape {tuple(extension.shape)}, expected {shape} to enlarge axis {axis} of {tuple(t.shape)} by {k}"
        )
    return torch.cat([t, extension.to(dtype=t.dtype, device=t.device)], axis) if k else t


def _size(weight: Tensor, axis: int) -> int:
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight: got {got}, expected a tensor [out, in] or [out, in, *kernel]")
    return weight.shape[axis]
