"""Likelihoods: the Fisher matrix H_b of the output distribution at f(x_b), as columns r with sum_c r_c r_c' = H_b.

B batch, C classes or coordinates, P positions, K columns, n samples.  Outputs are `[B, C, *positions]`; sum over positions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Likelihood(Protocol):
    """What `fim` asks of a likelihood; any object with these three methods will do."""

    def root(self, y: Tensor) -> Tensor:
        """Columns `[K, *y.shape]` with sum over K of r r' = H_b for each example."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Noise of this shape, drawn from the generator, for `sample`."""

    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Gradients `[n, *y.shape]` of log p(t | y) at targets t drawn by noise `[n, *y.shape]`: mean of g g' is H_b."""


@dataclasses.dataclass(frozen=True)
class Categorical:
    """Softmax over the class axis: H = diag(p) - p p', the same for each position, nothing between positions.

    The exact root has C - 1 columns, in which no difference of close numbers is taken: with q_k = sum over j > k of p_j,

        r_k = sqrt(p_k q_k / (p_k + q_k)) (e_k - sum over j > k of (p_j / q_k) e_j),   k = 1 .. C-1.

    class_axis: where the C logits are in the output (1, or -1 for token logits `[B, T, C]`).

    >>> import torch
    >>> r = Categorical().root(torch.tensor([[0.0, 1.0, 2.0]]))[:, 0]
    >>> p = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    >>> torch.allclose(r.T @ r, torch.diag(p) - torch.outer(p, p), atol=1e-6)
    True
    """

    class_axis: int = 1

    def root(self, y: Tensor) -> Tensor:
        z, restore = self._classes_last(y)
        classes = z.shape[-1]
        after = torch.ones(classes, classes, dtype=torch.bool, device=z.device).triu(1)[:-1]  # [C-1, C]: j > k
        logp = torch.log_softmax(z, -1)
        tails = logp[..., None, :].masked_fill(~after, -math.inf)
        logq = torch.logsumexp(tails, -1)  # [..., C-1]
        head = logp[..., :-1]
        size = torch.exp(0.5 * (head + logq - torch.logaddexp(head, logq)))
        eye = torch.eye(classes, dtype=z.dtype, device=z.device)[:-1]
        columns = size[..., None] * (eye - torch.softmax(tails, -1))  # [B, P, C-1, C]
        if columns.shape[1] == 1:
            return restore(columns.permute(2, 0, 1, 3))
        apart = torch.eye(columns.shape[1], dtype=z.dtype, device=z.device)  # one column for each position
        return restore(torch.einsum("bpkc,pq->kpbqc", columns, apart).flatten(0, 1))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        u = torch.rand(shape, generator=generator, dtype=like.dtype, device=generator.device)
        return u.clamp_min(torch.finfo(like.dtype).tiny).to(like.device)

    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        z, restore = self._classes_last(y)
        u = torch.stack([self._classes_last(u)[0] for u in noise.unbind(0)])
        drawn = (z - torch.log(-torch.log(u))).argmax(-1, keepdim=True)  # Gumbel: argmax has the law softmax(z)
        classes = torch.arange(z.shape[-1], device=z.device)
        return restore((drawn == classes).to(z.dtype) - torch.softmax(z, -1))

    def _classes_last(self, y: Tensor):  # type: ignore[no-untyped-def]
        """y as `[B, P, C]`, and the way back from `[K, B, P, C]` to `[K, *y.shape]`."""
        if y.ndim < 2:
            raise ValueError(
                f"categorical: output has shape {tuple(y.shape)}, expected [B, C] or [B, C, *positions] logits"
            )
        last = y.transpose(self.class_axis, -1)
        back = lambda t: t.reshape(t.shape[0], *last.shape).transpose(self.class_axis + (self.class_axis >= 0), -1)
        return last.reshape(y.shape[0], math.prod(last.shape[1:-1]), last.shape[-1]), back


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Regression with noise of a fixed variance: H = I / variance, summed over all coordinates of the output.

    >>> import torch
    >>> Gaussian(variance=4.0).root(torch.zeros(1, 2))[:, 0]
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise ValueError(f"gaussian: variance is {self.variance}, expected a positive number")

    def root(self, y: Tensor) -> Tensor:
        size = math.prod(y.shape[1:])
        eye = torch.eye(size, dtype=y.dtype, device=y.device) / math.sqrt(self.variance)
        return eye.reshape(size, 1, *y.shape[1:]).expand(size, *y.shape)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)

    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        return (noise / math.sqrt(self.variance)).expand(noise.shape[0], *y.shape)


LIKELIHOODS: dict[str, Likelihood] = {"categorical": Categorical(), "gaussian": Gaussian()}


def likelihood(name: str | Likelihood) -> Likelihood:
    """A likelihood by its name, or the object itself.

    >>> likelihood("gaussian")
    Gaussian(variance=1.0)
    """
    if isinstance(name, str) and name in LIKELIHOODS:
        return LIKELIHOODS[name]
    if not isinstance(name, str) and isinstance(name, Likelihood):
        return name
    raise ValueError(
        f"likelihood: got {name!r}, expected one of {sorted(LIKELIHOODS)} or an object with the methods root, noise, sample"
    )
