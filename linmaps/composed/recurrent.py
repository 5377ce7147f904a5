"""Recurrent networks as a scan over time, the hidden matrix computed once.  T steps, I inputs, H hidden units."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import Params, alike, floating, homogeneous
from linmaps.checks.door import dicts, door
from linmaps.checks.typed import typed
from linmaps.numerics.numeric import eye_like

PARTS = ("hidden", "input")


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


@door
def rnn(
    cell: RNNCell | Sequence[RNNCell], params: Any, xs: Tensor, h0: Any = None, *, noise: Any = None
) -> tuple[Tensor, Any]:
    """All states (hs [T, ..., H], the last one [..., H]) of a cell over xs [T, ..., I], time first.

        h_t = activation(h_{t-1} W_hidden + x_t W_input + b),    t = 0, ..., T - 1.

    W_hidden is computed once, and all inputs are mapped at once; a step is one product with it.  Memory for derivatives
    grows with T.  An ensemble is `torch.func.vmap` over stacked params.

    h0: the state before the first input, [H] or of any shape that broadcasts to [..., H]; zeros unless given.  T = 0 gives
    no states, and h0.
    noise: {"hidden": ..., "input": ...} or one of the two, passed to the maps that take it (L0): one mask for all steps.

    A stack of layers is a list of cells with a list of params, where each layer's states are the inputs of the next; the
    result is then (states of the last layer, list of the last states of all); h0 and noise are lists, or None.

    ValueError or TypeError for params of another cell, another last axis of xs, an h0 that does not broadcast, noise for a
    map that takes none, or layers that do not chain.

    >>> import torch, linmaps
    >>> cell = linmaps.RNNCell(linmaps.Spectral(4), linmaps.Linear(3, 4, bias=True))
    >>> params = cell.init(torch.Generator().manual_seed(0))
    >>> hs, last = linmaps.rnn(cell, params, torch.ones(10, 2, 3))
    >>> hs.shape, torch.equal(hs[-1], last)
    (torch.Size([10, 2, 4]), True)
    >>> hs, last = linmaps.rnn(
    ...     [cell, linmaps.RNNCell(linmaps.Linear(5), linmaps.Linear(4, 5))],
    ...     [params, {"hidden": {"W": torch.eye(5)}, "input": {"W": torch.ones(4, 5)}}],
    ...     torch.ones(10, 2, 3),
    ... )
    >>> hs.shape, [h.shape for h in last]
    (torch.Size([10, 2, 5]), [torch.Size([2, 4]), torch.Size([2, 5])])
    """
    if isinstance(cell, RNNCell):
        return _layer(cell, params, xs, h0, noise, "")
    cells = list(cell)
    if not cells:
        raise ValueError("rnn: got no cells, expected at least one")
    layers = [_of_layers(given, len(cells), name) for given, name in ((params, "params"), (h0, "h0"), (noise, "noise"))]
    last = []
    for i, (one, p, h, z) in enumerate(zip(cells, *layers)):
        if not isinstance(one, RNNCell):
            raise TypeError(f"rnn: layer {i} is {type(one).__name__}, expected a linmaps.RNNCell")
        if i and one.in_features != cells[i - 1].out_features:
            raise ValueError(
                f"rnn: layer {i} takes {one.in_features} inputs, but layer {i - 1} gives {cells[i - 1].out_features}; "
                "each layer takes the states of the one before"
            )
        xs, state = _layer(one, p, xs, h, z, f"layer {i}: ")
        last.append(state)
    return xs, last


def _of_layers(given: Any, n: int, name: str) -> Sequence[Any]:
    if given is None and name != "params":
        return [None] * n
    if not isinstance(given, (list, tuple)) or len(given) != n:
        got = f"{len(given)} of them" if isinstance(given, (list, tuple)) else type(given).__name__
        raise ValueError(f"rnn: {name} is {got}, expected a list of {n}, one for each layer")
    return given


def _layer(
    cell: RNNCell, params: Params, xs: Tensor, h0: Tensor | None, noise: Any, where: str
) -> tuple[Tensor, Tensor]:
    params = dicts(params)
    cell._check(params, where)
    n = cell.out_features
    if not isinstance(xs, Tensor):
        raise TypeError(f"{where}rnn: xs is {type(xs).__name__}, expected a tensor [T, ..., {cell.in_features}]")
    if xs.ndim < 2 or xs.shape[-1] != cell.in_features:
        raise ValueError(
            f"{where}rnn: xs has shape {tuple(xs.shape)}, expected [T, ..., {cell.in_features}]: time first, inputs last"
        )
    masks = _masks(cell, noise, where)
    u = cell.input_map.apply(params["input"], xs, **masks["input"])
    if trees.leaves(params["hidden"]):
        W = cell.hidden_map.effective_W(params["hidden"], **masks["hidden"])
    else:  # a map without leaves follows its input
        W = cell.hidden_map.apply(params["hidden"], eye_like(u, n))
    u = u.to(torch.promote_types(u.dtype, W.dtype))  # W may be complex
    if cell.hidden_map.bias:
        u = u + params["hidden"]["bias"]
    batch = u.shape[1:-1]
    h = u.new_zeros(n) if h0 is None else _start(h0, u, (*batch, n), where)
    h = h.expand(*batch, n).reshape(math.prod(batch), n)  # one batch axis, for a step that is a single addmm
    hs = []
    for u_t in u.reshape(len(u), math.prod(batch), n).unbind(0):
        h = cell.activation(torch.addmm(u_t, h, W))
        hs.append(h)
    return torch.stack(hs).reshape(u.shape) if hs else u, h.reshape(*batch, n)


def _start(h0: Tensor, u: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    if not isinstance(h0, Tensor):
        raise TypeError(f"{where}rnn: h0 is {type(h0).__name__}, expected a tensor of shape {shape}")
    padded = (1,) * (len(shape) - h0.ndim) + tuple(h0.shape)
    if (
        h0.ndim == 0
        or len(padded) != len(shape)
        or any(a not in (1, b) for a, b in zip(padded[:-1], shape))
        or (padded[-1] != shape[-1])
    ):
        raise ValueError(
            f"{where}rnn: h0 has shape {tuple(h0.shape)}, expected {shape} or what broadcasts to it: the batch axes of xs, "
            "then the hidden size"
        )
    floating(h0, f"{where}rnn: h0", "h0.to(...)")
    alike(h0, f"{where}rnn: h0", u, "params and xs")
    return h0.to(u.dtype)  # which may be complex


def _masks(cell: RNNCell, noise: Any, where: str) -> dict[str, dict[str, Tensor]]:
    """The keyword arguments of each map."""
    given = {} if noise is None else noise
    if not isinstance(given, Mapping) or not given.keys() <= set(PARTS):
        got = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{where}rnn: noise is {got}, expected a dict with keys of {list(PARTS)}, or None")
    for key, part in zip(PARTS, (cell.hidden_map, cell.input_map)):
        if given.get(key) is not None and "noise" not in inspect.signature(part.effective_W).parameters:
            raise ValueError(f"{where}rnn: noise[{key!r}] is for {part._title}, which takes none; leave it out")
    return {key: {} if given.get(key) is None else {"noise": given[key]} for key in PARTS}
