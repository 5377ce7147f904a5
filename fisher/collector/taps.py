"""The collector: layer inputs `a` and output-gradients `g` of a pure function, by zero taps and one vjp.

B batch, S shared (positions, repeated uses), I inputs, O outputs, C columns (cotangents at f's output).
Every use's output gets a zero tensor (a tap) added; the vjp with respect to the taps is the output-gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor, maybe_get_level
from torch.func import vjp, vmap

from fisher.checks.axes import batch_size
from fisher.checks.doors import output
from fisher.checks.mixed import explained
from fisher.checks.purity import no_random_call
from fisher.collector.blocks.uses import Use
from fisher.collector.exact_rows import rows_of
from fisher.collector.layers import Layers
from fisher.collector.rules.match import Derived, Match, View, spoken
from fisher.collector.watching.known import distinct
from fisher.collector.watching.tape import Tape
from fisher.collector.watching.watch import Watcher
from linmaps import trees
from linmaps.checks.precision import full_precision


class TapShape(Exception):
    """A use's output has another shape than the one foreseen: look again by a real forward."""


def pull(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: Layers,
    uses: tuple[int, ...],
    keep: Callable[[int, Tensor], Any],
    also: tuple[int, ...] = (),
    of_x: bool = False,
) -> tuple[Tensor, dict[int, Any], Callable[[Tensor], Any]]:
    """One forward: `(y, inputs, back)`.

    inputs[k] = keep(k, a) with a [B, S, I], evaluated at the call, for the uses and for those of `also`;
    back(columns [C, B, ...]) = {k: gradient [C, *z]} in the shape of the use's output z: `column_rows` brings it to
    [C, B, S, O].  of_x: beside it the gradients of x's floating tensors.
    """
    batch = batch_size(x)
    data, treedef = trees.flatten(x)
    floating = [i for i, t in enumerate(data) if of_x and t.is_floating_point()]
    whole = lambda own: (
        treedef.unflatten((dict(enumerate(data)) | dict(zip(floating, own))).values()) if floating else x
    )
    params = distinct(params)
    free = tuple(k for k in uses if layers.uses[k].free)
    uses, also = tuple(k for k in uses if k not in free), (*also, *free)

    def attempt(shapes: dict[int, tuple[int, ...]]) -> Any:
        reference = trees.leaves(params)
        taps = [reference[layers.use_leaves[k]].new_zeros(shapes[k]) for k in uses]
        kept = []  # how the inputs are laid out, once they are there

        def run(*given: Any) -> tuple[Tensor, list[Tensor]]:  # of flat lists, through which torch goes node by node
            own = whole(given[len(uses) :])
            y, inputs, _ = _tapped(f, params, own, layers, dict(zip(uses, given)), keep, batch, also)
            flat, structure = trees.flatten(inputs)
            kept.append(structure)
            return y, flat

        primals = (*taps, *(data[i] for i in floating)) or ((),)
        made: Any = vjp(run, *primals, has_aux=True)
        y, back, flat = made
        return y, back, kept[-1].unflatten(flat)

    with no_random_call(), explained(params, x=x):
        try:
            y, back, inputs = attempt({k: layers.uses[k].tap_shape(batch) for k in uses})
        except TapShape:
            y, back, inputs = attempt({k: tuple(z.shape) for k, z in outputs_of(f, params, x, layers).items()})

    output(y, params, x)

    def gradients(columns: Tensor) -> Any:
        given = _back(back, columns) if uses or floating else ()
        found, own = dict(zip(uses, given)), list(given[len(uses) :])
        found = found | _free_rows(f, params, x, layers, free, columns) if free else found
        return (found, own) if of_x else found

    return y, inputs, gradients


def pull_last(f: Callable[..., Tensor], params: Any, x: Any, layers: Layers, use: int) -> tuple[Tensor, Tensor] | None:
    """`(y, a)` of one forward, a [B, S, I] the input of a use whose output is f's own: columns at y are its gradients as they
    are.  None where something follows it."""
    with no_random_call(), explained(params, x=x):
        y, inputs, last = _tapped(f, distinct(params), x, layers, {}, lambda k, a: a, batch_size(x), (use,))
    output(y, params, x)
    return (y, inputs[use]) if last == use else None


def _back(back: Callable[[Tensor], Any], columns: Tensor) -> Any:
    """The gradients of each column; of a single one as it is, for which no call needs a batching rule."""
    return trees.map(lambda t: t[None], back(columns[0])) if len(columns) == 1 else vmap(back)(columns)


def _free_rows(
    f: Any, params: Any, x: Any, layers: Layers, free: tuple[int, ...], columns: Tensor
) -> dict[int, Tensor]:
    """Output-gradients at uses without examples, of each column at each example, `[C, B, *z]`."""
    reference = trees.leaves(params)
    taps = {k: reference[layers.use_leaves[k]].new_zeros(layers.uses[k].shape) for k in free}
    nothing = lambda k, a: ()
    tapped = lambda taps, x: _tapped(f, params, x, layers, taps, nothing, batch_size(x), ())[0]
    return rows_of(tapped, taps, x, columns)


def column_rows(layers: Layers, g: dict[int, Tensor], batch: int) -> dict[int, Tensor]:
    """Output-gradients `[C, *z]` as `[C, B, S, O]`."""

    def one(use: Use, t: Tensor) -> Tensor:
        if use.plain and batch and t.shape[-1]:
            return t.reshape(len(t), batch, -1, t.shape[-1])
        return vmap(lambda z: use.outputs(z, batch))(t)

    return {k: one(layers.uses[k], t) if t.shape[0] else t for k, t in g.items()}


def _tapped(
    f: Any, params: Any, x: Any, layers: Layers, taps: Any, keep: Any, batch: int, also: tuple[int, ...]
) -> Any:
    inputs: dict[int, Any] = {}
    reference = trees.leaves(params)
    player = _Replay(layers.uses)
    dtype = lambda k: reference[layers.use_leaves[k]].dtype  # whatever precision f computes in
    tap = next(iter(taps.values()), None)

    def taken(k: int, x: Tensor) -> Any:
        a = layers.uses[k].inputs(x if tap is None else _beneath(x, tap), batch)
        a = a.to(dtype(k)) if a.is_floating_point() else a
        return keep(k, a.clone() if layers.uses[k].mutated else a)

    def ones(k: int, z: Tensor) -> Any:
        return keep(k, torch.ones_like(layers.uses[k].outputs(z, batch)[..., :1], dtype=dtype(k)))

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k = player.index(match)
        if k is None:
            return run()
        if (k in taps or k in also) and match.inputs is not None:
            inputs[k] = _precisely(taken, k, match.inputs if match.feature is None else match.feature(match.inputs))
        z = run()
        if (k in taps or k in also) and match.inputs is None:
            inputs[k] = _precisely(ones, k, z)
        if k in taps:
            if taps[k].shape != z.shape:
                raise TapShape
            z = z.add_(taps[k].to(z.dtype)) if match.in_place else z + taps[k].to(z.dtype)
        player.outputs[id(z)] = k
        player.alive.append(z)
        return z

    with Watcher(params, on_match, x=x, holds=player.holds, free=player.free):
        y = f(params, x)
    player.finish()
    return y, inputs, player.outputs.get(id(y))


@full_precision()
def _precisely(fn: Callable[..., Any], *args: Any) -> Any:
    """fn of these, wherever f may be in a region of autocast."""
    return fn(*args)


def _beneath(x: Tensor, tap: Tensor) -> Tensor:
    """x without the level of the vjp that the taps belong to: what is kept of it has no derivative there, and no graph that
    would hold its copies in the memory until the backward."""
    here = is_gradtrackingtensor(x) and maybe_get_level(x) == maybe_get_level(tap)
    return get_unwrapped(x) if here else x


def outputs_of(f: Any, params: Any, x: Any, layers: Layers) -> dict[int, Tensor]:
    """The output z of each use, from a plain run."""
    found: dict[int, Tensor] = {}
    params = distinct(params)
    player = _Replay(layers.uses)

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k, z = player.index(match), run()
        if k is not None:
            found[k] = z
            player.outputs[id(z)] = k
            player.alive.append(z)
        return z

    with torch.enable_grad(), Watcher(params, on_match, x=x, holds=player.holds, free=player.free):
        f(params, x)
    player.finish()
    return found


def tape_of(f: Any, params: Any, x: Any, layers: Layers) -> tuple[Tape, dict[int, int]]:
    """What f computes from leaves alone, from a plain run, and the nodes of derived weights by their numbers."""
    player = _Replay(layers.uses)

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k, z = player.index(match), run()
        if k is not None:
            player.outputs[id(z)] = k
            player.alive.append(z)
        return z

    with (
        torch.enable_grad(),
        Watcher(distinct(params), on_match, x=x, holds=player.holds, free=player.free) as watcher,
    ):
        f(trees.flatten(params)[1].unflatten(watcher.tape.alive[: len(layers.layout.paths)]), x)
    player.finish()
    return watcher.tape, player.nodes


class _Replay:
    """Compare the uses met with the uses foreseen, at every call: a dictionary comparison, no tensor is read."""

    def __init__(self, uses: tuple[Use, ...]) -> None:
        self.uses, self.met = uses, 0
        self.outputs: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.holding = {u.constant for u in uses}
        self.free = any(u.free for u in uses)
        self.nodes: dict[int, int] = {}  # of derived weights, by the numbers that the uses give them

    def holds(self, number: int, match: Match, z: Tensor) -> bool:
        return number in self.holding

    def index(self, match: Match) -> int | None:
        if match.added_to is not None and match.bias is not None:
            k = self.outputs.get(id(match.added_to))
            if k is not None and self.uses[k].joined and self._like(self.uses[k].bias, match.bias) == self.uses[k].bias:
                return None
        if match.in_place and match.weight is None:  # joins no layer: an exact block's affair
            return None
        k = self.met
        if k >= len(self.uses) or not self._explained(self.uses[k], match):
            if any(v is not None and isinstance(v.path, Derived) for v in (match.weight, match.bias)):
                return None  # at another number of examples what leaves make may be met in one call more
            got = spoken((match.weight or match.bias or View(())).path)
            want = self.uses[k].describe() if k < len(self.uses) else "no further use"
            raise ValueError(
                f"{got}: use {k} is {match.kind} of {got}, expected {want}; f took another way than the one its "
                "LayerCollection was made from: make a new one with LayerCollection.from_function(f, params, x)"
            )
        self.met += 1
        return k

    def _explained(self, use: Use, match: Match) -> bool:
        return use.explains(match, self._like(use.weight, match.weight), self._like(use.bias, match.bias))

    def _like(self, want: Any, seen: View | None) -> Any:
        """What was met, a derived weight with the number that it has if it is the one that is wanted."""
        got = seen.path if seen is not None else None
        if not isinstance(want, Derived) or not isinstance(got, Derived):
            return got
        node = got.number
        known = {n: number for number, n in self.nodes.items()}
        if known.get(node, want.number) != want.number or self.nodes.get(want.number, node) != node:
            return got
        if (found := dataclasses.replace(got, number=want.number)) == want:
            self.nodes[want.number] = node
        return found

    def finish(self) -> None:
        if self.met != len(self.uses):
            missing = self.uses[self.met].describe()
            raise ValueError(
                f"{missing}: met {self.met} uses, expected {len(self.uses)}; f took another way than the one its "
                "LayerCollection was made from (a fused or compiled path hides calls): make a new one with "
                "LayerCollection.from_function(f, params, x)"
            )
