"""Witnesses: where the examples are in each use, and that uses and exact rows explain autograd's gradient.

B batch, C cotangents: a generic one, and the same with the examples weighted by numbers that tell all of them apart.  A
place of the examples is believed if the gradients of *every* example there have its weights, never because it is the first
that fits; values are asked only where several places are left.  Raw values are looked at only to raise and to choose among
static layouts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks import agreement, finiteness, purity
from fisher.checks.axes import batch_axes
from fisher.collector.blocks.uses import NEVER_MET, THROUGH, Layer
from fisher.collector.calls.batching import soundly
from fisher.collector.exact_rows import leaf_rows, of_layer
from fisher.collector.layers import Layers
from fisher.collector.products import gradient
from fisher.collector.taps import outputs_of, pull
from fisher.collector.weights import Weights, derived_weights
from linmaps import trees

FEW = 64  # examples that one weight tells apart beyond rounding
L = TypeVar("L", bound=Layers)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What two runs say.  f, params, x: what was run; y its output; ramp a generic cotangent of y.

    back: the backward pass of the first run, for the gradients of params and of x; inputs: of each use, with the axes of
    `layers`; told, of_x: the gradients `*z` at the outputs of the uses, and those of x, of the ramp and of the ramp with the
    examples weighted; ruled: whether several columns at once are known to be taken back as each alone; dtypes: those that f
    computes in on its way from x, as norms that cast to float32 do.
    """

    f: Callable[..., Tensor]
    params: Any
    x: Any
    layers: Layers
    y: Tensor
    ramp: Tensor
    back: Callable[[Tensor], Any]
    inputs: dict[int, Tensor]
    told: list[dict[int, Tensor]]
    of_x: list[list[Tensor]]
    ruled: bool
    dtypes: frozenset[torch.dtype]

    @classmethod
    def of(
        cls,
        f: Callable[..., Tensor],
        params: Any,
        x: Any,
        layers: Layers,
        y: Tensor,
        back: Callable[[Tensor], Any],
        ruled: bool,
        dtypes: frozenset[torch.dtype],
    ) -> Evidence:
        """A tapped run beside the first one; ValueError where the two differ: f is random."""
        finiteness.finite(y, "f(params, x)", "f overflows at these params and data")
        with purity.no_random_call():
            again, inputs, tap_back = pull(f, params, x, layers, layers.tapped, lambda k, a: a, of_x=True)
        if not agreement.repeats(y, again):
            purity.repeatable(soundly(f), params, x)
        ramp = agreement.generic(y)
        weights = [w.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1)) for w in _weights(len(y), y.device)]
        told, of_x = zip(*(trees.map(lambda t: t[0], tap_back(c[None])) for c in (ramp, *(w * ramp for w in weights))))
        return cls(f, params, x, layers, y, ramp, back, inputs, list(told), list(of_x), ruled, dtypes)

    @property
    def run(self) -> Callable[..., Tensor]:
        """f with the calls replaced that vmap does not take."""
        return soundly(self.f)

    @property
    def batch(self) -> int:
        return len(self.y)

    @property
    def tol(self) -> float:
        """What rounding may do, relatively, in the coarsest dtype that f computes in."""
        given = {self.y.dtype, *(t.dtype for t in trees.leaves(self.params)), *(u.dtype for u in self.layers.uses)}
        return agreement.tolerance(given | self.dtypes)

    def on(self, *examples: int) -> Tensor:
        """The cotangent on these examples alone."""
        keep = torch.zeros_like(self.ramp)
        keep[list(examples)] = self.ramp[list(examples)]
        return keep


def examples_apart(seen: Evidence) -> None:
    """Raise if examples mix: by the gradients of x, each example weighted, and by the values with the two ends replaced."""
    if seen.batch < 2:
        return
    plain, *weighted = seen.of_x
    alone = all(
        _weighted(s.reshape(seen.batch, 1, -1), t.reshape(seen.batch, 1, -1), w, seen.tol)
        for of_x, w in zip(weighted, _weights(seen.batch, seen.y.device))
        for s, t in zip(plain, of_x)
    )
    moved = seen.run(seen.params, _replaced(seen.x))
    purity.apart(alone and agreement.same(moved, _replaced(seen.y), seen.tol), x=seen.x)


def _replaced(x: Any) -> Any:
    """x with its second example in place of the first, and that before the last in place of the last (the first of two)."""

    def one(t: Tensor) -> Tensor:
        return torch.cat([t[1:2], t[1:-1], t[-2:-1]]) if len(t) > 2 else torch.cat([t[:1], t[:1]])

    return trees.map(one, x)


def batch_axis(seen: Evidence) -> dict[int, int | None]:
    """Where the examples are in the output of each use; None where no place fits all witnesses, or two do."""
    batch, uses = seen.batch, seen.layers.uses
    if batch < 2:
        return {}
    left = {k: batch_axes(uses[k].shared, batch) for k in seen.layers.tapped if not uses[k].free}
    weights = _weights(batch, seen.y.device)
    for k, axes in left.items():
        plain, *weighted = (g[k] for g in seen.told)
        fits = lambda axis, k=k, plain=plain, weighted=weighted: all(
            _weighted(uses[k].outputs(plain, batch, axis), uses[k].outputs(t, batch, axis), w, seen.tol)
            for t, w in zip(weighted, weights)
        )
        left[k] = tuple(axis for axis in axes if fits(axis))
    if any(len(axes) > 1 for axes in left.values()):
        z, moved = (outputs_of(seen.f, seen.params, x, seen.layers) for x in (seen.x, _replaced(seen.x)))
        for k in (k for k, axes in left.items() if len(axes) > 1):
            place = lambda t, axis, k=k: uses[k].outputs(t, batch, axis)
            left[k] = tuple(
                a for a in left[k] if agreement.same(place(moved[k], a), _replaced(place(z[k], a)), seen.tol)
            )
    return {k: axes[0] if len(axes) == 1 else None for k, axes in left.items()}


def _weights(batch: int, device: torch.device) -> list[Tensor]:
    """A number for each example, in (0, 1], that tells all of them apart; of many examples two, the digits of their numbers."""
    number = torch.arange(batch, device=device)
    base = batch if batch <= FEW else math.isqrt(batch - 1) + 1
    digits = (number,) if batch <= FEW else (number // base, number % base)
    return [(1 + digit) / base for digit in digits] if batch > 1 else []


def _weighted(plain: Tensor, weighted: Tensor, weights: Tensor, tol: float) -> bool:
    """Whether rows `[B, S, O]` are those of the plain cotangent times the weight of their example, up to rounding."""
    if not plain.numel():
        return True
    want = plain * weights.to(plain.dtype).reshape(-1, *[1] * (plain.ndim - 1))
    scale = plain.abs().amax(tuple(range(2, plain.ndim)), keepdim=True).nan_to_num(0.0, 0.0, 0.0)
    off = (want - weighted).abs()
    near = off <= tol * scale + agreement.rounding([plain])
    return bool(agreement.raw(near).all()) or bool(agreement.raw(near | ~off.isfinite()).all())


def complete(layers: L, seen: Evidence) -> L:
    """For each leaf: autograd's gradient = sum over uses of g'a, or = the rows of single examples.

    Returns the layers, those without gradient marked, and those whose rows vmap cannot make, nor columns together.
    """
    uses, batch = seen.layers.uses, seen.batch
    taps = {k: uses[k].outputs(t, batch) for k, t in seen.told[0].items()}  # any axis, but one for both
    flat = trees.leaves(seen.back(seen.ramp)[0])
    floor = agreement.rounding(flat)
    ends = (0, batch - 1) if batch > 1 else (0,)
    apart = [trees.leaves(seen.back(seen.on(b))[0]) for b in ends] if layers.exact else []
    weights = derived_weights(seen.f, seen.params, seen.x, layers)
    found = []
    for layer in layers:
        if layer.family == THROUGH and not _made(layer, weights[layer.name], seen, taps, flat, floor):
            layer = layer.without_rule(f"its uses through {layer.kind} explain only part of its gradient")
        if layer.uses and not layer.by_leaf:
            got = gradient(layer, [seen.inputs[k] for k in layer.uses], [taps[k] for k in layer.uses])
            _explained(layers, layer, seen, layer.matrix(flat), got, floor)
        elif layer.note == NEVER_MET:
            _never_met(layer, layers, seen, flat)
            layer = layer.without_gradient()
        elif layer.by_leaf:
            layer = _verified(
                layer,
                seen,
                ends,
                torch.stack([torch.cat([own[n].flatten() for n in layer.leaves]) for own in apart]),
                floor,
            )
        found.append(layer)
    if all(agreement.vanishes(t) for t in flat):
        _depends(seen)
    return dataclasses.replace(layers, layers=tuple(found), singly=not (seen.ruled or _together(seen, flat, floor)))


def _together(seen: Evidence, flat: list[Tensor], floor: float) -> bool:
    """Whether the gradient of a column among others is the one `flat` of it alone: rules of torch.func.vmap may be wrong."""
    others = seen.ramp * (1 + agreement.generic(seen.ramp).flip(0))
    try:
        both = trees.leaves(vmap(lambda c: seen.back(c)[0])(torch.stack([others, seen.ramp])))
    except RuntimeError:  # a call has no rule, of which those who take several columns will say so
        return True
    return all(_agree(want, got[1], seen.tol, floor) for want, got in zip(flat, both))


def _made(
    layer: Layer, phi: Weights, seen: Evidence, taps: dict[int, Tensor], flat: list[Tensor], floor: float
) -> bool:
    """Whether the gradients at the derived weights, taken back through what makes them, are those of the leaves."""
    leaves = trees.leaves(seen.params)
    own = tuple(leaves[n] for n in layer.leaves)
    _, back = torch.func.vjp(phi, own)  # type: ignore[misc]
    g = [gradient(w, [seen.inputs[k] for k in w.uses], [taps[k] for k in w.uses]) for w in layer.inner]
    got = torch.cat([t.flatten() for t in back(g)[0]])
    return _agree(torch.cat([flat[n].flatten() for n in layer.leaves]), got, seen.tol, floor)


def _never_met(layer: Layer, layers: Layers, seen: Evidence, flat: list[Tensor]) -> None:
    if not agreement.vanishes(flat[layer.leaves[0]]):
        purity.repeatable(seen.run, seen.params, seen.x)
        raise ValueError(
            f"{layer.name}: has a gradient but is used by no torch call that can be seen (an autograd.Function, a scripted "
            "or compiled callable, another thread), expected uses that explain the gradient; call torch functions on the "
            f"leaf, or pass {_exact(layer, layers)} to give it an exact block"
        )


def _explained(layers: Layers, layer: Layer, seen: Evidence, want: Tensor, got: Tensor, floor: float) -> None:
    if not _agree(want, got, seen.tol, floor):
        purity.repeatable(seen.run, seen.params, seen.x)
        raise ValueError(
            f"{layer.name}: the uses seen ({', '.join(layers.uses[k].describe() for k in layer.uses)}) explain only part "
            "of its gradient, expected all of it; some use is not a torch call that can be seen (an autograd.Function, a "
            "scripted or compiled callable, another thread): call torch functions on the leaf, or pass "
            f"{_exact(layer, layers)} to give it an exact block"
        )


def _exact(layer: Layer, layers: Layers) -> str:
    """The argument that gives the leaves of a layer exact blocks."""
    paths = [trees.path_str(layers.layout.paths[n]) for n in layer.leaves]
    return f"exact=({', '.join(map(repr, paths))},)"


def _verified(layer: Layer, seen: Evidence, ends: tuple[int, ...], want: Tensor, floor: float) -> Layer:
    """The layer, its rows one by one where those of vmap are not autograd's, `want` [ends, n]."""
    pick = lambda t: t[list(ends)]
    columns = torch.stack([pick(seen.ramp), 2 * pick(seen.ramp)])
    try:
        got = of_layer(layer, leaf_rows(seen.f, seen.params, trees.map(pick, seen.x), layer.leaves, columns))
        if _agree(torch.stack([want, 2 * want]).reshape(got.shape), got, seen.tol, floor):
            return layer
    except RuntimeError:  # f has no batching rule, or branches on values
        pass
    purity.repeatable(seen.run, seen.params, seen.x)
    return dataclasses.replace(layer, one_by_one=True)


def _agree(want: Tensor, got: Tensor, tol: float, floor: float) -> bool:
    """Whether two gradients agree up to tol, relative to the largest entry, or up to what rounding leaves of zero."""
    sizes = (agreement.extent(want), agreement.extent(got))
    if not all(map(math.isfinite, sizes)):
        return True
    return agreement.gap(want, got) <= max(tol * max(sizes), floor)


def _depends(seen: Evidence) -> None:
    """No leaf has a gradient: raise if the output depends on them all the same, and none has one elsewhere either."""
    elsewhere = trees.map(lambda t: t + 0.1 * agreement.generic(t) * (1 + t.detach().abs()), seen.params)
    moved, back = purity.watched(seen.run, elsewhere, seen.x)
    if agreement.repeats(seen.y, moved) or not all(agreement.vanishes(t) for t in trees.leaves(back(seen.ramp)[0])):
        return
    raise ValueError(
        "f(params, x): depends on params, but no gradient leads to them, expected a function that autograd can see; it "
        "computes in another thread, under no_grad, by numpy or .item(), or in steps whose derivative is zero"
    )
