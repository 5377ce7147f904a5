"""Influence functions: what the weight of a training example does to a test loss, and what leaving it out does to params.

B training examples, T test examples, K columns of the root of H_b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from fisher.checks import doors, finiteness
from fisher.checks.axes import batch_size
from fisher.checks.data import batches
from fisher.collector.exact_rows import mapped
from fisher.derivatives.plain import plainly
from fisher.likelihoods import Categorical, Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.arrays import check_target, per_example
from fisher.likelihoods.columns import Exact
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.linalg import solve
from linmaps.trees.tree import Tree

LossName = Literal["cross_entropy", "squared_error"]
LOSSES = get_args(LossName)
Loss = LossName | Likelihood | Callable[[Tensor, Tensor], Tensor]


@typed
@full_precision("f", "loss")
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
    "cross_entropy" (summed over positions, the class axis found by the shapes; torch's ignore_index), "squared_error" (half the
    sum of squares), a likelihood (minus its log_prob) or `(y, target) -> [B]`.  Memory (T + B) d, T solves.

    ValueError or TypeError for targets and losses that do not fit, and for gradients that are not finite.

    Koh and Liang (2017), equation 2.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> influence(f, p, (x, torch.ones(2, 1)), F, (x[:1], torch.ones(1, 1)), loss="squared_error", regul=0.0)
    tensor([[-2.0000, -0.0000]])
    """
    f, params = doors.function(f), F.check_vector(params, "params")
    solved = F.solve(_gradients(f, params, test, loss, "test"), regul)
    return _finite(-_products(solved, _gradients(f, params, data, loss), "tn,bn->tb"), "influence")


@typed
@full_precision("f", "loss")
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
    f, params = doors.function(f), F.check_vector(params, "params")
    g = _gradients(f, params, data, loss)
    return _finite(-_products(F.solve(g, regul), g, "bn,bn->b"), "self_influence")


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
    F; B (K + 1) solves.  Cook (1977); Woodbury (1950).

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
    parts = [_shares(f, params, x, target, Exact(which)) for x, target in batches(data, what="leave_one_out")]
    R = trees.map(lambda *ts: torch.cat(ts), *parts)
    g = _gradients(f, params, data, which if loss == "cross_entropy" and isinstance(which, Categorical) else loss)
    s, S = (trees.scale(1.0 / n_examples, F.solve(t, regul)) for t in (g, R))
    cross = _products(R, S, "bkn,bln->bkl")
    right = _products(R, s, "bkn,bn->bk")
    eye = torch.eye(cross.shape[-1], dtype=cross.dtype, device=cross.device)
    weights = vmap(solve)(eye - cross, right)
    extra = trees.map(lambda t: torch.einsum("bk...,bk->b...", t, weights), S)
    return cast(Tree, trees.map(lambda p, a, b: _finite(p + a + b, "leave_one_out"), params, s, extra))


def _gradients(f: Callable[..., Tensor], params: Any, data: Any, loss: Loss, name: str = "data") -> Any:
    """The gradient of each example's loss, a tree with leaves `[B, *leaf]`."""
    fn, f = _function(loss), plainly(f)

    def one(params: Any, x: Any, target: Tensor) -> Tensor:
        found = fn(f(params, trees.map(lambda t: t[None], x)), target[None])
        if tuple(found.shape) != (1,):
            raise ValueError(
                f"loss: got a result of shape {tuple(found.shape)} for a batch of one example, expected (1,); return one number "
                "for each example, summed over positions and coordinates"
            )
        return found[0]

    parts = []
    for number, (x, target) in enumerate(batches(data, what="influence")):
        where = f"{name}: batch {number}"
        if not isinstance(target, Tensor):
            got = "no target" if target is None else f"a target of type {type(target).__name__}"
            raise ValueError(f"{where} has {got}, expected (x, target) with a tensor")
        finiteness.finite((x, target), where, "clean or drop these examples")
        if len(target) != batch_size(x):
            raise ValueError(f"{where}: got {len(target)} targets, expected {batch_size(x)}, one for each example of x")
        found = _each(lambda x, target: grad(one)(params, x, target), x, target)
        finiteness.finite(found, f"{where}: gradients of the loss", "f or the loss overflows at these params and data")
        parts.append(found)
    return trees.map(lambda *ts: torch.cat(ts), *parts)


def _function(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(loss, str) and loss in LOSSES:
        return _cross_entropy if loss == "cross_entropy" else _squared_error
    if isinstance(loss, str) or not (callable(loss) or hasattr(loss, "log_prob")):
        raise ValueError(
            f"loss: got {loss!r}, expected one of {list(LOSSES)}, a likelihood with log_prob, or a function (y, target) -> [B]"
        )
    return (lambda y, t: -loss.log_prob(y, t)) if hasattr(loss, "log_prob") else loss


def _squared_error(y: Tensor, target: Tensor) -> Tensor:
    return per_example((check_target("squared_error", target, tuple(y.shape)) - y) ** 2) / 2


def _cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """By the class axis that the shapes allow: 1, as in torch, or the last one."""
    shape = tuple(y.shape)
    axes = [k for k in sorted({1, y.ndim - 1}) if k and shape[:k] + shape[k + 1 :] == tuple(target.shape)]
    if len(axes) > 1:
        raise ValueError(
            f"cross_entropy: the classes of outputs of shape [B, {', '.join(map(str, shape[1:]))}] may be axis 1 or the last, "
            "expected one that fits; say which with loss=fisher.Categorical(class_axis=1) or (class_axis=-1)"
        )
    return -Categorical(class_axis=axes[0] if axes else 1).log_prob(y, target)


def _shares(f: Callable[..., Tensor], params: Any, x: Any, target: Any, columns: Exact) -> Any:
    """R_b with R_b'R_b = J_b' H_b J_b, a tree with leaves `[B, K, *leaf]`."""
    f = plainly(f)

    def one(x: Any, target: Any) -> Any:
        y, back = vjp(lambda p: f(p, trees.map(lambda t: t[None], x)), params)  # type: ignore[misc]
        return vmap(back)(columns(y, target[None]))[0]

    return _each(one, x, target)


def _each(one: Callable[[Any, Any], Any], x: Any, target: Any) -> Any:
    """What `one` gives for each example: mapped, or one by one where f does not take vmap."""
    flat, treedef = trees.flatten((x, target))

    def in_turn() -> Any:
        found = [one(*treedef.unflatten([t[b] for t in flat])) for b in range(batch_size(x))]
        return trees.map(lambda *ts: torch.stack(ts), *found)

    return mapped(lambda: vmap(one)(x, target), in_turn)


def _finite(t: Tensor, name: str) -> Tensor:
    finiteness.finite(t, name, "F + regul I is singular or nearly so: use a larger regul")
    return t


def _products(left: Any, right: Any, equation: str) -> Tensor:
    """Inner products over parameters n of two trees with leading axes."""
    axes = [side.index("n") for side in equation.partition("->")[0].split(",")]
    flat = [[t.reshape(*t.shape[:k], -1) for t in trees.leaves(v)] for v, k in zip((left, right), axes)]
    parts = [torch.einsum(equation, s, t) for s, t in zip(*flat)]
    return sum(parts[1:], parts[0])
