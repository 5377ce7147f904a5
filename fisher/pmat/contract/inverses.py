"""Inverses of single layers, made once for many vectors.

V `[K, *view]`: the layer's part of K vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fisher.pmat.contract.damping import Scalar


@dataclasses.dataclass(frozen=True)
class Inverse:
    """(block + regul I)^-1 of one layer; spectral: the same as a diagonal D in a basis, None where the block has no such."""

    block: Any
    regul: Scalar
    spectral: Any

    @property
    def by_factors(self) -> bool:
        """Whether a product g a' has the coordinates (of_outputs(g)) (of_inputs(a))' in the basis."""
        return hasattr(self.spectral, "of_inputs")

    def solve(self, V: Tensor) -> Tensor:
        """(block + regul I)^-1 V."""
        return self.block.solve(V, self.regul, "default")


def of_blocks(blocks: Mapping[str, Any], regul: Mapping[str, Scalar]) -> dict[str, Inverse]:
    """That of each block with its own of regul."""

    def spectral(block: Any, regul: Scalar) -> Any:
        return block.inverted(regul) if getattr(block, "invertible", False) else None

    return {name: Inverse(block, regul[name], spectral(block, regul[name])) for name, block in blocks.items()}
