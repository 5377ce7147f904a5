"""hessian and ggn: the second derivatives of a loss, and their Gauss-Newton part, in any representation.

B batch, N examples in all; both are means over the examples, whatever the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher import doors
from fisher.batches import batches
from fisher.curvature import GaussNewton, HessianCurvature
from fisher.pmat.base import PMat
from fisher.pmat.dense import PMatDense
from fisher.pmat.diag import PMatDiag
from fisher.pmat.implicit import PMatImplicit
from fisher.pmat.limits import check_dense
from linmaps import trees


def hessian(
    loss: Callable[..., Tensor],
    params: Any,
    data: Any,
    representation: type[PMat] = PMatDense,
    *,
    layers: Any = None,
    chunk_size: int | None = None,
) -> Any:
    """The Hessian of the mean loss, H = 1/N sum over batches of B d^2 loss(params, x, y) / d params^2.

    loss(params, x, y): a scalar, the mean over the batch (x, y) (loss(params, x) where data has no targets); a short last
    batch counts by its examples.  data: as in `fim`.  It is indefinite in general: `solve` by conjugate gradients needs a
    regul that makes it positive definite.

    representation: PMatDense (d Hessian-vector products, `chunk_size` at once), PMatDiag, PMatBlockDiag (one block per
    layer of `layers`, as many products as parameters in all) or PMatImplicit (a product per mv).
    Raises ValueError for another representation, for blocks without layers, and for a loss that is no scalar.

    >>> import torch
    >>> loss = lambda p, x, y: 0.5 * ((x @ p - y) ** 2).mean()
    >>> data = [(torch.eye(2), torch.ones(2)), (torch.eye(2)[:1], torch.ones(1))]
    >>> hessian(loss, torch.zeros(2), data).to_torch()
    tensor([[0.6667, 0.0000],
            [0.0000, 0.3333]])
    """
    doors.function(loss, "loss")
    doors.parameters(params)
    doors.options(chunk_size=chunk_size, layers=layers)
    parts = [_present(pair) for pair in batches(data)]
    shape = tuple(torch.func.vjp(lambda p: loss(p, *parts[0]), params)[0].shape)
    if shape:
        raise ValueError(f"loss: got a result of shape {shape}, expected a scalar; take the mean over the batch")
    return _represent(PMatImplicit.sum_of(HessianCurvature(loss), params, parts), representation, layers, chunk_size)


def ggn(
    f: Callable[..., Tensor],
    loss: Callable[[Tensor, Any], Tensor],
    params: Any,
    data: Any,
    representation: type[PMat] = PMatDense,
    *,
    layers: Any = None,
    chunk_size: int | None = None,
) -> Any:
    """The generalized Gauss-Newton matrix G = 1/N sum over b of J_b'H_b J_b, H_b the Hessian of the loss at the output.

    loss(y, target) -> `[B]`: the loss of each example from f's output; `f(params, x)`.  G is the Hessian without the
    curvature of f, and the Fisher where the loss is the negative log-likelihood of a natural parameter.
    data, representation, layers, chunk_size: as in `hessian`.  Schraudolph (2002).

    >>> import torch
    >>> G = ggn(lambda p, x: x @ p, lambda y, t: 0.5 * (y - t) ** 2, torch.zeros(2), (torch.eye(2), torch.ones(2)))
    >>> G.to_torch()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    doors.function(f)
    doors.function(loss, "loss")
    doors.parameters(params)
    doors.options(chunk_size=chunk_size, layers=layers)
    parts = [_present(pair) for pair in batches(data)]
    return _represent(PMatImplicit.sum_of(GaussNewton(f, loss), params, parts), representation, layers, chunk_size)


def _present(pair: tuple[Any, Any]) -> tuple[Any, ...]:
    return pair[:1] if pair[1] is None else pair


def _represent(F: PMatImplicit, representation: type[PMat], layers: Any, chunk_size: int | None) -> PMat:
    """The matrix-free matrix in another representation."""
    name = getattr(representation, "__name__", repr(representation))
    if name == "PMatImplicit":
        return F
    if name == "PMatDense":
        check_dense(F.layout.numel, "PMatDense", "use PMatImplicit or PMatDiag", dtype=F.dtype)
        return PMatDense(F.to_torch(chunk_size=chunk_size), F.layout)
    if name == "PMatDiag":
        return PMatDiag(F.get_diag(chunk_size=chunk_size), F.layout)
    if name == "PMatBlockDiag":
        if layers is None:
            raise ValueError(
                "layers: got None, expected a LayerCollection for PMatBlockDiag; make one with "
                "fisher.LayerCollection.from_function(f, params, x)"
            )
        return representation(_blocks(F, layers), layers)  # type: ignore[call-arg]
    raise ValueError(
        f"representation: got {name}, expected PMatDense, PMatDiag, PMatBlockDiag or PMatImplicit; a second derivative has "
        "no Kronecker factors: use fisher.fim for those"
    )


def _blocks(F: PMatImplicit, layers: Any) -> dict[str, Tensor]:
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
