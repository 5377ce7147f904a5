"""Recurrent networks as a scan over time, the hidden matrix computed once.  T steps, I inputs, H hidden units."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import Params, alike, floating
from linmaps.checks.doors import dicts, door
from linmaps.composed.cell import PARTS, RNNCell
from linmaps.numerics.numeric import eye_like


@overload
def rnn(
    cell: RNNCell, params: Any, xs: Tensor, h0: Tensor | None = None, *, noise: Any = None
) -> tuple[Tensor, Tensor]: ...
@overload
def rnn(
    cell: Sequence[RNNCell], params: Any, xs: Tensor, h0: Any = None, *, noise: Any = None
) -> tuple[Tensor, list[Tensor]]: ...
@door
def rnn(
    cell: RNNCell | Sequence[RNNCell],
    params: Any,
    xs: Tensor,
    h0: Any = None,
    *,
    noise: Any = None,
    batch_first: bool = False,
) -> tuple[Tensor, Any]:
    """All states (hs [T, ..., H], the last one [..., H]) of a cell over xs [T, ..., I], time first.

        h_t = activation(h_{t-1} W_hidden + x_t W_input + b),    t = 0, ..., T - 1.

    W_hidden is computed once, and all inputs are mapped at once; a step is one product with it.  Memory for derivatives
    grows with T.  An ensemble is `torch.func.vmap` over stacked params.

    batch_first: xs and all states are [B, T, ...], as of torch's layers of that name.
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
    if batch_first:
        if not isinstance(xs, Tensor) or xs.ndim < 3:
            got = f"shape {tuple(xs.shape)}" if isinstance(xs, Tensor) else type(xs).__name__
            raise ValueError(f"rnn: xs has {got}, expected [B, T, ..., I] as batch_first=True says")
        hs, last = rnn(cell, params, xs.transpose(0, 1), h0, noise=noise)
        return hs.transpose(0, 1), last
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
