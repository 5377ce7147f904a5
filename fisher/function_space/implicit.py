"""PFMapImplicit: a Jacobian as two functions, its products by forward and by reverse mode.

B examples, C outputs, d parameters; v a tree like params, u `[B, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor

from fisher.checks.axes import batch_size
from fisher.checks.doors import entry
from fisher.checks.reverse_mode import reverse
from fisher.derivatives.forward import jvp
from fisher.derivatives.plain import plainly
from fisher.function_space.pfmap import PFMap, PFMapDense
from fisher.function_space.rows import dense, outputs
from linmaps import trees
from linmaps.checks import alike
from linmaps.checks.annotations import typed
from linmaps.trees import Layout


@trees.record(static=("f",))
class PFMapImplicit(PFMap):
    """J of f at params and x without J: `jvp` by one forward-mode pass, `vjp` by one reverse pass, whatever C is.

    >>> import torch
    >>> J = PFMapImplicit(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> J.jvp({"w": torch.ones(2, 1)}).T, J.vjp(torch.ones(2, 1))["w"].T
    (tensor([[3., 7.]]), tensor([[4., 6.]]))
    """

    f: Callable[..., Tensor]
    params: Any
    x: Any

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return Layout.of(self.params)

    def jvp(self, v: Any) -> Tensor:
        v = self.layout.check(v, "v")
        alike(v, "v", self.params, "params", strict=True)
        flat, output = self._output()
        return jvp(output, (flat,), (trees.leaves(v),))[1]

    @typed
    def vjp(self, u: Tensor) -> Any:
        flat, output = self._output()
        y, back = reverse(output, flat)
        if tuple(u.shape) != tuple(y.shape):
            self._check_outputs(u)
        return self.layout.unflatten(back(u)[0])

    @typed
    def to_dense(self, *, chunk_size: int | None = None) -> PFMapDense:
        """The same as a PFMapDense."""
        return dense(self.f, self.params, [self.x], chunk_size=chunk_size)

    def to_torch(self) -> Tensor:
        """J as a `[B, C, d]` tensor."""
        return self.to_dense().to_torch()

    @overload
    def size(self, dim: None = None) -> tuple[int, int, int]: ...
    @overload
    def size(self, dim: int) -> int: ...
    @typed
    def size(self, dim: int | None = None) -> tuple[int, int, int] | int:
        flat, output = self._output()
        sizes = (*output(flat).shape, self.layout.numel)
        return entry(sizes, dim)

    def __repr__(self) -> str:
        return f"PFMapImplicit(B = {batch_size(self.x)}, d = {self.layout.numel:,})"

    def _output(self) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
        flat, treedef = trees.flatten(self.params)
        return flat, lambda flat: outputs(plainly(self.f), treedef.unflatten(flat), self.x)
