"""The effective dimension: how many directions of parameter space the data determine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.pmat.contract.damping import Amounts, Regul
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions.spectra import clipped
from fisher.pmat.layered.mixed import PMatMixed
from fisher.pmat.matrix_free.matrixfree import MatrixFree
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.eigen import cutoff


@typed
@full_precision()
def effective_dimension(
    F: PMat,
    regul: Regul,
    *,
    generator: torch.Generator | None = None,
    n_samples: int = 16,
    noise: Any = None,
) -> Tensor:
    """tr F (F + regul I)^-1 = sum over eigenvalues of e / (e + regul), a scalar between 0 and d.

    From the eigenvalues where the representation has them; with a generator (or `noise`, a tree like params with a leading
    axis of samples, entries of mean 0 and variance 1) by Hutchinson's estimator, the mean of z'F (F + regul I)^-1 z over
    n_samples vectors z of random signs: unbiased, for PMatImplicit and PMatPullback too.

    ValueError for one of those without a generator.  MacKay (1992); Hutchinson (1989).

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 0.0], [0.0, 3.0]]), fisher.PMatDiag, "gaussian")
    >>> effective_dimension(F, 0.5)
    tensor(1.4000)
    """
    regul = F._damping(regul)
    if generator is None and noise is None and isinstance(regul, Amounts):
        return _by_inverse(F, regul)
    if generator is None and noise is None:
        return _from_eigenvalues(F, regul)
    if generator is not None and noise is not None:
        raise ValueError("effective_dimension: got both a generator and noise, expected one of them")
    if generator is not None:
        checks.size(n_samples, "n_samples", 1)
        checks.room(
            n_samples * F.layout.numel, "n_samples", "random signs", "fewer samples, of several generators in turn"
        )
        noise = _signs(F, generator, n_samples)
    return vmap(lambda z: trees.dot(F.mv(z), F._solved(z, regul, "default")))(noise).mean()


def _by_inverse(F: PMat, regul: Amounts) -> Tensor:
    """d - tr regul (F + regul)^-1."""
    inverse = F._inverse(regul)
    return F.layout.numel - trees.dot(regul.tree(F._like()), inverse.get_diag())


def _from_eigenvalues(F: PMat, regul: Regul) -> Tensor:
    if not _has_whole_spectrum(F):
        raise ValueError(
            f"effective_dimension: {type(F).__name__} knows its largest eigenvalues only; use effective_dimension(F, regul, "
            "generator=torch.Generator()), or PMatDense(F.to_torch(), F.layout)"
        )
    values = trees.leaves(F.get_eigenvalues())
    clean = [clipped(e, cutoff(e.numel(), e.dtype)) for e in values]
    # an eigenvalue of zero adds nothing, without damping too
    parts = [(e / torch.where(e + regul == 0, 1.0, e + regul)).sum() for e in clean]
    return sum(parts[1:], parts[0])


def _has_whole_spectrum(F: PMat) -> bool:
    parts = F.parts if isinstance(F, PMatMixed) else ()
    return not isinstance(F, MatrixFree) and all(map(_has_whole_spectrum, parts))


def _signs(F: PMat, generator: torch.Generator, n_samples: int) -> Any:
    like = F.dtype
    draw = lambda s: torch.randint(0, 2, (n_samples, *s), generator=generator, device=generator.device)
    return F.layout.unflatten([(2 * draw(s) - 1).to(F.device, like) for s in F.layout.shapes])
