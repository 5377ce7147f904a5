"""Second moments of rows [..., F]: symmetric, so that little more than one half is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def second_moment(rows: Tensor, over: int = 1) -> Tensor:
    """R'R / over of rows `[..., F]`, by its upper panels: up to nearly half less than the whole product."""
    R = rows.flatten(0, -2)
    parts = R.tensor_split(max(1, min(8, R.shape[1] // 100)), 1)
    parts = parts if over == 1 else tuple(part / over for part in parts)
    if len(parts) == 1:
        return parts[0].mT @ R
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.shape[1])
    panels = [part.mT @ R[:, start:] for part, start in zip(parts, ends)]
    below = lambda i, j: panels[j][:, ends[i] - ends[j] : ends[i + 1] - ends[j]].mT
    return torch.cat([torch.cat([*(below(i, j) for j in range(i)), panel], 1) for i, panel in enumerate(panels)])
