"""Records of what was seen: a *use* is one call (a layer applied twice has two), a *layer* the leaves of one block."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fisher.chains import Chain
from fisher.rules import Match
from linmaps import trees
from linmaps.trees import Path, path_str

KRONECKER = ("linear", "matmul", "bias")


@trees.static
@dataclasses.dataclass(frozen=True)
class Use:
    """One call in which leaves are used: `z = x W' + b`.

    weight, bias: paths of the leaves (None: not a leaf); transposed: the weight leaf is stored `[in, out]`;
    joined: the bias is added by a later call; shape: of z, for the batch seen;
    axis: where the examples are in z (`taps.rows`); mutated: x is changed in place later on;
    source: `(earlier use, chain)` when x is `chain` of that use's output, and that output goes nowhere else.
    """

    kind: str
    weight: Path | None
    bias: Path | None
    transposed: bool
    joined: bool
    shape: tuple[int, ...]
    batch: int
    axis: int
    mutated: bool
    source: tuple[int, Chain] | None

    def explains(self, match: Match) -> bool:
        bias = None if self.joined else self.bias
        return (self.kind, self.weight, bias, self.transposed) == (
            match.kind,
            match.weight.path if match.weight else None,
            match.bias.path if match.bias else None,
            match.stored_in_out,
        )

    def tap_shape(self, batch: int) -> tuple[int, ...]:
        """The shape of z for another batch size."""
        k = max(self.axis, 0)
        return (*self.shape[:k], self.shape[k] // max(1, self.batch) * batch, *self.shape[k + 1 :])

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(p for p in (self.weight, self.bias) if p is not None)

    def describe(self) -> str:
        return f"{self.kind} of {path_str(self.weight or self.bias or ())}"


@trees.static
@dataclasses.dataclass(frozen=True)
class Layer:
    """Leaves that share one block.

    kind: "linear", "matmul", "bias" (Kronecker-factored), "exact" (no rule) or "unused"; weight, bias: leaf numbers in the
    flat order; shape: `[O, I]` of the block's matrix view without the bias column; uses: their numbers.
    """

    name: str
    kind: str
    weight: int | None
    bias: int | None
    transposed: bool
    shape: tuple[int, int]
    uses: tuple[int, ...]
    note: str

    @property
    def kronecker(self) -> bool:
        return self.kind in KRONECKER

    @property
    def diagonal(self) -> bool:
        """Whether the input factor A is a diagonal matrix, kept as the vector `[I]` of its entries."""
        return False

    @property
    def grouped(self) -> bool:
        """Whether the matrix view has an axis of groups in front, with factors for each: `[groups, O, I]`."""
        return False

    @property
    def leaves(self) -> tuple[int, ...]:
        return tuple(i for i in (self.weight, self.bias) if i is not None)

    def matrix(self, flat: list[Tensor]) -> Tensor:
        """The matrix view `[W | b]` `[O, I + 1]` of a vector in parameter space, from its leaves."""
        columns = []
        if self.weight is not None:
            w = flat[self.weight]
            columns.append(w.mT if self.transposed else w)
        if self.bias is not None:
            columns.append(flat[self.bias][:, None])
        return torch.cat(columns, 1) if len(columns) > 1 else columns[0]

    def scatter(self, matrix: Tensor) -> dict[int, Tensor]:
        """The leaves of a matrix view: the way back from `matrix`."""
        found = {}
        if self.weight is not None:
            w = matrix[:, : self.shape[1]]
            found[self.weight] = w.mT if self.transposed else w
        if self.bias is not None:
            found[self.bias] = matrix[:, -1]
        return found
