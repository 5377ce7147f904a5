"""Leave-one-out: the params without each example of the data, by one Newton step.

B training examples, K columns of the root of H_b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fisher.checks import doors
from fisher.derivatives.plain import plainly
from fisher.likelihoods import Categorical, Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.agreement import check_agreement
from fisher.likelihoods.columns import Exact
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.influences.examples import each, finite_result, parts
from fisher.recipes.influences.losses import Loss, loss_function
from fisher.recipes.influences.sides import of_loss
from fisher.recipes.influences.spaces import Space
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.dtypes import in_working
from linmaps.numerics.linalg import solve
from linmaps.trees.tree import Tree


@typed
@full_precision("f", "loss")
def leave_one_out(
    f: Callable[..., Tensor],
    params: Tree,
    data: Any,
    F: PMat,
    *,
    n_examples: int,
    loss: Loss = "cross_entropy",
    likelihood: LikelihoodName | Likelihood = "categorical",
    regul: Regul = 1e-8,
) -> Tree:
    """The params without each example of the data, a tree with leaves `[B, *leaf]`: one Newton step from a minimum.

    With P = n_examples (F + regul I), the precision of the objective sum l + n_examples regul/2 |params|^2, and
    R_b'R_b = J_b' H_b J_b, the share of an example in it,

        params + (P - R_b'R_b)^-1 g_b,   (P - R'R)^-1 g = s + S (I - R S)^-1 R s,   s = P^-1 g,  S = P^-1 R'.

    Exact for squared_error, the gaussian likelihood, a PMatDense and an f linear in params.  data: examples among those of
    F, with the weights that F has of them; likelihood: that of F.  B (K + 1) solves.  Cook (1977); Woodbury (1950).

    >>> import torch, fisher
    >>> f, x, y = lambda p, x: x @ p["w"], torch.ones(3, 1), torch.tensor([[1.0], [2.0], [6.0]])
    >>> p = {"w": torch.full((1, 1), 3.0)}  # the mean of y
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> without = leave_one_out(f, p, (x, y), F, n_examples=3, loss="squared_error", likelihood="gaussian", regul=0.0)
    >>> without["w"].flatten()
    tensor([4.0000, 3.5000, 1.5000])
    """
    checks.number(
        n_examples, "n_examples", low=1, tensor=False, cure="give the number of examples that F is a mean over"
    )
    f, params = doors.function(f), F.check_vector(params, "params")
    which = find_likelihood(likelihood)
    space = Space(f, params, None, (f, params), lambda fn: fn)
    check_agreement(F.likelihood, which, "leave_one_out: F", "as likelihood= says; give likelihood=F.likelihood")
    side = of_loss(space, loss_function(which if loss == "cross_entropy" and isinstance(which, Categorical) else loss))
    found = [(side.rows(*part), _shares(f, params, part[1], Exact(which))) for part in parts(data, "data")]
    g, R = trees.map(lambda *ts: torch.cat(ts), *found)
    s, S = (trees.scale(1.0 / n_examples, F.solve(t, regul)) for t in (g, R))
    cross = _products(R, S, "bkn,bln->bkl")
    right = _products(R, s, "bkn,bn->bk")
    eye = torch.eye(cross.shape[-1], dtype=cross.dtype, device=cross.device)
    weights = vmap(lambda m, v: in_working(solve, m, v))(eye - cross, right)
    extra = trees.map(lambda t: torch.einsum("bk...,bk->b...", t, weights), S)
    return cast(Tree, trees.map(lambda p, a, b: finite_result(p + a + b, "leave_one_out"), params, s, extra))


def _shares(f: Callable[..., Tensor], params: Any, part: Any, columns: Exact) -> Any:
    """R_b with R_b'R_b = J_b' H_b J_b, a tree with leaves `[B, K, *leaf]`."""
    f = plainly(f)

    def one(pair: Any) -> Any:
        x, target, *weights = pair
        y, back = vjp(lambda p: f(p, trees.map(lambda t: t[None], x)), params)  # type: ignore[misc]
        return vmap(back)(columns(y, target[None], *(w[None] for w in weights)))[0]

    return each(one, part)


def _products(left: Any, right: Any, equation: str) -> Tensor:
    """Inner products over parameters n of two trees with leading axes."""
    axes = [side.index("n") for side in equation.partition("->")[0].split(",")]
    flat = [[t.reshape(*t.shape[:k], -1) for t in trees.leaves(v)] for v, k in zip((left, right), axes)]
    parts = [torch.einsum(equation, s, t) for s, t in zip(*flat)]
    return sum(parts[1:], parts[0])
