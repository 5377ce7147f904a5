"""Pruning: which weights the loss misses least, by the quadratic model with the Fisher matrix in place of the Hessian.

O output units of a layer; w the params, F their Fisher matrix.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees.tree import Tree

Method = Literal["obd", "obs"]
METHODS = get_args(Method)


@typed
@full_precision()
def pruning_scores(F: PMat, params: Tree, *, method: Method = "obd", regul: Regul = 1e-8) -> Tree:
    """What each weight adds to the loss when it is set to zero, a tree like params.

    obd: w_i^2 F_ii / 2, all else fixed (LeCun, Denker and Solla, 1990).
    obs: w_i^2 / (2 [(F + regul I)^-1]_ii), all else moved to compensate (Hassibi and Stork, 1993).

    ValueError for another method, or for a representation without an inverse.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.tensor([[1.0], [2.0]])}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), fisher.PMatDense, "gaussian")
    >>> [pruning_scores(F, p, method=m, regul=0.0)["w"].T for m in ("obd", "obs")]
    [tensor([[0.5000, 1.0000]]), tensor([[0.2500, 0.5000]])]
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {list(METHODS)}")
    params = F.check_vector(params, "params")
    if method == "obd":
        return cast(Tree, trees.map(lambda w, h: w**2 * h / 2, params, F.get_diag()))
    return cast(Tree, trees.map(lambda w, h: w**2 / h / 2, params, F.inverse(regul).get_diag()))


@typed
@full_precision()
def unit_scores(scores: Any, layers: LayerCollection) -> dict[str, Tensor]:
    """The sum of scores over the weights and the bias of each output unit, `{layer: [O]}`, of Kronecker-factored layers.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"] + p["b"], {"w": torch.ones(2, 3), "b": torch.zeros(3)}
    >>> layers = fisher.LayerCollection.from_function(f, p, torch.eye(2))
    >>> unit_scores(p, layers)
    {'w': tensor([2., 2., 2.])}
    """
    views = layers.views(scores)
    return {l.name: views[l.name].sum(-1) for l in layers if l.kronecker and not l.diagonal}


@typed
@full_precision()
def prune_mask(scores: Tree, fraction: float) -> Tree:
    """A tree like scores with 0 for the given fraction of lowest scores (rounded down) over all leaves, and 1 elsewhere.

    `trees.map(torch.mul, params, mask)` are the pruned params.  Which of equal scores goes is not said, how many is.

    >>> import torch
    >>> prune_mask({"v": torch.tensor([0.5, 2.0]), "w": torch.tensor([3.0, 1.0])}, 0.5)
    {'v': tensor([0., 1.]), 'w': tensor([1., 0.])}
    """
    checks.number(fraction, "fraction", low=0, high=1, tensor=False)
    flat, unravel = trees.ravel(scores)
    unordered = checks.values(flat.isnan())
    if unordered is not None and bool(unordered.any()):
        raise ValueError(
            "scores: got NaN, expected numbers that have an order; make them of finite params and a finite F"
        )
    rank = flat.argsort(stable=True).argsort(stable=True)
    return unravel((rank >= int(fraction * len(flat))).to(flat.dtype))


@typed
@full_precision()
def unit_mask(mask: dict[str, Tensor], layers: LayerCollection, params: Tree) -> Tree:
    """The mask over params of a mask over units: each weight and bias of a unit is kept with it, other layers are kept.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"] + p["b"], {"b": torch.zeros(3), "w": torch.ones(2, 3)}
    >>> layers = fisher.LayerCollection.from_function(f, p, torch.eye(2))
    >>> unit_mask({"w": torch.tensor([1.0, 0.0, 1.0])}, layers, p)
    {'b': tensor([1., 0., 1.]), 'w': tensor([[1., 0., 1.],
            [1., 0., 1.]])}
    """
    views = layers.views(trees.map(torch.ones_like, params))
    for name, kept in mask.items():
        if name not in views:
            raise ValueError(f"mask: got a layer {name!r}, expected some of {list(views)}")
        if tuple(kept.shape) != tuple(views[name].shape[:-1]):
            raise ValueError(
                f"mask: {name}: got shape {tuple(kept.shape)}, expected {tuple(views[name].shape[:-1])}, one number for each "
                "output unit"
            )
        seen = checks.values(kept)
        if seen is not None and not bool(((seen >= 0) & (seen <= 1)).all()):
            raise ValueError(
                f"mask: {name}: got numbers beyond 0 and 1, expected 1 where a unit is kept, 0 where it goes"
            )
    return cast(
        Tree, layers.tree({name: v * mask[name][..., None] if name in mask else v for name, v in views.items()})
    )
