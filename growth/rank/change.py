"""More or fewer ranks of a structured map, W `[(L,) in, out]`, by its form."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.closed_form.draws import drawing
from growth.rank.curvature import curvature_of
from growth.rank.form import Form, More, check_gradient
from linmaps.base import Map
from linmaps.checks import Params, number
from linmaps.numerics.dtypes import working

Spec = TypeVar("Spec", bound=Map)


@door()
def grow_rank(
    spec: Spec,
    params: Params,
    k: More,
    generator: torch.Generator | None = None,
    *,
    gradient: Tensor | None = None,
    fisher: Any = None,
    ridge: float | Tensor = 1e-6,
) -> tuple[Spec, dict[str, Tensor]]:
    """The spec and params of a map with k more ranks and the same W: old entries keep place and value, new ones come last.

    Of each new product one side is zero, so that W stays, and the other is not, so that the zero side has a gradient at
    once, and the other after one step:

    | map | bonds | new entries | zero ones | largest rank |
    |---|---|---|---|---|
    | LowRank, lowrank | r | columns of U | rows of V | min(in, L out) |
    | cp | r | columns of all U_k | those of the largest mode | prod(s) / max(s) |
    | tucker | one for each mode | columns of each U_k | slices of the core | s_k, and the product of the others |
    | tt, blocktt | between cores | columns of the core before | rows of the core after | full on either side |
    | Spectral | U, V | reflectors that leave the frames | none | what reaches every matrix |

    The rank of a Spectral map is full: k is the number of new reflectors on either side.  Where a frame is square and the
    map is not, they come in pairs, so that k must be even.

    k: an int, added to each rank, and cut to the largest feasible one where there are several; or one for each bond, in
    the order of `linmaps.factorized.bonds`, exactly.  k = 0 changes nothing.

    New columns are orthogonal to those there are (by gradient those of trains in the metric of W, of LowRank with a pair in
    the metric of A; those of cp are not, as R may exceed s_k) and scaled to their root mean square norm.  Without a gradient
    they are random, or a fixed generic choice without a generator, as needed inside
    `vmap`, where a generator asks for `randomness="different"`.  gradient: dL/dW, of the shape of `effective_W`; then they
    are the leading directions of -G that no change of the present factors expresses, so that the zero side has the largest
    gradient beyond theirs (as in GradMax): for LowRank the left singular vectors of (I - P) G (I - Q), the best rank k; for
    tucker, tt and blocktt of the unfoldings of such residuals; for cp leading rank-one terms of G, by power iteration.
    Beyond the rank of the residual they are generic.  fisher: a PMat over W alone, or Kronecker factors (A `[in, in]`, with
    or without the bias's coordinate, B `[out, out]`), damped by ridge times their mean diagonal; directions are then those
    of the natural gradient F^-1 G (for LowRank and a pair: singular vectors in that metric, the best rank k in it).

    Raises ValueError for ranks that are not feasible (saying which are), a fisher without a gradient, other shapes;
    TypeError for maps of other kinds.  Source: Evci et al., "GradMax" (2022).

    >>> import torch, linmaps, growth
    >>> spec = linmaps.LowRank(6, 4, 1)
    >>> params = spec.init(torch.Generator().manual_seed(0))
    >>> larger, grown = growth.grow_rank(spec, params, 2, gradient=torch.eye(6, 4))
    >>> larger.rank, torch.allclose(larger.effective_W(grown), spec.effective_W(params))
    (3, True)
    """
    number(ridge, "ridge", low=0, cure="it is relative to the mean diagonal")
    form = Form(spec)
    spec._check(params)
    target = form.larger(k)
    if gradient is None and fisher is not None:
        raise ValueError("fisher: got one without a gradient, expected both; it turns gradient into new directions")
    leaves = {name: working(t) for name, t in params.items() if name != "bias"}
    like = spec._like(leaves)
    metric = None
    if gradient is not None:
        gradient = check_gradient(spec, gradient, like)
        metric = curvature_of(fisher, gradient, ridge)
    new = form.grown(leaves, target, drawing(generator, like), gradient, metric)
    return form.of(target), {name: t if name == "bias" else new[name].to(t.dtype) for name, t in params.items()}


@door()
def reduce_rank(spec: Spec, params: Params, k: More) -> tuple[Spec, dict[str, Tensor], Tensor]:
    """The spec and params of a map with k ranks fewer near W, and the relative distance |W' - W| / |W|: undoes `grow_rank`.

    Without forming W (but for the distance of cp and Spectral): LowRank by a truncated singular value decomposition, the
    nearest one; tucker by the higher-order one of the core in orthonormal bases, with sweeps; tt and blocktt by rounding
    of trains, within sqrt(N - 1) of the nearest; cp keeps the largest terms and fits them by sweeps of alternating least
    squares.  Spectral drops its last reflectors: exact where these came of `grow_rank`, crude otherwise.

    k: as in `grow_rank`; an int leaves one of each rank where there are several, and ranks that the others can no longer
    use are cut; to undo a growth that was cut give the differences of the ranks.  The distance is a scalar tensor; 0 up to
    rounding for ranks that W does not need.

    Raises ValueError for a rank that would fall below one; TypeError for maps of other kinds.

    >>> import torch, linmaps, growth
    >>> spec = linmaps.LowRank(3, 3, 2)
    >>> params = {"U": torch.eye(3, 2), "V": torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]])}
    >>> small, reduced, error = growth.reduce_rank(spec, params, 1)
    >>> small.rank, round(error.item(), 4)
    (1, 0.6)
    """
    form = Form(spec)
    spec._check(params)
    target = form.smaller(k)
    leaves = {name: working(t) for name, t in params.items() if name != "bias"}
    new, error = form.reduced(leaves, target)
    dtype = spec._like(params).dtype.to_real()
    return form.of(target), {n: t if n == "bias" else new[n].to(t.dtype) for n, t in params.items()}, error.to(dtype)
