"""Prune hidden units, by index, mask or score; take units out and put them back.

p hidden units of a pair, n of them dropped; W `[q, p]` the outgoing weights, S as in `statistics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fisher.checks.finiteness import finite
from growth.checks.doors import door
from growth.checks.records import owned
from growth.moments.first_order import Statistics
from growth.moments.solvers import check_solver
from growth.reading.along import joined
from growth.reading.layers import Layer, layers_of
from growth.reading.leaves import places, spread
from growth.reading.pairs import Pair, bare
from growth.reading.transformers.heads import Heads, head_axes
from growth.surgery.enlarge import lowered
from growth.surgery.resize import check_once, entries, gathered, indices
from growth.surgery.same import Function, as_seen, asked, same_function
from growth.surgery.silenced import zeroed
from linmaps import trees
from linmaps.checks import number, size
from linmaps.checks.annotations import typed
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import pinv
from linmaps.numerics.numeric import positive_root
from linmaps.trees import record
from linmaps.trees.printed import on_a_line, sizes
from linmaps.trees.tree import Tree

Units = Sequence[int] | Tensor


@door("f")
def prune(
    params: Tree,
    pair: Pair | Heads,
    units: Units,
    *,
    stats: Statistics | None = None,
    ridge: float | Tensor = 0.0,
    rtol: float | None = None,
    sigma0: float | Tensor | None = None,
    f: Function = None,
    x: Any = None,
) -> Tree:
    """`params` without the hidden units `units` of a pair; the others keep their order, and their entries bit by bit.

    Of `Heads` the units are whole heads: their rows of q, k and v and their columns of out go (`growth.head_scores`).

    units: indices (negative ones count from the end), or a bool tensor `[p]`, True for the units to drop.  Indices in a
    tensor may be values under vmap (their number is static): `growth.weakest_units`.
    Dropping the last k units undoes a growth by k units without delta; where σ(0) != 0, as of a sigmoid, `grow` has taken
    their constant out of the bias of `after`, and sigma0 gives it back.  Slopes of the activation with one number for each unit
    go along where stats or f know them, or `pair.along` names them; params alone do not tell.

    stats: `statistics` of this pair at these params; then the outgoing weights of the other units d -> k, and the bias,
    take over what they can of the dropped ones, by least squares:

        W_k -> W_k + W_d S_dk (S_kk + ridge I)⁺,        which minimises E |change of the output of `after`|²,

    exactly 0 where the dropped activations are linear combinations of the kept ones and the constant.
    ridge, rtol: as in `optimal_delta`.
    sigma0: σ(0), `Neurons.sigma0`; then b -> b + Σ_d W_d σ(0), which `grow` has taken out for these units.  None: b stays.
    f, x: the function and some inputs.  f(pruned, x) must then be, to rounding, what f is when the outgoing weights of these
    units (and of no other) are zero, with the bias of sigma0; ValueError where it is not, or f takes no other sizes, which says
    where a reshape of the hidden axis stands in the way.

    Raises ValueError (path, got, expected) for layers that do not match, units out of range or twice (outside of transforms),
    statistics of other sizes, sigma0 beside these or without a bias, where f is another function; TypeError for other tensors.
    Source of the update: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon" (1993),
    for the squared error of a layer.

    >>> import torch
    >>> p = {"a.weight": torch.tensor([[1.0], [2.0], [3.0]]), "b.weight": torch.tensor([[4.0, 5.0, 6.0]])}
    >>> prune(p, Pair("a", "b"), [1])
    {'a.weight': tensor([[1.],
            [3.]]), 'b.weight': tensor([[4., 6.]])}
    """
    held = asked(f, x, None)
    if held is not None and not isinstance(pair, Heads):
        pair = as_seen(held, params, pair)
    p, device = count_of(params, pair)
    dropped, kept = partition(units, p, device)
    if stats is not None:
        if isinstance(pair, Heads):
            raise ValueError(f"stats: got statistics for {pair}, expected None: they are of the units of a Pair")
        pair = joined(pair, stats)
        after = layers_of(params, pair)[1]
        params = _compensated(params, pair, stats, spread(dropped, after.taps), spread(kept, after.taps), ridge, rtol)
    params = params if sigma0 is None else _given_back(params, pair, dropped, sigma0, stats)
    pruned = gathered(params, pair, kept)
    if held is not None:
        same_function(held, zeroed(params, pair, dropped, p), pruned, pair, "what it is when these units lead nowhere")
    return cast(Tree, pruned)


@typed
def weakest_units(scores: Tensor, *, keep: int) -> Tensor:
    """The units that are not among the `keep` of largest score, indices `[p - keep]` ascending: what `prune` is to drop.

    scores `[p]`: `unit_scores`, gains, or those of the Fisher by `fisher.recipes.unit_scores(pruning_scores(F, params),
    layers)["hidden"]`.  Of equal scores the earlier unit is kept.  keep is static, so it maps over an ensemble.

    Raises ValueError unless 0 <= keep <= p and scores are a vector.

    >>> import torch
    >>> weakest_units(torch.tensor([3.0, 1.0, 2.0]), keep=1)
    tensor([1, 2])
    """
    if scores.ndim != 1:
        raise ValueError(
            f"scores: got shape {tuple(scores.shape)}, expected [p], one per unit; map over an ensemble with torch.func.vmap"
        )
    size(keep, "keep", 0, scores.shape[0], cure="it counts units")
    finite(scores, "scores", "units without a number have no order")
    return scores.detach().argsort(descending=True, stable=True)[keep:].sort().values


@door()
def unit_scores(params: Any, pair: Pair, *, stats: Statistics | None = None) -> Tensor:
    """How much each hidden unit of a pair matters to the output of `after`, `[p]`.

        |[U_j, c_j]| |W_j|,        or with statistics of the pair   (tr W_j S_jj W_j')^1/2 = (E |W_j σ(z_j)|²)^1/2

    the second being the root mean square of what is lost when unit j is dropped.  Of a `Gated` pair the first has a factor
    more, the norm of the unit's row in the gate.

    Raises ValueError for layers that do not match and for statistics of other sizes.

    >>> import torch
    >>> p = {"a.weight": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b.weight": torch.tensor([[1.0, 2.0]])}
    >>> unit_scores(p, Pair("a", "b"))
    tensor([5., 2.])
    """
    before, after = layers_of(params, pair)
    p = before.weight.shape[0]
    fan_out = after.weight.reshape(after.weight.shape[0], p, after.taps)
    if stats is None:
        squares = before.weight.square().flatten(1).sum(1)
        squares = squares if before.bias is None else squares + before.bias.square().reshape(p, before.rows).sum(1)
        if before.gate is not None:
            gate = before.gate.weight.square().sum(1)
            squares = squares * (gate if before.gate.bias is None else gate + before.gate.bias.square())
        return positive_root(squares) * positive_root(fan_out.square().sum((0, 2)))
    S, inputs = _second_moment(stats, after, pair)
    own = S[:inputs, :inputs].reshape(p, after.taps, p, after.taps).diagonal(dim1=0, dim2=2)  # [taps, taps, p]
    wide = fan_out.to(S.dtype)
    return positive_root(torch.einsum("qps,stp,qpt->p", wide, own, wide)).to(fan_out.dtype)


# --- out and back --------------------------------------------------------------------------------------------------


@record(static=("pair",))
class Removed:
    """Hidden units that were taken out by `cut`: their indices `[n]`, and their entries of each leaf, along its axis.

    >>> import torch
    >>> Removed(torch.tensor([0]), (torch.ones(1, 2), torch.ones(3, 1))).units
    tensor([0])
    """

    units: Tensor
    entries: tuple[Tensor, ...]
    pair: Pair | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return on_a_line(self, [self.pair, f"{sizes(self.units, 1)} units", f"entries of {len(self.entries)} leaves"])


@door()
def cut(params: Tree, pair: Pair, units: Units) -> tuple[Tree, Removed]:
    """(`prune(params, pair, units)`, what was removed), from which `restore` makes params again, bit by bit.

    Raises as `prune`.

    >>> import torch
    >>> p = {"a.weight": torch.tensor([[1.0], [2.0]]), "b.weight": torch.tensor([[4.0, 5.0]])}
    >>> smaller, removed = cut(p, Pair("a", "b"), [0])
    >>> smaller, restore(smaller, Pair("a", "b"), removed)["b.weight"]
    ({'a.weight': tensor([[2.]]), 'b.weight': tensor([[5.]])}, tensor([[4., 5.]]))
    """
    before, _ = layers_of(params, pair)
    dropped, kept = partition(units, before.weight.shape[0], before.weight.device)
    own = [trees.get(params, path).index_select(axis, index) for path, axis, index in entries(params, pair, dropped)]
    return cast(Tree, gathered(params, pair, kept)), Removed(dropped, tuple(own), bare(pair))


@door()
def restore(params: Tree, pair: Pair, removed: Removed) -> Tree:
    """`params` with the units that `cut` removed, at their old places; the others may have been trained since.

    Raises ValueError (path, got, expected) for params in which they do not fit, TypeError for another record.

    >>> import torch
    >>> p = {"a.weight": torch.tensor([[2.0]]), "b.weight": torch.tensor([[5.0]])}
    >>> restore(p, Pair("a", "b"), Removed(torch.tensor([0]), (torch.ones(1, 1), torch.ones(1, 1))))
    {'a.weight': tensor([[1.],
            [2.]]), 'b.weight': tensor([[1., 5.]])}
    """
    owned(removed, "removed", pair, Removed, "growth.cut")
    pair = joined(pair, removed)
    found = places(params, pair)
    p = layers_of(params, pair)[0].weight.shape[0] + removed.units.shape[0]
    dropped, kept = partition(removed.units, p, removed.units.device)
    order = torch.cat([kept, dropped]).argsort()
    if len(found) != len(removed.entries):
        raise ValueError(
            f"{pair}: removed has entries of {len(removed.entries)} leaves, expected {len(found)}; give what cut returned "
            "for these params and this pair"
        )
    for place, entry in zip(found, removed.entries):
        leaf = trees.get(params, place.path)
        want = place.shape(leaf, len(dropped))
        if tuple(entry.shape) != want:
            raise ValueError(
                f"{trees.path_str(place.path)}: removed entries have shape {tuple(entry.shape)}, expected {want}; a neighbouring "
                "pair has been resized since: restore in the reverse order"
            )
        both = place.behind(leaf, entry.to(leaf))
        index = place.numbers(order, both.shape[place.axis])
        params = trees.replace(params, place.path, both.index_select(place.axis, index))
    return params


# --- parts ---------------------------------------------------------------------------------------------------------


def count_of(params: Any, pair: Pair | Heads) -> tuple[int, torch.device]:
    """How many hidden units a pair has (heads an attention layer), and the device of its first layer."""
    if isinstance(pair, Heads):
        return pair.groups, trees.get(params, head_axes(params, pair)[0].path).device
    weight = layers_of(params, pair)[0].weight
    return weight.shape[0], weight.device


def partition(units: Units, p: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(dropped, kept): indices of the units as given, and of all others in order."""
    dropped = indices(units, p, "units", device)
    check_once(units, dropped, p)
    gone = torch.zeros(p, dtype=torch.int64, device=device).index_add(0, dropped, torch.ones_like(dropped))
    return dropped, gone.argsort(stable=True)[: p - dropped.shape[0]]


def _given_back(params: Any, pair: Pair | Heads, units: Tensor, sigma0: float | Tensor, stats: Any) -> Any:
    """params with the constants of units in the bias of `after`, from which `grow` has taken them."""
    number(sigma0, "sigma0")
    if isinstance(pair, Heads) or stats is not None:
        what = f"for {pair}" if stats is None else "beside stats, by which the bias takes over what it can"
        raise ValueError(
            f"sigma0: got one {what}, expected None; it is of the units that grow has added between a Pair"
        )
    after = layers_of(params, pair)[1]
    if not after.biased:
        raise ValueError(f"sigma0: got one, {after.name} has no bias, expected None: grow has taken nothing out of it")
    columns = after.weight.index_select(1, spread(units, after.columns))
    return lowered(params, after, -sigma0 * columns.flatten(1).sum(1), str(pair))


def _compensated(
    params: Any, pair: Pair, stats: Statistics, d: Tensor, k: Tensor, ridge: float | Tensor, rtol: float | None
) -> Any:
    """The outgoing weights with those of the inputs d moved to the inputs k and the bias."""
    check_solver(ridge, rtol)
    _, after = layers_of(params, pair)
    S, inputs = _second_moment(stats, after, pair)
    if after.bias is not None:
        k = torch.cat([k, torch.full((1,), inputs, dtype=k.dtype, device=k.device)])
    flat = after.weight.flatten(1).to(S.dtype)
    whole = flat if after.bias is None else torch.cat([flat, after.bias[:, None].to(S.dtype)], 1)
    rows = S.index_select(0, k)
    moved = flat.index_select(1, d) @ rows.index_select(1, d).mT @ pinv(rows.index_select(1, k), ridge, rtol)
    whole = whole.index_add(1, k, moved).to(after.weight.dtype)
    params = after.put(params, whole[:, :inputs].reshape(after.weight.shape))
    return params if after.bias is None else trees.replace(params, after.bias_path, whole[:, inputs])  # type: ignore[arg-type]


def _second_moment(stats: Statistics, after: Layer, pair: Pair) -> tuple[Tensor, int]:
    """S of a pair's statistics, and how many of its coordinates are inputs of `after`."""
    owned(stats, "stats", pair, Statistics, "growth.statistics")
    inputs = math.prod(after.weight.shape[1:])
    rows = inputs + (after.bias is not None)
    if tuple(stats.S.shape) != (rows, rows):
        raise ValueError(
            f"{pair}: stats.S has shape {tuple(stats.S.shape)}, expected {(rows, rows)} for {after.name} "
            f"{tuple(after.weight.shape)}{'' if after.bias is None else ' and its bias'}; compute statistics at these params"
        )
    return working(stats.S).to(torch.promote_types(working(stats.S).dtype, after.weight.dtype)), inputs
