"""What each new rank promises: the first-order decrease of the loss by its zero side, in the metric of W or of a Fisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher.derivatives.forward import jvp
from growth.checks.doors import door
from growth.rank.change import grow_rank
from growth.rank.curvature import Curvature, curvature_of
from growth.rank.form import Form, More, check_gradient
from linmaps.base import Map
from linmaps.checks import Params
from linmaps.checks import size as check_size
from linmaps.numerics.dtypes import working


@door()
def rank_scores(
    spec: Map,
    params: Params,
    gradient: Tensor,
    k: More = 1,
    generator: torch.Generator | None = None,
    *,
    fisher: Any = None,
    ridge: float | Tensor = 1e-6,
    random: bool = False,
    n_steps: int = 16,
) -> dict[str, Tensor]:
    """Score `[k_b]` of each direction that `grow_rank(spec, params, k, gradient=gradient, fisher=fisher)` adds to bond b.

    With J the derivative of W in those entries of the zero side that belong to a new rank, and g = J'G their gradient,

        score = g' (J'F J)^-1 g,

    F = I without a fisher: twice what the quadratic model G'V + V'F V / 2 of the loss falls by along moves V = J e of W, at
    the best of them; the decrease of a natural gradient step (SENN).  It does not depend on the scale of factors.  For
    LowRank without a fisher it is |u'G|^2, the squared norm of the gradient of the new row of V for a unit column u, as
    GradMax counts it.  Ranks of one bond add up for LowRank in its metric; those of different bonds overlap.

    By at most n_steps conjugate gradients, preconditioned by J'F^-1 J: never more than the score, exact for LowRank, and
    for blocks of up to n_steps entries.  Each step costs two products with F and W's factors for each new rank.

    random: for directions grown without the gradient, to compare with.  Other arguments as in `grow_rank`.
    Source: Mitchell et al., "Self-expanding neural networks" (2023).

    >>> import torch, linmaps, growth
    >>> spec = linmaps.LowRank(3, 3, 1)
    >>> params = {"U": torch.tensor([[1.0], [0.0], [0.0]]), "V": torch.tensor([[1.0, 0.0, 0.0]])}
    >>> growth.rank_scores(spec, params, torch.diag(torch.tensor([9.0, 2.0, 1.0])), 2)
    {'r': tensor([4., 1.])}
    """
    check_size(n_steps, "n_steps", 1)
    form = Form(spec)
    chosen: dict[str, Any] = {} if random else {"gradient": gradient, "fisher": fisher, "ridge": ridge}
    larger, grown = grow_rank(spec, params, k, generator, **chosen)
    leaves = {name: working(t) for name, t in grown.items() if name != "bias"}
    G = check_gradient(spec, gradient, spec._like(leaves))
    metric = curvature_of(fisher, G, ridge)
    scores = {}
    for (bond, old), new in zip(form.bonds.items(), Form(larger).ranks):
        name, axis = form.zero_side(bond)
        leaf = leaves[name]
        W = lambda t, name=name: larger._weight({**leaves, name: t})
        at, index = (torch.arange(*span, device=leaf.device) for span in ((old, new), (0, leaf.shape[axis])))
        masks = (at[:, None] == index).to(leaf.dtype).reshape(new - old, leaf.shape[axis], *(1,) * (leaf.ndim - 1))
        masks = masks.movedim(1, axis if axis < 0 else axis + 1)
        one = form.kind == "lowrank" and (
            metric is None or metric.roots is not None
        )  # the preconditioner is the inverse
        steps = 1 if one else min(n_steps, 3 * (leaf.numel() // leaf.shape[axis]))
        score = lambda mask, W=W, leaf=leaf, steps=steps: _score(W, leaf, mask, G, metric, steps)
        scores[bond] = vmap(score)(masks).to(gradient.dtype) if new > old else gradient.new_zeros(0)
    return scores


def _score(
    W: Callable[[Tensor], Tensor], leaf: Tensor, mask: Tensor, G: Tensor, metric: Curvature | None, steps: int
) -> Tensor:
    """g' (J'F J)^-1 g for the entries of a leaf under a mask."""
    pull = lambda V: mask * vjp(W, leaf)[1](V)[0]
    push = lambda e: jvp(W, (leaf,), (e,))[1]
    product = lambda e: pull(push(e) if metric is None else metric.mv(push(e)))
    nearly = lambda e: e if metric is None else pull(metric.solve(push(e)))
    ratio = lambda a, b: torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
    r = pull(G)
    z = nearly(r)
    p, size, total = z, (r * z).sum(), torch.zeros((), dtype=G.dtype, device=G.device)
    rounding = size.detach() * torch.finfo(G.dtype).eps
    for _ in range(steps):
        q = product(p)
        alpha = torch.where(size.detach() > rounding, ratio(size, (p * q).sum()), 0.0)
        total, r = total + alpha * size, r - alpha * q
        z = nearly(r)
        smaller = (r * z).sum()
        p, size = z + ratio(smaller, size) * p, smaller
    return total
