"""Exact step lengths: the best combination of a few directions by the quadratic model of the loss."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.func import vmap

from fisher.pmat.contract.damping import Regul, times
from fisher.pmat.contract.maps import conformed
from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.eigen import pinv
from linmaps.trees.tree import Tree


@typed
@full_precision()
def best_step(F: PMat, gradient: Tree, directions: Any, regul: Regul = 0.0) -> Tree:
    """The step in the span of a few directions that minimises the quadratic model of the loss.

        s = sum over k of c_k d_k,   c = argmin g's + s'(F + regul I)s / 2 = -(D'(F + regul I) D)⁺ D'g

    directions: trees like params with one more leading axis `[K, *leaf]` (`trees.stack`).  With the natural gradient of a
    factored matrix and the step before as directions, and products of the whole matrix (PMatImplicit) as F, this is
    natural gradient descent with exact length and momentum: neither a rate nor a momentum is to be tuned.  K products
    with F.  Pure; composes with vmap, grad, jacrev, jacfwd.

    Martens and Grosse (2015), sections 6.4 and 7.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> p = {"w": torch.zeros(2, 1)}
    >>> F = fisher.fim(f, p, torch.eye(2), fisher.PMatImplicit, "gaussian")
    >>> g = {"w": torch.tensor([[1.0], [0.0]])}
    >>> best_step(F, g, trees.stack([g, {"w": torch.ones(2, 1)}]))["w"].T.round(decimals=3) + 0
    tensor([[-2.,  0.]])
    """
    kept, lead = conformed(F.layout, directions, "directions")
    if len(lead) != 1:
        raise ValueError(
            f"directions: got {'a vector' if not lead else f'leading axes {lead}'}, expected trees like params with one more "
            "leading axis [K, *leaf]; stack them with trees.stack([...]), a single one too"
        )
    directions, gradient = kept, F.check_vector(gradient, "gradient")
    curved = trees.add(times(F._damping(regul), directions), F.mmap(directions))
    M = vmap(lambda d: vmap(lambda e: trees.dot(d, e))(curved))(directions)
    slopes = vmap(lambda d: trees.dot(d, gradient))(directions)
    lengths = -pinv((M + M.mT) / 2) @ slopes
    return cast(Tree, trees.map(lambda d: torch.einsum("k,k...->...", lengths, d), directions))
