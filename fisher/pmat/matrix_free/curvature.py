"""Curvatures of one batch: products J'H J v, each by one forward-mode and one reverse-mode pass for any number of outputs.

B batch, C outputs, K columns; y `[B, *out]` the output of f, u `[B, *out]` a direction in function space.
Each curvature is a frozen record of functions, static; `product` and the rest are sums over the examples of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad

from fisher.checks.axes import batch_size
from fisher.checks.reverse_mode import reverse
from fisher.collector.exact_rows import rows_of
from fisher.derivatives.forward import both_ways, jvp, slope_along
from fisher.derivatives.plain import plainly
from fisher.likelihoods import Likelihood, counts
from fisher.likelihoods.columns import Exact, counted
from fisher.likelihoods.held import Emptied
from fisher.likelihoods.weights import spread
from linmaps import trees

Batch = tuple[Any, ...]


def fisher_vector(likelihood: Likelihood, y: Tensor, u: Tensor) -> Tensor:
    """H u `[B, *out]`, with H_b the Fisher matrix of the output distribution at y_b.

    By the `product` of the likelihood; of one without, by the columns of its root, sum over K of r (r'u).

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> fisher_vector(Categorical(), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    tensor([[ 0.2500, -0.2500]])
    """
    if hasattr(likelihood, "product"):
        return likelihood.product(y, u)
    return columns_vector(likelihood.root(y), u)


def columns_vector(columns: Tensor, u: Tensor) -> Tensor:
    """Sum over K of r (r'u) `[B, *out]`, for columns r `[K, B, *out]`; r'u is taken example by example.

    >>> import torch
    >>> columns_vector(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[1.0, 0.0]]))
    tensor([[1., 1.]])
    """
    axes = tuple(range(2, columns.ndim))
    inner = (columns * u).sum(axes, keepdim=True) if axes else columns * u
    return (columns * inner).sum(0)


class Curvature:
    """The sums over one batch that a matrix-free matrix is made of."""

    def product(self, params: Any, batch: Batch, v: Any) -> Any:
        """Sum over b of J_b'H_b J_b v."""
        raise AttributeError("a curvature defines product")

    def quadratic(self, params: Any, batch: Batch, v: Any) -> Tensor:
        """Sum over b of v'J_b'H_b J_b v."""
        return trees.dot(v, self.product(params, batch, v))

    def columns(self, params: Any, batch: Batch) -> Tensor | None:
        """A root of H: columns `[K, B, *out]`; None where there is none."""
        return None


@trees.static
@dataclasses.dataclass(frozen=True)
class OutputCurvature(Curvature):
    """J'H J with H in closed form at f's output: subclasses define `at_output`."""

    f: Callable[..., Tensor]

    def at_output(self, y: Tensor, u: Tensor, batch: Batch) -> Tensor:
        """H u."""
        raise AttributeError("a curvature defines at_output")

    def product(self, params: Any, batch: Batch, v: Any) -> Any:
        y, u, back = both_ways(lambda p: self.f(p, batch[0]), params, v)
        return back(self.at_output(y, u, batch))

    def quadratic(self, params: Any, batch: Batch, v: Any) -> Tensor:
        y, u = jvp(lambda p: self.f(p, batch[0]), (params,), (v,))
        return (u * self.at_output(y, u, batch)).sum()

    def pulled(self, params: Any, batch: Batch, w: Tensor) -> Any:
        """J'w for w `[B, *out]`."""
        return reverse(lambda p: plainly(self.f)(p, batch[0]), params)[1](w)[0]


@trees.static
@dataclasses.dataclass(frozen=True)
class FisherCurvature(OutputCurvature):
    """H from a likelihood; batch (x, target or (), the likelihood's tensors, weight or ()): `likelihood` is what of it is
    static."""

    likelihood: Likelihood | Emptied

    def _of(self, batch: Batch) -> Likelihood:
        return self.likelihood.filled(batch[2]) if isinstance(self.likelihood, Emptied) else self.likelihood

    def at_output(self, y: Tensor, u: Tensor, batch: Batch) -> Tensor:
        which, weight = self._of(batch), _given(batch[3])
        found = counted(fisher_vector(which, y, u), counts(which, y, _given(batch[1])))
        return found if weight is None else spread(which, y, weight) * found

    def columns(self, params: Any, batch: Batch) -> Tensor | None:
        y = plainly(self.f)(params, batch[0])
        return Exact(self._of(batch))(y, _given(batch[1]), _given(batch[3]))


def _given(part: Any) -> Any:
    """None where there is no target or no weight: in a tuple torch's pytrees would take None for a leaf."""
    return None if isinstance(part, tuple) else part


@trees.static
@dataclasses.dataclass(frozen=True)
class ColumnCurvature(OutputCurvature):
    """H = sum of r r' of stored columns r; batch (x, columns `[K, B, *out]`)."""

    def at_output(self, y: Tensor, u: Tensor, batch: Batch) -> Tensor:
        return columns_vector(batch[1], u)

    def columns(self, params: Any, batch: Batch) -> Tensor | None:
        return batch[1]


@trees.static
@dataclasses.dataclass(frozen=True)
class GaussNewton(OutputCurvature):
    """H the Hessian of a loss (y, target) -> `[B]` with respect to y; batch (x, target), and the weight `[B]` if weighted."""

    loss: Callable[[Tensor, Any], Tensor]
    weighted: bool = False

    def at_output(self, y: Tensor, u: Tensor, batch: Batch) -> Tensor:
        rest, weight = _apart(batch[1:], self.weighted)
        return jvp(grad(lambda y: _sum(self.loss(y, *rest), weight)), (y,), (u,))[1]  # type: ignore[misc]


@trees.static
@dataclasses.dataclass(frozen=True)
class HessianCurvature(Curvature):
    """The Hessian of the sum of loss(params, x, y), `[B]` or the mean over the batch (x, y): forward over reverse.

    weighted: the batch has a weight `[B]` at its end, and the loss is `[B]`.
    """

    loss: Callable[..., Tensor]
    weighted: bool = False

    def product(self, params: Any, batch: Batch, v: Any) -> Any:
        n = batch_size(batch[0])
        args, weight = _apart(batch, self.weighted)
        if weight is None:
            return slope_along(lambda p: n * self.loss(p, *args).mean(), params, v)
        return slope_along(lambda p: _sum(self.loss(p, *args), weight), params, v)


def _apart(parts: Batch, weighted: bool) -> tuple[Batch, Tensor | None]:
    return (parts[:-1], parts[-1]) if weighted else (parts, None)


def _sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.sum()
    if losses.shape != weight.shape:
        raise ValueError(
            f"loss: got a result of shape {tuple(losses.shape)} with weights {tuple(weight.shape)}, expected a loss for each: "
            "use reduction='none'"
        )
    return (weight.to(losses.dtype) * losses).sum()


def example_columns(f: Callable[..., Tensor], params: Any, x: Any, columns: Tensor) -> Any:
    """Gradients J_b'r_kb of each column at each example, a tree `[B, K, *leaf]`: memory B K d.

    >>> import torch
    >>> example_columns(lambda p, x: x * p, torch.tensor(2.0), torch.tensor([3.0, 4.0]), torch.ones(1, 2))
    tensor([[3.],
            [4.]])
    """

    flat, treedef = trees.flatten(params)
    output = lambda own, x: plainly(f)(treedef.unflatten([own[n] for n in range(len(flat))]), x)
    found = rows_of(output, dict(enumerate(flat)), x, columns)
    return treedef.unflatten([found[n].transpose(0, 1) for n in range(len(flat))])
