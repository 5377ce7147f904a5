"""Linear maps from parameter space to function space, dense or matrix-free: what `fisher.jacobian` returns.

B examples, C outputs (all output axes of an example, flattened), d parameters; v a tree like params, u `[B, C]`.
"""

from __future__ import annotations

from numbers import Number
from typing import Any, overload

import torch
from torch import Tensor

from fisher.checks.doors import entry
from linmaps import trees
from linmaps.checks import alike
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision_methods
from linmaps.trees import Layout


class PFMap:
    """What the dense and the matrix-free Jacobian share: `jvp`, `vjp`, `size`, `J @ v`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        full_precision_methods(cls)

    layout: Layout

    def jvp(self, v: Any) -> Tensor:
        """J v, `[B, C]`, for a tree v like params."""
        raise AttributeError("a map defines jvp")

    @typed
    def vjp(self, u: Tensor) -> Any:
        """J' u = sum over b, c of u_bc J_bc, a tree like params, for u `[B, C]`."""
        raise AttributeError("a map defines vjp")

    @overload
    def size(self, dim: None = None) -> tuple[int, int, int]: ...
    @overload
    def size(self, dim: int) -> int: ...
    @typed
    def size(self, dim: int | None = None) -> tuple[int, int, int] | int:
        """(B, C, d), or one of them."""
        raise AttributeError("a map defines size")

    def __matmul__(self, v: Any) -> Tensor:
        return self.jvp(v)

    def _check_outputs(self, u: Tensor) -> None:
        want = self.size()[:2]
        if tuple(u.shape) != want:
            raise ValueError(
                f"vjp: got u of shape {tuple(u.shape)}, expected {want}: one number per example and output; for several "
                "vectors use torch.func.vmap"
            )


@trees.record(static=("layout",))
class PFMapDense(PFMap):
    """J in memory: a tree like params whose leaves have the axes `[B, C]` in front; memory B C d.

    Closed under +, -, and products with a scalar.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> J = fisher.jacobian(f, {"w": torch.ones(2, 1)}, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> J.jvp({"w": torch.ones(2, 1)}).T, (2.0 * J).vjp(torch.ones(2, 1))["w"].T, J.size()
    (tensor([[3., 7.]]), tensor([[ 8., 12.]]), (2, 1, 2))
    """

    jacobian: Any
    layout: Layout

    def jvp(self, v: Any) -> Tensor:
        v = self.layout.check(v, "v")
        alike(v, "v", self.jacobian, "the map", strict=True)
        parts = [r @ t.reshape(t.numel()) for r, t in zip(self._flat(), trees.leaves(v))]
        return sum(parts[1:], parts[0])

    @typed
    def vjp(self, u: Tensor) -> Any:
        self._check_outputs(u)
        parts = [torch.einsum("bcn,bc->n", r, u) for r in self._flat()]
        return self.layout.unflatten([t.reshape(s) for t, s in zip(parts, self.layout.shapes)])

    def to_torch(self) -> Tensor:
        """J as a `[B, C, d]` tensor, its last axis in the flat order of `linmaps.trees.ravel`."""
        return torch.cat(self._flat(), -1)

    @overload
    def size(self, dim: None = None) -> tuple[int, int, int]: ...
    @overload
    def size(self, dim: int) -> int: ...
    @typed
    def size(self, dim: int | None = None) -> tuple[int, int, int] | int:
        sizes = (*self._leading(), self.layout.numel)
        return entry(sizes, dim)

    def norm(self) -> Tensor:
        """Frobenius norm, a scalar."""
        return trees.norm(self.jacobian)

    def centered(self) -> PFMapDense:
        """J_b minus the mean over examples."""
        return PFMapDense(trees.map(lambda t: t - t.mean(0), self.jacobian), self.layout)

    @typed
    def __add__(self, other: PFMapDense) -> PFMapDense:
        if not isinstance(other, PFMapDense):
            raise TypeError(f"PFMapDense + {type(other).__name__}: expected a PFMapDense on the right")
        return PFMapDense(trees.add(self.jacobian, other.jacobian), self.layout)

    def __sub__(self, other: PFMapDense) -> PFMapDense:
        return self + -1.0 * other

    @typed
    def __mul__(self, alpha: float | Tensor) -> PFMapDense:
        if not isinstance(alpha, Number) and not (isinstance(alpha, Tensor) and alpha.ndim == 0):
            raise TypeError(f"PFMapDense * {type(alpha).__name__}: expected a number or a scalar tensor")
        return PFMapDense(trees.map(lambda t: alpha * t, self.jacobian), self.layout)

    __rmul__ = __mul__

    @typed
    def __truediv__(self, alpha: float | Tensor) -> PFMapDense:
        return self * (1 / alpha)

    def __neg__(self) -> PFMapDense:
        return self * -1.0

    def __repr__(self) -> str:
        return "PFMapDense(B = {}, C = {}, d = {:,})".format(*self.size())

    def _leading(self) -> tuple[int, int]:
        first, shape = trees.leaves(self.jacobian)[0], self.layout.shapes[0]
        if first.ndim != 2 + len(shape):
            raise ValueError(
                f"PFMapDense: a leaf of shape {tuple(first.shape)}, expected {2 + len(shape)} axes [B, C, *leaf]; for a "
                "stacked ensemble use torch.func.vmap(lambda J, v: J.jvp(v))(J, v)"
            )
        return tuple(first.shape[:2])

    def _flat(self) -> list[Tensor]:
        b, c = self._leading()
        return [t.reshape(b, c, n) for t, n in zip(trees.leaves(self.jacobian), self.layout.sizes)]


full_precision_methods(PFMap)
