"""Functions of torch that a file may name: those that act on numbers alone, as activations do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_TORCH = "abs celu cos erf exp log log1p log_softmax positive relu rrelu selu sigmoid sin softmax sqrt square tanh"
_FUNCTIONAL = (
    "celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish relu relu6 selu sigmoid "
    "silu softmax softmin softplus softshrink softsign tanh tanhshrink"
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch.{name}": getattr(torch, name) for name in _TORCH.split()},
    **{f"torch.nn.functional.{name}": getattr(torch.nn.functional, name) for name in _FUNCTIONAL.split()},
    **{f"torch.Tensor.{name}": getattr(torch.Tensor, name) for name in ["relu", "sigmoid", "tanh"]},
}


def name_of(function: Any) -> str | None:
    """The name of one of these functions, None of any other.

    >>> name_of(torch.tanh), name_of(torch.load)
    ('torch.tanh', None)
    """
    return next((name for name, known in FUNCTIONS.items() if known is function), None)
