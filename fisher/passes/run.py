"""A pass over the data: what each batch adds to a representation, summed by its reducer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import finiteness, purity
from fisher.checks.axes import batch_size
from fisher.checks.data import NO_EXAMPLE, one_batch, weighted_batches
from fisher.checks.data import check_finite as data_finite
from fisher.collector.calls.batching import soundly
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import of_layers
from fisher.collector.taps import column_rows, pull
from fisher.collector.weights import derived_weights
from fisher.likelihoods.columns import Columns
from fisher.passes.checkpoints import Checkpoint
from fisher.passes.positions import of_examples, of_uses
from fisher.reducers import Options, Reducer
from linmaps import trees
from linmaps.checks.precision import HALF

NUMBERS = 2**21  # of gradients at the outputs of all uses that are held at a time

NOTHING = Checkpoint()
Make = Callable[[LayerCollection, Options], Reducer]


@dataclasses.dataclass(frozen=True)
class Pass:
    """What all batches of a pass have in common; one_only: the columns fit one batch alone."""

    f: Callable[..., Tensor]
    params: Any
    columns: Columns
    layers: LayerCollection | None
    chunk_size: int | None
    progress: bool
    dtype: torch.dtype | None
    check_finite: bool
    one_only: bool = False
    kept: Checkpoint = NOTHING

    def on(self, layers: LayerCollection) -> Pass:
        """The same with these layers."""
        return dataclasses.replace(self, layers=layers)

    def found(self, x: Any) -> LayerCollection:
        """The layers, found on this batch if they were not given."""
        return self.layers if self.layers is not None else LayerCollection.from_function(self.f, self.params, x)


def checked_batches(run: Pass, data: Any) -> Any:
    """`(x, target, weight)` of each batch that has examples, after the checks at the door."""
    if run.check_finite:
        finiteness.finite(run.params, "params", "the training has diverged: go back to finite parameters")
    for number, (x, target, weight) in enumerate(weighted_batches(data, progress=run.progress, what="fim")):
        if run.one_only and number:
            raise ValueError("noise: got several batches, expected one; give a generator, or call fim once per batch")
        if run.check_finite:
            data_finite(x, f"data: batch {number}")
            data_finite(() if target is None else target, f"data: batch {number}: target")
            data_finite(() if weight is None else weight, f"data: batch {number}: weight")
        size = batch_size(x)
        if isinstance(target, Tensor) and (not target.ndim or len(target) != size):
            raise ValueError(
                f"data: batch {number}: target has shape {tuple(target.shape)}, expected one for each of {size} examples; "
                "several inputs go into one x: ((x1, x2), target)"
            )
        if size:
            yield x, target, weight


def reduce(run: Pass, data: Any, make: Make, options: Options) -> Any:
    """The matrix that the reducer makes of all batches."""
    seen, inputs, columns = 0, None, None
    kinds = {t.dtype for t in trees.leaves(run.params)}
    dtype = functools.reduce(torch.promote_types, kinds) if kinds else None  # the widest, of leaves of several
    run = dataclasses.replace(run, dtype=torch.float32) if run.dtype is None and kinds & set(HALF) else run
    known = one_batch(data) and not options.centered
    options = dataclasses.replace(options, like=trees.leaves(run.params)[0], params=trees.leaves(run.params))
    given = run.layers is not None
    stage = run.kept.stage()
    for x, target, weight in stage.over(checked_batches(run, data)):
        layers = run.found(x)
        run = run.on(layers)
        options = dataclasses.replace(options, examples=batch_size(x)) if known else options
        if not seen and make(layers, options).through:
            options = dataclasses.replace(options, weights=derived_weights(run.f, run.params, x, layers))
        if stage.done:
            seen, (inputs, columns) = seen + batch_size(x), stage.sums
            continue
        reducer, part_in, part = _one(run, x, target, weight, make, options)
        inputs = part_in if inputs is None else trees.add(inputs, part_in)
        columns = part if columns is None else reducer.add(columns, part)
        if given and not seen and run.check_finite:  # found layers are checked already
            purity.steady(soundly(run.f), run.params, x)
        seen += batch_size(x)
        stage.keep((inputs, columns))
    if run.layers is None or not seen:
        raise ValueError(NO_EXAMPLE)
    made: Any = make(run.layers, options).finish(inputs, columns, seen // options.examples)
    if run.dtype is not None:
        made = _cast(made, dtype)
    several = isinstance(made, tuple)
    made = tuple(F.on_layers(run.layers) for F in made) if several else made.on_layers(run.layers)
    if run.check_finite:
        finiteness.finite(made, "fim", "f's outputs or their gradients overflow at these params and data")
    return made


def _one(
    run: Pass, x: Any, target: Any, weight: Tensor | None, make: Make, options: Options
) -> tuple[Reducer, Any, Any]:
    """Sums over one batch: (what made them, those of the inputs, those of the columns)."""
    layers: LayerCollection = run.layers  # type: ignore[assignment]
    layers.layout.check(run.params, "params (of the LayerCollection)")
    batch = batch_size(x)
    squares = run.columns.in_squares(weight)
    reducer = make(layers, dataclasses.replace(options, counted=of_examples(layers, squares)))
    if weight is not None and options.centered and reducer.by_position:
        raise ValueError(
            "centered: got data with weights, of which Kronecker factors have no mean gradient, expected (x, target); use "
            "PMatDense, PMatBlockDiag, PMatDiag or PMatLowRank"
        )
    y, kept, back = pull(run.f, run.params, x, layers, reducer.tapped, reducer.keep)
    counts = run.columns.counts(y, target)
    if reducer.by_position and (counts is not None or (weight is not None and weight.ndim > 1)):
        counted = of_uses(layers, run.columns.likelihood, y, counts, squares, back)
        reducer = make(layers, dataclasses.replace(options, counted=counted))
        y, kept, back = pull(run.f, run.params, x, layers, reducer.tapped, reducer.keep)
    total = None
    over = options.examples**0.5
    size = run.chunk_size if run.chunk_size is not None or reducer.at_once else _at_once(layers, reducer.tapped, batch)
    for chunk in run.columns.parts(y, target, size, weight):
        chunk = chunk / over
        g = column_rows(layers, back(chunk), batch)
        part = _cast(reducer.columns(kept, g, of_layers(run.f, run.params, x, reducer.by_rows, chunk)), run.dtype)
        total = part if total is None else reducer.add(total, part)
    return reducer, _cast(reducer.inputs(kept), run.dtype), total


def _at_once(layers: LayerCollection, uses: tuple[int, ...], batch: int) -> int:
    """How many columns are differentiated at once where nobody says: their gradients at all uses are so many numbers."""
    each = sum(math.prod(layers.uses[k].tap_shape(batch)) for k in uses)
    return max(1, NUMBERS // max(1, each))


def _cast(tree: Any, dtype: torch.dtype | None) -> Any:
    return tree if dtype is None else trees.map(lambda t: t.to(dtype), tree)
