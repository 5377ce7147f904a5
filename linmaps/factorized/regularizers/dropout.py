"""Dropout on the bonds of a factorized tensor: random masks, and params of W(mask).  Masks [r_b] by bond."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from linmaps.checks import Params, number, require, size
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.regularizers.bond_vectors import OnBonds, bonds, factors
from linmaps.factorized.spec import Factorized
from linmaps.numerics.dtypes import working_dtype


@typed
def dropout_mask(
    spec: Factorized,
    generator: Generator,
    p: float,
    *,
    min_rank: int = 2,
    min_keep: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Random factors for `tensor_dropout`: `m / (1 - p)`, m ~ Bernoulli(1 - p), independent for each value of each bond.

    min_keep: how many values of a bond are kept at least, those nearest to it; a bond without any makes W = 0.  With
    min_keep=0 the mean of the factors is 1, and so the mean of W is W.  Otherwise the mean of each factor of a bond of rank r is
    E max(X, min(min_keep, r)) / (r (1 - p)), X ~ Binomial(r, 1 - p), and the mean of W is W times these of its bonds; divide by
    them for an unbiased W.  With 1 it is 1 + p^r / (r (1 - p)): for p = 0.5, 1.25 at rank 2, 1.03 at 4, 1.001 at 8.

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
    require(isinstance(generator, Generator), TypeError, f"{got}; pass torch.Generator().manual_seed(seed)")
    number(p, f"{title}: p", low=0, high=1, below=True, cure="p = 0 drops nothing")
    size(min_keep, f"{title}: min_keep", 0, None)
    real = getattr(dtype, "is_floating_point", False)
    require(real, TypeError, f"{title}: dtype is {dtype}, expected a real floating torch.dtype, for complex W too")
    mask = {}
    for bond, r in bonds(spec).items():
        u = torch.rand(r, generator=generator, dtype=working_dtype(dtype), device=generator.device)
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
    given, dtype = factors(spec, params, mask, "mask", bools=True), working_dtype(Factorized._like(params).real.dtype)
    share = lambda m: m.to(dtype) * len(m) / m.sum().clamp(min=1)
    scaled = {b: share(m) if m.dtype == torch.bool else m for b, m in given.items()}
    return {k: t.to(params[k].dtype) for k, t in spec._kind.scale_bonds(params, scaled).items()}
