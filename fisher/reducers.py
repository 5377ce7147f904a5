"""Reducers: what one batch adds up for each representation.  Sums over examples; `fim` takes the mean once.

B batch, S shared, I inputs, O outputs, C columns.  From one pass come, per use, a [B, S, I] and g [C, B, S, O].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher.axes import batch_size
from fisher.layers import LayerCollection
from fisher.pmat import PMat, PMatDense, PMatDiag, PMatKFAC
from fisher.uses import Layer
from linmaps import trees

LeafRows = dict[int, Tensor]


class Reducer(Protocol):
    """One representation: `keep` at the call, `inputs` once per batch, `columns` per chunk of columns, `finish` at the end."""

    def __init__(self, layers: LayerCollection, sharing: str) -> None: ...

    def keep(self, use: int, a: Tensor) -> Any:
        """What is stored of a layer input a [B, S, I]."""

    def inputs(self, kept: dict[int, Any]) -> Any:
        """Sums that need no output-gradient."""

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        """Sums over a chunk of columns; rows: gradients [C, B, numel] of the leaves without a rule."""

    def finish(self, inputs: Any, columns: Any) -> PMat:
        """The matrix from the means."""


def gram(rows: Tensor) -> Tensor:
    """R'R of rows `[..., F]`, by its upper triangle of blocks: up to a quarter less than the whole product."""
    return _gram(rows.reshape(-1, rows.shape[-1]))


def _gram(rows: Tensor) -> Tensor:
    if rows.shape[1] < 256:
        return rows.mT @ rows
    left, right = rows.tensor_split(2, 1)
    corner = left.mT @ right
    return torch.cat([torch.cat([_gram(left), corner], 1), torch.cat([corner.mT, _gram(right)], 1)])


def example_gradients(layer: Layer, a: list[Tensor], g: list[Tensor]) -> Tensor:
    """Gradient of each column at each example, `[C, B, O, I]` in the layer's matrix view: sum over uses and s of g a'."""
    parts = []
    if layer.weight is not None:
        parts.append(_total([torch.einsum("cbso,bsi->cboi", t, u) for u, t in zip(a, g)]))
    if layer.bias is not None:
        parts.append(_total([t.sum(2) for t in g])[..., None])
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def leaf_rows(f: Callable[..., Tensor], params: Any, x: Any, leaves: tuple[int, ...], columns: Tensor) -> LeafRows:
    """Gradient of each column at each example for leaves without a rule, `{leaf: [C, B, numel]}`.

    One vjp per example under vmap; memory C B numel.
    """
    flat, treedef = trees.flatten(params)

    def one(x: Any, columns: Tensor) -> dict[int, Tensor]:
        def output(part: dict[int, Tensor]) -> Tensor:
            whole = treedef.unflatten([part.get(n, t) for n, t in enumerate(flat)])
            return f(whole, trees.map(lambda t: t[None], x))[0]

        _, back = vjp(output, {n: flat[n] for n in leaves})  # type: ignore[misc]
        return vmap(lambda c: back(c)[0])(columns)

    if not leaves or batch_size(x) == 0:
        return {n: columns.new_zeros(len(columns), 0, flat[n].numel()) for n in leaves}
    return {n: t.reshape(*t.shape[:2], -1) for n, t in vmap(one, in_dims=(0, 1), out_dims=1)(x, columns).items()}


LARGEST_EXACT = 2**15  # 4 GiB in float32


class KFAC:
    """Second moments: of the inputs at the call, so that no activation is stored, and of the output-gradients."""

    def __init__(self, layers: LayerCollection, sharing: str) -> None:
        self.layers, self.reduce = layers, sharing == "reduce"
        for layer in layers.exact:
            if layer.shape[0] > LARGEST_EXACT:
                raise ValueError(
                    f"{layer.name}: {layer.note}, so its block is exact: {layer.shape[0]:,} x {layer.shape[0]:,}, expected at "
                    f"most {LARGEST_EXACT:,}; use PMatDiag, or add a rule for its call with fisher.rules.register"
                )

    def keep(self, use: int, a: Tensor) -> Any:
        """Sum of (a, 1)(a, 1)' (of a a' without a bias); with sharing="reduce" (sum over s of (a, 1), S)."""
        if self.layers.uses[use].bias is not None:
            a = torch.nn.functional.pad(a, (0, 1), value=1.0)
        return (a.sum(1), a.new_full((), a.shape[1])) if self.reduce else gram(a)

    def inputs(self, kept: dict[int, Any]) -> Any:
        return {l.name: self._input_factor(l, [kept[k] for k in l.uses]) for l in self.layers if l.kronecker}

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        factors = {l.name: self._output_factor([g[k] for k in l.uses]) for l in self.layers if l.kronecker}
        return factors, {l.name: gram(rows[l.leaves[0]]) for l in self.layers.exact}

    def finish(self, inputs: Any, columns: Any) -> PMat:
        factors, exact = columns
        like = next(iter({**factors, **exact}.values()))
        unused = {l.name: like.new_zeros(()) for l in self.layers if l.kind == "unused"}
        return PMatKFAC({n: (A, factors[n]) for n, A in inputs.items()}, exact | unused, self.layers)

    def _input_factor(self, layer: Layer, kept: list[Any]) -> Tensor:
        """Sum over b, s of (a, 1)(a, 1)'; with sharing="reduce" of the means over s."""
        if self.reduce:
            moment = gram(_total([a for a, _ in kept]) / _total([s for _, s in kept]))
        else:
            moment = _total(kept)
        if layer.weight is None:  # a bias that is no column of its use's weight
            return moment[-1:, -1:]
        width = layer.shape[1] + (layer.bias is not None)
        return moment[:width, :width]

    def _output_factor(self, g: list[Tensor]) -> Tensor:
        """1/S times the sum over columns, b, s of g g'; with sharing="reduce" of the sums over s."""
        if self.reduce:
            return gram(_total([t.sum(2) for t in g]))
        return _total([gram(t) for t in g]) / sum(t.shape[2] for t in g)


class Diag:
    """Sums of squared gradients; without sharing (S = 1) two GEMM operands: (g^2)' (a^2)."""

    def __init__(self, layers: LayerCollection, sharing: str) -> None:
        self.layers = layers

    def keep(self, use: int, a: Tensor) -> Tensor:
        return a

    def inputs(self, kept: dict[int, Any]) -> Any:
        return {}

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        flat: dict[int, Tensor] = {n: (t**2).sum((0, 1)) for n, t in rows.items()}
        for layer in self.layers:
            if layer.kronecker:
                flat |= layer.scatter(self._squares(layer, [kept[k] for k in layer.uses], [g[k] for k in layer.uses]))
        return flat

    def finish(self, inputs: Any, columns: Any) -> PMat:
        layout = self.layers.layout
        like = next(iter(columns.values()))
        flat = [columns.get(n, like.new_zeros(s)).reshape(s) for n, s in enumerate(layout.shapes)]
        return PMatDiag(layout.unflatten(flat), layout)

    @staticmethod
    def _squares(layer: Layer, a: list[Tensor], g: list[Tensor]) -> Tensor:
        if len(g) > 1 or g[0].shape[2] != 1:
            return (example_gradients(layer, a, g) ** 2).sum((0, 1))
        squared = (g[0][:, :, 0] ** 2).sum(0)
        parts = [squared.mT @ a[0][:, 0] ** 2] if layer.weight is not None else []
        if layer.bias is not None:
            parts.append(squared.sum(0)[:, None])
        return torch.cat(parts, 1)


class Dense(Diag):
    """R'R of the rows of all gradients, `[C B, d]` in the flat order."""

    def columns(self, kept: dict[int, Any], g: dict[int, Tensor], rows: LeafRows) -> Any:
        flat = dict(rows)
        for layer in self.layers:
            if layer.kronecker:
                whole = example_gradients(layer, [kept[k] for k in layer.uses], [g[k] for k in layer.uses])
                parts = vmap(vmap(layer.scatter))(whole)
                flat |= {n: t.flatten(2) for n, t in parts.items()}
        like = next(iter(flat.values()))
        sizes = self.layers.layout.sizes
        return gram(torch.cat([flat.get(n, like.new_zeros(*like.shape[:2], s)) for n, s in enumerate(sizes)], -1))

    def finish(self, inputs: Any, columns: Any) -> PMat:
        return PMatDense(columns, self.layers.layout)


def _total(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


REDUCERS: dict[type[PMat], type[Reducer]] = {PMatKFAC: KFAC, PMatDiag: Diag, PMatDense: Dense}
