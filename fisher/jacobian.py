"""The Jacobian of `f(params, x)` with respect to params, example by example.

B examples, C outputs (all output axes of an example, flattened), d parameters; J_b = d f(x_b) / d params.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher import check, doors
from fisher.axes import batch_size
from fisher.batches import batches
from fisher.columns import chunks
from fisher.layers import LayerCollection
from fisher.pfmap import PFMap, PFMapDense, PFMapImplicit, outputs
from fisher.products import example_gradients
from fisher.reducers import leaf_rows
from fisher.taps import column_rows, pull
from fisher.uses import EXACT, UNUSED
from linmaps import trees
from linmaps.trees import Layout


def jacobian(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    representation: type[PFMap] = PFMapDense,
    *,
    chunk_size: int | None = None,
    layers: LayerCollection | None = None,
) -> Any:
    """The Jacobian of `f(params, x)` `[B, *out]` with respect to params, example by example.

    J_b = d f(x_b) / d params, with all output axes flattened into C.  x: one batch, or an iterable of batches, in the
    order of the result.  PFMapDense: one vjp per example under vmap; chunk_size: rows (b, c) differentiated at once.
    layers: from `LayerCollection.from_function`; rows are then products g a' of one forward and one backward over C
    columns (chunk_size: columns at once).  PFMapImplicit: nothing is computed until `jvp` or `vjp`.

    Raises ValueError where examples mix (batch norm in train mode), TypeError for leaves that are not floating.

    >>> import torch
    >>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"])
    >>> jacobian(f, {"w": torch.ones(2, 3), "b": torch.zeros(3)}, torch.ones(5, 2))
    PFMapDense(B = 5, C = 3, d = 9)
    """
    if not any(representation is kind for kind in (PFMapDense, PFMapImplicit)):
        raise ValueError(f"representation: got {representation!r}, expected PFMapDense or PFMapImplicit")
    doors.function(f)
    doors.parameters(params)
    doors.options(chunk_size=chunk_size, layers=layers)
    parts = [part for part, _ in batches(x, what="jacobian")]
    if representation is PFMapImplicit:
        return PFMapImplicit(f, params, trees.map(lambda *ts: torch.cat(ts), *parts))
    if layers is None:
        found = [_plain(f, params, part, chunk_size) for part in parts]
    else:
        layers.space.check(params, "params (of the LayerCollection)")
        found = [_by_layers(f, params, part, layers, chunk_size) for part in parts]
    return PFMapDense(trees.map(lambda *ts: torch.cat(ts), *found), Layout.of(params))


def _plain(f: Callable[..., Tensor], params: Any, x: Any, chunk_size: int | None) -> Any:
    flat, treedef = trees.flatten(params)
    together = outputs(f, params, x)
    batch, width = together.shape
    columns = torch.eye(width, dtype=together.dtype, device=together.device)

    def one(x: Any) -> tuple[Tensor, list[Tensor]]:
        whole = trees.map(lambda t: t[None], x)
        y, back = vjp(lambda flat: outputs(f, treedef.unflatten(flat), whole)[0], flat)  # type: ignore[misc]
        parts = [vmap(back)(part)[0] for part in chunks(columns, chunk_size)]
        return y, trees.map(lambda *ts: torch.cat(ts), *parts)

    if batch == 0 or width == 0:
        return treedef.unflatten([t.new_zeros(batch, width, *t.shape) for t in flat])
    size = batch if chunk_size is None else max(1, chunk_size // width)
    found = [vmap(one)(part) for part in _split(x, size)]
    apart, rows = trees.map(lambda *ts: torch.cat(ts), *found)
    _examples_apart(together, apart)
    return treedef.unflatten(rows)


def _split(x: Any, size: int) -> Iterator[Any]:
    flat, treedef = trees.flatten(x)
    for parts in zip(*(t.split(size) for t in flat)):
        yield treedef.unflatten(parts)


def _examples_apart(together: Tensor, apart: Tensor) -> None:
    """f of the batch must be f of its examples; raw values are looked at only to raise."""
    want, got = check.raw(together), check.raw(apart)
    tol = min(0.3, 10 * torch.finfo(want.dtype).eps ** 0.5)
    scale = torch.maximum(want.abs().amax(), got.abs().amax())
    if bool(scale.isfinite()) and bool((want - got).abs().amax() > tol * scale):
        raise ValueError(
            "f(params, x): the output of one example depends on other examples, expected examples apart; put batch norm "
            "into eval mode (model.eval()) and the batch axis in front"
        )


# --- layer by layer ----------------------------------------------------------------------------------------------


def sweep(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    chunk_size: int | None,
) -> tuple[int, dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """`(C, inputs, g, rows)` of one forward and one backward over the C unit columns at the output.

    inputs[use] = a [B, S, I], g[use] [C, B, S, O], and for each leaf without a rule its rows [C, B, numel].
    """
    batch = batch_size(x)
    y, inputs, back = pull(f, params, x, layers, layers.tapped, lambda k, a: a)
    width = math.prod(y.shape[1:])
    columns = torch.eye(width, dtype=y.dtype, device=y.device).reshape(width, 1, *y.shape[1:])
    columns = columns.expand(width, *y.shape)
    free = tuple(layer.leaves[0] for layer in layers.exact)
    parts = [
        (column_rows(layers, back(part), batch), leaf_rows(f, params, x, free, part))
        for part in chunks(columns, chunk_size)
    ]
    g, rows = trees.map(lambda *ts: torch.cat(ts), *parts)
    return width, inputs, g, rows


def _by_layers(
    f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection, chunk_size: int | None
) -> dict[int, Tensor]:
    width, inputs, g, rows = sweep(f, params, x, layers, chunk_size)
    views, like = {}, trees.leaves(params)[0]
    for layer in layers:
        if layer.family == EXACT:
            views[layer.name] = rows[layer.leaves[0]]
        elif layer.family == UNUSED:
            views[layer.name] = like.new_zeros(width, batch_size(x), layer.numel)
        else:
            views[layer.name] = example_gradients(layer, [inputs[k] for k in layer.uses], [g[k] for k in layer.uses])
    return trees.map(lambda t: t.transpose(0, 1), vmap(vmap(layers.tree))(views))
