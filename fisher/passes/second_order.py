"""hessian and ggn: the second derivatives of a loss, and their Gauss-Newton part, in any representation.

B batch, N examples in all; both are means over the examples, whatever the batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors, finiteness
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.data import NO_EXAMPLE
from fisher.collector import restriction
from fisher.collector.collection import LayerCollection
from fisher.derivatives.plain import plainly
from fisher.distributed.marks import marked
from fisher.distributed.stages import LOCAL, Reduce, callable_or_none, over_all
from fisher.pmat.contract.limits import check_dense
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.blockdiag import PMatBlockDiag
from fisher.pmat.matrix_free.curvature import GaussNewton, HessianCurvature
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
    parts, weights = _parts(data, "hessian", check_finite, reduce is not None)
    if check and parts:
        means.mean_loss(loss, params, parts, check_finite, weighted=weights is not None)
    curvature = HessianCurvature(loss, weights is not None)
    F = PMatImplicit.sum_of(curvature, params, _with(parts, weights)) if parts else None
    how = _How(params, representation, layers, chunk_size, "hessian", check, check_finite, reduce)
    made: SecondDerivative = _represent(F, how)
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
    parts, weights = _parts(data, "ggn", check_finite, reduce is not None)
    if check and parts:
        functions.function(f, params, several([part[0] for part in parts]), finite=check_finite)
        part = max(parts, key=lambda part: batch_size(part[0]))
        means.losses(loss, plainly(f)(params, part[0]), part[1:], check_finite)
    curvature = GaussNewton(f, loss, weights is not None)
    F = PMatImplicit.sum_of(curvature, params, _with(parts, weights)) if parts else None
    how = _How(params, representation, layers, chunk_size, "ggn", check, check_finite, reduce)
    made: SecondDerivative = _represent(F, how)
    return made


def _parts(
    data: Any, what: str, check_finite: bool, none: bool = False
) -> tuple[list[tuple[Any, ...]], list[Tensor] | None]:
    """The batches, `(x, target)` or `(x,)`, that have examples, and the weight `[B]` of each, None where none has one.

    none: whether there may be no example, as at a rank without.
    """
    found = [item for item in examples(data, what, check_finite, none) if batch_size(item[0])]
    if not found and not none:
        raise ValueError(NO_EXAMPLE)
    parts: list[tuple[Any, ...]] = [(x,) if target is None else (x, target) for x, target, _ in found]
    given = [weight for *_, weight in found]
    for weight in given:
        if weight is not None and weight.ndim != 1:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)}, expected [{len(weight)}]: {what} weighs the loss of an example; "
                "positions are weighed in the loss, from a target that holds their weights"
            )
    if all(weight is None for weight in given):
        return parts, None
    ones = [torch.ones(batch_size(x)) if weight is None else weight for x, _, weight in found]
    return parts, [weight.to(trees.leaves(x)[0].device) for (x, *_), weight in zip(found, ones)]


def _with(parts: list[tuple[Any, ...]], weights: list[Tensor] | None) -> list[tuple[Any, ...]]:
    return parts if weights is None else [(*part, weight) for part, weight in zip(parts, weights)]


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


def _represent(F: PMatImplicit | None, how: _How) -> Any:
    """The matrix-free matrix in another representation, checked; None at a rank without examples."""
    representation = by_name(how.representation)
    if how.reduce is not None and representation is PMatImplicit:
        raise ValueError(LOCAL)
    if how.check and F is not None:
        modes.symmetric(PMatImplicit.sum_of(F.curvature, F.params, F.batches[:1]), how.what, how.check_finite)
    made = None if F is None else _in(F, representation, how.layers, how.chunk_size)
    if how.reduce is not None:
        n = 0 if F is None else sum(batch_size(batch[0]) for batch in F.batches)
        made = _over_all(made, representation, n, how)
    if how.check_finite and made is not F:
        finiteness.finite(made, how.what, modes.NO_DERIVATIVE)
    return made if how.layers is None else made.on_layers(how.layers)  # type: ignore[union-attr]


def _over_all(made: Any, representation: type[PMat], n: int, how: _How) -> PMat:
    """The mean over the examples of all ranks, of which n are here."""
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
