"""Covariances of outputs layer by layer: no row of the Jacobian is made where it is a product g a'.

B examples, C outputs, S positions, I inputs and O outputs of a layer, D `[O, I]` eigenvalues and r = regul of its block in the
bases U of inputs and W of outputs: with a~ = U'a and g~ = W'g

    g a' (block + r)^-1 (g a')' = sum over o of g~_co g~_ko q_o,    q_o = sum over i of a~_i^2 / (D_oi + r).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import agreement, finiteness, purity
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.collector.collection import LayerCollection
from fisher.function_space.kernels import Product, Table, features
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.decompositions.eigenblocks import EigenBlock, right
from fisher.recipes.posterior import bases
from fisher.trials import functions, modes, once
from fisher.trials.data import several
from linmaps import trees


def of_layers(
    M: Layerwise,
    regul: Any,
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    joint: bool = False,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """`(y, C)`: f's outputs, and J_b (M + regul)^-1 J_b' `[B, C, C]`, or of all pairs `[B, C, B, C]`.

    check: try f at x, and hold u'J against autograd's gradient, as `fisher.jacobian` does; of a kind of x that was tried
    already, whether f is now random or mixes examples.
    """
    params, check = parameters(params, check), check and batch_size(x) > 0
    kind = once.kind_of(params, x, layers) if check else None
    tried = check and once.is_tried(f, kind)
    if check and not tried:
        functions.function(f, params, several([x]))
    y, found = features(f, params, x, layers, None)
    if tried:
        once.still_sound(f, params, x, y)
    elif check:
        _agree(f, params, x, layers, found)
        once.found_sound(f, kind)
    blocks, shapes = M._blocks(), M.shapes()
    own = M._shares(M._damping(regul), blocks)
    total: Any = 0.0
    for name, part in found.items():
        if name in blocks:
            total = total + _of_block(bases.cast(part, M.dtype), blocks[name], own[name], shapes[name], joint)
    finiteness.finite(y, "f(params, x)", "it overflows at these params and data")
    return y, total


def _of_block(part: Any, block: Any, regul: Any, shape: tuple[int, ...], joint: bool) -> Tensor:
    if isinstance(part, Product) and isinstance(block, EigenBlock):
        a, g = right(part.a, block.U), right(part.g, block.W)
        inverse = 1 / (block.D + regul)
        if joint:
            q = torch.einsum("bi,oi,xi->box", a, inverse, a)
            return torch.einsum("bco,box,xko->bcxk", g, q, g)
        return torch.einsum("bco,bo,bko->bck", g, a**2 @ inverse.mT, g)
    if isinstance(part, Table) and isinstance(block, EigenBlock) and block.U.ndim == 1 and not joint:
        g, entries = right(part.g, block.W), part.entries
        known = entries < part.size
        q = (1 / (block.D + regul)).mT[torch.where(known, entries, 0)]  # [B, S, O]
        same = ((entries[:, :, None] == entries[:, None, :]) & known[:, :, None]).to(g.dtype)
        spread = torch.einsum("bst,bkto->bkso", same, g)
        return torch.einsum("bcso,bso,bkso->bck", g, q, spread)
    rows = _rows(part)
    batch, width, n = rows.shape
    solved = block.solve(rows.reshape(batch * width, *shape), regul, "default").reshape(batch, width, n)
    if joint:
        return torch.einsum("bcn,xkn->bcxk", rows, solved)
    return rows @ solved.mT


def _rows(part: Any) -> Tensor:
    """The rows of J that belong to a layer, `[B, C, n]`."""
    if isinstance(part, Product):
        return torch.einsum("bco,bi->bcoi", part.g, part.a).flatten(2)
    if isinstance(part, Table):
        hot = part.entries[:, :, None] == torch.arange(part.size, device=part.entries.device)
        return torch.einsum("bcso,bsv->bcov", part.g, hot.to(part.g.dtype)).flatten(2)
    return part.rows


def _agree(f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection, found: dict[str, Any]) -> None:
    """Raise unless u'J of each layer is autograd's gradient of <u, f>."""
    y, back = purity.watched(f, params, x)
    u = agreement.generic(y)
    want = layers.views(layers.restrict(back(u)[0]))
    dtype = trees.leaves(params)[0].dtype  # under autocast f computes in others
    weights = u.reshape(len(u), -1).to(dtype)
    parts = {name: bases.cast(part, dtype) for name, part in found.items() if name in want}
    got = {name: _pulled(part, weights) for name, part in parts.items()}
    size = {name: _pulled(_absolute(part), weights.abs()) for name, part in parts.items()}
    tol = agreement.tolerance_of(f, params, x)
    largest = torch.stack([t.amax() for t in size.values() if t.numel()]).amax()
    for name, t in got.items():
        if not modes.adjoint(t, want[name].reshape(t.shape), size[name] + tol / 10 * largest, tol):
            raise ValueError(
                f"layers: {name}: the rows of its Jacobian do not add up to autograd's gradient, expected them to; the layers "
                "are those of another function: make F and the posterior of the same f"
            )


def _absolute(part: Any) -> Any:
    return trees.map(lambda t: t.abs() if isinstance(t, Tensor) and t.is_floating_point() else t, part)


def _pulled(part: Any, u: Tensor) -> Tensor:
    """u'J of a layer, as its flat view or its matrix."""
    if isinstance(part, Product):
        return torch.einsum("bc,bco,bi->oi", u, part.g, part.a)
    if isinstance(part, Table):
        g = torch.einsum("bc,bcso->bso", u, part.g).flatten(0, 1)
        empty = g.new_zeros(part.size + 1, g.shape[1])
        return empty.index_add(0, part.entries.flatten().clamp_max(part.size), g)[: part.size].mT
    return torch.einsum("bc,bcn->n", u, part.rows)
