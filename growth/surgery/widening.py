"""Widen a layer without changing the function: split units (Net2Net), twins of opposite sign, units that lead nowhere.

p hidden units of a pair, k new ones; r inputs of `before`, q outputs of `after`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.draws import in_rows
from growth.reading.calls import padding_row
from growth.reading.layers import Layer, layers_of
from growth.reading.leaves import vectors
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.surgery.heads import wider_heads
from growth.surgery.resize import gathered, indices, magnitude
from growth.surgery.same import Check, Function, as_seen, asked, same_function
from linmaps import trees
from linmaps.checks import number
from linmaps.trees.tree import Tree

Method = Literal["split", "pair", "zero_out"]
METHODS = get_args(Method)
Units = Sequence[int] | Tensor
# of new units: fan_in [k, r, *kernel], bias [k], fan_out [q, k columns, *kernel], rows of the gate [k, r]
Parts = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


@door("f")
def widen(
    params: Tree,
    pair: Pair | Heads,
    k: int,
    method: Method = "split",
    generator: torch.Generator | None = None,
    *,
    units: Units | None = None,
    noise: float = 0.0,
    draws: Tensor | None = None,
    rescale: bool = True,
    f: Function = None,
    x: Any = None,
    check: Check | None = None,
) -> Tree:
    """`params` with k more hidden units between the layers of a pair, computing the same function if f is elementwise there.

        split:     U -> [U; U_j],   W -> [W_i / m_i, W_j / m_j]     j the split units, m_i = 1 + how often i is split
        pair:      U -> [U; V; V],  W -> [W, Z, -Z]                  V, Z random; k even
        zero_out:  U -> [U; V],     W -> [W, 0]                      V random

    likewise biases (0 for random units) and kernels.  Leaves of `pair.norm` are copied for split and weight 1, bias 0,
    mean 0, variance 1 else; slopes of the activation (`pair.along`) copied and .25.  New units come last.

    units: which units are split, k indices; None: 0, 1, 2, ... in turn, or with a generator k random ones with
    repetition, as in Net2Net.  Random entries are normal, of the root mean square of the leaf they extend (r^-1/2 where
    that is empty or zero).
    noise: adds normal noise of `noise` times that size to the copies (split) or to -Z (pair).  Exact copies get the
    same gradients up to a factor for ever, so some noise is wanted before training; at 0 the function is kept to rounding.
    Of a `Gated` pair units have a row in `up` (U) and one in `gate`: copied by split, where noise moves U and W
    alone, else random in both, biases 0.
    draws: the standard normal numbers themselves in place of a generator, which maps over an ensemble: `[k, n]`, one row
    per new unit of its n = incoming weights + bias (if any) + outgoing weights (those of -Z are used for its noise) + weights
    in the gate (if any).

    Any elementwise activation keeps the function, since a copy computes what its unit does, and so does a batch norm, in
    train mode too.  Not kept: by layer and group norm, softmax and whatever else mixes the units; by a reshape of the
    hidden axis into heads or groups, between which new units at the end shift the others; by dropout, which drops copies
    apart, so that the mean alone is the same.  params do not tell these apart, f does, so without f this cannot know:

    f, x: the function and some inputs (check=(f, x) is the same).  f(params, x) and f(widened, x), before any noise, must then
    agree to rounding; ValueError where they differ, or f takes no other sizes, which says where a reshape of the hidden axis
    stands in the way.  Slopes of PReLU are then found; else name `pair.along`.  So is the padding row of a table, where no
    random numbers go; without f zero its new entries by hand, `wide["e.weight"][row, -k:] = 0`.

    A dense layer whose output f makes maps of, `unflatten(1, (-1, h, w))`, before a convolution or a transposed one: a unit is a
    map, h w rows of the dense layer (so U_j, V, c_j), as is seen by the sizes of the two.

    Heads in place of a pair: k more units at the end of each head, of q, k, v and out, widening (k, q) and (v, out) as the two
    sides of a pair: U is the rows of k and v, W those of q and the columns of out.  f divides by the root of the width d of the
    heads, so q is multiplied by √((d + k) / d); rescale=False: f has a constant there.  f must take d from params
    (`unflatten(-1, (n_heads, -1))`); torch's MultiheadAttention, whose d is embed_dim / num_heads, cannot be widened so.  Not
    kept: by rotary embeddings, which turn pairs of units by angles that depend on d, and by norms of q and k.  units: the same
    in each head.  draws: `[k, n]`, n the entries of one unit in all heads.  State: `grow_like(..., heads=heads)`.

    Raises ValueError (path, got, expected) for an unknown method, k < 0, odd k (pair), nothing to split, units or noise
    where they have no meaning, missing randomness, draws of another shape.
    Source: Chen, Goodfellow, Shlens, "Net2Net: accelerating learning via knowledge transfer" (2016).

    >>> import torch
    >>> p = {"a.weight": torch.tensor([[1.0], [2.0]]), "b.weight": torch.tensor([[4.0, 6.0]])}
    >>> widen(p, Pair("a", "b"), 1)
    {'a.weight': tensor([[1.],
            [2.],
            [1.]]), 'b.weight': tensor([[2., 6., 2.]])}
    """
    held, row = asked(f, x, check), None
    if held is not None:
        pair = pair if isinstance(pair, Heads) else as_seen(held, params, pair)
        exact = widen(params, pair, k, method, _again(generator), units=units, draws=draws, rescale=rescale)
        same_function(held, params, exact, pair)
        row = None if isinstance(pair, Heads) else padding_row(held[0], params, pair, held[1])
    p = 1 if isinstance(pair, Heads) else layers_of(params, pair)[0].weight.shape[0]
    _check(pair, p, k, method, noise, units)
    if not isinstance(pair, Heads) and not rescale:
        raise ValueError(
            f"rescale: got False for {pair}, expected True: it is of Heads, where f divides by a root of the width"
        )
    if isinstance(pair, Heads):
        return cast(Tree, wider_heads(params, pair, k, method, generator, units, noise, draws, rescale))
    before, after = layers_of(params, pair)
    random = method != "split" or noise != 0
    parts = _drawn(pair, before, after, k, generator, draws, row) if random and k else None
    if method == "split":
        at = _chosen(p, k, generator, units, before.weight.device)
        params = _split(params, pair, at, p)
        return cast(Tree, params if parts is None else _perturbed(params, pair, parts, noise, p))
    if parts is None:
        return params
    V, c, Z, G = parts
    V, Z, c = (
        V * magnitude(before.flat(before.weight)),
        Z * magnitude(after.weight),
        None if c is None else torch.zeros_like(c),
    )
    G = None if G is None or before.gate is None else G * magnitude(before.gate.weight)
    if method == "pair":
        half, mid = k // 2, k // 2 * after.columns
        V, Z = torch.cat([V[:half], V[:half]]), torch.cat([Z[:, :mid], noise * Z[:, mid:] - Z[:, :mid]], 1)
        G = None if G is None else torch.cat([G[:half], G[:half]])
    return cast(Tree, _appended(params, pair, (V, c, Z if method == "pair" else torch.zeros_like(Z), G)))


def _split(params: Any, pair: Pair, at: Tensor, p: int) -> Any:
    """The units `at` copied, with the outgoing weights shared."""
    every = torch.cat([torch.arange(p, device=at.device), at])
    times = torch.ones_like(every[:p]).index_add(0, at, torch.ones_like(at))
    params = gathered(params, pair, every)
    after = layers_of(params, pair)[1]
    share = times.index_select(0, every).repeat_interleave(after.columns).to(after.weight)
    return after.put(params, after.weight / share.reshape(share.shape[0], *[1] * (after.weight.ndim - 2)))


def _perturbed(params: Any, pair: Pair, parts: Parts, noise: float, p: int) -> Any:
    """Noise on the entries of the units behind the first p."""
    before, after = layers_of(params, pair)

    def noisy(t: Tensor, axis: int, old: int, draws: Tensor, rows: int = 1) -> Tensor:
        kept, copies = t.split([old, t.shape[axis] - old], axis)
        size = magnitude(kept.reshape(old * rows, -1) if rows > 1 else kept)
        return torch.cat([kept, copies + noise * size * draws], axis)

    params = before.put(params, noisy(before.weight, 0, p, parts[0], before.rows))
    params = after.put(params, noisy(after.weight, 1, p * after.columns, parts[2]))
    if before.bias is None or parts[1] is None:
        return params
    return before.put_bias(params, noisy(before.bias, 0, p, parts[1]))


def _appended(params: Any, pair: Pair, parts: Parts) -> Any:
    """New units behind the old ones."""
    before, after = layers_of(params, pair)
    k = parts[0].shape[0]
    new = [(path, entry.expand(k * each, *entry.shape)) for path, _, entry, each in vectors(params, pair)]
    for path, more in new:
        params = trees.replace(params, path, torch.cat([trees.get(params, path), more]))
    rows = [(before, parts[0], parts[1])]
    if before.gate is not None and parts[3] is not None:
        rows.append((before.gate, parts[3], None))
    # of a Sum the first alone leads to random units
    rows += [(layer, layer.weight.new_zeros(k, *layer.weight.shape[1:]), None) for layer in before.others]
    for layer, more, bias in rows:
        params = layer.put(params, torch.cat([layer.weight, more]))
        if layer.bias is not None:
            fresh = layer.bias.new_zeros(k, *layer.bias.shape[1:]) if bias is None else bias
            params = layer.put_bias(params, torch.cat([layer.bias, fresh]))
    return after.put(params, torch.cat([after.weight, parts[2]], 1))


def _drawn(
    pair: Pair,
    before: Layer,
    after: Layer,
    k: int,
    generator: torch.Generator | None,
    draws: Tensor | None,
    row: int | None,
) -> Parts:
    """Standard normal numbers in the shapes of k new units; 0 at the padding row of a table."""
    into, out = before.weight.shape[1:], (after.weight.shape[0], after.columns, *after.weight.shape[2:])
    sizes = [math.prod(into), 0 if before.bias is None else before.rows, math.prod(out)]
    sizes += [] if before.gate is None else [math.prod(into)]
    each = f"for each new unit its {sizes[0]} incoming weights, {sizes[1]} biases, {sizes[2]} outgoing weights"
    each += f", {sizes[3]} weights of the gate" if before.gate is not None else ""
    draws = in_rows(k, sum(sizes), before.weight, generator, draws, pair, each)
    fan_in, bias, fan_out, *gate = draws.to(before.weight).split(sizes, 1)
    fan_out = fan_out.reshape(k, *out).movedim(0, 1).flatten(1, 2)
    rows = gate[0].to(before.gate.weight) if before.gate is not None else None
    if row is not None:
        fan_in = torch.where(torch.arange(sizes[0], device=fan_in.device) == row, 0.0, fan_in)
    c = None if before.bias is None else bias.reshape(k, *before.bias.shape[1:])
    return fan_in.reshape(k, *into), c, fan_out.to(after.weight), rows


def _again(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator that draws what this one will, which stays where it is."""
    return None if generator is None else generator.clone_state()


def _chosen(p: int, k: int, generator: torch.Generator | None, units: Units | None, device: torch.device) -> Tensor:
    if units is not None:
        return indices(units, p, "units", device)
    if generator is not None:
        return torch.randint(p, (k,), generator=generator, device=generator.device).to(device)
    return torch.arange(k, device=device) % max(p, 1)


def _check(pair: Pair | Heads, p: int, k: int, method: Method, noise: float, units: Units | None) -> None:
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {list(METHODS)}")
    count(k)
    number(noise, "noise", low=0, tensor=False, cure="it is relative to the size of the weights")
    if method == "pair" and k % 2:
        raise ValueError(f"k: got {k}, expected an even number for method='pair': its units come as twins")
    if method == "split" and k and not p:
        raise ValueError(f"{pair}: has no hidden unit to split, expected at least one; use method='zero_out'")
    if method == "zero_out" and noise:
        raise ValueError(f"noise: got {noise}, expected 0 for method='zero_out', whose units are random already")
    if units is not None and (method != "split" or len(units) != k):
        raise ValueError(
            f"units: got {len(units)} for k={k}, method={method!r}, expected k indices of units to split, or None"
        )
