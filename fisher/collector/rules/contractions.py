"""Rules for products with a weight of any axes: einsum, tensordot, batched and one-sided products, bilinear forms.

A call is written in three words of letters, for x, for the weight and for z, as in an einsum.  Letters of x and the weight
alone are inputs, of the weight and z outputs, of all three groups, of x and z alone shared axes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from fisher.collector.rules.forms import Arrangement, Contraction, Elementwise, Form
from fisher.collector.rules.match import Lookup, Match, View, bind

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
Words = tuple[str, str, str]


def contraction(kind: str, words: Words, x: Tensor, w: Tensor, seen: View) -> Match | None:
    """The match of a product in these words; None where it is no product `z = W a` at each position."""
    left, right, z = words
    if any(len(set(word)) < len(word) for word in words) or (len(left), len(right)) != (x.ndim, w.ndim):
        return None
    if seen.shape is not None and seen.shape != tuple(w.shape):  # repeated along an axis
        return None
    right = right[::-1] if seen.transposed else right  # of the leaf as it is
    into = [c for c in right if c in left and c not in z]
    out = [c for c in right if c in z and c not in left]
    groups = [c for c in right if c in z and c in left]
    shared = [c for c in left if c in z and c not in right]
    if right and z == left and right == "".join(groups) == "".join(c for c in left if c in right) != left:
        if not (seen.whole or (seen.rows is None and not seen.transposed)):
            return None
        return Match(
            "scale", seen, None, x, Elementwise(shape=tuple(n if c in right else 1 for c, n in zip(left, x.shape)))
        )
    if len(groups) > 1 or (groups and right[0] != groups[0]) or len(into) + len(out) + len(groups) < len(right):
        return None
    if not shared or len(shared) + len(groups) + len(into) < len(left) or len(z) > len(shared) + len(groups) + len(out):
        return None
    lead = "".join(shared)
    if (
        len(into) == len(out) == 1
        and not groups
        and (left, z) == (lead + into[0], lead + out[0])
        and seen.shape is None
    ):
        form = Form(right[0] == into[0])
        return Match(kind, seen, None, x, form) if seen.rows is None or form.sliceable else None
    if seen.rows is not None and seen.shape is None:
        return None
    place = lambda word, letters: tuple(word.index(c) for c in letters)
    n_groups, rest, skip = (w.shape[0], right[1:], 2) if groups else (1, right, 0)  # axis 0 is split by groups
    if n_groups == 1 and groups:
        return None
    form = Contraction(
        x_axes=place(left, shared + groups + into),
        z_axes=place(z, shared + groups + out),
        features=(len(groups) + len(into), len(groups) + len(out)),
        weight=Arrangement(
            (1,) * bool(groups) + tuple(k + skip for k in place(rest, out)),
            tuple(k + skip for k in place(rest, into)),
            n_groups,
            seen.shape,
        ),
    )
    return Match(kind, seen, None, x, form)


def _weighted(one: Any, other: Any, view: Lookup) -> tuple[Tensor, Tensor, View, bool] | None:
    """(x, weight, its view, whether the weight comes first) where one of two tensors is a leaf and the other is not."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or (view(one) is None) == (view(other) is None):
        return None
    first = view(one) is not None
    x, w = (other, one) if first else (one, other)
    seen = view(w)
    return None if seen is None or not x.ndim else (x, w, seen, first)


def einsum(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.einsum("...", x, W)`, with an ellipsis in x and z, with or without an arrow."""
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if len(operands) != 2 or not isinstance(args[0], str):
        return None
    found = _weighted(operands[0], operands[1], view)
    if found is None:
        return None
    x, w, seen, first = found
    terms, arrow, z = args[0].replace(" ", "").partition("->")
    words = terms.split(",")
    left, right = words[::-1] if first else words
    if not arrow:
        once = sorted(c for c in set(left + right) - {"."} if (left + right).count(c) == 1)
        z = "..." * ("." in left) + "".join(once)
    if "." in right:
        return None
    more = "".join(c for c in LETTERS if c not in args[0])[: x.ndim - len(left.replace("...", ""))]
    return contraction("einsum", (left.replace("...", more), right, z.replace("...", more)), x, w, seen)


def tensordot(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.tensordot(x, W, dims)`, in either order."""
    a, b, dims = bind(("a", "b", "dims"), args, kwargs, (None, None, 2))
    found = _weighted(a, b, view)
    if found is None or isinstance(dims, Tensor):
        return None
    x, w, seen, first = found
    pairs = ([*range(a.ndim - dims, a.ndim)], [*range(dims)]) if isinstance(dims, int) else dims
    of_a, of_b = LETTERS[: a.ndim], list(LETTERS[a.ndim : a.ndim + b.ndim])
    for i, j in zip(*pairs):
        of_b[j % b.ndim] = of_a[i % a.ndim]
    z = "".join(c for c in of_a if c not in of_b) + "".join(c for c in of_b if c not in of_a)
    left, right = ("".join(of_b), of_a) if first else (of_a, "".join(of_b))
    return contraction("tensordot", (left, right, z), x, w, seen)


def inner(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.inner(x, W)`: over the last axes of both."""
    one, other = bind(("input", "other"), args, kwargs, (None, None))
    found = _weighted(one, other, view)
    if found is None:
        return None
    x, w, seen, first = found
    left, right = LETTERS[: x.ndim - 1] + "Z", LETTERS[x.ndim - 1 : x.ndim + w.ndim - 2] + "Z"
    z = (right[:-1], left[:-1]) if first else (left[:-1], right[:-1])
    return contraction("inner", (left, right, "".join(z)), x, w, seen)


def product(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`x @ W` and `W @ x` for weights of any axes: leading axes that both have are groups, that x alone has are shared."""
    one, other = bind(("input", "other"), args, kwargs, (None, None))
    found = _weighted(one, other, view)
    if found is None:
        return None
    x, w, seen, first = found
    a, b = (w, x) if first else (x, w)
    if 0 in (a.ndim, b.ndim):
        return None
    lead = LETTERS[: max(a.ndim, b.ndim, 2) - 2]  # aligned at the right
    own = seen.shape if seen.shape is not None and len(seen.shape) == w.ndim else tuple(w.shape)
    thin = lambda t: [  # broadcast; of a weight whatever axis holds one matrix alone, or one that is repeated
        k for k in range(t.ndim - 2) if (own[k] == 1 if t is w else t.shape[k] == 1 and _wide(a, b, k - t.ndim))
    ]
    words = [
        "".join(c for k, c in enumerate(lead[len(lead) - max(t.ndim - 2, 0) :]) if k not in thin(t)) for t in (a, b)
    ]
    of_a, of_b = words[0] + "Y" * (a.ndim > 1) + "X", words[1] + "X" + "Z" * (b.ndim > 1)
    z = lead + "Y" * (a.ndim > 1) + "Z" * (b.ndim > 1)
    if thin(w):
        if seen.transposed or (seen.rows is not None and seen.shape is None):
            return None
        w, drop = w.movedim(thin(w), tuple(range(len(thin(w)))))[(0,) * len(thin(w))], set(thin(w))
        seen = dataclasses.replace(seen, shape=tuple(n for k, n in enumerate(own) if k not in drop))
    left, right = (of_b, of_a) if first else (of_a, of_b)
    return contraction("matmul", (left, right, z), x.squeeze(thin(x)) if thin(x) else x, w, seen)


def _wide(a: Tensor, b: Tensor, axis: int) -> bool:
    """Whether one of the two has more than one entry along a leading axis, counted from the right."""
    return any(t.ndim >= -axis and t.shape[axis] > 1 for t in (a, b))


def bmm(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.bmm(x, W)`, a weight for each group."""
    return product(bind(("input", "mat2"), args, kwargs, (None, None)), {}, view)


def mv(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`torch.mv(x, w)`: one output."""
    return product(bind(("input", "vec"), args, kwargs, (None, None)), {}, view)


def bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], view: Lookup) -> Match | None:
    """`F.bilinear(x, y, W, b)`: z_o = sum over i, j of x_i W_oij y_j, a product with the outer products x y'."""
    x, y, w, b = bind(("input1", "input2", "weight", "bias"), args, kwargs, (None, None, None, None))
    seen, bias = view(w), view(b) if b is not None else None
    if any(view(t) is not None for t in (x, y)) or x.ndim < 2:
        return None
    if seen is None:
        return Match("bias", None, bias, None) if bias is not None else None
    if not seen.whole:
        return None
    lead = LETTERS[: x.ndim - 1]
    match = contraction("bilinear", (lead + "YZ", "XYZ", lead + "X"), x[..., :, None] * y[..., None, :], w, seen)
    return None if match is None else dataclasses.replace(match, bias=bias)
