"""Links: the probabilities of targets whose logits are normal, by probit, by the Laplace bridge or by Monte Carlo.

B examples, K entries of one output, C classes, P positions, n samples.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks import doors
from fisher.likelihoods import Categorical, Likelihood
from fisher.likelihoods import probabilities as predictive
from fisher.likelihoods.arrays import class_axis_of, normal
from fisher.pmat.decompositions.spectra import matrix_power
from linmaps import checks
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import cutoff

Link = Literal["probit", "bridge", "mc"]


def linked(
    likelihood: Likelihood,
    mean: Tensor,
    covariance: Tensor,
    link: Link = "probit",
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    n_samples: int = 100,
) -> Tensor:
    """Probabilities `[B, *out]` for outputs of this mean `[B, *out]` and covariance `[B, K, K]`.

    probit: by the likelihood's own formula of each variance alone.  bridge: `dirichlet`.  mc: the mean of the probabilities at
    n samples of the outputs with their covariance, by the generator or by standard normal noise `[n, B, K]`.
    ValueError for another link, and for a likelihood that has none of this name.

    >>> import torch, fisher
    >>> linked(fisher.Bernoulli(), torch.zeros(1, 1), torch.ones(1, 1, 1))
    tensor([[0.5000]])
    """
    if not isinstance(link, str) or link not in get_args(Link):
        raise ValueError(f"link: got {link!r}, expected one of {list(get_args(Link))}")
    if link != "mc" and (generator is not None or noise is not None):
        raise ValueError(f"link: got {link!r} with a generator or noise, expected neither; they are of link='mc'")
    variance = covariance.diagonal(dim1=1, dim2=2).reshape(mean.shape)
    if link == "probit":
        return predictive(likelihood, mean, variance)
    if link == "bridge":
        return dirichlet(likelihood, mean, covariance)
    predictive(likelihood, mean, variance)  # says it of one that has none
    return _sampled(likelihood, mean, covariance, _noise(mean, covariance, generator, noise, n_samples))


def dirichlet(likelihood: Any, mean: Tensor, covariance: Tensor) -> Tensor:
    """The mean of the Dirichlet distribution whose Laplace approximation in the logits is this one, at each position.

    Of the logits, moved to sum to zero: m <- m - S 1 (1'm) / (1'S 1), S <- S - S 1 1'S / (1'S 1), then

        alpha_k = (1 - 2 / C + exp(m_k) / C^2 sum over l of exp(-m_l)) / S_kk,      p = alpha / sum alpha.

    Hobbhahn, Kristiadi and Hennig (2022).  ValueError for a likelihood that has no classes.

    >>> import torch, fisher
    >>> dirichlet(fisher.Categorical(), torch.zeros(1, 2), torch.eye(2)[None])
    tensor([[0.5000, 0.5000]])
    """
    if not isinstance(likelihood, Categorical):
        raise ValueError(
            f"link: got 'bridge' for {type(likelihood).__name__}, expected a likelihood with a softmax over classes, as "
            "Categorical; use link='probit' or link='mc'"
        )
    axis = class_axis_of(mean, likelihood.class_axis, type(likelihood).__name__.lower())
    predictive(likelihood, mean, torch.zeros_like(mean))  # says it of a single class
    out = mean.shape[1:]
    place = torch.arange(math.prod(out), device=mean.device).reshape(out).movedim(axis - 1, -1)
    place = place.reshape(-1, out[axis - 1])
    S = working(covariance)[:, place[:, :, None], place[:, None, :]]  # [B, P, C, C]
    m = working(mean).flatten(1)[:, place]
    C, column = m.shape[-1], S.sum(-1)
    total = column.sum(-1, keepdim=True)
    total = torch.where(
        total > 0, total, 1.0
    )  # of a covariance that lies in the differences already, the column is zero
    m = m - column * m.sum(-1, keepdim=True) / total
    variance = (S.diagonal(dim1=-2, dim2=-1) - column**2 / total).clamp_min(torch.finfo(S.dtype).tiny)
    logs = torch.stack([torch.full_like(m, math.log(1 - 2 / C) if C > 2 else -math.inf), _products(m, C)]).logsumexp(0)
    p = torch.softmax(logs - variance.log(), -1)
    whole = torch.zeros_like(working(mean).flatten(1))
    whole = whole.index_copy(1, place.flatten(), p.flatten(1)).reshape(mean.shape)
    return whole.to(mean.dtype)


def _products(m: Tensor, C: int) -> Tensor:
    """log of exp(m_k) / C^2 sum over l of exp(-m_l)."""
    return m - 2 * math.log(C) + (-m).logsumexp(-1, keepdim=True)


def _noise(mean: Tensor, covariance: Tensor, generator: Any, noise: Any, n_samples: int) -> Tensor:
    if (generator is None) == (noise is None):
        raise ValueError(
            f"link: got 'mc' with {'neither' if noise is None else 'both'}, expected a generator or noise [n, B, K]"
        )
    batch, K = covariance.shape[:2]
    if noise is None:
        checks.size(n_samples, "n_samples", 1)
        checks.room(n_samples * batch * K, "n_samples", "logits", "fewer samples: the error falls as n^-1/2")
        return normal((n_samples, batch, K), generator, mean)
    doors.options(noise=noise)
    if noise.ndim != 3 or tuple(noise.shape[1:]) != (batch, K) or not len(noise):
        raise ValueError(
            f"noise: got shape {tuple(noise.shape)}, expected [n, {batch}, {K}]: n >= 1 samples of each example's outputs"
        )
    return noise


def _sampled(likelihood: Likelihood, mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    S = working(covariance)
    root = vmap(lambda m: matrix_power(m, 0.5, 0.0, cutoff(len(m), m.dtype)))(S) if S.numel() else S
    z = mean.flatten(1) + torch.einsum("bck,nbk->nbc", root, noise.to(root.dtype)).to(mean.dtype)
    z = z.reshape(len(noise) * len(mean), *mean.shape[1:])
    p = predictive(likelihood, z, torch.zeros_like(z))
    return p.reshape(len(noise), *mean.shape).mean(0)
