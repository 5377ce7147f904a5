"""Recurrent layers step by step: what `torch.lstm`, `torch.gru`, `torch.rnn_tanh` and their cells compute, by linear calls.

T steps, B batch, H hidden units.  The fused calls show no use of a weight, and have no rule for vmap and no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # h [B, H], of an lstm h and c
Cell = Callable[[Tensor, State, Sequence[Any]], State]  # (gates of x, state, w_hh, b_hh, ...) -> state


def _lstm(gates: Tensor, state: State, weights: Sequence[Any]) -> State:
    """i, f, g, o; c <- f c + i g, h <- o tanh(c), projected by w_hr where there is one."""
    (h, c), (w, b, *projection) = state, weights
    i, f, g, o = (gates + F.linear(h, w, b)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (F.linear(h, projection[0]) if projection else h), c


def _gru(gates: Tensor, state: State, weights: Sequence[Any]) -> State:
    """r, z, n; h <- (1 - z) n + z h with n = tanh(x's part + r (h's part))."""
    (h,), (w, b, *_) = state, weights
    (rx, zx, nx), (rh, zh, nh) = gates.chunk(3, -1), F.linear(h, w, b).chunk(3, -1)
    z = (zx + zh).sigmoid()
    return ((1 - z) * (nx + (rx + rh).sigmoid() * nh).tanh() + z * h,)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(gates: Tensor, state: State, weights: Sequence[Any]) -> State:
        (h,), (w, b, *_) = state, weights
        return (activation(gates + F.linear(h, w, b)),)

    return cell


def _layers(cell: Cell) -> Callable[..., Any]:
    """The call of all layers and directions: (output, last h) or (output, last h, last c)."""

    def run(
        x: Tensor,
        start: Any,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: Any = None,
    ) -> Any:
        if isinstance(start, Tensor) and start.ndim == 1:  # the sizes of the steps
            raise ValueError(
                "f(params, x): runs a recurrent layer on a PackedSequence, whose steps hold other examples each, expected a "
                "padded batch: give the layer the padded tensor, and mask the outputs (or the loss) beyond each length"
            )
        first = (start,) if isinstance(start, Tensor) else tuple(start)
        directions = 2 if bidirectional else 1
        each = len(params) // (num_layers * directions)
        x = x.transpose(0, 1) if batch_first else x
        last: list[State] = []
        for k in range(num_layers):
            found = []
            for d in range(directions):
                n = k * directions + d
                w_ih, w_hh, *rest = params[n * each : (n + 1) * each]
                b_ih, b_hh = (rest.pop(0), rest.pop(0)) if has_biases else (None, None)
                out, state = _steps(
                    cell, F.linear(x, w_ih, b_ih), tuple(s[n] for s in first), (w_hh, b_hh, *rest), d == 1
                )
                found.append(out)
                last.append(state)
            x = torch.cat(found, -1) if directions > 1 else found[0]
            if dropout and train and k < num_layers - 1:
                x = F.dropout(x, dropout, True)
        return (x.transpose(0, 1) if batch_first else x, *(torch.stack(part) for part in zip(*last)))

    return run


def _steps(cell: Cell, gates: Tensor, state: State, weights: Sequence[Any], backwards: bool) -> tuple[Tensor, State]:
    """The outputs `[T, B, H]` of one layer in one direction, and its last state."""
    outputs = []
    for step in gates.flip(0).unbind(0) if backwards else gates.unbind(0):
        state = cell(step, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _one(cell: Cell) -> Callable[..., Any]:
    """The call of a single cell: h, of an lstm (h, c)."""

    def run(x: Tensor, start: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Any:
        state = cell(F.linear(x, w_ih, b_ih), (start,) if isinstance(start, Tensor) else tuple(start), (w_hh, b_hh))
        return state if len(state) > 1 else state[0]

    return run


RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.lstm: _layers(_lstm),
    torch.gru: _layers(_gru),
    torch.rnn_tanh: _layers(_rnn(torch.tanh)),
    torch.rnn_relu: _layers(_rnn(torch.relu)),
    torch.lstm_cell: _one(_lstm),
    torch.gru_cell: _one(_gru),
    torch.rnn_tanh_cell: _one(_rnn(torch.tanh)),
    torch.rnn_relu_cell: _one(_rnn(torch.relu)),
}
