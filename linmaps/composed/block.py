"""A grid of maps: a matrix of blocks, each of a map or zeros, used block by block.

Row i of blocks takes piece i of x [..., in], column j gives piece j of the result; params {"i_j": params of a map}.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import Params
from linmaps.composed.composite import Composite, times, times_inverse, times_transpose
from linmaps.numerics.numeric import frobenius


@trees.static
@dataclass(frozen=True)
class Block(Composite):
    """A matrix of blocks, `W = [[W_00, W_01, ...], [W_10, ...], ...]`, each of a map, or None for zeros.

    Params are {"i_j": params of the map in row i and column j}.  A block row has the inputs of its maps in common, a
    block column their outputs; a None takes its size from them.  `apply` goes block by block and never forms W.
    `Block.diagonal(a, b, ...)` has zeros elsewhere; its spectrum, singular values, solve, inverse and determinant are
    those of the parts (the last three and the spectrum for square parts).  Output variances at init add up in a column.
    `violation(V)` is the norm of the violations of the blocks, those of zeros included; from_matrix takes block by block.

    ValueError for rows of different lengths, a row or column of None alone, sizes that do not agree, or a map with a bias.

    >>> import torch, linmaps
    >>> spec = linmaps.Block(((linmaps.Identity(2), linmaps.Linear(2, 1)), (None, linmaps.Identity(1))))
    >>> spec.effective_W({"0_0": {}, "0_1": {"W": torch.tensor([[7.0], [8.0]])}, "1_1": {}})
    tensor([[1., 0., 7.],
            [0., 1., 8.],
            [0., 0., 1.]])
    """

    name: ClassVar[str] = "block"
    promise: ClassVar[str] = "those of the blocks, and zeros elsewhere"

    rows: tuple[tuple[Map | None, ...], ...]

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        except TypeError:
            raise TypeError(f"Block.rows: got {self.rows!r}, expected rows of maps: ((a, b), (None, c))") from None
        lengths = sorted({len(row) for row in self.rows})
        if len(lengths) != 1 or lengths[0] == 0:
            raise ValueError(
                f"Block.rows: {len(self.rows)} rows of lengths {lengths}, expected one length; pad with None"
            )
        super().__post_init__()

    @classmethod
    def diagonal(cls, *parts: Map) -> Block:
        """The block-diagonal matrix of these maps.

        >>> import linmaps
        >>> linmaps.Block.diagonal(linmaps.Identity(2), linmaps.Identity(1)).shapes()
        {'0_0': {}, '1_1': {}}
        """
        return cls(tuple(tuple(p if i == j else None for j in range(len(parts))) for i, p in enumerate(parts)))

    @property
    def _grid(self) -> dict[tuple[int, int], Map]:
        return {(i, j): p for i, row in enumerate(self.rows) for j, p in enumerate(row) if p is not None}

    @property
    def _parts(self) -> dict[str, Map]:
        return {f"{i}_{j}": part for (i, j), part in self._grid.items()}

    @property
    def _heights(self) -> list[int]:
        return [self._common(self.rows, i, "in_features", "row") for i in range(len(self.rows))]

    @property
    def _widths(self) -> list[int]:
        columns = tuple(zip(*self.rows))
        return [self._common(columns, j, "out_features", "column") for j in range(len(columns))]

    @staticmethod
    def _common(lines: Sequence[Sequence[Map | None]], i: int, key: str, what: str) -> int:
        """The size that the maps of a row or column share."""
        maps = [part for part in lines[i] if part is not None]
        if not maps:
            raise ValueError(f"Block.rows: {what} {i} has no map, so its size is unknown; leave it out")
        for part in maps[1:]:
            if getattr(part, key) != getattr(maps[0], key):
                raise ValueError(
                    f"Block.rows: {what} {i} has {maps[0]._title} and {part._title}, expected the same {key}"
                )
        return int(getattr(maps[0], key))

    def _sizes(self) -> tuple[int, int]:
        return sum(self._heights), sum(self._widths)

    @property
    def _diagonal(self) -> bool:
        return len(self.rows) == len(self.rows[0]) and all(i == j for i, j in self._grid)

    @property
    def _splits(self) -> bool:
        """Whether the spectrum and the inverse are those of the parts."""
        return self._diagonal and all(part._square for part in self._grid.values())

    def _assemble(self, blocks: Sequence[Tensor]) -> Tensor:
        """The matrix of these blocks, in the order of the parts, zeros elsewhere."""
        of = dict(zip(self._grid, blocks))
        dtype = functools.reduce(torch.promote_types, (block.dtype for block in blocks))
        lines = []
        for i, height in enumerate(self._heights):
            zeros = [blocks[0].new_zeros(height, width, dtype=dtype) for width in self._widths]
            lines.append(
                torch.cat([of[i, j].to(dtype) if (i, j) in of else zero for j, zero in enumerate(zeros)], dim=1)
            )
        return torch.cat(lines)

    def _weight(self, params: Params) -> Tensor:
        return self._assemble(self._matrices(params))

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        pieces = x.split(self._heights, dim=-1)
        y: dict[int, Tensor] = {}
        for (i, j), part in self._grid.items():
            term = times(part, params[f"{i}_{j}"], pieces[i])
            y[j] = y[j] + term if j in y else term
        return torch.cat([y[j] for j in sorted(y)], dim=-1)

    def _apply_t(self, params: Params, x: Tensor) -> Tensor:
        pieces = x.split(self._widths, dim=-1)
        y: dict[int, Tensor] = {}
        for (i, j), part in self._grid.items():
            term = times_transpose(part, params[f"{i}_{j}"], pieces[j])
            y[i] = y[i] + term if i in y else term
        return torch.cat([y[i] for i in sorted(y)], dim=-1)

    def _cut(self, W: Tensor) -> dict[tuple[int, int], Tensor]:
        lines = [line.split(self._widths, dim=1) for line in W.split(self._heights)]
        return {(i, j): block for i, line in enumerate(lines) for j, block in enumerate(line)}

    def _violation(self, W: Tensor) -> Tensor:
        grid = self._grid
        return frobenius(*(grid[at]._violation(b) if at in grid else b for at, b in self._cut(W).items()))

    def _from_matrix(self, W: Tensor) -> Params:
        cut = self._cut(W)
        return {f"{i}_{j}": part._from_matrix(cut[i, j]) for (i, j), part in self._grid.items()}

    def _eig(self, params: Params, vectors: bool) -> tuple[Tensor, Tensor | None]:
        if not self._splits:
            return super()._eig(params, vectors)
        pairs = self._each(params, lambda part, p: part._eig(p, vectors))
        dtype = functools.reduce(torch.promote_types, (values.dtype for values, _ in pairs))
        values = torch.cat([values.to(dtype) for values, _ in pairs])
        right = self._assemble([V for _, V in pairs if V is not None]) if vectors else None
        if values.is_complex():
            return values, right
        ascending, order = values.sort()
        return ascending, None if right is None else right[:, order]

    def _singular_values(self, params: Params) -> Tensor:
        if not self._diagonal:
            return super()._singular_values(params)
        values = torch.cat(self._each(params, lambda part, p: part._singular_values(p)))
        missing = min(self.in_features, self.out_features) - len(values)  # where tall blocks meet wide ones
        return torch.cat([values.sort(descending=True).values, values.new_zeros(missing)])

    def _solve(self, params: Params, y: Tensor) -> Tensor:
        if not self._splits:
            return super()._solve(params, y)
        pieces = zip(self._parts.items(), y.split(self._widths, dim=-1))
        return torch.cat([times_inverse(part, params[key], piece) for (key, part), piece in pieces], dim=-1)

    def _inverse(self, params: Params) -> Tensor:
        if not self._splits:
            return super()._inverse(params)
        return self._assemble(self._each(params, lambda part, p: part._inverse(p)))

    def _logabsdet(self, params: Params) -> Tensor:
        if not self._splits:
            return super()._logabsdet(params)
        first, *rest = self._each(params, lambda part, p: part._logabsdet(p))
        return sum(rest, first)
