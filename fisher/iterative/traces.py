"""Stochastic estimators of the trace and the diagonal of a symmetric operator, from products with it alone.

d unknowns; m probes, the rows of `[m, d]`, independent with identity covariance; `product` maps rows `[k, d]` to A times
each.  Probes are constants: derivatives are estimates of the derivative, unbiased like the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
Estimator = Literal["hutchinson", "hutch++", "xtrace"]
METHODS = get_args(Estimator)


def signs(
    generator: torch.Generator, m: int, d: int, *, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """m probes `[m, d]` of independent signs.

    >>> import torch
    >>> signs(torch.Generator().manual_seed(0), 1, 4, dtype=torch.float32).abs()
    tensor([[1., 1., 1., 1.]])
    """
    if m < 1:
        raise ValueError(f"n_probes: got {m}, expected at least 1")
    bits = torch.randint(2, (m, d), generator=generator, device=generator.device)
    return (2 * bits - 1).to(device=device or generator.device, dtype=dtype)


def trace(product: Product, probes: Tensor, method: Estimator = "hutch++") -> Tensor:
    """Unbiased estimate of the trace of A, a scalar, from m products.

    "hutchinson": mean of z'A z; relative error of the order m^(-1/2) (Hutchinson, 1989).
    "hutch++": the trace on the span of A S plus Hutchinson's estimate outside, S a third of the probes; error of the order
    1/m for positive semi-definite A (Meyer, Musco, Musco and Woodruff, 2021); m >= 3.
    "xtrace": each probe is the outside one for the span of all others; the most accurate where eigenvalues fall quickly
    (Epperly, Tropp and Webber, 2024); m >= 4.
    Raises ValueError for another method and for too few probes.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    >>> probes = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    >>> [round(trace(lambda Z: Z @ A, probes, m).item(), 3) for m in ("hutch++", "xtrace")]
    [4.0, 4.0]
    """
    estimators = {"hutchinson": hutchinson, "hutch++": hutchpp, "xtrace": xtrace}
    if method not in estimators:
        raise ValueError(f"trace: got method={method!r}, expected 'exact' or one of {list(estimators)}")
    least = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}[method]
    if probes.shape[0] < least:
        raise ValueError(f"probes: got {probes.shape[0]}, expected at least {least} for method={method!r}")
    return estimators[method](product, probes.detach())


def hutchinson(product: Product, probes: Tensor) -> Tensor:
    """Mean over the probes of z'A z.

    >>> import torch
    >>> hutchinson(lambda Z: 2 * Z, torch.ones(1, 3))
    tensor(6.)
    """
    return (probes * product(probes)).sum(1).mean()


def hutchpp(product: Product, probes: Tensor) -> Tensor:
    """tr(Q'A Q) + mean of g'(I - Q Q') A (I - Q Q') g with Q a basis of the span of A S.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    >>> hutchpp(lambda Z: Z @ A, torch.ones(3, 4))
    tensor(3.)
    """
    third = probes.shape[0] // 3
    Q = torch.linalg.qr(product(probes[:third]).detach().mT).Q.mT
    outside = probes[third : probes.shape[0] - third]
    outside = outside - (outside @ Q.mT) @ Q
    applied = product(torch.cat([Q, outside]))
    values = (applied * torch.cat([Q, outside])).sum(1)
    return values[: Q.shape[0]].sum() + values[Q.shape[0] :].mean()


def xtrace(product: Product, probes: Tensor) -> Tensor:
    """Mean over i of tr(P_i A P_i) + z_i'(I - P_i) A (I - P_i) z_i, P_i the projection on the span of A z_j, j != i.

    Half of the probes are used: A z and A Q take one product each.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    >>> xtrace(lambda Z: Z @ A, torch.ones(4, 4))
    tensor(3.)
    """
    Z = probes[: min(probes.shape[0] // 2, probes.shape[1])]
    Y = product(Z)
    Q, R = torch.linalg.qr(Y.detach().mT)
    diagonal = R.diagonal()
    least = (torch.finfo(R.dtype).eps * diagonal.abs().amax()).clamp_min(torch.finfo(R.dtype).tiny)
    R = R + torch.diag(torch.where(diagonal.abs() < least, least, 0.0))
    eye = torch.eye(R.shape[0], dtype=R.dtype, device=R.device)
    S = torch.linalg.solve_triangular(R.mT, eye, upper=False)  # column i is orthogonal to all columns of R but the i-th
    S = S / torch.linalg.vector_norm(S, dim=0)
    inner = Q.mT @ Z.mT
    inner = inner - S * (S * inner).sum(0)  # column i is P_i z_i in the basis Q
    AQ = product(Q.mT)
    outside, applied = Z - (Q @ inner).mT, Y - inner.mT @ AQ
    H = AQ @ Q
    return (H.trace() - (S * (H @ S)).sum(0) + (applied * outside).sum(1)).mean()


def diagonal(product: Product, probes: Tensor) -> Tensor:
    """Estimate of the diagonal `[d]` of A: mean of z * A z for probes of signs (Bekas, Kokiopoulou and Saad, 2007).

    >>> import torch
    >>> diagonal(lambda Z: 2 * Z, torch.ones(1, 3))
    tensor([2., 2., 2.])
    """
    probes = probes.detach()
    return (probes * product(probes)).mean(0)
