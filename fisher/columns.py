"""Columns: the estimators, as cotangents `[K, B, *out]` at f's output whose mean outer product is the Fisher's core.

exact: the root of H_b.  mc: gradients at n sampled targets over sqrt(n), unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fisher.likelihoods import Likelihood

Columns = Callable[[Tensor], Tensor]
ESTIMATORS = ("exact", "mc")


def estimator(
    name: str,
    likelihood: Likelihood,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    n_samples: int = 1,
) -> Columns:
    """The function from f's output y `[B, *out]` to its columns.

    mc needs a `generator` (eager use) or the `noise` itself `[n, *y.shape]` (anywhere, under vmap too): uniform in (0, 1)
    for the categorical likelihood, standard normal for the gaussian one.  exact uses neither.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> estimator("exact", Gaussian())(torch.zeros(5, 3)).shape
    torch.Size([3, 5, 3])
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator: got {name!r}, expected one of {list(ESTIMATORS)}")
    if name == "exact":
        if noise is not None:
            raise ValueError("estimator='exact': got noise, expected none; it draws nothing (or say 'mc')")
        return likelihood.root
    if (noise is None) == (generator is None):  # neither or both
        raise ValueError("estimator='mc': give either generator=torch.Generator() or noise=<tensor [n, *y.shape]>")
    if n_samples < 1:
        raise ValueError(f"n_samples: got {n_samples}, expected at least 1")

    def draw(y: Tensor) -> Tensor:
        if generator is not None:
            return likelihood.noise((n_samples, *y.shape), generator, y)
        return torch.as_tensor(noise)

    def sampled(y: Tensor) -> Tensor:
        drawn = draw(y)
        if tuple(drawn.shape[1:]) != tuple(y.shape):
            raise ValueError(f"noise: got shape {tuple(drawn.shape)}, expected [n, {', '.join(map(str, y.shape))}]")
        return likelihood.sample(y, drawn) / math.sqrt(drawn.shape[0])

    return sampled


def chunks(columns: Tensor, size: int | None) -> Iterator[Tensor]:
    """The columns in parts of at most `size`: memory for output-gradients is proportional to it."""
    if size is not None and size < 1:
        raise ValueError(f"chunk_size: got {size}, expected at least 1 column, or None for all at once")
    yield from columns.split(size or max(1, columns.shape[0]))
