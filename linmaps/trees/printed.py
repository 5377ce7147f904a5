"""Numbers as text: four digits, of an ensemble mean ± standard deviation; records on a line, tables in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap


def plain(value: Tensor) -> Tensor:
    """The numbers of a tensor, for printing: detached, out of all transforms, float64 on the CPU."""
    return debug_unwrap(value, recurse=True).detach().to("cpu", torch.float64)


def cell(value: Any) -> str:
    """A number as text of four digits; of several, as over an ensemble, mean ± standard deviation.

    >>> import torch
    >>> cell(torch.tensor(0.25)), cell(3), cell(torch.tensor([1.0, 2.0]))
    ('0.25', '3', '1.5 ± 0.71')
    """
    if not isinstance(value, Tensor):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    t = plain(value)
    if t.numel() == 1:
        return f"{t.item():.4g}"
    return f"{t.mean().item():.4g} ± {t.std().item():.2g}" if t.numel() else "-"


def aligned(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with columns aligned to the right, but a last one without a name.

    >>> print(aligned(["units", "loss", ""], [[2, 1.5, ""], [14, 0.25, "best"]]))
    units  loss
        2   1.5
       14  0.25  best
    """
    lines = [list(head), *([c if isinstance(c, str) else cell(c) for c in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)).rstrip() for line in lines)


def sizes(t: Any, ndim: int = 2, wider: str = "") -> str:
    """The sizes of a matrix, `wider` behind them; before them of how many where it is stacked.

    >>> import torch
    >>> sizes(torch.ones(3, 4)), sizes(torch.ones(8, 3, 4), wider=" + bias")
    ('3 x 4', '8 of 3 x 4 + bias')
    """
    shape = list(getattr(t, "shape", ("?",)))
    own = " x ".join(map(str, shape[-ndim:])) + wider
    return f"{' x '.join(map(str, shape[:-ndim]))} of {own}" if len(shape) > ndim else own


def on_a_line(record: Any, parts: Sequence[Any], like: Any = None) -> str:
    """A record as `Name(part, part, ..., dtype, device)`, parts that are None left out; dtype and device of a tensor `like`.

    >>> import torch
    >>> on_a_line(3, ["2 units", None], torch.ones(1))
    'int(2 units, float32, cpu)'
    """
    said = [str(part) for part in parts if part is not None]
    if isinstance(like, Tensor):
        said += [str(like.dtype).removeprefix("torch."), str(like.device)]
    return f"{type(record).__name__}({', '.join(said)})"
