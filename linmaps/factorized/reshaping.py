"""Some places of the modes of a tensorized matrix, and one mode more, without leaving its factors."""

from __future__ import annotations

import builtins
import math
from typing import Self, get_args

from torch import Tensor

from linmaps.checks import Params, require
from linmaps.checks import size as check_size
from linmaps.checks.annotations import typed
from linmaps.factorized.kinds.base import Places, Side, before
from linmaps.factorized.kinds.places import place_of, places_of
from linmaps.factorized.products import Products
from linmaps.factorized.tensors.multilinear import amid, taken


class Reshaped(Products):
    """What a tensorized map does about its modes."""

    @typed
    def slice(self, params: Params, *index: builtins.slice) -> tuple[Self, dict[str, Tensor]]:
        """The spec and params of a part of the tensor: one slice for each mode, those of in_shape first, then of out_shape.

        W of it is the part of W, `W.reshape(*in_shape, *out_shape)[index]`, and so is the bias; steps and negative bounds are
        as Python means them, a negative step turns a mode around.  All layers are cut alike; `select` takes one.  Only the
        leaves are cut, so ranks stay, even those that the smaller sizes cannot use (compat=True then).  The params
        share no memory with the given ones.

        TypeError for an int, which would leave no mode: `slice(i, i + 1)`; ValueError for another number of slices, or one
        that takes nothing.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((4, 3), (2, 5), factorization="tt", rank=2)
        >>> params = spec.init(torch.Generator())
        >>> part, leaves = spec.slice(params, slice(1, 3), slice(None), slice(None, None, -1), slice(-2, None))
        >>> part.in_shape, part.out_shape
        ((2, 3), (2, 2))
        >>> T = spec.effective_W(params).reshape(4, 3, 2, 5)[1:3, :, :, -2:].flip(2)
        >>> torch.allclose(part.effective_W(leaves), T.reshape(6, 4))
        True
        """
        self._check(params)
        title, q = f"{self._title}.slice", len(self.in_shape)
        names = {f"in_shape[{k}]": n for k, n in enumerate(self.in_shape)}
        names |= {f"out_shape[{k}]": n for k, n in enumerate(self.out_shape)}
        places = places_of(index, names, title)
        ins, outs = places[:q], places[q:]
        leaves = {k: t for k, t in params.items() if k != "bias"}
        cut = self._kind.cut(leaves, self.n_layers, self.out_shape, self.in_shape, outs, ins)
        sizes = {"in_shape": tuple(map(len, ins)), "out_shape": tuple(map(len, outs))}
        if self.bias:
            cut["bias"] = self._cut_bias(params["bias"], outs)
        return self._with(self.ranks, **sizes), {k: cut[k].clone() for k in params}

    def _cut_bias(self, bias: Tensor, outs: Places) -> Tensor:
        lead = bias.shape[:-1]
        b = bias.reshape(*lead, *self.out_shape)
        for axis, places in enumerate(outs, len(lead)):
            b = taken(b, axis, places)
        return b.reshape(*lead, math.prod(map(len, outs)))

    @typed
    def transduct(
        self, params: Params, size: int, mode: int = 0, *, side: Side = "in"
    ) -> tuple[Self, dict[str, Tensor]]:
        """The spec and params with one mode more, of that size: the tensor at its middle, zeros elsewhere.

        mode: the place that it will have in in_shape, or with side="out" in out_shape; -1 is the last.  The middle is place
        (size - 1) // 2.  So `W.reshape(*in_shape, *out_shape)` is 0 but where the new mode is at its middle, and so
        is the bias of a new out mode.  Every kind gets one small leaf more, or longer leaves where W is one matrix, and keeps
        its ranks; blocktt, whose modes are pairs, gets a mode of size 1 on the other side, at the same place.  The zeros are
        free params: training fills them.  The params share no memory with the given ones.

        ValueError or TypeError for a size below 1, a mode beyond the places there are, or another side.

        >>> import torch, linmaps
        >>> spec = linmaps.Factorized((4, 3), (2, 5), factorization="cp", rank=2)
        >>> params = spec.init(torch.Generator())
        >>> longer, leaves = spec.transduct(params, 3)
        >>> longer.in_shape, longer.n_params - spec.n_params
        ((3, 4, 3), 6)
        >>> x = torch.ones(7, 3, 12)
        >>> torch.allclose(longer.apply(leaves, x.reshape(7, 36)), spec.apply(params, x[:, 1]))
        True
        """
        self._check(params)
        title = f"{self._title}.transduct"
        check_size(size, f"{title}: size", 1)
        require(side in get_args(Side), ValueError, f"{title}: side is {side!r}, expected 'in' or 'out'")
        shapes = {"in": self.in_shape, "out": self.out_shape}
        at = place_of(mode, len(shapes[side]), title)
        self._check_room(size * self.n_layers * self.out_features, "parameters", "a smaller size")
        leaves = {k: t for k, t in params.items() if k != "bias"}
        ranks, longer = self._kind.insert(
            leaves, self.ranks, self.n_layers, self.out_shape, self.in_shape, int(size), side, at
        )
        if self.bias:
            bias = params["bias"]
            lead = bias.shape[:-1]
            b = amid(bias.reshape(*lead, *self.out_shape), len(lead) + at, int(size)) if side == "out" else bias
            longer["bias"] = b.reshape(*lead, math.prod(b.shape[len(lead) :]))
        new = {s: before(shape, at, int(size)) for s, shape in shapes.items() if s == side or self._kind.paired}
        new |= {s: before(shapes[s], at, 1) for s in new if s != side}
        spec = self._with(ranks, **{f"{s}_shape": tuple(shape) for s, shape in new.items()})
        return spec, {k: longer[k].clone() for k in spec.shapes()}
