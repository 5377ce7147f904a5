"""One layer, or some, of the several that a joint tensor holds: for matrices and for convolutions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linmaps.base.checked import Checked
from linmaps.checks import Params, Shape
from linmaps.checks.annotations import typed
from linmaps.factorized.kinds.base import Kind

Layer = int | Sequence[int] | Tensor | None


class Joint(Checked):
    """What a spec of a tensor does about its layers; n_layers is one of its options."""

    if TYPE_CHECKING:
        n_layers: int
        compat: bool
        ranks: Any

        @property
        def _kind(self) -> Kind: ...

    @property
    def _lead(self) -> Shape:
        return (self.n_layers,) if self.n_layers > 1 else ()

    @property
    def _layer_ranks(self) -> Any:
        return self.ranks if self.n_layers == 1 else self._kind.single(self.ranks)

    @typed
    def select(self, params: Params, layer: Layer) -> tuple[Any, dict[str, Tensor]]:
        """The spec and params of one layer, or, for several of them, of a joint tensor of these.

        layer: an int, a 0-d tensor of ints (under `vmap` too), a sequence or 1-d tensor for several.

        IndexError for an int beyond the layers.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), factorization="cp", rank=3, n_layers=4)
        >>> params = spec.init(torch.Generator())
        >>> one, leaves = spec.select(params, -1)
        >>> torch.equal(one.effective_W(leaves), spec.effective_W(params, -1))
        True
        """
        self._check(params)
        found = self._index(layer, params)
        if isinstance(found, Tensor) and found.ndim == 1 and len(found) == 1:
            found = found[0]
        if self.n_layers == 1:
            return self, dict(params)
        leaves = {k: t for k, t in params.items() if k != "bias"}
        if isinstance(found, Tensor) and found.ndim:
            chosen = self._kind.subset(leaves, found)
            spec = self._of_layers(len(found), self.ranks)
        else:
            chosen = self._kind.select(leaves, found)
            spec = self._of_layers(1, self._layer_ranks)
        return spec, chosen | ({"bias": params["bias"][found]} if self.bias else {})

    def _of_layers(self, n: int, ranks: Any) -> Any:
        return self._with(ranks, n_layers=n)

    def _with(self, ranks: Any, **changed: Any) -> Any:
        """The spec of other sizes, whose ranks may be more than these can use: they are taken as they are."""
        changed |= {} if ranks is None else {"rank": ranks}
        spec: Any = replace(self, **changed)  # type: ignore[type-var]
        return spec if spec.ranks == ranks else replace(self, **changed, compat=True)  # type: ignore[type-var]

    @typed
    def layers(self, params: Params) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """The spec and params of each layer in turn.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), n_layers=3)
        >>> len(list(spec.layers(spec.init(torch.Generator()))))
        3
        """
        return (self.select(params, layer) for layer in range(self.n_layers))

    def _index(self, layer: Layer, params: Params) -> int | Tensor:
        """The layer as an int, or as a tensor of ints; structure alone is checked, and ints."""
        if layer is None:
            if self.n_layers > 1:
                raise ValueError(f"{self._title}: layer is None, expected one of {self.n_layers}; pass layer=")
            return 0
        if isinstance(layer, Tensor):
            if layer.is_floating_point() or layer.is_complex() or layer.dtype == torch.bool or layer.ndim > 1:
                raise TypeError(
                    f"{self._title}: layer is a tensor of {layer.dtype} with {layer.ndim} axes, expected ints with 0 or 1"
                )
            return layer
        if isinstance(layer, (list, tuple, range)):
            return torch.tensor(
                [self._index(one, params) for one in layer], dtype=torch.long, device=next(iter(params.values())).device
            )
        try:
            index = operator.index(layer)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"{self._title}: layer is {type(layer).__name__}, expected an int, a sequence or a tensor of ints"
            ) from None
        if not -self.n_layers <= index < self.n_layers:
            raise IndexError(f"{self._title}: layer is {index}, expected one of {self.n_layers}")
        return index % self.n_layers

    def _leaves(self, params: Params, layer: int | Tensor) -> Params:
        return params if self.n_layers == 1 else self._kind.select(params, layer)

    def _over(self, f: Callable[[Any], Tensor], layer: int | Tensor) -> Tensor:
        """f of one layer, or of each of several."""
        several = isinstance(layer, Tensor) and layer.ndim == 1
        return torch.func.vmap(f)(layer) if several else f(layer)
