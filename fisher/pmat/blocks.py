"""Blockwise matrices: one Kronecker-structured block per layer with factors, an exact block per leaf without a rule.

An exact block is a matrix `[n, n]`, or a scalar c (c times the identity) for a leaf that f does not use.
O outputs, I inputs (with the bias column), V = [W | b] `[O, I]` the matrix view of a layer's part of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.layers import LayerCollection
from fisher.pmat.base import PMat, Regul, check_regul
from fisher.uses import Layer
from linmaps import trees
from linmaps.linalg import damped, inv, solve
from linmaps.trees import Layout


class Blockwise(PMat):
    """A PMat with one block per layer: `exact` holds the blocks of leaves without a rule, by layer name."""

    layers: LayerCollection
    exact: dict[str, Tensor]

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.layers.layout

    def _about(self) -> str:
        factored = sum(layer.kronecker for layer in self.layers)
        return f"{factored} factored + {len(self.exact)} exact blocks, "

    def block_diag(self, layer: Layer) -> Tensor:
        """Diagonal of a factored layer's block, in the matrix view `[O, I]`."""
        raise AttributeError("a representation defines block_diag")

    def block(self, layer: Layer) -> Tensor:
        """A factored layer's block `[O I, O I]` over the matrix view, row-major."""
        raise AttributeError("a representation defines block")

    def per_layer(self, factored: Callable[[Layer], Tensor], exact: Callable[[Tensor, int], Tensor]) -> Any:
        """The tree with `factored(layer)` in the matrix view of each factored layer, `exact(block, leaf)` elsewhere."""
        out: dict[int, Tensor] = {}
        for layer in self.layers:
            if layer.kronecker:
                found = layer.scatter(factored(layer))
            else:
                (n,) = layer.leaves
                block = self.exact[layer.name]
                self.check_single(0 if layer.kind == "unused" else 2, block)
                found = {n: exact(block, n)}
            out |= {n: leaf.reshape(self.layout.shapes[n]) for n, leaf in found.items()}
        return self.layout.unflatten([out[n] for n in range(len(out))])

    def apply(
        self, v: Any, factored: Callable[[Layer, Tensor], Tensor], exact: Callable[[Tensor, Tensor], Tensor]
    ) -> Any:
        """Apply `factored(layer, V)` and `exact(block, vector)` to a vector, block by block."""
        self.check_vector(v)
        flat = trees.leaves(v)
        return self.per_layer(
            lambda layer: factored(layer, layer.matrix(flat)), lambda block, n: exact(block, flat[n].reshape(-1))
        )

    def get_diag(self) -> Any:
        return self.per_layer(
            self.block_diag, lambda block, n: block.diagonal() if block.ndim else block.expand(self.layout.sizes[n])
        )

    def dense_blocks(self) -> list[tuple[list[int], Tensor]]:
        """`(positions in the flat order, block)` of each block: together they are F."""
        found = []
        for layer in self.layers:
            index = positions(self.layout, layer)
            block = self.block(layer) if layer.kronecker else self.exact[layer.name]
            found.append((index, block if block.ndim else damped(block.new_zeros(len(index), len(index)), block)))
        return found

    def squares(self, factored: Callable[[Layer], Tensor]) -> Tensor:
        """Sum of the squared entries, given that of each factored block."""
        parts = [
            factored(layer)
            if layer.kronecker
            else (block**2).sum() * (1 if block.ndim else self.layout.sizes[layer.leaves[0]])
            for layer in self.layers
            for block in [self.exact.get(layer.name, torch.zeros(()))]
        ]
        return sum(parts[1:], parts[0])

    def to_torch(self) -> Tensor:
        return assemble(self.layout, self.dense_blocks())

    def exact_map(self, fn: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {name: fn(block) for name, block in self.exact.items()}


def exact_mv(block: Tensor, vector: Tensor) -> Tensor:
    """block vector."""
    return block @ vector if block.ndim else block * vector


def exact_solve(regul: Regul) -> Callable[[Tensor, Tensor], Tensor]:
    """(block + regul I)^-1 vector."""
    check_regul(regul)
    return lambda block, vector: solve(damped(block, regul), vector) if block.ndim else vector / (block + regul)


def exact_inverse(regul: Regul) -> Callable[[Tensor], Tensor]:
    """(block + regul I)^-1."""
    check_regul(regul)
    return lambda block: inv(damped(block, regul)) if block.ndim else 1 / (block + regul)


def positions(layout: Layout, layer: Layer) -> list[int]:
    """Where the entries of a layer's matrix view (row-major) are in the flat order."""
    index = [
        torch.arange(size).reshape(shape) + start
        for size, shape, start in zip(layout.sizes, layout.shapes, layout.offsets)
    ]
    if layer.kronecker:
        return layer.matrix(index).reshape(-1).tolist()
    return index[layer.leaves[0]].reshape(-1).tolist()


def assemble(layout: Layout, blocks: list[tuple[list[int], Tensor]]) -> Tensor:
    """The `[d, d]` matrix with these blocks: a block-diagonal matrix, reordered."""
    start, bands = 0, []
    for index, block in blocks:
        bands.append(torch.nn.functional.pad(block, (start, layout.numel - start - len(index))))
        start += len(index)
    order = torch.tensor([n for index, _ in blocks for n in index])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).to(bands[0].device)
    return torch.cat(bands).index_select(0, place).index_select(1, place)
