"""Inner products and distances of two factorized matrices, over all layers, without forming them where kinds agree."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from linmaps.checks import Params
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.checks.precision import HALF
from linmaps.factorized.kinds import KINDS, Kind
from linmaps.factorized.spec import Factorized
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius, positive_root


@door
@typed
def inner(spec: Factorized, params: Params, other_spec: Factorized, other_params: Params) -> Tensor:
    """The inner product `<W, V> = sum conj(W) V` of two factorized matrices, over all layers, a scalar.

    Without forming them for specs of the same factorization, modes and layers, whose ranks may differ; else from
    `effective_W` of both.  ValueError where W and V have different shapes, or for params of another spec.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((2, 2), factorization="tt", rank=2)
    >>> params = spec.init(torch.Generator())
    >>> torch.allclose(inner(spec, params, spec, params), spec.norm(params) ** 2)
    True
    """
    kind, a, b, dtype = _alike("inner", spec, params, other_spec, other_params)
    return kind.inner(a, b).to(dtype)


@door
@typed
def distance(spec: Factorized, params: Params, other_spec: Factorized, other_params: Params) -> Tensor:
    """The Frobenius distance of two factorized matrices, over all layers, without forming them where `inner` does not.

        |W - V| = sqrt(max(|W|^2 + |V|^2 - 2 Re <W, V>, 0)),   with derivative 0 at 0.

    Close matrices cancel: the error is of the order of sqrt(eps) max(|W|, |V|), 1e-8 of them in float64 and 1e-3 in
    float32, and derivatives of smaller distances mean nothing; there take the norm of the difference of both `effective_W`,
    as is done for dense specs, and for those whose matrices `inner` forms.  ValueError as `inner`.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((2, 2), factorization="tt", rank=2, bias=False)
    >>> params = spec.init(torch.Generator())
    >>> half = linmaps.factorized.tensor_dropout(spec, params, {"r1": torch.tensor([0.5, 0.5])})
    >>> torch.allclose(distance(spec, params, spec, half), spec.norm(params) / 2)
    True
    """
    kind, a, b, dtype = _alike("distance", spec, params, other_spec, other_params)
    square = lambda: kind.squared_norm(a) + kind.squared_norm(b) - 2 * kind.inner(a, b).real
    size = frobenius(a["W"] - b["W"]) if kind.name == "dense" else positive_root(square())
    return size.to(dtype) if dtype in HALF else size


def _alike(
    what: str, spec: Factorized, params: Params, other: Factorized, leaves: Params
) -> tuple[Kind, Params, Params, torch.dtype]:
    """A kind with both params as its leaves, in one dtype to compute with, and the dtype of the result."""
    spec._check(params)
    other._check(leaves)
    if spec._W_shape != other._W_shape:
        got = f"{what}: W is {spec._W_shape} and {other._W_shape}, expected the same shape"
        raise ValueError(f"{got}; use spec.select(params, layer) for one of several")
    both = [{k: t for k, t in p.items() if k != "bias"} for p in (params, leaves)]
    dtype = functools.reduce(torch.promote_types, [t.dtype for p in both for t in p.values()])
    a, b = ({k: t.to(working_dtype(dtype)) for k, t in p.items()} for p in both)
    if len({(s.factorization, s.in_shape, s.out_shape) for s in (spec, other)}) == 1:
        return spec._kind, a, b, dtype
    return KINDS["dense"], {"W": spec._weight(a)}, {"W": other._weight(b)}, dtype
