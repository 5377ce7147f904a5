"""hessian and ggn: the second derivatives of a loss, and their Gauss-Newton part, in any representation.

B batch, N examples in all; both are means over the examples, whatever the batches.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors, finiteness
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.data import NO_EXAMPLE, Weighted
from fisher.collector import restriction
from fisher.collector.collection import LayerCollection
from fisher.derivatives.plain import plainly
from fisher.distributed.marks import marked
from fisher.distributed.stages import LOCAL, Reduce, callable_or_none, over_all
from fisher.passes.fold import Mean
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.matrix_free.curvature import Curvature, GaussNewton, HessianCurvature
from fisher.pmat.matrix_free.implicit import PMatImplicit
from fisher.pmat.names import by_name
from fisher.pmat.representation import SecondDerivative
from fisher.pmat.whole.dense import PMatDense
from fisher.pmat.whole.diag import PMatDiag
from fisher.trials import functions, means, modes
from fisher.trials.data import examples, several
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees import Layout

Part = tuple[Any, ...]


@full_precision("loss")
@typed
def hessian(
    loss: Callable[..., Tensor],
    params: Any,
    data: Any,
    representation: type[SecondDerivative] = PMatDense,  # type: ignore[assignment]  # the TypeVar's own default
    *,
    layers: LayerCollection | None = None,
    chunk_size: int | None = None,
    check: bool = True,
    check_finite: bool = True,
    reduce: Reduce | None = None,
) -> SecondDerivative:
    """The Hessian of the mean loss, H = 1/N sum over batches of B d^2 loss(params, x, y) / d params^2.

    loss(params, x, y): the loss of each example `[B]`, or a scalar, their mean over the batch (x, y) (loss(params, x) where
    data has no targets); a short last batch counts by its examples.  data: as in `fim`; with a weight `[B]` the mean is of
    w_b times the loss `[B]` of each example.  It is indefinite in general:
    `solve` by conjugate gradients needs a regul that makes it positive definite.

    representation: PMatDense (d Hessian-vector products, `chunk_size` at once), PMatDiag, PMatBlockDiag (one block per
    layer of `layers`, as many products as parameters in all) or PMatImplicit (a product per mv).  A sub-collection as layers
    gives a matrix on the vectors `{path: leaf}` of its leaves.
    check: try the loss on the largest batch (about ten forwards).  check_finite: report NaN in data, params and result.
    reduce: as in `fim`, one call of the sums of `loss` over the examples; not of PMatImplicit.
    Raises ValueError for another representation, for blocks without layers, and for a loss that is random, mixes examples
    or is no mean over them (weighted, or a sum).

    >>> import torch
    >>> loss = lambda p, x, y: 0.5 * ((x @ p - y) ** 2).mean()
    >>> data = [(torch.eye(2), torch.ones(2)), (torch.eye(2)[:1], torch.ones(1))]
    >>> hessian(loss, torch.zeros(2), data).to_torch()
    tensor([[0.6667, 0.0000],
            [0.0000, 0.3333]])
    """
    loss = doors.function(loss, "loss")
    doors.options(chunk_size=chunk_size, layers=layers)
    params = parameters(params, check_finite)
    loss, params = restriction.restricted(loss, params, layers)
    callable_or_none(reduce)

    def tried(parts: list[Part], weighted: bool) -> None:
        means.mean_loss(loss, params, parts, check_finite, weighted=weighted)

    batches = _batches(data, "hessian", check_finite, tried if check else None, reduce is not None)
    how = _How(params, by_name(representation), layers, chunk_size, "hessian", check, check_finite, reduce)
    made: SecondDerivative = _made(lambda weighted: HessianCurvature(loss, weighted), batches, how)
    return made


@full_precision("f", "loss")
@typed
def ggn(
    f: Callable[..., Tensor],
    loss: Callable[[Tensor, Any], Tensor],
    params: Any,
    data: Any,
    representation: type[SecondDerivative] = PMatDense,  # type: ignore[assignment]  # the TypeVar's own default
    *,
    layers: LayerCollection | None = None,
    chunk_size: int | None = None,
    check: bool = True,
    check_finite: bool = True,
    reduce: Reduce | None = None,
) -> SecondDerivative:
    """The generalized Gauss-Newton matrix G = 1/N sum over b of J_b'H_b J_b, H_b the Hessian of the loss at the output.

    loss(y, target) -> `[B]`: the loss of each example from f's output; `f(params, x)`.  G is the Hessian without the
    curvature of f, and the Fisher where the loss is the negative log-likelihood of a natural parameter.
    data, representation, layers, chunk_size, check, check_finite, reduce: as in `hessian`.  Schraudolph (2002).
    Raises ValueError for a loss that is not `[B]`, and where f or the loss is random or mixes examples.

    >>> import torch
    >>> G = ggn(lambda p, x: x @ p, lambda y, t: 0.5 * (y - t) ** 2, torch.zeros(2), (torch.eye(2), torch.ones(2)))
    >>> G.to_torch()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    f = doors.function(f)
    loss = doors.function(loss, "loss")
    doors.options(chunk_size=chunk_size, layers=layers)
    params = parameters(params, check_finite)
    f, params = restriction.restricted(f, params, layers)
    callable_or_none(reduce)

    def tried(parts: list[Part], weighted: bool) -> None:
        functions.function(f, params, several([part[0] for part in parts]), finite=check_finite)
        part = max(parts, key=lambda part: batch_size(part[0]))
        modes.forward(f, params, part[0], "ggn")
        means.losses(loss, plainly(f)(params, part[0]), part[1:], check_finite)

    batches = _batches(data, "ggn", check_finite, tried if check else None, reduce is not None)
    how = _How(params, by_name(representation), layers, chunk_size, "ggn", check, check_finite, reduce)
    made: SecondDerivative = _made(lambda weighted: GaussNewton(f, loss, weighted), batches, how)
    return made


def _batches(
    data: Any, what: str, check_finite: bool, tried: Callable[[list[Part], bool], None] | None, none: bool = False
) -> Iterator[tuple[Part, Tensor | None]]:
    """The batches, `(x, target)` or `(x,)`, that have examples, and the weight `[B]` of each, one by one.

    The first two are tried, and each that is larger than those before.  none: whether there may be no example, as at a rank
    without.
    """
    full = (_part(item, what) for item in examples(data, what, check_finite, none) if batch_size(item[0]))
    first = list(itertools.islice(full, 2))
    if not first:
        if none:
            return
        raise ValueError(NO_EXAMPLE)
    largest = max(batch_size(part[0]) for part, _ in first)
    if tried is not None:
        tried([part for part, _ in first], any(weight is not None for _, weight in first))
    for part, weight in itertools.chain(first, full):
        if tried is not None and batch_size(part[0]) > largest:
            largest = batch_size(part[0])
            tried([part], weight is not None)
        yield part, weight


def _part(item: Weighted, what: str) -> tuple[Part, Tensor | None]:
    x, target, weight = item
    if weight is not None and weight.ndim != 1:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [{len(weight)}]: {what} weighs the loss of an example; "
            "positions are weighed in the loss, from a target that holds their weights"
        )
    return (x,) if target is None else (x, target), weight


def _with(parts: list[Part], weights: list[Tensor | None]) -> list[Part]:
    """The batches with their weights behind, 1 where others have some; as they are where none has."""
    if all(weight is None for weight in weights):
        return parts
    ones = [torch.ones(batch_size(x)) if weight is None else weight for (x, *_), weight in zip(parts, weights)]
    return [(*part, weight.to(trees.leaves(part[0])[0].device)) for part, weight in zip(parts, ones)]


@dataclasses.dataclass(frozen=True)
class _How:
    """What `hessian` and `ggn` do alike with a curvature."""

    params: Any
    representation: type[PMat]
    layers: LayerCollection | None
    chunk_size: int | None
    what: str
    check: bool
    check_finite: bool
    reduce: Reduce | None


def _made(curvature: Callable[[bool], Curvature], batches: Iterable[tuple[Part, Tensor | None]], how: _How) -> Any:
    """The mean over all batches, in the representation: one at a time is in memory, but for PMatImplicit, which keeps them."""
    whole = how.representation is PMatImplicit
    if how.reduce is not None and whole:
        raise ValueError(LOCAL)
    mean, made, seen = Mean(), None, 0
    for group in [list(batches)] if whole else ([batch] for batch in batches):
        parts, weights = [part for part, _ in group], [weight for _, weight in group]
        weighted = any(weight is not None for weight in weights)
        F = PMatImplicit.sum_of(curvature(weighted), how.params, _with(parts, weights))
        if how.check and not seen:
            modes.symmetric(PMatImplicit.sum_of(F.curvature, F.params, F.batches[:1]), how.what, how.check_finite)
        if seen:
            mean = Mean().add(made, seen) if mean.mean is None else mean
            mean = mean.add(_in(F, how.representation, how.layers, how.chunk_size), batch_size(parts[0][0]))
        else:
            made = _in(F, how.representation, how.layers, how.chunk_size)
        seen += batch_size(parts[0][0])
    found: Any = made if mean.mean is None else mean.value()
    if how.reduce is not None:
        found = _over_all(found, seen, how)
    if how.check_finite and not whole:
        finiteness.finite(found, how.what, modes.NO_DERIVATIVE)
    return found if how.layers is None else found.on_layers(how.layers)


def _over_all(made: Any, n: int, how: _How) -> PMat:
    """The mean over the examples of all ranks, of which n are here."""
    representation = how.representation
    stored = {PMatDense: "matrix", PMatDiag: "diag", PMatBlockDiag: "blocks"}.get(representation, "")
    square = representation is not PMatDiag
    own = None if made is None else getattr(made, stored)
    sums = None if made is None else trees.map(lambda t: marked(n * t) if square else n * t, own)
    total, count = over_all(how.reduce, sums, n)
    mean = trees.map(lambda t: t / count, total)
    if representation is PMatBlockDiag:
        return PMatBlockDiag(mean, how.layers)  # type: ignore[arg-type]
    return representation(mean, Layout.of(how.params))  # type: ignore[call-arg]


def _in(F: PMatImplicit, representation: type[PMat], layers: LayerCollection | None, chunk_size: int | None) -> PMat:
    """The matrix-free matrix in another representation."""
    name = getattr(representation, "__name__", repr(representation))
    if representation is PMatImplicit:
        return F
    if representation is PMatDense:
        check_dense(F.layout.numel, "PMatDense", "use PMatImplicit or PMatDiag", dtype=F.dtype)
        return PMatDense(F.to_torch(chunk_size=chunk_size), F.layout)
    if representation is PMatDiag:
        return PMatDiag(F.get_diag(chunk_size=chunk_size), F.layout)
    if representation is PMatBlockDiag:
        if layers is None:
            raise ValueError(
                "layers: got None, expected a LayerCollection for PMatBlockDiag; make one with "
                "fisher.LayerCollection.from_function(f, params, x)"
            )
        return PMatBlockDiag(_blocks(F, layers), layers)
    raise ValueError(
        f"representation: got {name}, expected PMatDense, PMatDiag, PMatBlockDiag or PMatImplicit; a second derivative has "
        "no Kronecker factors: use fisher.fim for those"
    )


def _blocks(F: PMatImplicit, layers: LayerCollection) -> dict[str, Tensor]:
    """The block of each layer over its flattened view, by a product for each of its parameters."""
    zeros = layers.views(trees.zeros_like(F.params))
    blocks = {}
    for layer in layers:
        like = zeros[layer.name]
        check_dense(
            like.numel(), f"PMatBlockDiag: the block of {layer.name}", "use PMatImplicit or PMatDiag", dtype=like.dtype
        )
        if layer.kind == "unused":
            blocks[layer.name] = like.new_zeros(())
            continue

        def column(e: Tensor, layer: Any = layer, like: Tensor = like) -> Tensor:
            v = layers.tree(zeros | {layer.name: e.reshape(like.shape)})
            return layers.views(F.mv(v))[layer.name].reshape(like.numel())

        blocks[layer.name] = torch.func.vmap(column)(torch.eye(like.numel(), dtype=like.dtype, device=like.device))
    return blocks
