"""Gradients of single examples against the inverse of each layer's block, as products where they are such.

B examples, S shared (positions, repeated uses), T positions, I inputs, O outputs, V entries of a table.  With the inverse
(W (x) U) diag(D) (W (x) U)' of a block, g~ = W'g and a~ = U'a, the gradient sum over s of g_s a_s' has the coordinates
sum over s of g~_s a~_s', S (O^2 + I^2) multiplications beside the O I (O + I) of the gradient as a matrix, and at one position
its form is

    (g a')' (block + regul I)^-1 g a' = sum over o, i of g~_o^2 D_oi a~_i^2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.collector.products import AT_ONCE, joined
from fisher.pmat.contract.inverses import Inverse
from fisher.recipes.influences.contracts import nothing, own_products, positions, some
from fisher.recipes.influences.sides import Factors, Gradients, Side, unfolded
from linmaps.numerics.dtypes import working_dtype

Inverses = dict[str, Inverse]
Found = Tensor | Factors  # of one layer


def of_whole(solve: Callable[[Any], Any], theirs: Side, ours: Side, part: Any, per_token: bool) -> dict[str, Tensor]:
    """theirs_b' (F + regul I)^-1 ours_b of each example by layer, `[B]`, per_token with a term for each position, `[B, T]`: by
    the solves of whole gradients."""
    space, rows = ours.space, ours.rows(*part)
    found = space.views(solve(rows if theirs is ours else theirs.rows(*part)))
    if per_token and space.layers is not None:
        return own_products(found, ours.gradients(*part), space.layers)
    beside = space.views(rows)
    return {name: (t * beside[name])[..., None].flatten(1).sum(1) for name, t in found.items()}


def of_factors(inverses: Inverses, theirs: Side, ours: Side, part: Any, per_token: bool) -> dict[str, Tensor]:
    """The same by inverses of layers."""
    right = ours.gradients(*part)
    left = right if theirs is ours else theirs.gradients(*part)
    if per_token and ours.space.layers is not None:
        return own_terms(inverses, left, right, ours.space.layers)
    return own_forms(inverses, left, right)


def solved(inverses: Inverses, gradients: Gradients) -> dict[str, Tensor]:
    """(F + regul I)^-1 times each gradient by layer, rows `[B, *view]`."""
    return {name: _solved(P, gradients[name]) for name, P in inverses.items()}


def own_forms(inverses: Inverses, left: Gradients, right: Gradients) -> dict[str, Tensor]:
    """left_b' (F + regul I)^-1 right_b of each example by layer, `[B]`."""
    return {name: _form(P, left[name], right[name]) for name, P in inverses.items()}


def own_terms(inverses: Inverses, left: Gradients, right: Gradients, layers: LayerCollection) -> dict[str, Tensor]:
    """The same with a term for each position of the example on the right, `[B, T]`; ValueError as of `contracts.positions`."""
    found = {} if nothing(right) else _terms(inverses, left, right, positions(right, layers))
    rest = {name: P for name, P in inverses.items() if name not in found}
    return found | own_products(solved(rest, left), right, layers)


def _terms(inverses: Inverses, left: Gradients, right: Gradients, T: int) -> dict[str, Tensor]:
    """Of the layers whose factors are few enough to be turned."""
    found = {}
    for name, P in inverses.items():
        one, other = left[name], right[name]
        if one is other and _few_entries(other, P):
            terms = _by_entry(P, other)
        elif _few_products(other, P):
            terms = torch.cat([_by_position(P, *pair) for pair in _parts(one, other, other.layer.numel)])
        else:
            continue
        found[name] = terms.unflatten(-1, (-1, T)).sum(-2).to(_dtype(other))
    return found


def _form(P: Inverse, left: Found, right: Found) -> Tensor:
    if _few_entries(right, P) and left is right:
        parts = [_by_entry(P, right).sum(-1)]
    elif left is right and _few_products(right, P) and _shared(right) == 1:
        parts = [_at_one_position(P, right)]
    elif P.spectral is not None:
        each = right.layer.numel if isinstance(right, Factors) else right[:1].numel()
        parts = [_by_coordinates(P, *pair) for pair in _parts(left, right, each)]
    else:
        parts = [(P.solve(unfolded(left)) * unfolded(right))[..., None].flatten(1).sum(1)]
    return torch.cat(parts).to(_dtype(right))


def _at_one_position(P: Inverse, found: Factors) -> Tensor:
    a, g = _turned(P, found)
    return (torch.einsum("bs...o,...oi->bs...i", g**2, P.spectral.D.to(g.dtype)) * a**2).flatten(1).sum(1)


def _by_coordinates(P: Inverse, left: Found, right: Found) -> Tensor:
    Z = _coordinates(P, left)
    other = Z if right is left else _coordinates(P, right)
    return (Z * P.spectral.D.to(Z.dtype) * other)[..., None].flatten(1).sum(1)


def _by_position(P: Inverse, left: Found, right: Factors) -> Tensor:
    """Terms `[B, S]` of products."""
    a, g = _turned(P, right)
    Z = P.spectral.D.to(g.dtype) * _coordinates(P, left)
    return (torch.einsum("b...oi,bs...i->bs...o", Z, a) * g).flatten(2).sum(2)


def _by_entry(P: Inverse, found: Factors) -> Tensor:
    """Terms `[B, S]` of a lookup: D_oi times g~_so times the sum over t of g~_to, for all s and t whose index is i."""
    parts = _parts(found, found, _shared(found) ** 2)
    return torch.cat([_at_entries(P, *_turned(P, one), found.layer.shape[1]) for one, _ in parts])


def _at_entries(P: Inverse, entry: Tensor, g: Tensor, size: int) -> Tensor:
    known = entry < size  # else what uses nothing
    same = ((entry[:, :, None] == entry[:, None, :]) & known[:, None, :]).to(g.dtype)
    return (P.spectral.D.to(g.dtype).mT[torch.where(known, entry, 0)] * (same @ g) * g).sum(-1)


def _solved(P: Inverse, found: Found) -> Tensor:
    if not P.by_factors:
        return P.solve(unfolded(found))
    D = P.spectral.D
    return P.spectral.from_diag(D * _coordinates(P, found).to(D.dtype)).to(_dtype(found))


def _coordinates(P: Inverse, found: Found) -> Tensor:
    """Those of each gradient in the basis, in a dtype to compute in."""
    if _few_products(found, P):
        a, g = _turned(P, found)
        return torch.einsum("bs...o,bs...i->b...oi", g, a)
    rows = unfolded(found)
    return P.spectral.to_diag(rows.to(P.spectral.D.dtype)).to(working_dtype(rows.dtype))


def _turned(P: Inverse, found: Factors) -> tuple[Tensor, Tensor]:
    """a~ `[B, S, I]`, of a lookup its index `[B, S]`, and g~ `[B, S, O]`: in the basis, in a dtype to compute in."""
    a, (g,) = joined(*found)
    dtype, wide = working_dtype(g.dtype), P.spectral.D.dtype
    turned = P.spectral.of_outputs(g.to(wide)).to(dtype)
    return (a if found.layer.diagonal else P.spectral.of_inputs(a.to(wide)).to(dtype)), turned


def _few_products(found: Found, P: Inverse) -> TypeGuard[Factors]:
    """Whether products are turned by their factors, or need not be, with less work than as matrices."""
    if not P.by_factors or not isinstance(found, Factors):
        return False
    layer, S = found.layer, _shared(found)
    if not layer.kronecker or layer.inner or layer.diagonal:
        return False
    O, I = P.spectral.D.shape[-2:]
    return S * (O * O + I * I) <= O * I * (O + I)


def _few_entries(found: Found, P: Inverse) -> TypeGuard[Factors]:
    """Whether a lookup has fewer positions than its table entries."""
    if not P.by_factors or not isinstance(found, Factors) or not found.layer.diagonal or found.layer.inner:
        return False
    return _shared(found) <= found.layer.shape[1]


def _shared(found: Factors) -> int:
    return sum(t.shape[1] for t in found.a)


def _parts(left: Found, right: Found, each: int) -> Iterator[tuple[Any, Any]]:
    """Both for some examples at a time, so that not too many numbers, `each` per example, are held."""
    size, batch = max(1, AT_ONCE // max(1, each)), len(right.g[0][0]) if isinstance(right, Factors) else len(right)
    for k in range(0, max(1, batch), size):
        one = some(right, k, k + size)
        yield (one if left is right else some(left, k, k + size)), one


def _dtype(found: Found) -> torch.dtype:
    return found.g[0].dtype if isinstance(found, Factors) else found.dtype
