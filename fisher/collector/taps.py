"""The collector: layer inputs `a` and output-gradients `g` of a pure function, by zero taps and one vjp.

B batch, S shared (positions, repeated uses), I inputs, O outputs, C columns (cotangents at f's output).
Every use's output gets a zero tensor (a tap) added; the vjp with respect to the taps is the output-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_gradtrackingtensor, maybe_get_level
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import vmap

from fisher.checks.axes import batch_size
from fisher.checks.doors import output
from fisher.checks.mixed import explained
from fisher.checks.purity import no_random_call
from fisher.checks.reverse_mode import reverse
from fisher.collector.backwards import alone, backward, by_columns
from fisher.collector.blocks.uses import Use
from fisher.collector.calls.plain import PLAIN, Unknown
from fisher.collector.exact_rows import rows_of
from fisher.collector.layers import Layers
from fisher.collector.replay import Replay
from fisher.collector.rules.match import Match
from fisher.collector.watching.following import Follower, Recorder
from fisher.collector.watching.known import distinct
from fisher.collector.watching.tape import Tape
from fisher.collector.watching.watch import Watcher
from linmaps import trees
from linmaps.checks.precision import full_precision


class TapShape(Exception):
    """A use's output has another shape than the one foreseen: look again by a real forward."""


class Run(NamedTuple):
    """A run of f with taps: its output, what is kept of each use's input, the use whose output is f's own, if one is, and
    whether f took the way that it was known to take."""

    y: Tensor
    inputs: dict[int, Any]
    last: int | None
    followed: bool


def pull(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: Layers,
    uses: tuple[int, ...],
    keep: Callable[[int, Tensor], Any],
    also: tuple[int, ...] = (),
    of_x: bool = False,
    patched: bool = False,
) -> tuple[Tensor, dict[int, Any], Callable[[Tensor], Any]]:
    """One forward: `(y, inputs, back)`.

    inputs[k] = keep(k, a) with a [B, S, I], evaluated at the call, for the uses and for those of `also`;
    back(columns [C, B, ...]) = {k: gradient [C, *z]} in the shape of the use's output z: `column_rows` brings it to
    [C, B, S, O].  of_x: beside it the gradients of x's floating tensors.  patched: of uses that are `patched`, keep has x in
    place of a: the reducer makes a of some examples at a time.
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
        taps = [reference[layers.use_leaves[k]].new_zeros(()).expand(shapes[k]) for k in uses]  # which take no memory
        if taps and not floating and not free and layers.plain and alone((*reference, *data)):
            try:
                return _plainly(taps)
            except Unknown:
                layers.plain.clear()
            except Exception:  # which vjp meets too, and says in its own words
                pass
        kept = []  # how the inputs are laid out, once they are there

        def run(*given: Any) -> tuple[Tensor, list[Tensor]]:  # of flat lists, through which torch goes node by node
            own = whole(given[len(uses) :])
            run = _tapped(f, params, own, layers, dict(zip(uses, given)), keep, batch, also, None, patched)
            flat, structure = trees.flatten(run.inputs)
            kept.append(structure)
            return run.y, flat

        primals = (*taps, *(data[i] for i in floating)) or ((),)
        made: Any = reverse(run, *primals, has_aux=True)
        y, back, flat = made
        return y, by_columns(back), kept[-1].unflatten(flat)

    def _plainly(taps: list[Tensor]) -> Any:
        with disable_saved_tensors_hooks("torch.func has none"), torch.enable_grad():
            own = [t.detach().requires_grad_() for t in taps]  # vjp gets them as they were, if this fails
            run = _tapped(f, params, x, layers, dict(zip(uses, own)), keep, batch, also, PLAIN, patched)
        return run.y.detach(), backward(run.y, own, run.followed), run.inputs

    with no_random_call(), explained(params, x=x):
        try:
            y, back, inputs = attempt({k: layers.uses[k].tap_shape(batch) for k in uses})
        except TapShape:
            y, back, inputs = attempt({k: tuple(z.shape) for k, z in outputs_of(f, params, x, layers).items()})

    output(y, params, x)

    def together(columns: Tensor) -> Any:
        given = back(columns) if uses or floating else ()
        found, own = dict(zip(uses, given)), list(given[len(uses) :])
        found = found | _free_rows(f, params, x, layers, free, columns) if free else found
        return (found, own) if of_x else found

    def gradients(columns: Tensor) -> Any:  # holds no circle, in which the graph would wait for the garbage collector
        if layers.singly and len(columns) > 1:
            return trees.map(lambda *ts: torch.cat(ts), *map(together, columns.split(1)))
        return together(columns)

    return y, inputs, gradients


def pull_last(f: Callable[..., Tensor], params: Any, x: Any, layers: Layers, use: int) -> tuple[Tensor, Tensor] | None:
    """`(y, a)` of one forward, a [B, S, I] the input of a use whose output is f's own: columns at y are its gradients as they
    are.  None where something follows it."""
    with no_random_call(), explained(params, x=x):
        run = _tapped(f, distinct(params), x, layers, {}, lambda k, a: a, batch_size(x), (use,))
    output(run.y, params, x)
    return (run.y, run.inputs[use]) if run.last == use else None


def _free_rows(
    f: Any, params: Any, x: Any, layers: Layers, free: tuple[int, ...], columns: Tensor
) -> dict[int, Tensor]:
    """Output-gradients at uses without examples, of each column at each example, `[C, B, *z]`."""
    reference = trees.leaves(params)
    taps = {k: reference[layers.use_leaves[k]].new_zeros(layers.uses[k].shape) for k in free}
    nothing = lambda k, a: ()
    tapped = lambda taps, x: _tapped(f, params, x, layers, taps, nothing, batch_size(x), ()).y
    return rows_of(tapped, taps, x, columns)


def column_rows(layers: Layers, g: dict[int, Tensor], batch: int) -> dict[int, Tensor]:
    """Output-gradients `[C, *z]` as `[C, B, S, O]`."""

    def one(use: Use, t: Tensor) -> Tensor:
        if use.plain and batch and t.shape[-1]:
            return t.reshape(len(t), batch, -1, t.shape[-1])
        return vmap(lambda z: use.outputs(z, batch))(t)

    return {k: one(layers.uses[k], t) if t.shape[0] else t for k, t in g.items()}


def _tapped(
    f: Any,
    params: Any,
    x: Any,
    layers: Layers,
    taps: Any,
    keep: Any,
    batch: int,
    also: tuple[int, ...],
    only: Any = None,
    patched: bool = False,
) -> Run:
    inputs: dict[int, Any] = {}
    reference = trees.leaves(params)
    player = Replay(layers.uses)
    dtype = lambda k: reference[layers.use_leaves[k]].dtype  # whatever precision f computes in
    tap = next(iter(taps.values()), None)
    level = -2 if tap is None else maybe_get_level(tap)
    by_autograd = tap is not None and level < 0 and tap.requires_grad  # there is no vjp whose level would be taken off

    def taken(k: int, x: Tensor) -> Any:
        use, wanted = layers.uses[k], dtype(k)
        x = x.detach() if only or by_autograd else _beneath(x, level)
        a = x if patched and use.patched else use.inputs(x, batch)
        a = a.to(wanted) if a.dtype != wanted and a.is_floating_point() else a
        return keep(k, a.clone() if use.mutated else a)

    def ones(k: int, z: Tensor) -> Any:
        return keep(k, torch.ones_like(layers.uses[k].outputs(z, batch)[..., :1], dtype=dtype(k)))

    def on_use(k: int, x: Tensor | None, run: Callable[[], Tensor], in_place: bool = False) -> Tensor:
        wanted = k in taps or k in also
        if wanted and x is not None:
            inputs[k] = _precisely(taken, k, x)
        z = run()
        if wanted and x is None:
            inputs[k] = _precisely(ones, k, z)
        if k in taps:
            if taps[k].shape != z.shape:
                raise TapShape
            tap = taps[k] if taps[k].dtype == z.dtype else taps[k].to(z.dtype)
            z = z.add_(tap) if in_place else z + tap
        return z

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k = player.index(match)
        if k is None:
            return run()
        x = match.inputs
        if x is not None and match.feature is not None and (k in taps or k in also):
            x = match.feature(x)
        z = on_use(k, x, run, match.in_place)
        player.outputs[id(z)] = k
        player.alive.append(z)
        return z

    if any(layers.way):
        follower = Follower(layers.way[0], params, x, on_use, free=only is None)
        try:
            with follower:
                y = f(params, x)
            follower.finish(y)
            return Run(y, inputs, follower.use_of(y), True)
        except Unknown:
            layers.way[:] = [()]
            inputs.clear()
    recorder = None if layers.way else Recorder(params, player.outputs)
    with Watcher(params, on_match, x=x, holds=player.holds, free=player.free, only=only, recorder=recorder) as watcher:
        y = f(params, x)
    if watcher.refused:
        raise Unknown
    player.finish()
    if recorder is not None:
        layers.way[:] = [watcher.way()]
    return Run(y, inputs, player.outputs.get(id(y)), False)


@full_precision()
def _precisely(fn: Callable[..., Any], *args: Any) -> Any:
    """fn of these, wherever f may be in a region of autocast."""
    return fn(*args)


def _beneath(x: Tensor, level: int) -> Tensor:
    """x without the level of the vjp that the taps belong to: what is kept of it has no derivative there, and no graph that
    would hold its copies in the memory until the backward."""
    return get_unwrapped(x) if is_gradtrackingtensor(x) and maybe_get_level(x) == level else x


def outputs_of(f: Any, params: Any, x: Any, layers: Layers) -> dict[int, Tensor]:
    """The output z of each use, from a plain run."""
    found: dict[int, Tensor] = {}
    params = distinct(params)
    player = Replay(layers.uses)

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
    player = Replay(layers.uses)

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
