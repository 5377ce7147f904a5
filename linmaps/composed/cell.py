"""A recurrent cell of two maps: one step of a state.  I inputs, H hidden units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import Params, homogeneous
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door

PARTS = ("hidden", "input")


@trees.static
@dataclass(frozen=True)
class RNNCell:
    """A recurrent cell, `h' = activation(h W_hidden + x W_input + b)`, of two maps [H, H] and [I, H].

    Params are {"hidden": params of hidden_map, "input": params of input_map}.  The bias is input_map's; a bias of hidden_map
    is allowed, and redundant beside it.  init draws the maps one after the other, each by its own law.

    activation: an elementwise function, by reference, so that the cell stays hashable; torch.tanh unless given.

    ValueError for a hidden_map that is not square, or an input_map of another width; TypeError for parts that are no maps.

    >>> import torch, linmaps
    >>> cell = linmaps.RNNCell(linmaps.Orthogonal(4), linmaps.Linear(3, 4, bias=True))
    >>> params = cell.init(torch.Generator().manual_seed(0))
    >>> cell.step(params, torch.ones(5, 3), torch.zeros(5, 4)).shape
    torch.Size([5, 4])
    """

    hidden_map: Map
    input_map: Map
    activation: Callable[[Tensor], Tensor] = torch.tanh

    def __post_init__(self) -> None:
        for key, part in zip(PARTS, (vars(self)["hidden_map"], vars(self)["input_map"])):
            if not isinstance(part, Map):
                raise TypeError(
                    f"RNNCell.{key}_map: got {type(part).__name__}, expected a map such as linmaps.Linear(4)"
                )
        if not callable(vars(self)["activation"]):
            raise TypeError(f"RNNCell.activation: got {self.activation!r}, expected a function such as torch.tanh")
        if not self.hidden_map._square:
            raise ValueError(f"RNNCell.hidden_map: got {self.hidden_map._title}, expected a square map")
        if self.input_map.out_features != self.out_features:
            raise ValueError(
                f"RNNCell.input_map: got {self.input_map._title}, expected {self.out_features} outputs, the size of "
                f"hidden_map={self.hidden_map._title}"
            )

    def __repr__(self) -> str:
        activation = getattr(self.activation, "__name__", repr(self.activation))
        return f"RNNCell(hidden_map={self.hidden_map!r}, input_map={self.input_map!r}, activation={activation})"

    @property
    def in_features(self) -> int:
        """I."""
        return self.input_map.in_features

    @property
    def out_features(self) -> int:
        """H."""
        return self.hidden_map.out_features

    @property
    def n_params(self) -> int:
        """Number of trainable entries."""
        return self.hidden_map.n_params + self.input_map.n_params

    def shapes(self) -> dict[str, Any]:
        """Name and shape of each leaf of params.

        >>> import linmaps
        >>> linmaps.RNNCell(linmaps.Linear(4), linmaps.Linear(3, 4)).shapes()
        {'hidden': {'W': (4, 4)}, 'input': {'W': (3, 4)}}
        """
        return {"hidden": self.hidden_map.shapes(), "input": self.input_map.shapes()}

    @typed
    def init(
        self,
        generator: torch.Generator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Any]:
        """Random params of both maps, drawn as `Map.init` does."""
        maps = zip(PARTS, (self.hidden_map, self.input_map))
        return {key: part.init(generator, dtype=dtype, device=device) for key, part in maps}

    @door
    def reg_error(self, params: Params) -> Tensor:
        """The sum of the penalties of both maps, a scalar >= 0."""
        self._check(params)
        hidden, given = self.hidden_map.reg_error(params["hidden"]), self.input_map.reg_error(params["input"])
        if not trees.leaves(params["hidden"]):  # a map without leaves has no dtype and device of its own
            return given
        return hidden + given if trees.leaves(params["input"]) else hidden

    @door
    def step(self, params: Params, x: Tensor, h: Tensor) -> Tensor:
        """The next state [..., H] after x [..., I] and the state h [..., H].

        ValueError or TypeError for params of another cell, or another last axis of x or h.
        """
        self._check(params)
        u = self.input_map.apply(params["input"], x)
        return self.activation(self.hidden_map.apply(params["hidden"], h) + u)

    def _check(self, params: Params, where: str = "") -> None:
        if not isinstance(params, Mapping):
            raise TypeError(
                f"{where}RNNCell: params is {type(params).__name__}, expected a dict with keys {list(PARTS)}; "
                "make one with cell.init(generator)"
            )
        if params.keys() != set(PARTS):
            raise ValueError(
                f"{where}RNNCell: params of another cell: got keys {sorted(map(str, params))}, expected {list(PARTS)}; "
                "use the cell whose init made them"
            )
        for key, part in zip(PARTS, (self.hidden_map, self.input_map)):
            try:
                part._check(params[key])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}RNNCell, {key}: {error}") from None
        homogeneous(params, trees.leaves(params), f"{where}RNNCell")
