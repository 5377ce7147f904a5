"""Influence functions: what the weight of a training example does to a test loss, and what leaving it out does to params.

B training examples, T test examples, K columns of the root of H_b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from fisher.batches import batches
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.pmat.base import PMat, Regul
from linmaps import trees
from linmaps.linalg import solve

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda y, t: torch.nn.functional.cross_entropy(y, t, reduction="none"),
    "squared_error": lambda y, t: ((y - t) ** 2).flatten(1).sum(1) / 2,
}


def influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    test: Any,
    *,
    loss: Loss = "cross_entropy",
    regul: Regul = 1e-8,
) -> Tensor:
    """-grad l(test)' (F + regul I)^-1 grad l(train) for each pair, `[T, B]`.

    It is the derivative of the test loss in the weight e of a training example, as the mean training loss
    1/N sum l + regul/2 |params|^2 gets e l(train) on top: leaving the example out changes the test loss by about -1/N times
    it.  Exact where F is the Hessian at a minimum of that loss.  data, test: `(x, target)` or batches of those; loss:
    "cross_entropy", "squared_error" (half the sum of squares) or `(y, target) -> [B]`.  Memory (T + B) d, T solves.

    Koh and Liang (2017), equation 2.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> influence(f, p, (x, torch.ones(2, 1)), F, (x[:1], torch.ones(1, 1)), loss="squared_error", regul=0.0)
    tensor([[-2.0000, -0.0000]])
    """
    solved = F.solve(_gradients(f, params, test, loss), regul)
    return -_products(solved, _gradients(f, params, data, loss), "tn,bn->tb")


def self_influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    *,
    loss: Loss = "cross_entropy",
    regul: Regul = 1e-8,
) -> Tensor:
    """-grad l_b' (F + regul I)^-1 grad l_b, `[B]`: what an example does to its own loss; the lowest are the odd ones.

    The diagonal of `influence` of the data on themselves, and its arguments.  Memory B d, B solves.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> self_influence(f, p, (x, torch.tensor([[1.0], [2.0]])), F, loss="squared_error", regul=0.0)
    tensor([-2.0000, -8.0000])
    """
    g = _gradients(f, params, data, loss)
    return -_products(F.solve(g, regul), g, "bn,bn->b")


def leave_one_out(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    *,
    n_examples: int,
    loss: Loss = "cross_entropy",
    likelihood: str | Likelihood = "categorical",
    regul: Regul = 1e-8,
) -> Any:
    """The params without each example of the data, a tree with leaves `[B, *leaf]`: one Newton step from a minimum.

    With P = n_examples (F + regul I), the precision of the objective sum l + n_examples regul/2 |params|^2, and
    R_b'R_b = J_b' H_b J_b, the share of an example in it,

        params + (P - R_b'R_b)^-1 g_b,   (P - R'R)^-1 g = s + S (I - R S)^-1 R s,   s = P^-1 g,  S = P^-1 R'.

    Exact for squared_error, the gaussian likelihood, a PMatDense and an f linear in params.  data: examples among those of
    F; B (K + 1) solves.  Cook (1977); Woodbury (1950).

    >>> import torch, fisher
    >>> f, x, y = lambda p, x: x @ p["w"], torch.ones(3, 1), torch.tensor([[1.0], [2.0], [6.0]])
    >>> p = {"w": torch.full((1, 1), 3.0)}  # the mean of y
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> without = leave_one_out(f, p, (x, y), F, n_examples=3, loss="squared_error", likelihood="gaussian", regul=0.0)
    >>> without["w"].flatten()
    tensor([4.0000, 3.5000, 1.5000])
    """
    root = find_likelihood(likelihood).root
    parts = [_shares(f, params, x, root) for x, _ in batches(data, what="leave_one_out")]
    R = trees.map(lambda *ts: torch.cat(ts), *parts)
    g = _gradients(f, params, data, loss)
    s, S = (trees.scale(1.0 / n_examples, F.solve(t, regul)) for t in (g, R))
    cross = _products(R, S, "bkn,bln->bkl")
    right = _products(R, s, "bkn,bn->bk")
    eye = torch.eye(cross.shape[-1], dtype=cross.dtype, device=cross.device)
    weights = vmap(solve)(eye - cross, right)
    extra = trees.map(lambda t: torch.einsum("bk...,bk->b...", t, weights), S)
    return trees.map(lambda p, a, b: p + a + b, params, s, extra)


def _gradients(f: Callable[..., Tensor], params: Any, data: Any, loss: Loss) -> Any:
    """The gradient of each example's loss, a tree with leaves `[B, *leaf]`."""
    fn = LOSSES.get(loss, loss) if isinstance(loss, str) else loss
    if isinstance(fn, str):
        raise ValueError(f"loss: got {loss!r}, expected one of {list(LOSSES)} or a function (y, target) -> [B]")

    def one(params: Any, x: Any, target: Tensor) -> Tensor:
        return fn(f(params, trees.map(lambda t: t[None], x)), target[None])[0]

    parts = []
    for number, (x, target) in enumerate(batches(data, what="influence")):
        if target is None:
            raise ValueError(f"data: batch {number} has no target, expected (x, target)")
        parts.append(vmap(grad(one), (None, 0, 0))(params, x, target))
    return trees.map(lambda *ts: torch.cat(ts), *parts)


def _shares(f: Callable[..., Tensor], params: Any, x: Any, root: Callable[[Tensor], Tensor]) -> Any:
    """R_b with R_b'R_b = J_b' H_b J_b, a tree with leaves `[B, K, *leaf]`."""

    def one(x: Any) -> Any:
        y, back = vjp(lambda p: f(p, trees.map(lambda t: t[None], x)), params)  # type: ignore[misc]
        return vmap(back)(root(y))[0]

    return vmap(one)(x)


def _products(left: Any, right: Any, equation: str) -> Tensor:
    """Inner products over parameters n of two trees with leading axes."""
    axes = [side.index("n") for side in equation.partition("->")[0].split(",")]
    flat = [[t.reshape(*t.shape[:k], -1) for t in trees.leaves(v)] for v, k in zip((left, right), axes)]
    parts = [torch.einsum(equation, s, t) for s, t in zip(*flat)]
    return sum(parts[1:], parts[0])
