"""What is known of a matrix before it does anything: its space, its numbers, and which vectors fit it."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor

from fisher.checks.placements import placed_methods
from fisher.likelihoods import Likelihood
from fisher.pmat.contract import maps
from fisher.pmat.contract.origin import keep_origin
from linmaps import trees
from linmaps.checks import alike
from linmaps.checks.arguments import some_floating
from linmaps.checks.precision import full_precision_methods
from linmaps.trees import Layout
from linmaps.trees.tree import Tree

DENSE = "use PMatDense(F.to_torch(), F.layout)"


class Stored:
    """Numbers on a space: size, dtype, device, what they print as, and the likelihood that they were made with."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_origin(cls)
        placed_methods(cls)
        full_precision_methods(cls, annotated=True)

    layout: Layout  # structure and shapes of params: a static field, or a property
    # of a matrix as `fim` made it, for those who predict with it; no part of the tree: what is made of the matrix has None
    likelihood: ClassVar[Likelihood | None] = None
    _layers_of: ClassVar[Any] = None  # the same of the layers that names are of

    @property
    def linear(self) -> bool:
        """Whether the mean of the numbers stored is that of the matrices, so that leaves may be averaged or all-reduced.

        Of moments in Kronecker factors it is True by convention: the mean over batches of a PMatKFAC, as `fim` takes it, is
        that of its factors.  False for eigenbases, rows, and functions kept with their data: `fisher.Mean`, `fisher.ema`
        and `+` add such matrices as matrices.
        """
        return False

    def made_of(self, likelihood: Likelihood) -> Self:
        """The same matrix, that knows its likelihood."""
        made = copy.copy(self)
        object.__setattr__(made, "likelihood", likelihood)
        return made

    def on_layers(self, layers: Any) -> Self:
        """The same matrix, that knows its layers by name."""
        made = copy.copy(self)
        object.__setattr__(made, "_layers_of", layers)
        return made

    @property
    def known_layers(self) -> Any:
        """The LayerCollection that a mapping {layer: number} has names of, None where it is not known."""
        own = getattr(self, "layers", None)
        return own if hasattr(own, "views") and hasattr(own, "space") and hasattr(own, "__iter__") else self._layers_of

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # a likelihood of the user's own is not what torch.load reads without trust
        own = type(self.likelihood).__module__.partition(".")[0] == __name__.partition(".")[0]
        return {k: v for k, v in self.__dict__.items() if k != "likelihood" or own}

    # --- facts -----------------------------------------------------------------------------------------------------

    @overload
    def size(self, dim: None = None) -> tuple[int, int]: ...
    @overload
    def size(self, dim: int) -> int: ...
    def size(self, dim: int | None = None) -> tuple[int, int] | int:
        """(d, d), or d for a given axis."""
        if dim is not None and dim not in (0, 1, -1, -2):
            raise ValueError(f"size: got dim {dim}, expected 0 or 1")
        d = self.layout.numel
        return (d, d) if dim is None else d

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers stored."""
        return self._like().dtype

    @property
    def device(self) -> torch.device:
        """Of the numbers stored."""
        return self._like().device

    @property
    def _space(self) -> Any:
        """What says which dtypes and device vectors have."""
        return self

    def _like(self) -> Tensor:
        return (*trees.leaves(self), torch.zeros(0))[0]

    def __repr__(self) -> str:
        leaves = [t for t in trees.leaves(self) if isinstance(t, Tensor)]  # pytrees put other things into records
        stored = sum(t.numel() for t in leaves)
        kind = f"{str(leaves[0].dtype).removeprefix('torch.')}, {leaves[0].device}" if leaves else "no tensor"
        return f"{type(self).__name__}({self._about()}d = {self.layout.numel:,}, {stored:,} numbers stored, {kind})"

    def _about(self) -> str:
        return ""

    # --- checks ----------------------------------------------------------------------------------------------------

    def check_vector(self, v: Tree, name: str = "v") -> Tree:
        """v with its mappings as those of params; ValueError or TypeError that names the path unless it is a tree like params."""
        one = some_floating(self._space)
        if one is not None and self.layout.fits(v, like=one):
            return v  # as nearly always
        v = self.check_space(v, name)
        alike(v, name, self._space, f"the {type(self).__name__}", strict=True)
        return v

    def check_space(self, v: Tree, name: str = "v") -> Tree:
        """v with its mappings as those of params; ValueError that names the path unless it has their structure and shapes."""
        return maps.fitting(self.layout, v, name)

    def check_single(self, ndim: int, t: Tensor) -> None:
        """Raise unless `t` has `ndim` axes: one more is a stacked ensemble."""
        if t.ndim != ndim:
            raise ValueError(
                f"{type(self).__name__}: a tensor of shape {tuple(t.shape)}, expected {ndim} axes; for a stacked ensemble "
                "use torch.func.vmap(lambda F, v: F.mv(v))(F, v)"
            )

    def _unsupported(self, method: str, cure: str) -> ValueError:
        return ValueError(f"{type(self).__name__}.{method}: no such function of this representation; {cure}")


full_precision_methods(Stored, annotated=True)
