"""The form of a structured map whose ranks can change: its kind, its bonds, how many ranks each may have.

W `[(L,) in, out]`; L layers, O and I the factors of out and in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank import canonical, matrices, spectral, trains, tucker
from growth.rank.curvature import Curvature
from linmaps import Factorized, LowRank, Map, Spectral
from linmaps.checks import Params
from linmaps.factorized.kinds import KINDS
from linmaps.factorized.kinds.base import listed, named, tensor
from linmaps.numerics.numeric import frobenius, norm_or

Ranks = tuple[int, ...]
More = int | Sequence[int]


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


class Form:
    """A spec as one of the kinds whose ranks can change, and its ranks, one for each bond."""

    kind: str

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
        """The ranks after growth by k; ValueError (saying which are) where they are not feasible."""
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
        """The ranks without k of each; ValueError where one would fall below one."""
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

    def zero_side(self, bond: str) -> tuple[str, int]:
        """The leaf, and its axis, whose new entries of a bond are zero (Spectral: the new reflectors)."""
        if self.kind == "spectral":
            return bond, 0
        if self.kind == "lowrank":
            return "V", -2
        L, O, I = self.sizes
        if self.kind == "cp":
            return f"U{canonical.largest(((L,) if L > 1 else ()) + O + I)}", -1
        return ("core", int(bond[1:])) if self.kind == "tucker" else (f"A{bond[1:]}", 0)

    # --- tensors -----------------------------------------------------------------------------------------------------

    def grown(
        self, leaves: Params, target: Ranks, draw: Draw, G: Tensor | None, metric: Curvature | None
    ) -> dict[str, Tensor]:
        """The leaves with the target ranks: old entries stay, of each new product one side is zero."""
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
        return (canonical.grow if self.kind == "cp" else tucker.grow)(leaves, more, draw, T)

    def reduced(self, leaves: Params, target: Ranks) -> tuple[dict[str, Tensor], Tensor]:
        """The leaves with the target ranks near W, and the relative distance."""
        if target == self.ranks:
            return dict(leaves), 0 * frobenius(self.spec._like(leaves))
        if self.kind == "spectral":
            return spectral.reduce(self.spec, self.of(target), leaves)
        if self.kind in ("tt", "blocktt"):
            stacked = [self._flat(A) for A in listed(leaves, "A")]
            cores, errors, norms = torch.func.vmap(lambda cores: trains.reduce(cores, target))(stacked)
            return self._shaped(leaves, cores), frobenius(errors) / norm_or(norms)
        reduce = {"lowrank": matrices.reduce, "cp": canonical.reduce, "tucker": tucker.reduce}[self.kind]
        return reduce(leaves, target)

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
