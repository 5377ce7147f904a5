"""A pass over the data: what each batch adds to a representation, summed by its reducer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import finiteness, purity
from fisher.checks.arguments import DIVERGED
from fisher.checks.axes import batch_size
from fisher.checks.data import check_finite as data_finite
from fisher.checks.data import one_batch, weighted_batches
from fisher.collector.calls.batching import soundly
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import of_layers
from fisher.collector.taps import column_rows, pull
from fisher.collector.weights import derived_weights
from fisher.distributed.stages import Reduce, gathered, group_of, over_all
from fisher.likelihoods.columns import Columns
from fisher.passes.checkpoints import Checkpoint
from fisher.passes.positions import of_examples, of_uses
from fisher.reducers import Options, Reducer
from linmaps import trees
from linmaps.checks.precision import HALF

FEW = 2**18  # numbers of columns that are made at one go
NOTHING = Checkpoint()
Make = Callable[[LayerCollection, Options], Reducer]


@dataclasses.dataclass(frozen=True)
class Pass:
    """What all batches of a pass have in common; one_only: the columns fit one batch alone; reduce: adds over ranks."""

    f: Callable[..., Tensor]
    params: Any
    columns: Columns
    layers: LayerCollection | None
    chunk_size: int | None
    progress: bool
    dtype: torch.dtype | None
    check_finite: bool
    one_only: bool = False
    reduce: Reduce | None = None
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
        finiteness.finite(run.params, "params", DIVERGED)
    items = weighted_batches(data, progress=run.progress, what="fim", none=run.reduce is not None)
    for number, (x, target, weight) in enumerate(items):
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


def summed(run: Pass, data: Any, make: Make, options: Options) -> Any:
    """The matrix that the reducer makes of all batches."""
    seen, inputs, columns = 0, None, None
    kinds = {t.dtype for t in trees.leaves(run.params)}
    dtype = functools.reduce(torch.promote_types, kinds) if kinds else None  # the widest, of leaves of several
    run = dataclasses.replace(run, dtype=torch.float32) if run.dtype is None and not kinds.isdisjoint(HALF) else run
    known = one_batch(data) and not options.centered and run.reduce is None
    leaves, group = trees.leaves(run.params), group_of(run.reduce)
    options = dataclasses.replace(options, like=leaves[0], params=leaves, group=group)
    given, reducer = run.layers is not None, None
    stage = run.kept.stage()
    for x, target, weight in stage.over(checked_batches(run, data)):
        layers = run.found(x)
        run = run if run.layers is layers else run.on(layers)
        if reducer is None:  # the same for all batches
            options = dataclasses.replace(options, examples=batch_size(x)) if known else options
            reducer = make(layers, options)
            if reducer.through:
                options = dataclasses.replace(options, weights=derived_weights(run.f, run.params, x, layers))
                reducer = make(layers, options)
        if stage.done:
            seen, (inputs, columns) = seen + batch_size(x), stage.sums
            continue
        part_in, part = _one(run, x, target, weight, make, reducer)
        inputs = part_in if inputs is None else trees.add(inputs, part_in)
        columns = part if columns is None else reducer.add(columns, part)
        if given and not seen and run.check_finite:  # found layers are checked already
            purity.steady(soundly(run.f), run.params, x)
        seen += batch_size(x)
        stage.keep((inputs, columns))
    if run.reduce is not None:
        options, inputs, columns, seen = _over_all(run, data, make, options, inputs, columns, seen)
    elif not seen:
        over_all(None, None, 0)
    if reducer is None or run.reduce is not None:
        reducer = make(run.layers, options)  # type: ignore[arg-type]
    made: Any = reducer.finish(inputs, columns, seen // options.examples)
    if run.dtype is not None:
        made = _cast(made, dtype)
    several = isinstance(made, tuple)
    made = tuple(F.on_layers(run.layers) for F in made) if several else made.on_layers(run.layers)
    if run.check_finite:
        finiteness.finite(made, "fim", "f's outputs or their gradients overflow at these params and data")
    return made


def _over_all(
    run: Pass, data: Any, make: Make, options: Options, inputs: Any, columns: Any, seen: int
) -> tuple[Options, Any, Any, Any]:
    """(options, inputs, columns, how many examples) over all ranks: of those that have none, by the layers that they have."""
    reducer = None if run.layers is None else make(run.layers, options)
    sums, rows = (None, None) if reducer is None or not seen else reducer.apart(inputs, columns)
    total, count = over_all(run.reduce, sums, seen)
    if run.layers is None or reducer is None:
        raise ValueError(
            "layers: got None at a rank without examples, expected a LayerCollection; make one with "
            "fisher.LayerCollection.from_function(f, params, x) of any examples, the same at all ranks"
        )
    if reducer.gathers:
        cure = "a representation of sums: fisher.PMatKFAC, PMatDiag, PMatBlockDiag, PMatDense"
        rows = gathered(run.reduce, rows, "PMatLowRank", cure)
    if not seen and reducer.through:
        options = dataclasses.replace(options, weights=_weights(run, data, run.layers))
    return options, *reducer.together(total, rows), count


def _weights(run: Pass, data: Any, layers: LayerCollection) -> Any:
    """The derived weights where there is no example: of two that are zero, as no data enter them."""
    for x, *_ in weighted_batches(data, none=True):
        two = trees.map(lambda t: t.new_zeros(2, *t.shape[1:]), x)
        return derived_weights(run.f, run.params, two, layers)
    raise ValueError(
        "data: got no batch at a rank without examples, expected x[:0] or (x[:0], target[:0]): weights that f makes of its "
        "leaves are seen by running f"
    )


def _one(run: Pass, x: Any, target: Any, weight: Tensor | None, make: Make, reducer: Reducer) -> tuple[Any, Any]:
    """Sums over one batch: (those of the inputs, those of the columns)."""
    options = reducer.options
    layers: LayerCollection = run.layers  # type: ignore[assignment]
    layers.layout.check(run.params, "params (of the LayerCollection)")
    batch = batch_size(x)
    squares = run.columns.in_squares(weight)
    counted = of_examples(layers, squares)
    reducer = make(layers, dataclasses.replace(options, counted=counted)) if counted else reducer
    if weight is not None and options.centered and reducer.by_position:
        raise ValueError(
            "centered: got data with weights, of which Kronecker factors have no mean gradient, expected (x, target); use "
            "PMatDense, PMatBlockDiag, PMatDiag or PMatLowRank"
        )
    y, kept, back = pull(run.f, run.params, x, layers, reducer.tapped, reducer.keep, patched=reducer.patched)
    counts = run.columns.counts(y, target)
    if reducer.by_position and (counts is not None or (weight is not None and weight.ndim > 1)):
        counted = of_uses(layers, run.columns.likelihood, y, counts, squares, back)
        reducer = make(layers, dataclasses.replace(options, counted=counted))
        y, kept, back = pull(run.f, run.params, x, layers, reducer.tapped, reducer.keep, patched=reducer.patched)
    total, chunks = None, 0
    over = options.examples**0.5
    size = run.chunk_size if run.chunk_size is not None or reducer.at_once else reducer.at_a_time(batch)
    made = None if size is None else max(size, FEW // max(1, y.numel()))  # of small outputs at one go
    parts = run.columns.parts(y, target, made, weight)
    for chunk in (one for part in parts for one in (part / over).split(size or len(part))):
        rows = of_layers(run.f, run.params, x, reducer.by_rows, chunk)
        more = reducer.columns if total is None else functools.partial(reducer.onto, total)
        total = more(kept, column_rows(layers, back(chunk), batch), rows)  # no name: gone before the next chunk
        total, chunks = _cast(total, run.dtype), chunks + 1
    return _cast(reducer.inputs(kept), run.dtype), reducer.closed(total, kept, chunks)


def _cast(tree: Any, dtype: torch.dtype | None) -> Any:
    return tree if dtype is None else trees.map(lambda t: t.to(dtype), tree)
