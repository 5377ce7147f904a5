"""Regularizers on the bonds of a factorized tensor: dropout, lasso with its proximal map, pruning; inner products.

A bond is an index that is summed over between leaves.  A vector f_b [r_b] on each bond b multiplies the terms of that sum:
W(f) is linear in each f_b, and W(1) = W: weights * f_r in cp, U_k diag(f_k) in tucker, A_1 diag(f_1) A_2 diag(f_2) ... in
trains.  All of several layers share them; as the first mode of tucker and tt they add a bond.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from linmaps import trees
from linmaps.checks import Params, size
from linmaps.checks.door import door
from linmaps.checks.precision import HALF
from linmaps.checks.typed import typed
from linmaps.factorized.kinds import KINDS, Kind
from linmaps.factorized.spec import Factorized
from linmaps.numerics.linalg import positive_root
from linmaps.numerics.numeric import frobenius, working

OnBonds = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Number = float | Tensor
Dtype = torch.dtype | None
Device = torch.device | str | None


@typed
def bonds(spec: Factorized) -> dict[str, int]:
    """Name and rank of each bond: "r" of lowrank and cp, "r0".. of the modes of tucker, "r1".. between cores; none of dense.

    >>> import linmaps
    >>> bonds(linmaps.Factorized((4, 4), (4, 4), factorization="tt", rank=3))
    {'r1': 3, 'r2': 3, 'r3': 3}
    """
    return spec._kind.bonds(spec.ranks)


@typed
def dropout_mask(
    spec: Factorized,
    generator: Generator,
    p: float,
    *,
    min_rank: int = 2,
    min_keep: int = 1,
    dtype: Dtype = None,
    device: Device = None,
) -> dict[str, Tensor]:
    """Random factors for `tensor_dropout`: `m / (1 - p)`, m ~ Bernoulli(1 - p), independent for each value of each bond.

    min_keep: how many values of a bond are kept at least, those nearest to it; a bond without any makes W = 0.  With
    min_keep=0 the mean of the factors is 1, and so the mean of W is W.  With 1, the mean of each factor of a bond of rank r is
    1 + p^r / (r (1 - p)), and the mean of W is W times these of its bonds: for p = 0.5, 1.25 at rank 2, 1.03 at 4, 1.001 at 8.

    Bonds of a rank below min_rank get ones.  Drawn on the generator's device.
    dtype: torch's default unless given, for params in half precision too, since there 1 / (1 - p) is rounded.  Many masks:
    `torch.func.vmap(lambda _: dropout_mask(spec, generator, p), randomness="different")(torch.arange(n))`.

    ValueError for p outside [0, 1) or a negative min_keep; TypeError for no generator, or another dtype than real floating.
    Source: Kolbeinsson et al. 2021, for cp and tucker.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((4, 4), factorization="cp", rank=6)
    >>> dropout_mask(spec, torch.Generator().manual_seed(0), 0.5)
    {'r': tensor([2., 0., 2., 2., 2., 0.])}
    """
    title, dtype = f"{spec._title}: dropout_mask", torch.get_default_dtype() if dtype is None else dtype
    got = f"{title}: generator is {type(generator).__name__}, expected a torch.Generator"
    _require(isinstance(generator, Generator), TypeError, f"{got}; pass torch.Generator().manual_seed(seed)")
    _expect_number(p, f"{title}: p")
    _require(p < 1, ValueError, f"{title}: p is {p}, expected a probability below 1; p = 0 drops nothing")
    size(min_keep, f"{title}: min_keep", 0, None)
    real = getattr(dtype, "is_floating_point", False)
    _require(real, TypeError, f"{title}: dtype is {dtype}, expected a real floating torch.dtype, for complex W too")
    mask = {}
    for bond, r in bonds(spec).items():
        u = torch.rand(r, generator=generator, dtype=working(dtype), device=generator.device)
        kept = (u < 1 - p) | (u.argsort().argsort() < min_keep)
        factor = kept.to(u.dtype) / (1 - p) if r >= min_rank else torch.ones_like(u)
        mask[bond] = factor.to(device=device, dtype=dtype)
    return mask


@door
@typed
def tensor_dropout(spec: Factorized, params: Params, mask: OnBonds) -> dict[str, Tensor]:
    """Params of W(mask): each value of a bond times its entry of the mask.

    mask: a dict by bond, which may leave bonds out; a sequence, one [r_b] for each of `bonds(spec)` in this order; or a
    tensor where there is one bond.  Floats are the factors themselves; with mean 1, as `dropout_mask` draws them, W is
    unbiased.  Bools say what is kept, and kept values are divided by the share that is kept, `f = m r / sum(m)`: unbiased
    over all masks that keep equally many.  A mask that keeps nothing gives 0.  Leaves keep their dtype.  A batch of masks:
    `torch.func.vmap(lambda m: spec.apply(tensor_dropout(spec, params, m), x))(masks)`.

    ValueError for unknown bonds, or a mask of another length; TypeError for masks of ints, or complex ones for real params.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((2, 2), factorization="cp", rank=2)
    >>> params = spec.init(torch.Generator())
    >>> one = tensor_dropout(spec, params, torch.tensor([True, False]))
    >>> torch.allclose(one["weights"], params["weights"] * torch.tensor([2.0, 0.0]))
    True
    """
    spec._check(params)
    kinds = "bools, which say what is kept, or floats, the factors; use mask.bool() or mask.to(torch.float32)"
    given, dtype = _factors(spec, params, mask, "mask", kinds), working(Factorized._like(params).real.dtype)
    share = lambda m: m.to(dtype) * len(m) / m.sum().clamp(min=1)
    factors = {b: share(m) if m.dtype == torch.bool else m for b, m in given.items()}
    return {k: t.to(params[k].dtype) for k, t in spec._kind.scale_bonds(params, factors).items()}


@typed
def lasso_weights(spec: Factorized, *, dtype: Dtype = None, device: Device = None) -> dict[str, Tensor]:
    """Weights of ones for `tensor_lasso`, with which W is as it was: trainable, beside params; real or complex.

    >>> import linmaps
    >>> lasso_weights(linmaps.Factorized((4, 4), factorization="lowrank", rank=2))
    {'r': tensor([1., 1.])}
    """
    return {bond: torch.ones(r, dtype=dtype, device=device) for bond, r in bonds(spec).items()}


@door
@typed
def tensor_lasso(
    spec: Factorized, params: Params, weights: OnBonds, *, penalty: Number = 0.01, normalize: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Params of W(weights), and the loss that makes weights sparse: `penalty * sum over bonds and values of |w|`.

    weights: as a mask of `tensor_dropout`, but floats, of either sign, or complex for complex params.  normalize: divide the
    loss by the number of weights.  The loss is a scalar in the weights' dtype, with derivative 0 at 0.  Gradient steps leave
    weights small, `lasso_prox` makes them 0, and `prune_ranks` takes these out.  Leaves that grow undo it: bound them too.

    ValueError or TypeError as `tensor_dropout`, for other weights than floats, or a penalty < 0.  Source: Tibshirani 1996.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((2, 2), factorization="cp", rank=2)
    >>> params = spec.init(torch.Generator())
    >>> leaves, loss = tensor_lasso(spec, params, torch.tensor([1.0, -2.0]), penalty=0.1)
    >>> torch.equal(leaves["weights"], params["weights"] * torch.tensor([1.0, -2.0])), loss
    (True, tensor(0.3000))
    """
    spec._check(params)
    given = _factors(spec, params, weights, "weights", "floats; use weights.to(torch.float32)")
    _expect_number(penalty, f"{spec._title}: tensor_lasso: penalty")
    sizes = torch.cat([w.abs() for w in given.values()] or [Factorized._like(params).real.new_zeros(0)])
    loss = penalty * sizes.to(working(sizes.dtype)).sum() / (max(1, len(sizes)) if normalize else 1)
    return tensor_dropout(spec, params, given), loss.to(sizes.dtype)


@typed
def lasso_prox(weights: Any, step: Number) -> Any:
    """The soft threshold `z = sign(w) max(|w| - step, 0)` of every leaf of a tree; of complex w the modulus shrinks.

    z minimizes `|z - w|^2 / 2 + step |z|`: after a gradient step of rate eta on the rest of the objective, step = eta
    penalty (by the number of weights if normalized) is proximal gradient descent on `tensor_lasso`, with exact zeros.
    step: a number >= 0, or a tensor without axes.

    TypeError for leaves that are not floating or complex tensors; ValueError for a step < 0.  Source: Daubechies et al. 2004.

    >>> import torch
    >>> lasso_prox({"r": torch.tensor([0.5, -2.0, 0.1])}, 0.25)
    {'r': tensor([ 0.2500, -1.7500,  0.0000])}
    """
    _expect_number(step, "lasso_prox: step")
    unfit = [not (isinstance(w, Tensor) and (w.is_floating_point() or w.is_complex())) for w in trees.leaves(weights)]
    if any(unfit):
        path, w = trees.paths(weights)[unfit.index(True)], trees.leaves(weights)[unfit.index(True)]
        got = f"{trees.path_str(('weights', *path))} is {getattr(w, 'dtype', type(w).__name__)}"
        raise TypeError(f"lasso_prox: {got}, expected a tensor of floats; use .to(torch.float32)")
    return trees.map(lambda w: (w.sgn() * (w.abs() - step).clamp(min=0)).to(w.dtype), weights)


@door
@typed
def prune_ranks(spec: Factorized, params: Params, keep: Any) -> tuple[Factorized, dict[str, Tensor]]:
    """The spec and params with only some values of the bonds: W as with zeros at the others, and smaller ranks.

    keep: as a mask of `tensor_dropout`, of bools [r_b], or of indices, where a dict may hold lists of ints; -1 is the last
    value.  Bonds left out stay.  Ranks that are not feasible by themselves are taken as they are (compat=True).  The new
    shapes depend on what is kept, so keep must have concrete values, though params may be mapped: inside vmap or compile
    use `tensor_dropout` with zeros and ones, which gives the same W.

    ValueError for a bond left empty, an index named twice, or no concrete values; IndexError for others; TypeError for floats.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((4, 4), factorization="cp", rank=3)
    >>> small, leaves = prune_ranks(spec, spec.init(torch.Generator()), {"r": torch.tensor([1.0, 0.0, 2.0]) != 0})
    >>> small.ranks, leaves["weights"].shape
    (2, torch.Size([2]))
    """
    spec._check(params)
    device, sizes = Factorized._like(params).device, bonds(spec)
    given, title = _by_bond(spec, keep, "keep"), f"{spec._title}: keep"
    kept = {bond: _indices(k, sizes[bond], f"{title}.{bond}", device) for bond, k in given.items()}
    ranks, leaves = spec._kind.keep({k: t for k, t in params.items() if k != "bias"}, spec.ranks, kept)
    small = spec if ranks == spec.ranks else spec._of_layers(spec.n_layers, ranks)
    return small, {k: t if k == "bias" else leaves[k] for k, t in params.items()}


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
    >>> half = tensor_dropout(spec, params, {"r1": torch.tensor([0.5, 0.5])})
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
    got = f"{what}: W is {spec._W_shape} and {other._W_shape}, expected the same shape"
    _require(spec._W_shape == other._W_shape, ValueError, f"{got}; use spec.select(params, layer) for one of several")
    both = [{k: t for k, t in p.items() if k != "bias"} for p in (params, leaves)]
    dtype = functools.reduce(torch.promote_types, [t.dtype for p in both for t in p.values()])
    a, b = ({k: t.to(working(dtype)) for k, t in p.items()} for p in both)
    if len({(s.factorization, s.in_shape, s.out_shape) for s in (spec, other)}) == 1:
        return spec._kind, a, b, dtype
    return KINDS["dense"], {"W": spec._weight(a)}, {"W": other._weight(b)}, dtype


def _require(fine: bool, error: type[Exception], message: str) -> None:
    if not fine:
        raise error(message)


def _by_bond(spec: Factorized, given: Any, what: str) -> dict[str, Any]:
    """What is given by bond, in the order of the bonds, or for the only one, as a dict."""
    sizes, title = bonds(spec), f"{spec._title}: {what}"
    cure = f"a dict with entries for some of the bonds {sizes}, or {len(sizes)} in this order"
    if isinstance(given, Tensor):
        _require(len(sizes) == 1, ValueError, f"{title} is a single tensor, expected {cure}; it is for one bond")
        given = [given]
    if isinstance(given, Sequence) and not isinstance(given, str):
        _require(len(given) == len(sizes), ValueError, f"{title} has {len(given)} entries, expected {cure}")
        given = dict(zip(sizes, given))
    _require(isinstance(given, Mapping), TypeError, f"{title} is {type(given).__name__}, expected {cure}")
    unknown = [bond for bond in given if bond not in sizes]
    _require(not unknown, ValueError, f"{title} has bonds {unknown}, expected some of {sizes}; see bonds(spec)")
    return dict(given)


def _factors(spec: Factorized, params: Params, given: OnBonds, what: str, kinds: str) -> dict[str, Tensor]:
    """Tensors [r_b] by bond: floats, complex numbers for complex params, and bools where the kinds allow them."""
    found, sizes = _by_bond(spec, given, what), bonds(spec)
    complex_too = all(t.is_complex() for k, t in params.items() if k != "bias")
    for bond, m in found.items():
        name, r = f"{spec._title}: {what}.{bond}", sizes[bond]
        got = f"{name} is {type(m).__name__}, expected a tensor [{r}]"
        _require(isinstance(m, Tensor), TypeError, f"{got}; use torch.tensor(...)")
        cure = "map over the first axis with torch.func.vmap" if tuple(m.shape[1:]) == (r,) else "see bonds(spec)"
        _require(tuple(m.shape) == (r,), ValueError, f"{name} has shape {tuple(m.shape)}, expected ({r},); {cure}")
        fine = m.is_floating_point() or m.is_complex() or (m.dtype == torch.bool and "bools" in kinds)
        _require(fine, TypeError, f"{name} is of {m.dtype}, expected {kinds}")
        got = f"{name} is of {m.dtype}, expected real numbers for real params"
        _require(complex_too or not m.is_complex(), TypeError, f"{got}; use {what}.real")
    return found


def _indices(kept: Any, r: int, name: str, device: torch.device) -> Tensor:
    """Distinct indices in 0..r-1, at least one, from a mask [r] or from ints."""
    kinds = f"a bool mask [{r}] or ints; of weights use weights != 0"
    if isinstance(kept, Sequence) and not isinstance(kept, str):
        kept = torch.tensor(kept) if len(kept) else torch.zeros(0, dtype=torch.long)
    _require(isinstance(kept, Tensor), TypeError, f"{name} is {type(kept).__name__}, expected {kinds}")
    mask, fine = kept.dtype == torch.bool, not (kept.is_floating_point() or kept.is_complex())
    _require(fine, TypeError, f"{name} is of {kept.dtype}, expected {kinds}")
    got = f"{name} has shape {tuple(kept.shape)}, expected {f'({r},)' if mask else 'one axis'}"
    _require(kept.ndim == 1 and (not mask or len(kept) == r), ValueError, f"{got}; see bonds(spec)")
    try:
        found = (kept.nonzero()[:, 0] if mask else kept).tolist()
    except RuntimeError as error:
        cure = "since shapes depend on them; inside vmap use tensor_dropout with a mask of zeros and ones"
        raise ValueError(f"{name} has no concrete values, expected them, {cure}") from error
    index, beyond = [i % r for i in found], [i for i in found if not -r <= i < r]
    _require(not beyond, IndexError, f"{name} has {beyond}, expected {-r} to {r - 1}; the rank is {r}")
    _require(len(index) > 0, ValueError, f"{name} keeps none of {r}, expected one at least; keep one, and scale W by 0")
    _require(len({*index}) == len(index), ValueError, f"{name} is {found}, expected each once; use torch.unique")
    return torch.tensor(index, device=device)


def _expect_number(value: Any, name: str) -> None:
    if isinstance(value, Tensor) and value.ndim == 0:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    _require(number, TypeError, f"{name} is {value!r}, expected a number >= 0 or a tensor without axes; try float(...)")
    _require(value >= 0, ValueError, f"{name} is {value}, expected a number >= 0; 0 changes nothing")
