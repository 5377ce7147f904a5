"""Gradients of single examples for leaves without a rule.  B batch, C columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher.checks.axes import batch_size
from fisher.checks.reverse_mode import reverse
from fisher.collector.blocks.uses import Layer
from fisher.collector.calls.batching import soundly
from linmaps import trees

LeafRows = dict[int, Tensor]
T = TypeVar("T")


def leaf_rows(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    leaves: tuple[int, ...],
    columns: Tensor,
    one_by_one: bool = False,
) -> LeafRows:
    """Gradient of each column at each example, `{leaf: [C, B, numel]}`; columns `[C, B, *out]`.

    One vjp per example under vmap; memory C B numel.  one_by_one: for an f that vmap does not take, or takes wrongly: C B
    backward passes through the whole batch, each with a cotangent on one example alone.
    """
    flat, treedef = trees.flatten(params)
    f = soundly(f)

    def output(part: dict[int, Tensor], x: Any) -> Tensor:
        return f(treedef.unflatten([part.get(n, t) for n, t in enumerate(flat)]), x)

    own = {n: flat[n] for n in leaves}
    found = rows_of(output, own, x, columns, one_by_one)
    return {n: t.flatten(2) if t.ndim > 2 else t[..., None] for n, t in found.items()}


def rows_of(
    output: Callable[[dict[int, Tensor], Any], Tensor],
    own: dict[int, Tensor],
    x: Any,
    columns: Tensor,
    one_by_one: bool | None = None,
) -> dict[int, Tensor]:
    """Gradients of `output(own, x)` with respect to own, of each column at each example, `{n: [C, B, *own[n]]}`.

    one_by_one: None for vmap where that takes output, else one by one.
    """
    batch = batch_size(x)
    if not own or batch == 0 or len(columns) == 0:
        return {n: columns.new_zeros(len(columns), batch, *t.shape) for n, t in own.items()}
    if one_by_one is not None:
        return (_masked if one_by_one else _mapped)(output, own, x, columns)
    return mapped(lambda: _mapped(output, own, x, columns), lambda: _masked(output, own, x, columns))


def mapped(by_vmap: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What vmap gives; where a call has no rule for it, or f branches on values, what the other gives."""
    try:
        return by_vmap()
    except RuntimeError as refused:
        try:
            return otherwise()
        except RuntimeError:
            raise refused from None


def _mapped(output: Callable[..., Tensor], own: dict[int, Tensor], x: Any, columns: Tensor) -> dict[int, Tensor]:
    def one(x: Any, columns: Tensor) -> LeafRows:
        _, back = vjp(lambda part: output(part, trees.map(lambda t: t[None], x))[0], own)  # type: ignore[misc]
        return vmap(lambda c: back(c)[0])(columns)

    found = vmap(one, in_dims=(0, 1))(x, columns)  # with out_dims=1 vmap does not take zeros that all examples share
    return {n: t.transpose(0, 1) for n, t in found.items()}


def _masked(output: Callable[..., Tensor], own: dict[int, Tensor], x: Any, columns: Tensor) -> dict[int, Tensor]:
    _, back = reverse(lambda part: output(part, x), own)

    def row(column: Tensor, b: int) -> LeafRows:
        return back(torch.cat([torch.zeros_like(column[:b]), column[b : b + 1], torch.zeros_like(column[b + 1 :])]))[0]

    rows = [[row(column, b) for b in range(columns.shape[1])] for column in columns]
    return {n: torch.stack([torch.stack([r[n] for r in line]) for line in rows]) for n in own}


def of_layers(f: Callable[..., Tensor], params: Any, x: Any, layers: Iterable[Layer], columns: Tensor) -> LeafRows:
    """The same of these layers, each in the way that it says."""
    ways = {way: tuple(n for l in layers if l.one_by_one == way for n in l.leaves) for way in (False, True)}
    found = [leaf_rows(f, params, x, leaves, columns, way) for way, leaves in ways.items() if leaves]
    return {n: t for part in found for n, t in part.items()}


def of_layer(layer: Layer, rows: LeafRows) -> Tensor:
    """The rows of a layer without a rule, `[C, B, n]`, those of its leaves side by side."""
    return rows[layer.leaves[0]] if not layer.others else torch.cat([rows[n] for n in layer.leaves], -1)
