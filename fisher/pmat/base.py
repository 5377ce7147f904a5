"""PMat: a symmetric matrix on parameter space as a frozen record of tensors with a static layout.

d parameters, v a tree like params.  A PMat is a pytree: it passes through vmap, grad, torch.save.  Of an ensemble (from
`vmap(lambda p: fim(...))`) use the methods by `vmap(lambda F, v: F.mv(v))(F, v)`.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.trees import Layout

Regul = float | Tensor


class PMat:
    """Methods common to all representations; F(theta) = 1/B sum over b of J_b' H_b J_b."""

    layout: Layout  # structure and shapes of params: a static field, or a property

    def mv(self, v: Any) -> Any:
        """F v, a tree like v."""
        raise AttributeError("a representation defines mv")

    def solve(self, v: Any, regul: Regul = 1e-8) -> Any:
        """(F + regul I)^-1 v."""
        raise AttributeError("a representation defines solve")

    def get_diag(self) -> Any:
        """The diagonal of F, a tree like params."""
        raise AttributeError("a representation defines get_diag")

    def to_torch(self) -> Tensor:
        """F as a `[d, d]` tensor in the flat order of `linmaps.trees.ravel`."""
        raise AttributeError("a representation defines to_torch")

    def scaled(self, alpha: Regul) -> PMat:
        """alpha F."""
        raise AttributeError("a representation defines scaled")

    # --- derived -------------------------------------------------------------------------------------------------

    def vTMv(self, v: Any) -> Tensor:
        """v' F v, a scalar."""
        return trees.dot(v, self.mv(v))

    def trace(self) -> Tensor:
        """Sum of the diagonal."""
        return sum(t.sum() for t in trees.leaves(self.get_diag()))  # type: ignore[return-value]

    def size(self, dim: int | None = None) -> tuple[int, int] | int:
        """(d, d), or d for a given axis."""
        if dim is not None and dim not in (0, 1, -1, -2):
            raise ValueError(f"size: got dim {dim}, expected 0 or 1")
        d = self.layout.numel
        return (d, d) if dim is None else d

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, PMat):
            raise ValueError(
                f"{type(self).__name__} @ {type(v).__name__}: expected a tree like params on the right; use to_torch()"
            )
        return self.mv(v)

    def __mul__(self, alpha: Regul) -> PMat:
        if not isinstance(alpha, Number) and not (isinstance(alpha, Tensor) and alpha.ndim == 0):
            raise TypeError(f"{type(self).__name__} * {type(alpha).__name__}: expected a number or a scalar tensor")
        return self.scaled(alpha)  # type: ignore[arg-type]

    __rmul__ = __mul__

    def __truediv__(self, alpha: Regul) -> PMat:
        return self * (1 / alpha)

    def __neg__(self) -> PMat:
        return self.scaled(-1.0)

    def __add__(self, other: PMat) -> PMat:
        """F + G; the same representation where the sum has it, else a `PMatSum`."""
        from fisher.pmat.sum import add

        return add(self, other)

    def __sub__(self, other: PMat) -> PMat:
        return self + (-other)

    def check_vector(self, v: Any, name: str = "v") -> None:
        """Raise a ValueError that names the path unless v is a tree like params."""
        self.layout.check(v, name)

    def check_single(self, ndim: int, t: Tensor) -> None:
        """Raise unless `t` has `ndim` axes: one more is a stacked ensemble."""
        if t.ndim != ndim:
            raise ValueError(
                f"{type(self).__name__}: a tensor of shape {tuple(t.shape)}, expected {ndim} axes; for a stacked ensemble "
                "use torch.func.vmap(lambda F, v: F.mv(v))(F, v)"
            )

    def __repr__(self) -> str:
        t = trees.leaves(self)[0] if trees.leaves(self) else torch.zeros(0)
        stored = sum(u.numel() for u in trees.leaves(self))
        kind = f"{str(t.dtype).removeprefix('torch.')}, {t.device}"
        return f"{type(self).__name__}({self._about()}d = {self.layout.numel:,}, {stored:,} numbers stored, {kind})"

    def _about(self) -> str:
        return ""


def check_regul(regul: Regul) -> None:
    """A number must not be negative (a tensor is not looked at)."""
    if isinstance(regul, Number) and not regul >= 0:  # type: ignore[operator]
        raise ValueError(f"regul: got {regul}, expected a number >= 0")
