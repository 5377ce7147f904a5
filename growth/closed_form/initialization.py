"""New units without data: drawn as the layers around them are, or as a fresh layer is; and units in pairs that cancel.

k new units between `before` `[p, r]` and `after` `[q, p]` (times the kernel for convolutions).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.draws import check_draws, standard
from growth.closed_form.gates import ungated_pair
from growth.closed_form.normalization import deviation
from growth.closed_form.units import Neurons, check_units, live
from growth.reading.activations import constants
from growth.reading.layers import layers_of
from growth.reading.locate import unmapped
from growth.reading.pairs import Pair, bare
from linmaps.checks import number
from linmaps.numerics.dtypes import working

RuleName = Literal["copy_uniform", "copy_normal", "kaiming_uniform", "kaiming_normal", "zeros"]
RULES = get_args(RuleName)
Rule = RuleName | Callable[[tuple[int, ...], Tensor, int, torch.Generator | None], Tensor]


@door()
def initialize(
    params: Any,
    pair: Pair,
    k: int,
    *,
    fan_in: Rule = "copy_uniform",
    fan_out: Rule = "zeros",
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    sigma0: float | Tensor | None = None,
) -> Neurons:
    """k units for a pair of layers, whose entries have a standard deviation s given by a rule for each side.

        copy_uniform     U(-√3 s, √3 s)   s = std of the layer's weight (for biases, of its bias)
        copy_normal      N(0, s²)         the same s
        kaiming_uniform  U(-√3 s, √3 s)   s = √(2 / inputs)
        kaiming_normal   N(0, s²)         the same s
        zeros            0

    or a callable (shape, leaf, inputs, generator) -> tensor of that shape, leaf being the weight of the layer, or its
    bias for the new biases; shapes are `[k, r]`, `[k]`, `[q, k]`.  Inputs are r for fan_in, p + k for fan_out, times the
    kernel.  Where there is nothing to copy, fewer than two entries or all the same, copy falls back to kaiming.  With
    fan_out="zeros" the function is preserved, and both sides of a unit learn from the second step on.  A unit of ReLU may
    happen to be active for no input: data decide, see `growth.random` and `choose_sign`.

    draws: numbers of mean 0 and variance 1, `[k, r + q]` (with a bias `[k, r + 1 + q]`): fan_in, its bias, fan_out, in
    place of those of the generator, to map over ensembles; the rules then set s alone.  With a generator that takes
    `vmap(..., randomness="different")`.
    sigma0: the activation at 0, which `grow` compensates; None reads it from pair.activation, or takes 0 where that is
    None.  eigenvalues are 1 (0 for units that are zero on both sides); gains are 0, as nothing is known without data:
    `choose_sign` computes them, and zeroes the entries at the padding row of a table, which params alone do not tell: else do
    so by hand in the grown table, `grown["e.weight"][row, -k:] = 0`.

    Raises TypeError for a k that is no int, ValueError for k < 0, an unknown rule, one that draws without generator or
    draws, draws or a callable's answer of another shape.
    Source: He et al., "Delving deep into rectifiers" (2015) for kaiming.

    >>> import torch, growth
    >>> params = {"a.weight": torch.eye(3), "b.weight": torch.eye(3)}
    >>> new = growth.initialize(params, growth.Pair("a", "b"), 2, generator=torch.Generator().manual_seed(0))
    >>> new.fan_in.shape, new.fan_out.shape, new.fan_out.any()
    (torch.Size([2, 3]), torch.Size([3, 2]), tensor(False))
    """
    count(k)
    ungated_pair(pair, "initialize")
    unmapped(params, pair, "initialize")
    before, after = layers_of(params, pair)
    like = working(before.weight)
    r, q = sum(layer.inputs for layer in before.all), after.weight.shape[0] * after.taps
    bias = next((layer.bias for layer in before.all if layer.bias is not None), None)
    rows = r if bias is None else r + 1
    parts: list[Tensor | None] = [None, None, None]
    if draws is not None:
        check_draws(draws, (k, rows + q))
        parts = [draws[:, :r], draws[:, rows - 1], draws[:, rows:].mT]

    def draw(rule: Rule, name: str, shape: tuple[int, ...], leaf: Tensor, inputs: int, given: Tensor | None) -> Tensor:
        return _drawn(rule, name, shape, leaf.to(like), inputs, given, generator).to(like)

    A = draw(fan_in, "fan_in", (k, r), before.weight, r, parts[0])
    a = None if bias is None else draw(fan_in, "fan_in", (k,), bias, r, parts[1])
    inputs = (before.weight.shape[0] + k) * after.taps
    out = draw(fan_out, "fan_out", (q, k), after.weight, inputs, parts[2])
    if sigma0 is not None:
        number(sigma0, "sigma0")
    else:
        sigma0 = 0.0 if pair.activation is None else constants(pair.activation, like)[0]
    zero = like.new_zeros(k)
    new = Neurons(
        fan_in=A,
        fan_in_bias=a,
        fan_out=out,
        eigenvalues=zero,
        gains=zero,
        gain=zero.sum(),
        sigma0=sigma0 * like.new_ones(()),
        pair=bare(pair),
    )
    return dataclasses.replace(new, eigenvalues=live(new).to(like))


@door()
def paired(
    new: Neurons, *, noise: float | Tensor = 0.0, generator: torch.Generator | None = None, draws: Tensor | None = None
) -> Neurons:
    """`new` with its second half made the opposite of the first: fan_in (V, V), fan_out (Z, -Z) + noise std(Z) N(0, 1).

    Without noise the function is preserved for any activation, by finite units that learn at once: gradients are equal
    on one side, opposite on the other, so noise (or another learning rate) must tell them apart where fan_out alone
    would move.  noise: relative to the standard deviation over all entries of Z; gains leave it out, so that they cancel.
    draws: standard normal numbers `[q, k]` in place of those of the generator.

    Raises ValueError for an odd number of units, a negative noise, a noise without generator or draws, draws of another
    shape, and where `new` brings a joint delta.
    Source: Yuan, Savarese, Maire, "Accelerated training via incrementally growing neural networks using variance
    transfer and learning rate adaptation" (2023).

    >>> import torch
    >>> one, zero = torch.ones(()), torch.zeros(())
    >>> new = Neurons(torch.tensor([[1.0], [5.0]]), None, torch.ones(1, 2), torch.ones(2), torch.ones(2), 2 * one, zero)
    >>> paired(new).fan_in.mT, paired(new).fan_out
    (tensor([[1., 1.]]), tensor([[ 1., -1.]]))
    """
    check_units(new)
    number(noise, "noise", low=0, cure="it is relative to the entries of fan_out")
    if new.size % 2:
        raise ValueError(f"new: got {new.size} units, expected an even number: the second half mirrors the first")
    half = new.size // 2
    twice = lambda t: torch.cat([t[:half], t[:half]])
    opposite = lambda t: torch.cat([t[..., :half], -t[..., :half]], -1)
    gains = opposite(new.gains)
    new = dataclasses.replace(
        new,
        fan_in=twice(new.fan_in),
        fan_in_bias=None if new.fan_in_bias is None else twice(new.fan_in_bias),
        fan_out=opposite(new.fan_out),
        eigenvalues=twice(new.eigenvalues),
        gains=gains,
        gain=gains.sum(),
        gate=None if new.gate is None else twice(new.gate),
        gate_bias=None if new.gate_bias is None else twice(new.gate_bias),
    )
    if not isinstance(noise, Tensor) and noise == 0:
        return new
    unit = standard(tuple(new.fan_out.shape), new.fan_out, generator, draws)
    mask = live(new)
    size = noise * deviation(new.fan_out.mT, mask)
    return dataclasses.replace(new, fan_out=new.fan_out + torch.where(mask, size * unit, 0.0))


def _drawn(
    rule: Rule,
    name: str,
    shape: tuple[int, ...],
    leaf: Tensor,
    inputs: int,
    draws: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    if not isinstance(rule, str):
        if not callable(rule):
            raise TypeError(f"{name}: got {type(rule).__name__}, expected one of {list(RULES)} or a callable")
        value = rule(shape, leaf, inputs, generator)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: the callable returned {got}, expected a tensor {shape}")
        return value
    if rule not in RULES:
        raise ValueError(f"{name}: got {rule!r}, expected one of {list(RULES)} or a callable")
    if rule == "zeros":
        return leaf.new_zeros(shape)
    kind, _, distribution = rule.partition("_")
    size = (2 / max(inputs, 1)) ** 0.5 * leaf.new_ones(())
    if kind == "copy":
        own = deviation(leaf)
        size = torch.where(own > 0, own, size)
    return size * standard(shape, leaf, generator, draws, flat=distribution == "uniform")
