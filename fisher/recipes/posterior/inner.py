"""What a posterior in function space is made of: the kernel of the prior, and the likelihood's root within it.

N training examples, C outputs of one, K columns of the likelihood's root R, P the precision of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks.axes import batch_size
from fisher.checks.finiteness import finite
from fisher.collector.collection import LayerCollection
from fisher.function_space.kernels import gram
from fisher.pmat import PMatEye
from fisher.recipes.posterior import parts, priors
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees import Layout


def within(roots: Tensor, K: Tensor) -> Tensor:
    """R'K R `[N K, N K]` of a kernel `[N, C, N, C]`."""
    inner = torch.einsum("knc,ncmd,lmd->nkml", roots, K, roots)
    finite(inner, "functional_laplace", "f, its Jacobian or the kernel overflows at these params and data")
    size = inner.shape[0] * inner.shape[1]
    inner = inner.reshape(size, size)
    return (inner + inner.mT) / 2


def factor_of(inner: Tensor) -> Tensor:
    """The Cholesky factor of I + R'K R."""
    return torch.linalg.cholesky(inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device))


def space_of(params: Any, layers: LayerCollection | None) -> PMatEye:
    """The identity on the leaves of these layers, for what is asked of a matrix's space."""
    own, like = params if layers is None else layers.restrict(params), trees.leaves(params)[0]
    return PMatEye(torch.ones((), dtype=like.dtype, device=like.device), Layout.of(own)).on_layers(layers)


def kernel_of(
    f: Callable[..., Tensor], params: Any, F: PMatEye, P: Any, layers: LayerCollection | None
) -> Callable[[Any, Any], Tensor]:
    """`kernel(x, x2)` = J(x) P^-1 J(x2)' `[B, C, B2, C]`; of several amounts that of f(P^-1/2 q) at q = P^1/2 params."""
    if isinstance(P, Tensor):
        return lambda x, x2: working(gram(f, params, (x,), _given(x2), layers=layers, check=False).kernel) / P
    own, shapes = parts.part(F, params), F.layout.shapes
    amounts = zip(priors.leafwise(F, P), shapes, trees.leaves(own))
    roots = F.layout.unflatten([r.rsqrt().expand(s).to(t.dtype) for r, s, t in amounts])
    part_of = parts.on_part(F, f, params)
    g = lambda q, x: part_of(trees.map(lambda t, r: t * r, q, roots), x)
    at = trees.map(lambda t, r: t / r, own, roots)
    return lambda x, x2: working(gram(g, at, (x,), _given(x2)).kernel)


def _given(x: Any) -> Any:
    return None if x is None else (x,)


SOME = 16  # examples at once


def own_blocks(kernel: Callable[[Any, Any], Tensor], x: Any) -> Tensor:
    """The blocks `[B, C, C]` of examples with themselves, a few examples at once."""
    n, found = batch_size(x), []
    for start in range(0, n, SOME):
        part = trees.map(lambda t: t[start : start + SOME], x)  # noqa: B023
        k = kernel(part, None)
        found.append(k.diagonal(dim1=0, dim2=2).movedim(-1, 0))
    return torch.cat(found)
