"""Levenberg-Marquardt damping: it follows the ratio of what the loss did to what the quadratic model foresaw."""

from __future__ import annotations

import torch
from torch import Tensor


def adapted(
    damping: Tensor, happened: Tensor, foreseen: Tensor, *, factor: float, lower: float, upper: float, minimum: float
) -> Tensor:
    """damping factor if ratio < lower, damping / factor if ratio > upper, with ratio = happened / foreseen; >= minimum.

    A ratio that is no number counts as a bad one; without a step (foreseen 0) the damping stays.

    >>> import torch
    >>> rules = {"factor": 2.0, "lower": 0.25, "upper": 0.75, "minimum": 1e-8}
    >>> adapted(torch.tensor(0.1), torch.tensor(-1.0), torch.tensor(-1.0), **rules)
    tensor(0.0500)
    """
    ratio = happened / foreseen
    value = torch.where(ratio > upper, damping / factor, damping)
    value = torch.where(~(ratio >= lower) & (foreseen != 0), damping * factor, value)
    return torch.where(foreseen != 0, value.clamp_min(minimum), damping).to(damping.dtype)
