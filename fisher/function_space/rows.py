"""The rows of a Jacobian, example by example or layer by layer, tried and held against autograd.

B examples, C outputs (all output axes of an example, flattened), S shared (positions), I inputs, O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks import agreement, doors, finiteness, purity
from fisher.checks.axes import batch_size, one_shape
from fisher.collector import restriction
from fisher.collector.blocks.uses import UNUSED
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import of_layer, of_layers, rows_of
from fisher.collector.products import example_gradients
from fisher.collector.taps import column_rows, pull, pull_last
from fisher.derivatives.plain import plainly
from fisher.function_space.pfmap import PFMapDense
from fisher.likelihoods.columns import chunks
from fisher.trials import functions, modes
from fisher.trials.data import several
from linmaps import trees
from linmaps.trees import Layout


def dense(
    f: Callable[..., Tensor],
    params: Any,
    parts: list[Any],
    *,
    chunk_size: int | None = None,
    layers: LayerCollection | None = None,
    check: bool = True,
    check_finite: bool = True,
    name: str = "f(params, x)",
) -> PFMapDense:
    """The Jacobian at the inputs of several batches; with layers, with respect to their leaves.  Options as of `jacobian`.

    name: what f is called where it is refused.
    """
    tried = check and any(batch_size(part) for part in parts)
    if tried:
        functions.function(f, params, several(parts), name, finite=check_finite)
    if layers is None:
        found = [_plain(f, params, part, chunk_size) for part in parts]
    else:
        params = layers.layout.check(params, "params (of the LayerCollection)")
        found = [_by_layers(f, params, part, layers, chunk_size) for part in parts]
        f, params = restriction.restricted(f, params, layers)
    if tried:
        _rows_agree(plainly(f), params, parts, found)
    one_shape([tuple(t.shape[:2]) for rows in found for t in trees.leaves(rows)[:1]], name)
    J = PFMapDense(trees.map(lambda *ts: torch.cat(ts), *found), Layout.of(params))
    if check_finite:
        finiteness.finite(J, "jacobian", modes.NO_DERIVATIVE)
    return J


def _rows_agree(f: Callable[..., Tensor], params: Any, parts: list[Any], found: list[Any]) -> None:
    """Raise unless J'u of the rows is autograd's gradient of <u, f> for the largest batch."""
    x, rows = max(zip(parts, found), key=lambda pair: batch_size(pair[0]))
    y, back = purity.watched(f, params, x)
    u = agreement.generic(y)
    flat = [t.flatten(2) if t.ndim > 2 else t[..., None] for t in trees.leaves(rows)]
    weighted = [t * u.reshape(*t.shape[:2], 1) for t in flat]
    sizes = [t.abs().sum((0, 1)) for t in weighted]
    largest = torch.stack([t.amax() for t in sizes if t.numel()]).amax()
    tol = agreement.tolerance_of(f, params, x)
    rounding = tol / 10 * largest  # all that there is in rows that are zero
    for path, want, got, size in zip(trees.paths(params), trees.leaves(back(u)[0]), weighted, sizes):
        if not modes.adjoint(got.sum((0, 1)), want.reshape(-1), size + rounding, tol):
            raise ValueError(
                f"{trees.path_str(path)}: the rows of its Jacobian do not add up to autograd's gradient, expected them to; a "
                "torch call in f has a wrong rule for torch.func.vmap over examples: write it by other calls"
            )


def outputs(f: Callable[..., Tensor], params: Any, x: Any) -> Tensor:
    """f's output as `[B, C]`."""
    y, batch = f(params, x), batch_size(x)
    doors.rows(y, batch)
    return y.reshape(batch, math.prod(y.shape[1:]))


def _plain(f: Callable[..., Tensor], params: Any, x: Any, chunk_size: int | None) -> Any:
    flat, treedef = trees.flatten(params)
    f = plainly(f)
    y = outputs(f, params, x)
    (batch, width), dtype = y.shape, y.dtype
    columns = torch.eye(width, dtype=flat[0].dtype, device=flat[0].device)

    whole = lambda own, x: outputs(f, treedef.unflatten([own[n] for n in range(len(flat))]), x)

    def some(x: Any) -> list[Tensor]:
        parts = [
            rows_of(whole, dict(enumerate(flat)), x, part[:, None].expand(-1, batch_size(x), -1))
            for part in chunks(columns.to(dtype), chunk_size)
        ]
        return [torch.cat([part[n] for part in parts]).transpose(0, 1) for n in range(len(flat))]

    if batch == 0 or width == 0:
        return treedef.unflatten([t.new_zeros(batch, width, *t.shape) for t in flat])
    size = batch if chunk_size is None else max(1, chunk_size // width)
    with purity.no_random_call():
        found = [some(part) for part in _split(x, size)]
    return treedef.unflatten(trees.map(lambda *ts: torch.cat(ts), *found))


def _split(x: Any, size: int) -> Iterator[Any]:
    flat, treedef = trees.flatten(x)
    for parts in zip(*(t.split(size) for t in flat)):
        yield treedef.unflatten(parts)


def sweep(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    chunk_size: int | None,
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """`(y, inputs, g, rows)` of one forward and one backward over the C unit columns at the output y; of the last layer alone,
    whose output is y, no backward.

    inputs[use] = a [B, S, I], g[use] [C, B, S, O], and for each leaf without a rule its rows [C, B, numel].
    """
    batch, k = batch_size(x), len(layers.uses) - 1
    if layers.tapped == (k,) and not layers.exact and not layers.uses[k].free:
        found = pull_last(f, params, x, layers, k)
        if found is not None:
            y, a = found
            return y, {k: a}, column_rows(layers, {k: _columns(y).to(a.dtype)}, batch), {}
    y, inputs, back = pull(f, params, x, layers, layers.tapped, lambda k, a: a)
    columns = _columns(y)
    parts = [
        (column_rows(layers, back(part), batch), of_layers(f, params, x, layers.exact, part))
        for part in chunks(columns, chunk_size)
    ]
    g, rows = trees.map(lambda *ts: torch.cat(ts), *parts)
    return y, inputs, g, rows


def _columns(y: Tensor) -> Tensor:
    """The C unit columns at the output, `[C, *y.shape]`."""
    width = math.prod(y.shape[1:])
    columns = torch.eye(width, dtype=y.dtype, device=y.device).reshape(width, 1, *y.shape[1:])
    return columns.expand(width, *y.shape)


def _by_layers(
    f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection, chunk_size: int | None
) -> dict[int, Tensor]:
    y, inputs, g, rows = sweep(f, params, x, layers, chunk_size)
    width = math.prod(y.shape[1:])
    views, like = {}, trees.leaves(params)[0]
    for layer in layers:
        if layer.by_leaf:
            views[layer.name] = of_layer(layer, rows)
        elif layer.family == UNUSED:
            views[layer.name] = like.new_zeros(width, batch_size(x), layer.numel)
        else:
            views[layer.name] = example_gradients(layer, [inputs[k] for k in layer.uses], [g[k] for k in layer.uses])
    return trees.map(lambda t: t.transpose(0, 1), vmap(vmap(layers.tree))(views))
