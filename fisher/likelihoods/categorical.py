"""Categorical and Segmentation: softmax over the class axis, apart for each position.

B batch, C classes, P positions, K columns, n samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from fisher.check import raw
from fisher.likelihoods.arrays import (
    Rooted,
    check_axis,
    check_target,
    class_axis_of,
    part_of_columns,
    per_example,
    place,
    uniform,
)
from linmaps import trees


@trees.static
@dataclasses.dataclass(frozen=True)
class Categorical(Rooted):
    """Softmax over the class axis: H = diag(p) - p p', the same for each position, nothing between positions.

    The exact root has C - 1 columns per position, in which no difference of close numbers is taken: with q_k = sum over
    j > k of p_j,

        r_k = sqrt(p_k q_k / (p_k + q_k)) (e_k - sum over j > k of (p_j / q_k) e_j),   k = 1 .. C-1.

    class_axis: where the C logits are in the output (1, or -1 for token logits `[B, T, C]`).
    ignore_index: the target of positions that do not count.  Noise: uniform in (0, 1).

    >>> import torch
    >>> r = Categorical().root(torch.tensor([[0.0, 1.0, 2.0]]))[:, 0]
    >>> p = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    >>> torch.allclose(r.T @ r, torch.diag(p) - torch.outer(p, p), atol=1e-6)
    True
    """

    class_axis: int = 1
    ignore_index: int = -100

    def __post_init__(self) -> None:
        check_axis(self.class_axis, self._name)

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _axis(self, y: Tensor) -> int:
        return class_axis_of(y, self.class_axis, self._name)

    def n_columns(self, y: Tensor) -> int:
        """(C - 1) P."""
        last = y.movedim(self._axis(y), -1)
        return max(0, last.shape[-1] - 1) * math.prod(last.shape[1:-1])

    def root_part(self, y: Tensor, start: int, stop: int) -> Tensor:
        """`root(y)[start:stop]`, without the memory of the rest."""
        axis = self._axis(y)
        last = y.movedim(axis, -1)
        positions = math.prod(last.shape[1:-1])
        span, first, end = part_of_columns(start, stop, self.n_columns(y), positions)
        core = _columns(last.reshape(y.shape[0], positions, last.shape[-1]), first, end)
        return place(core, first, span, y, axis)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Uniform noise in (0, 1)."""
        return uniform(shape, generator, like)

    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at classes drawn by Gumbel's argmax, apart for each position."""
        axis = self._axis(y)
        z, u = y.movedim(axis, -1), noise.movedim(axis + 1, -1)
        drawn = (z - torch.log(-torch.log(u))).argmax(-1, keepdim=True)
        hot = drawn == torch.arange(z.shape[-1], device=z.device)
        return _score(z.expand(hot.shape), hot).movedim(-1, axis + 1)

    def score(self, y: Tensor, target: Any) -> Tensor:
        """e_t - p for class targets `[B, *positions]`, zero where the target is `ignore_index`.

        Raises TypeError for targets that are not whole numbers, ValueError for shapes and classes that do not fit.
        """
        axis = self._axis(y)
        z = y.movedim(axis, -1)
        t, counts = self._classes(z, target)
        hot = t[..., None] == torch.arange(z.shape[-1], device=z.device)
        return torch.where(counts[..., None], _score(z, hot), 0.0).movedim(-1, axis)

    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` over positions of log p_t."""
        z = y.movedim(self._axis(y), -1)
        t, counts = self._classes(z, target)
        logp = torch.log_softmax(z, -1).gather(-1, torch.where(counts, t, 0)[..., None])[..., 0]
        return per_example(torch.where(counts, logp, 0.0))

    def _classes(self, z: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """(classes, which of them count) `[B, *positions]` for z `[B, *positions, C]`."""
        classes = z.shape[-1]
        hint = f", one class of {classes} for each position; token logits [B, T, C] need class_axis=-1"
        t = check_target(self._name, target, tuple(z.shape[:-1]), whole=True, hint=hint).long()
        counts = t != self.ignore_index
        seen = raw(t)
        wrong = ((seen < 0) | (seen >= classes)) & (seen != self.ignore_index)
        if bool(wrong.any()):
            raise ValueError(
                f"{self._name}: target holds class {int(seen[wrong][0])}, expected 0 to {classes - 1} or "
                f"ignore_index={self.ignore_index}; give the ignored class by ignore_index, or count classes from 0"
            )
        return t, counts


@trees.static
@dataclasses.dataclass(frozen=True)
class Segmentation(Categorical):
    """`Categorical` for each pixel, of logits `[B, C, *pixels]`: sums over pixels, means over images.

    >>> import torch
    >>> Segmentation().root(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([32, 2, 3, 4, 4])
    """

    def _axis(self, y: Tensor) -> int:
        if y.ndim < 3:
            raise ValueError(
                f"segmentation: output has shape {tuple(y.shape)}, expected logits [B, C, *pixels]; "
                "use 'categorical' for one class per example"
            )
        return super()._axis(y)


def _columns(z: Tensor, first: int, end: int) -> Tensor:
    """Columns r_k, k = first .. end - 1, `[K, B, P, C]` of logits `[B, P, C]`; all in log space, where nothing cancels."""
    k = torch.arange(first, end, device=z.device)[:, None]
    j = torch.arange(z.shape[-1], device=z.device)
    # a logit of minus infinity (a masked class) would give inf - inf
    logp = torch.log_softmax(z.clamp_min(torch.finfo(z.dtype).min / 8), -1)
    tails = torch.where((j > k)[:, None, None], logp, -math.inf)
    logq = torch.logsumexp(tails, -1)
    head = logp[..., first:end].movedim(-1, 0)
    both = torch.stack([head, logq]).logsumexp(0)  # logaddexp's second derivative overflows
    size = torch.exp(0.5 * (head + logq - both))
    return size[..., None] * ((j == k)[:, None, None].to(z.dtype) - torch.softmax(tails, -1))


def _score(z: Tensor, hot: Tensor) -> Tensor:
    """e_t - p with 1 - p_t as the sum of the others: accurate where p_t is close to 1."""
    p = torch.softmax(z, -1)
    others = torch.where(hot, 0.0, p).sum(-1, keepdim=True)
    return torch.where(hot, others, -p)
