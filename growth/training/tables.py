"""Numbers as tables: four digits, of an ensemble mean ± standard deviation, columns aligned to the right."""

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
