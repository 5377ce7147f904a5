"""More or fewer ranks of a structured map, W `[(L,) in, out]`: which kind it is, how many ranks it may have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.closed_form.draws import Draw, drawing
from growth.rank import canonical, matrices, spectral, trains, tucker
from growth.rank.curvature import Curvature, curvature_of
from linmaps import Factorized, LowRank, Map, Spectral
from linmaps.checks import Params, number
from linmaps.factorized.kinds import KINDS
from linmaps.factorized.kinds.base import listed, named, tensor
from linmaps.numerics.dtypes import working
from linmaps.numerics.numeric import frobenius, norm_or

Ranks = tuple[int, ...]
More = int | Sequence[int]


@door()
def grow_rank(
    spec: Any,
    params: Params,
    k: More,
    generator: torch.Generator | None = None,
    *,
    gradient: Tensor | None = None,
    fisher: Any = None,
    ridge: float | Tensor = 1e-6,
) -> tuple[Any, dict[str, Tensor]]:
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
    form = _Form(spec)
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
def reduce_rank(spec: Any, params: Params, k: More) -> tuple[Any, dict[str, Tensor], Tensor]:
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
    form = _Form(spec)
    spec._check(params)
    target = form.smaller(k)
    leaves = {name: working(t) for name, t in params.items() if name != "bias"}
    new, error = form.reduced(leaves, target)
    dtype = spec._like(params).dtype.to_real()
    return form.of(target), {n: t if n == "bias" else new[n].to(t.dtype) for n, t in params.items()}, error.to(dtype)


def check_gradient(spec: Any, gradient: Any, like: Tensor) -> Tensor:
    """The gradient in the dtype to compute with."""
    shape = (*getattr(spec, "_lead", ()), spec.in_features, spec.out_features)
    if not isinstance(gradient, Tensor):
        raise TypeError(f"gradient: got {type(gradient).__name__}, expected a tensor {shape}, dL/dW as effective_W")
    if tuple(gradient.shape) != shape:
        cure = "transpose a torch weight's" if tuple(gradient.mT.shape) == shape else "give dL/d effective_W(params)"
        raise ValueError(f"gradient: got shape {tuple(gradient.shape)}, expected {shape}, as of effective_W; {cure}")
    if like.is_complex() or gradient.is_complex():
        raise ValueError("gradient: got complex numbers, expected real ones; grow complex maps without a gradient")
    return gradient.to(like.dtype)


class _Form:
    """A spec as one of the kinds whose ranks can change, and its ranks, one for each bond."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        if isinstance(spec, Factorized) and spec.factorization != "dense":
            self.kind, self.sizes = spec.factorization, (spec.n_layers, spec.out_shape, spec.in_shape)
            self.bonds: dict[str, int] = KINDS[self.kind].bonds(spec.ranks)
        elif isinstance(spec, LowRank):
            self.kind, self.sizes = "lowrank", (1, (spec.out_features,), (spec.in_features,))
            self.bonds = {"r": spec.rank}
        elif isinstance(spec, Spectral):
            self.kind, self.sizes = "spectral", (1, (spec.out_features,), (spec.in_features,))
            self.bonds = {side: count for side, (count, _) in spectral.sizes(spec).items()}
        else:
            name = spec._title if isinstance(spec, Map) else type(spec).__name__
            raise TypeError(
                f"spec: got {name}, which has no ranks to change; expected LowRank, Spectral, or Factorized as lowrank, cp, "
                "tucker, tt or blocktt"
            )

    @property
    def ranks(self) -> Ranks:
        return tuple(self.bonds.values())

    # --- numbers -----------------------------------------------------------------------------------------------------

    def cut(self, ranks: Ranks) -> Ranks:
        """The largest feasible ranks that are at most these."""
        L, O, I = self.sizes
        if self.kind == "spectral":
            return spectral.cut(self.spec, ranks)
        if self.kind in ("cp", "lowrank"):
            modes = ((L,) if L > 1 else ()) + O + I
            most = math.prod(modes) // max(modes) if self.kind == "cp" else min(math.prod(I), L * math.prod(O))
            return (min(ranks[0], most),)
        train = self.kind in ("tt", "blocktt")
        found = KINDS[self.kind].ranks((1, *ranks, 1) if train else ranks, L, O, I)
        return tuple(found[1:-1] if train else found)

    def _asked(self, k: More, what: str) -> tuple[Ranks, bool]:
        """k for each bond, and whether it is to be so exactly."""
        given = (k,) * len(self.bonds) if isinstance(k, int) else k
        fine = isinstance(given, (tuple, list)) and all(isinstance(n, int) and not isinstance(n, bool) for n in given)
        if not fine or isinstance(k, bool):
            raise TypeError(f"k: got {k!r}, expected an int or a tuple of ints, one for each of {self.bonds}")
        if len(given) != len(self.bonds) or min(given, default=0) < 0:
            raise ValueError(f"k: got {k!r}, expected ints >= 0, one for each of {self.bonds}; to {what}")
        return tuple(given), not isinstance(k, int) or len(self.bonds) == 1

    def larger(self, k: More) -> Ranks:
        more, exact = self._asked(k, "lower ranks use growth.reduce_rank")
        wanted = tuple(r + n for r, n in zip(self.ranks, more))
        target = tuple(max(r, n) for r, n in zip(self.ranks, self.cut(wanted)))
        stuck = any(more) and target == self.ranks
        if stuck or (exact and target != wanted) or (isinstance(k, int) and k and not self.bonds):
            room = {b: t - r for (b, r), t in zip(self.bonds.items(), target)}
            raise ValueError(
                f"k: got {k!r} for ranks {self.bonds} of {self.spec._title}, expected at most {room}, up to {target}"
                + ("; reflectors come in pairs where the frame is square" if self.kind == "spectral" else "")
            )
        return target

    def smaller(self, k: More) -> Ranks:
        fewer, exact = self._asked(k, "raise ranks use growth.grow_rank")
        wanted = tuple(r - n for r, n in zip(self.ranks, fewer))
        target = tuple(max(1, n) for n in wanted)
        if (any(fewer) and target == self.ranks) or (exact and target != wanted):
            raise ValueError(
                f"k: got {k!r} for ranks {self.bonds} of {self.spec._title}, expected to leave one of each"
            )
        if self.kind in ("tucker", "tt", "blocktt"):
            target = self.cut(target)
        return target

    def of(self, ranks: Ranks) -> Any:
        """The spec with these ranks; those not feasible by themselves are taken as they are."""
        if ranks == self.ranks:
            return self.spec
        if self.kind == "spectral":
            return dataclasses.replace(self.spec, n_U_reflectors=ranks[0], n_V_reflectors=ranks[1])
        if isinstance(self.spec, LowRank):
            return dataclasses.replace(self.spec, rank=ranks[0])
        full = {"lowrank": ranks[0], "cp": ranks[0], "tucker": ranks}.get(self.kind, (1, *ranks, 1))
        return self.spec._of_layers(self.spec.n_layers, full)

    # --- tensors -----------------------------------------------------------------------------------------------------

    def grown(
        self, leaves: Params, target: Ranks, draw: Draw, G: Tensor | None, metric: Curvature | None
    ) -> dict[str, Tensor]:
        more = tuple(n - r for n, r in zip(target, self.ranks))
        if not any(more):
            return dict(leaves)
        roots = metric.roots if metric is not None and self.kind == "lowrank" else None
        if G is not None and metric is not None and roots is None:
            G = metric.solve(G)
        if self.kind == "lowrank":
            return matrices.grow(leaves, more, draw, G, roots)
        if self.kind == "spectral":
            return spectral.grow(self.spec, leaves, more, draw, G)
        if self.kind in ("tt", "blocktt"):
            return self._trains(leaves, more, draw, G)
        T = None if G is None else tensor(G, *self.sizes)
        return (canonical if self.kind == "cp" else tucker).grow(leaves, more, draw, T)  # type: ignore[attr-defined]

    def reduced(self, leaves: Params, target: Ranks) -> tuple[dict[str, Tensor], Tensor]:
        if target == self.ranks:
            return dict(leaves), 0 * frobenius(self.spec._like(leaves))
        if self.kind == "spectral":
            return spectral.reduce(self.spec, self.of(target), leaves)
        if self.kind in ("tt", "blocktt"):
            stacked = [self._flat(A) for A in listed(leaves, "A")]
            cores, errors, norms = torch.func.vmap(lambda cores: trains.reduce(cores, target))(stacked)
            return self._shaped(leaves, cores), frobenius(errors) / norm_or(norms)
        kind = {"lowrank": matrices, "cp": canonical, "tucker": tucker}[self.kind]
        return kind.reduce(leaves, target)  # type: ignore[attr-defined]

    def _flat(self, A: Tensor) -> Tensor:
        """Cores `[L, r, s, r']` of a train, one for each of its layers."""
        layers = self.kind == "blocktt" and self.sizes[0] > 1
        A = A.movedim(1, 0) if layers else A[None]
        return A.reshape(A.shape[0], A.shape[1], math.prod(A.shape[2:-1]), A.shape[-1])

    def _shaped(self, leaves: Params, cores: Sequence[Tensor]) -> dict[str, Tensor]:
        found = []
        for old, A in zip(listed(leaves, "A"), cores):
            layers = self.kind == "blocktt" and self.sizes[0] > 1
            inner = tuple(old.shape[2:-1]) if layers else tuple(old.shape[1:-1])
            A = A.reshape(A.shape[0], A.shape[1], *inner, A.shape[-1])
            found.append(A.movedim(0, 1) if layers else A[0])
        return named("A", found)

    def _trains(self, leaves: Params, more: Ranks, draw: Draw, G: Tensor | None) -> dict[str, Tensor]:
        """Block trains of several layers share nothing but the generic columns."""
        L, O, I = self.sizes
        stacked = [self._flat(A) for A in listed(leaves, "A")]
        generic = trains.noise([tuple(A.shape[1:]) for A in stacked], more, draw)
        if G is None:
            cores = torch.func.vmap(lambda cores: trains.grow(cores, generic, None))(stacked)
            return self._shaped(leaves, cores)
        if self.kind == "tt":
            T = tensor(G, L, O, I)[None]
        else:
            d = len(O)
            T = G.mT.reshape(L, *O, *I).permute(0, *(1 + k + half * d for k in range(d) for half in (0, 1)))
            T = T.reshape(L, *(o * i for o, i in zip(O, I)))
        cores = torch.func.vmap(lambda cores, T: trains.grow(cores, generic, T))(stacked, T)
        return self._shaped(leaves, cores)
