"""Products with a matrix in factorized form: rows by the plan for so many, made once, rows of W, and W itself.

L layers; W [in, out], its rows and columns split into modes I and O; x [..., in].
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linmaps.base import Use, matrix, product
from linmaps.checks import Params, Shape
from linmaps.checks.annotations import typed
from linmaps.factorized.checkpoint import recompute
from linmaps.factorized.joint import Layers
from linmaps.factorized.kinds import KINDS, Kind, Leaves
from linmaps.factorized.kinds.joint import Layer
from linmaps.factorized.kinds.names import FactorizationName, Implementation
from linmaps.factorized.tensors.plan import Plan, least
from linmaps.factorized.tensors.plan import product as plain_product
from linmaps.numerics.numeric import by_planes


@functools.lru_cache(maxsize=4096)
def plan_for(name: str, r: Any, O: Shape, I: Shape, B: int, implementation: Implementation) -> Plan:
    ways = KINDS[name].ways(r, O, I, B)
    allowed = [
        title
        for title, way in ways.items()
        if implementation == "auto" or len(ways) == 1 or (way.options is None) == (implementation == "reconstructed")
    ]
    chosen = allowed[least([ways[title].cost.time for title in allowed])]
    return Plan(B, ways, chosen, plain_product(B, math.prod(I), math.prod(O)))


def multiply(
    kind: Kind, leaves: Leaves, x: Tensor, O: Shape, I: Shape, plan: Plan, *, checkpointing: bool = False
) -> Tensor:
    """`x W` for rows x [B, in]; real and complex numbers may meet."""
    f = _Product(kind, O, I, plan.ways[plan.chosen].options, tuple(leaves))
    tensors = _alike(x, *leaves.values())
    return recompute(f, *tensors) if checkpointing else f(*tensors)


@dataclass(frozen=True)
class _Product:
    """`x W` from x and the leaves, closing over no tensor."""

    kind: Kind
    O: Shape
    I: Shape
    options: dict[str, Any] | None
    names: tuple[str, ...]

    def __call__(self, x: Tensor, *leaves: Tensor) -> Tensor:
        params = dict(zip(self.names, leaves))
        if self.options is None:
            return x @ self.kind.matrix(params, self.O, self.I)
        return self.kind.apply(params, x, self.O, self.I, **self.options)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of them complex if one is."""
    if not any(t.is_complex() for t in tensors):
        return tensors
    return tuple(t.to(t.dtype.to_complex()) for t in tensors)


class Products(Layers):
    """What a tensorized map computes with its matrices, which are formed only where that costs less."""

    if TYPE_CHECKING:
        in_shape: Shape
        out_shape: Shape
        factorization: FactorizationName
        implementation: Implementation
        checkpointing: bool

    @typed
    def plan(self, rows: int) -> Plan:
        """The ways to multiply so many rows, their costs relative to a dense matrix, and the one that `apply` takes.

        >>> import linmaps
        >>> linmaps.Factorized((16, 16), (16, 16), factorization="lowrank", rank=4).plan(64)
        64 rows         multiplications  numbers moved  operations
        two products *            0.031          0.359           2
        dense                     1.062          1.688           2
        """
        return plan_for(self.factorization, self._layer_ranks, self.out_shape, self.in_shape, rows, self.implementation)

    @typed
    def effective_W(self, params: Params, layer: Layer = None) -> Tensor:
        """W [in, out]; of several layers [L, in, out], or that of one `layer`, or [K, in, out] of K of them.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), (3,), factorization="cp", rank=2, n_layers=5)
        >>> params = spec.init(torch.Generator())
        >>> spec.effective_W(params).shape, spec.effective_W(params, 4).shape
        (torch.Size([5, 4, 3]), torch.Size([4, 3]))
        """
        self._check(params)
        self._check_room(self.n_layers * self.in_features * self.out_features, "entries of W", "apply, or one layer")
        if layer is None:
            return matrix(Use("factorized", self._multiplied, self._weight, (), lends=self._lent), params)
        return self._over(lambda one: self._matrix(self._leaves(params, one)), self._index(layer, params))

    def _matrix(self, leaves: Params) -> Tensor:
        return self._kind.matrix(leaves, self.out_shape, self.in_shape)

    def _weight(self, params: Params) -> Tensor:
        if self.n_layers == 1:
            return self._matrix(params)
        every = torch.arange(self.n_layers, device=self._like(params).device)
        return torch.func.vmap(lambda one: self._matrix(self._leaves(params, one)))(every)

    @typed
    def apply(self, params: Params, x: Tensor, layer: Layer = None) -> Tensor:
        """`x @ W + b` for x [..., in], by the way that `implementation` allows and that costs least; the result is [..., out].

        layer: needed for several layers; a sequence or 1-d tensor of K gives [K, ..., out].  For a layer to each x use
        `torch.func.vmap(spec.apply, (None, 0, 0))(params, x, layers)`.

        ValueError or TypeError for params of another spec, another last axis of x, or no layer where there are several.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((2, 2), (3,), n_layers=2)
        >>> params, x = spec.init(torch.Generator()), torch.ones(7, 4)
        >>> spec.apply(params, x, layer=1).shape, spec.apply(params, x, layer=[1, 0, 1]).shape
        (torch.Size([7, 3]), torch.Size([3, 7, 3]))
        """
        self._check(params)
        self._check_x(params, x, "in_features", "apply: x")
        return self._over(lambda one: self._apply_layer(params, x, one), self._index(layer, params))

    def _apply_layer(self, params: Params, x: Tensor, layer: int | Tensor) -> Tensor:
        leaves = {k: t for k, t in self._leaves(params, layer).items() if k != "bias"}
        y = product(Use("factorized", self._multiplied, self._matrix, (self.in_features, self.out_features)), leaves, x)
        if not self.bias:
            return y
        return y + (params["bias"] if self.n_layers == 1 else params["bias"][layer])

    def _multiplied(self, leaves: Params, x: Tensor) -> Tensor:
        rows = math.prod(x.shape[:-1])
        how, plan = (self.out_shape, self.in_shape), self.plan(rows)
        by_plan = lambda leaves, x: multiply(self._kind, leaves, x, *how, plan, checkpointing=self.checkpointing)
        y = by_planes(by_plan, leaves, x.reshape(rows, self.in_features))
        return y.reshape(*x.shape[:-1], self.out_features)

    @property
    def _lent(self) -> tuple[str, ...]:
        return ("bias",) if self.bias else ()

    @typed
    def rows(self, params: Params, idx: Tensor, layer: Layer = None) -> Tensor:
        """Rows W[idx] for a tensor of ints idx [...]: [..., out], a factorized embedding.  W is not formed; no bias is added.

        Costs per row about what `apply` costs per row of x, divided by in.  Rows that come twice are computed twice.

        TypeError for an idx that is not a tensor of ints; IndexError for one outside -in..in-1, on a CPU.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((10, 10, 10), (4, 4, 4), factorization="blocktt", rank=4, bias=False)
        >>> params = spec.init(torch.Generator(), std=1.0)
        >>> spec.rows(params, torch.tensor([[3, 999], [0, 3]])).shape
        torch.Size([2, 2, 64])
        """
        self._check(params)
        if not isinstance(idx, Tensor) or idx.dtype == torch.bool or idx.is_floating_point() or idx.is_complex():
            got = idx.dtype if isinstance(idx, Tensor) else type(idx).__name__
            raise TypeError(f"{self._title}.rows: idx is {got}, expected a tensor of ints; use idx.long()")
        flat = idx.reshape(idx.numel())
        rest = torch.where(flat < 0, flat + self.in_features, flat)
        rest, multi = torch.where(rest < 0, self.in_features, rest), []
        for size in reversed(self.in_shape[1:]):
            multi.append(rest % size)
            rest = torch.div(rest, size, rounding_mode="floor")
        index = (rest, *reversed(multi))  # the first one is left too large by an index that is

        def chosen(one: int | Tensor) -> Tensor:
            found = self._kind.rows(self._leaves(params, one), index, self.out_shape, self.in_shape)
            return found.reshape(*idx.shape, self.out_features)

        return self._over(chosen, self._index(layer, params))
