"""Enlarge params by new hidden units and changed weights: a new tree, the old one stays valid.

k new units between `before` `[p, r]` and `after` `[q, p]`; new units come last.  Weights of convolutions have the kernel
behind; the units' own vectors are flat (fan_in `[k, r kernel]`, fan_out `[q taps, k]`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from growth.checks.doors import door
from growth.checks.records import owned
from growth.closed_form.delta import Delta
from growth.closed_form.gates import check_gate
from growth.closed_form.units import Neurons
from growth.reading.along import joined
from growth.reading.gated_pairs import Gated
from growth.reading.layers import Layer, layers_of
from growth.reading.leaves import vectors
from growth.reading.link import centre
from growth.reading.locate import unmapped
from growth.reading.pairs import Pair, as_list, check_pairs
from growth.reading.probe import wider
from linmaps import trees
from linmaps.checks import number
from linmaps.trees import path_str
from linmaps.trees.tree import Tree

New = Neurons | list[Neurons] | list[Neurons | None] | None
Change = Delta | list[Delta] | list[Delta | None] | None
Scale = float | Tensor | tuple[float | Tensor, float | Tensor]


@door()
def grow(
    params: Tree,
    pair: Pair | Sequence[Pair],
    new: New = None,
    *,
    delta: Change = None,
    scale: Scale | list[Scale] = 1.0,
) -> Tree:
    """`params` enlarged by the units `new` between the layers of `pair`, and changed by `delta`.

        U -> [U; √t A]      c -> [c; √t a]      W -> [W - s ΔW, √t Ω]      b -> b - s Δb - √t Σ_j Ω_j σ(0)

    with amplitudes (s, t) = scale, or one number for both; a is fan_in_bias.  The last term takes away the constant
    that units with σ(0) != 0 would add.  Old entries keep their place, and bit by bit their value where nothing is
    added to them; at t = 0 the function is the same.  Containers, dtypes and devices are those of params.

    pair, new, delta may be lists of one length (entries of new and delta may be None); neighbours are allowed in either
    order, in one call or in several: an update computed before a neighbour grew is padded with zeros.
    Of a `Gated` pair U, c are those of `up`, and the gate gets its new rows as they are, at any t: G -> [G; a].
    Leaves of `pair.norm` get what is the identity: weight 1, bias 0, mean 0, variance 1; of a batch norm that `statistics` saw
    the mean and the variance of the unit's output, and the weight and bias that undo them, so that it is so in train mode too.
    Of `pair.depthwise` new kernels are 1 at their centre.  Slopes of the activation, one for each unit, get .25 (`Pair.along`;
    units made from `statistics` bring what was found there).
    Masked units (zero in, zero out), and all at t = 0, are added as they are, zero on both sides: no gradient will ever move
    them (where σ(0) = 0).  `growth.step` and `fit_and_grow` give them generic incoming weights; by hand take fresh ones for
    those that are masked, `merge_neurons(compact(new), initialize(params, pair, n, generator=g))`.
    The tensors are connected to params by autograd: detach them to make new leaves for an optimizer.
    Differentiable in everything; entries go as √t, whose infinite derivative at t = 0 is reported as 0.

    Raises ValueError (path, got, expected) for layers that do not match, updates larger than the layers or with a
    bias that the layer has not, a negative t; nothing is decided by values of tensors.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p = {"a.weight": torch.eye(2), "b.weight": torch.ones(1, 2)}
    >>> data, pair = (torch.eye(2), torch.zeros(2, 1)), growth.Pair("a", "b")
    >>> s = growth.statistics(f, p, data, pair, "squared_error")
    >>> {k: tuple(v.shape) for k, v in growth.grow(p, pair, growth.optimal_neurons(s, 3), scale=0.1).items()}
    {'a.weight': (5, 2), 'b.weight': (1, 5)}
    """
    pairs, _ = check_pairs(pair)
    units, deltas, scales = (as_list(v, len(pairs), n) for v, n in ((new, "new"), (delta, "delta"), (scale, "scale")))
    _once(pairs)
    for i in _in_turn(pairs):
        one, n, d, amplitude = pairs[i], units[i], deltas[i], scales[i]
        s, root = amplitudes(amplitude)
        if d is not None:
            params = _changed(params, one, d, s)
        if n is not None:
            params = _widened(params, one, n, root)
        layers_of(params, one)
    return params


@door("f")
def apply_extended(
    f: Callable[..., Tensor],
    params: Any,
    pair: Pair | Sequence[Pair],
    new: New,
    delta: Change,
    scale: Scale | list[Scale],
    x: Any,
) -> Tensor:
    """The output of f on x as it will be after `grow`: `f(grow(params, pair, new, delta=delta, scale=scale), x)`.

    A preview by the formula of what is applied, hence exact for any f.  Raises where `grow` does, and ValueError where f is of
    one width: it names leaves between the layers that do not grow along (`Pair.along`), else what f raised.

    >>> import torch, growth
    >>> f = lambda p, x: (x @ p["a.weight"].T) @ p["b.weight"].T
    >>> p, pair = {"a.weight": torch.eye(2), "b.weight": torch.ones(1, 2)}, growth.Pair("a", "b")
    >>> delta = growth.Delta(torch.ones(1, 2), None, torch.tensor(0.0))
    >>> growth.apply_extended(f, p, pair, None, delta, 0.5, torch.eye(2))
    tensor([[0.5000],
            [0.5000]])
    """
    larger = grow(params, pair, new, delta=delta, scale=scale)
    pairs, _ = check_pairs(pair)
    with wider(f, params, added(pairs, as_list(new, len(pairs), "new")), x):
        return f(larger, x)


def added(pairs: Sequence[Pair], new: Sequence[Neurons | None]) -> list[tuple[Pair, int]]:
    """The pairs that get units, with all that grows along, and how many."""
    return [(joined(pair, n), n.fan_in.shape[0]) for pair, n in zip(pairs, new) if n is not None]


def _once(pairs: Sequence[Pair]) -> None:
    names = [p.names for p in pairs]
    twice = [p for p, name in zip(pairs, names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"pair: got {twice[0]} more than once, expected each pair once; join units by merge_neurons")


def _in_turn(pairs: Sequence[Pair]) -> list[int]:
    """Numbers of the pairs in which a packed one comes behind those that lead to its layer, whose rows it moves."""
    left, found = list(range(len(pairs))), []
    while left:
        led = {name for i in left for name in pairs[i].names[1]}
        free = (i for i in left if not (isinstance(p := pairs[i], Gated) and p.packed and path_str(p.packed) in led))
        found.append(next(free, left[0]))
        left.remove(found[-1])
    return found


def _changed(params: Any, pair: Pair, delta: Delta, s: float | Tensor) -> Any:
    owned(delta, "delta", pair, Delta, "optimal_delta")
    _, after = layers_of(params, pair)
    for layer, part in zip(after.all, _split(delta.weight, after, f"{pair}: delta.weight")):
        change = s * fitted(_kernels(part, layer.weight), layer.weight.shape, f"{pair}: delta.weight")
        params = layer.put(params, layer.weight - cast_like(change, layer.weight))
    if delta.bias is None:
        return params
    if not after.biased:
        raise ValueError(
            f"{pair}: delta has a bias, but {after.name} has none; give a delta of statistics of this pair"
        )
    return lowered(params, after, s * delta.bias, f"{pair}: delta.bias")


def lowered(params: Any, after: Layer, move: Tensor, name: str) -> Any:
    """params with the first bias of the layers less move."""
    path, bias = next((layer.bias_path, layer.bias) for layer in after.all if layer.bias is not None)
    return trees.replace(params, path, bias - cast_like(fitted(move, bias.shape, name), bias))  # type: ignore[arg-type]


def _split(flat: Tensor, layer: Layer, name: str) -> list[Tensor]:
    """Columns `[n, inputs]` of the layers that are added, one part for each; the first may have been narrower."""
    rest = [other.inputs for other in layer.others]
    if not rest:
        return [flat]
    if flat.ndim != 2 or flat.shape[1] < sum(rest):
        raise ValueError(f"{name}: got shape {tuple(flat.shape)}, expected [n, {layer.inputs + sum(rest)}]")
    return list(flat.split([flat.shape[1] - sum(rest), *rest], 1))


def _widened(params: Any, pair: Pair, new: Neurons, root: float | Tensor) -> Any:
    owned(new, "new", pair, Neurons, "optimal_neurons")
    check_gate(pair, new)
    pair = joined(pair, new)
    unmapped(params, pair, "grow")
    before, after = layers_of(params, pair)
    k = new.fan_in.shape[0]
    if new.fan_in.ndim != 2 or new.fan_out.ndim != 2 or new.fan_out.shape[1] != k:
        raise ValueError(
            f"{pair}: new has fan_in {tuple(new.fan_in.shape)} and fan_out {tuple(new.fan_out.shape)}, expected [k, r] "
            "and [q, k]; map over an ensemble with torch.func.vmap"
        )
    fan_out = _columns(new.fan_out, after, f"{pair}: new.fan_out")
    fan_out = fitted(
        fan_out, (after.weight.shape[0], k * after.columns, *after.weight.shape[2:]), f"{pair}: new.fan_out"
    )
    measured = {} if new.norm is None or len(pair.norms) != 1 else new.norm.leaves(new.fan_in, new.fan_in_bias, root)
    stem = path_str(pair.norms[0]) if measured else ""
    for path, leaf, entry, each in vectors(params, pair):
        own = measured.get(path_str(path).removeprefix(f"{stem}."))
        more = entry.expand(k * each, *entry.shape) if own is None else cast_like(own, leaf)
        params = trees.replace(params, path, torch.cat([leaf, more]))
    if before.gate is not None and new.gate is not None:
        if new.gate_bias is not None and before.gate.bias is None:
            raise ValueError(
                f"{pair}: new has a gate_bias, but {before.gate.name} has no bias; give units made for this pair"
            )
        rows = fitted(new.gate, (k, *before.gate.weight.shape[1:]), f"{pair}: new.gate")
        params = _appended(params, before.gate, rows, new.gate.new_zeros(k) if new.gate_bias is None else new.gate_bias)
    bias = _new_bias(pair, new, before, root)
    for layer, part in zip(before.all, _split(new.fan_in, before, f"{pair}: new.fan_in")):
        fan_in = fitted(_kernels(part, layer.weight), (k, *layer.weight.shape[1:]), f"{pair}: new.fan_in")
        params = _appended(params, layer, root * fan_in, bias)
        bias = torch.zeros_like(bias) if layer.bias is not None and bias is not None else bias
    weight = torch.cat([after.weight, cast_like(root * fan_out, after.weight)], 1)
    params = after.put(params, weight)
    if not after.biased:
        return params
    return lowered(params, after, root * (fan_out.flatten(1).sum(1) * new.sigma0), str(pair))


def _kernels(flat: Tensor, weight: Tensor) -> Tensor:
    """Rows `[n, inputs kernel]` in the shape of a convolution's weight `[n, inputs, *kernel]`; a dense layer's stay."""
    kernel = weight.shape[2:]
    if not kernel or flat.ndim != 2 or flat.shape[1] % math.prod(kernel):
        return flat
    return flat.reshape(flat.shape[0], flat.shape[1] // math.prod(kernel), *kernel)


def _columns(fan_out: Tensor, after: Layer, name: str) -> Tensor:
    """fan_out `[q taps, k]` in the shape of the weight of `after`, `[q, k, *kernel]` or `[q, k columns]`."""
    kernel, k = after.weight.shape[2:], fan_out.shape[1]
    if after.taps == 1:
        return fan_out.reshape(*fan_out.shape, *kernel)
    q = after.weight.shape[0]
    if fan_out.shape[0] == q and kernel:  # at the centre alone
        return _at_centre(fan_out, kernel)
    if fan_out.shape[0] % after.taps:
        raise ValueError(
            f"{name}: got {fan_out.shape[0]} rows, expected {q} outputs x {after.taps} taps, or {q} for the centre taps"
        )
    each = fan_out.unflatten(0, (-1, after.taps)).transpose(1, 2)  # [q, k, taps]
    return each.reshape(each.shape[0], k, *kernel) if kernel else each.flatten(1)


def _at_centre(fan_out: Tensor, kernel: Sequence[int]) -> Tensor:
    number = centre(tuple(kernel))
    flat = pad(fan_out[..., None], (number, math.prod(kernel) - number - 1))
    return flat.reshape(*fan_out.shape, *kernel)


def _new_bias(pair: Pair, new: Neurons, before: Layer, root: float | Tensor) -> Tensor | None:
    if not before.biased:
        if new.fan_in_bias is not None:
            raise ValueError(
                f"{pair}: new has a fan_in_bias, but {before.name} has no bias; give units made for this pair"
            )
        return None
    if new.fan_in_bias is None:
        return before.weight.new_zeros((new.fan_in.shape[0],))
    return root * new.fan_in_bias


def _appended(params: Any, before: Layer, rows: Tensor, bias: Tensor | None) -> Any:
    params = before.put(params, torch.cat([before.weight, cast_like(rows, before.weight)], 0))
    if bias is None or before.bias is None:
        return params
    return before.put_bias(params, torch.cat([before.bias, cast_like(bias, before.bias)]))


def fitted(t: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """An update of the shape before a neighbour grew, with zeros for the units that came last since."""
    if t.ndim != len(shape) or any(a > b for a, b in zip(t.shape, shape)):
        raise ValueError(
            f"{name}: got shape {tuple(t.shape)}, expected {tuple(shape)} (or less where a neighbouring pair has grown "
            "since); compute it from statistics of these params"
        )
    return pad(t, [n for a, b in zip(reversed(t.shape), reversed(shape)) for n in (0, b - a)])


def cast_like(t: Tensor, leaf: Tensor) -> Tensor:
    return t.to(dtype=leaf.dtype, device=leaf.device)


def amplitudes(scale: Scale) -> tuple[float | Tensor, float | Tensor]:
    """(s, √t) of a scale, a number, a scalar tensor, or a tuple of two of them."""
    parts = scale if isinstance(scale, tuple) else (scale, scale)
    if len(parts) != 2:
        raise ValueError(f"scale: got {len(parts)} numbers, expected one, or a tuple (t_delta, t_neurons)")
    s, t = parts
    name = "scale: t_neurons" if isinstance(scale, tuple) else "scale"
    number(s, "scale")
    number(t, name, low=0, cure="the amplitude of new units is shared as its square root")
    if isinstance(t, Tensor):
        positive = t > 0
        return s, torch.where(positive, torch.where(positive, t, 1.0).sqrt(), 0.0)
    return s, math.sqrt(t)
