"""What asks for one matrix of a tensorized map, where there may be several layers."""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor

from linmaps.base import Map
from linmaps.checks import Params
from linmaps.checks.annotations import typed
from linmaps.factorized.kinds.joint import Joint


class Layers(Joint, Map):
    """A map of one layer or of several; what is said of one matrix is refused where there are several."""

    def _one_layer(self, what: str) -> None:
        if self.n_layers > 1:
            raise ValueError(
                f"{self._title}.{what}: there are {self.n_layers} layers, expected one; use spec.select(params, layer)"
            )

    @overload
    def eig(self, params: Params, vectors: Literal[False] = False) -> Tensor: ...
    @overload
    def eig(self, params: Params, vectors: Literal[True]) -> tuple[Tensor, Tensor]: ...
    @typed
    def eig(self, params: Params, vectors: bool = False) -> Any:
        self._one_layer("eig")
        asked: Any = vectors
        return super().eig(params, asked)

    @typed
    def singular_values(self, params: Params) -> Tensor:
        self._one_layer("singular_values")
        return super().singular_values(params)

    @typed
    def solve(self, params: Params, y: Tensor) -> Tensor:
        self._one_layer("solve")
        return super().solve(params, y)

    @typed
    def inverse(self, params: Params) -> Tensor:
        self._one_layer("inverse")
        return super().inverse(params)

    @typed
    def logabsdet(self, params: Params) -> Tensor:
        self._one_layer("logabsdet")
        return super().logabsdet(params)
