"""Lasso on the bonds of a factorized tensor: trainable weights, their penalty, and its proximal map.  Weights [r_b] by bond."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import Params, number
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.factorized.regularizers.bond_vectors import OnBonds, bonds, factors
from linmaps.factorized.regularizers.dropout import tensor_dropout
from linmaps.factorized.spec import Factorized
from linmaps.numerics.dtypes import working_dtype
from linmaps.trees.tree import Tree

Number = float | Tensor


@typed
def lasso_weights(
    spec: Factorized, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
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
    given = factors(spec, params, weights, "weights", bools=False)
    number(penalty, f"{spec._title}: tensor_lasso: penalty", low=0, cure="0 changes nothing")
    sizes = torch.cat([w.abs() for w in given.values()] or [Factorized._like(params).real.new_zeros(0)])
    loss = penalty * sizes.to(working_dtype(sizes.dtype)).sum() / (max(1, len(sizes)) if normalize else 1)
    return tensor_dropout(spec, params, given), loss.to(sizes.dtype)


@typed
def lasso_prox(weights: Tree, step: Number) -> Tree:
    """The soft threshold `z = sign(w) max(|w| - step, 0)` of every leaf of a tree; of complex w the modulus shrinks.

    z minimizes `|z - w|^2 / 2 + step |z|`: after a gradient step of rate eta on the rest of the objective, step = eta
    penalty (by the number of weights if normalized) is proximal gradient descent on `tensor_lasso`, with exact zeros.
    step: a number >= 0, or a tensor without axes.

    TypeError for leaves that are not floating or complex tensors; ValueError for a step < 0.  Source: Daubechies et al. 2004.

    >>> import torch
    >>> lasso_prox({"r": torch.tensor([0.5, -2.0, 0.1])}, 0.25)
    {'r': tensor([ 0.2500, -1.7500,  0.0000])}
    """
    number(step, "lasso_prox: step", low=0, cure="0 changes nothing")
    unfit = [not (isinstance(w, Tensor) and (w.is_floating_point() or w.is_complex())) for w in trees.leaves(weights)]
    if any(unfit):
        path, w = trees.paths(weights)[unfit.index(True)], trees.leaves(weights)[unfit.index(True)]
        got = f"{trees.path_str(('weights', *path))} is {getattr(w, 'dtype', type(w).__name__)}"
        raise TypeError(f"lasso_prox: {got}, expected a tensor of floats; use .to(torch.float32)")
    return cast(Tree, trees.map(lambda w: (w.sgn() * (w.abs() - step).clamp(min=0)).to(w.dtype), weights))
