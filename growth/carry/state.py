"""Carry state over a change of widths: old entries keep place and value, new ones are zero, those of pruned units go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from growth.carry.carrier import Carrier, Fill
from growth.carry.orders import Order
from growth.checks.doors import door
from growth.reading.gated_pairs import Gated
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.surgery.head_places import Attention
from growth.surgery.moves import growing, shrinking
from growth.surgery.pruning import Units
from linmaps.trees.tree import Tree


@door()
def grow_like(
    state: Tree, params: Any, grown: Any, *, fill: Fill = "zero", order: Order = None, heads: Attention = None
) -> Tree:
    """`state` with every leaf that belongs to a grown leaf of params padded with zeros to its new shape.

    A leaf of the state belongs to a leaf of params of its shape

    1. whose path ends its own: moments, averages and other trees shaped like params, anywhere in the state;
    2. by number, in lists and in a `torch.optim` state dict: by the names that this keeps (of an optimizer made of
       `named_parameters()`), by `order`, or by whichever of the order of insertion and the leaf order of optree has the
       shapes of all entries; where both have and disagree, nothing is guessed;
    3. or, failing these, by its shape alone, if that says what the new shape is.

    State of a leaf, below its path or in its entry of a `torch.optim` state dict, may have other shapes.  Adafactor's means over
    the last two axes (row_var, col_var; exp_avg_sq_row, exp_avg_sq_col) go over so that the estimate of old entries is what it
    was.  Of matrices `[d, d]` of an axis (Shampoo, SOAP) the block is kept, and new diagonal entries are the mean of the old
    ones, 1 in an orthonormal basis: roots and inverses stay those of the block.  Numbers, steps, counters are copied; what is
    none of these is refused by name.

    Records are known for what they are.  Of `Statistics` the entries of new units are zero, as if these had been silent so
    far; merged with a later pass they tend to the truth.  Of a matrix (PMat) over params the old block is kept and the
    rows and columns of new parameters are zero: PMatDense, BlockDiag, Diag, QuasiDiag, KFAC (zeros in A and G), EKFAC and
    Eigen (zero eigenvalues on new axes of the basis), LowRank, Range, Mixed, Sum of these; a multiple of the identity
    stays one.  LayerCollections get the new sizes.  Matrices over functions (FMatDense) do not change.

    Anything else (step counters, scalars, leaves of other shapes, states of schedulers) is copied.  So the next step of an
    elementwise optimizer (SGD, Adam, RMSprop, Adagrad) moves the old entries as it would have without growth where the new units
    are zero on one side; steps made of whole leaves (Adafactor, LAMB, Muon, Shampoo) are those of the larger ones.  Stacked
    ensembles of plain trees work alike, records by `torch.func.vmap`.

    Step counters are kept too, so Adam's bias correction takes the zero moments of new entries for settled ones: their
    first steps are (1 - beta1) / sqrt(1 - beta2) times the learning rate at most, 3.2 for (.9, .999), falling to 1 within
    1 / (1 - beta2) steps.  fill="mean": in a `torch.optim` state dict, what steps are divided by (second moments, norms)
    starts at the mean of the old entries of its leaf, so that new entries move about as much as old ones.

    Averages of params get zeros for new entries.  Iterates z that shall start where new entries do (schedule-free, averages of a
    long past) go by their difference: `trees.add(grown, grow_like(trees.sub(z, params), params, grown))`.

    order: of the parameters in lists and in the optimizer: "insertion", "leaves" (of `trees.leaves(params)`), or their
    paths, one for each, as for an optimizer of some of the leaves.

    heads: the attention layers (`Heads`, as they were for params, or a list) to which `widen` or `add_heads` gave units: these
    are not last in their leaves, and which of the two it was is seen by the sizes, and where these leave it open by the entries
    of k and v, which must be where they belong, bit by bit.  State of q is carried as it is, though q itself was rescaled.
    heads=(): none, all new entries are last, whatever the values look like.  The `Gated` pairs of packed layers are named there
    too, alone or in the list: new units come last in each half of these.

    Raises ValueError where params and grown have other leaves, where a leaf of grown is smaller, where old entries are found
    elsewhere than in front (the last of each axis is looked for), for heads that do not fit, (naming the leaf)
    where a shape or a number fits several leaves that grew differently or several axes of one, for state of unknown shapes,
    for another fill or order, and for matrices
    that hold functions (PMatImplicit, PMatPullback) or are of other params: compute them anew.

    >>> import torch
    >>> params, grown = {"w": torch.ones(2, 1), "b": torch.ones(2)}, {"w": torch.ones(3, 1), "b": torch.ones(3)}
    >>> grow_like({"step": 4, "m": {"w": torch.ones(2, 1), "b": torch.ones(2)}}, params, grown)
    {'step': 4, 'm': {'w': tensor([[1.],
        [1.],
        [0.]]), 'b': tensor([1., 1., 0.])}}
    """
    return cast(Tree, Carrier(growing(params, grown, heads), fill, order).walk(state, ()))


def carried(state: Any, params: Any, grown: Any, pairs: Sequence[Pair]) -> Any:
    """`grow_like` for pairs that grew, and nothing else did, whatever the values look like."""
    packed = [p for p in pairs if isinstance(p, Gated)]
    return Carrier(growing(params, grown, packed, asked=False)).walk(state, ())


@door()
def prune_like(state: Tree, params: Any, pair: Pair | Heads, units: Units, *, order: Order = None) -> Tree:
    """`state` without the entries of hidden units of a pair (of heads), as `prune(params, pair, units)` is params without them.

    What of the state belongs to which leaf of params is found as in `grow_like` (order: as there), and of records the same is
    said: rows and columns of the units go (of KFAC those of A and G; EKFAC and Eigen raise, since a part of a basis is none:
    `F.to_torch()`, or a KFAC, can be cut).  Step counters are kept.

    Raises ValueError as `grow_like` and `prune`.

    >>> import torch
    >>> params = {"a.weight": torch.ones(2, 1), "b.weight": torch.ones(1, 2)}
    >>> m = {"a.weight": torch.tensor([[1.0], [2.0]]), "b.weight": torch.tensor([[3.0, 4.0]])}
    >>> prune_like({"step": 4, "m": m}, params, Pair("a", "b"), [0])
    {'step': 4, 'm': {'a.weight': tensor([[2.]]), 'b.weight': tensor([[4.]])}}
    """
    return cast(Tree, Carrier(shrinking(params, pair, units), order=order).walk(state, ()))
