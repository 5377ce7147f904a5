"""Conjugate gradients for a symmetric positive definite operator, with the derivatives of the solution.

d unknowns, a flat vector `[d]`.  Many right-hand sides, or members of an ensemble, by vmap: each stands still once it has
converged, and the loop ends when all have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks import number, size, values
from linmaps.checks.precision import HALF
from linmaps.numerics.linalg import refined

Operator = Callable[[Tensor], Tensor]
STEPS = 1000  # more than d: rounding delays convergence where the condition is that of float32


@trees.record()
class Report:
    """How a solve went: whether it converged (bool), iterations made (int), final |b - A x| / |b|, tensors each.

    >>> import torch
    >>> conjugate_gradients(lambda x: 2 * x, torch.ones(3))[1].iterations
    tensor(1)
    """

    converged: Tensor
    iterations: Tensor
    residual: Tensor


def conjugate_gradients(
    operator: Operator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    precondition: Operator | None = None,
    rtol: float | None = None,
    max_iter: int | None = None,
) -> tuple[Tensor, Report]:
    """x with operator(x) = b, for a symmetric positive definite operator on vectors `[d]`, and a `Report`.

    Stops where the recursive residual is at most `rtol |b|` (None: ten machine epsilons), or after `max_iter` iterations
    (None: 1000).  precondition: v -> an approximation of operator^-1 v, symmetric positive definite.
    One operator application per iteration, two more in all.  Raises ValueError for rtol < 0 or max_iter < 0.

    The numbers only: for derivatives see `solve`.  Hestenes and Stiefel (1952).

    >>> import torch
    >>> x, report = conjugate_gradients(lambda x: torch.tensor([1.0, 4.0]) * x, torch.ones(2))
    >>> x, bool(report.converged)
    (tensor([1.0000, 0.2500]), True)
    """
    if rtol is not None:
        number(rtol, "rtol", low=0, tensor=False, cure="or None for ten machine epsilons")
    if max_iter is not None:
        size(max_iter, "max_iter", cure="or None for 1000")
    rtol = 10 * torch.finfo(b.dtype).eps if rtol is None else rtol
    if b.dtype in HALF:  # products alone are as f makes them
        wide = lambda fn: lambda v: fn(v.to(b.dtype)).float()
        start, inverse = (None if x0 is None else x0.float()), (None if precondition is None else wide(precondition))
        x, report = conjugate_gradients(
            wide(operator),
            b.float(),
            x0=start,
            precondition=inverse,
            rtol=rtol,
            max_iter=max_iter,
        )
        return x.to(b.dtype), dataclasses.replace(report, residual=report.residual.to(b.dtype))
    steps = STEPS if max_iter is None else max_iter
    tol = rtol * _norm(b)
    inverse = precondition or (lambda r: r)
    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - operator(x)
    p = z = inverse(r)
    rz = r @ z
    iterations = torch.zeros_like(tol, dtype=torch.long)
    for _ in range(steps):
        active = _norm(r) > tol
        moving = values(active)  # unknown in a graph, which has all steps
        if moving is not None and not bool(moving.any()):  # no member of any ensemble would move
            break
        applied = operator(p)
        curvature = p @ applied
        alpha = _ratio(rz, curvature, active)
        x, r = x + alpha * p, r - alpha * applied
        z = inverse(r)
        rz_new = r @ z
        p, rz = z + _ratio(rz_new, rz, active) * p, rz_new
        iterations = iterations + active
    converged = _norm(r) <= tol
    residual, length = _norm(b - operator(x)), _norm(b)
    return x, Report(
        converged, iterations, torch.where(length > 0, residual / torch.where(length > 0, length, 1.0), residual)
    )


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v)


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    safe = where & (b != 0)
    return torch.where(safe, a / torch.where(safe, b, 1.0), 0.0)


# --- derivatives of the solution -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is not a tensor in a solve: functions of (tree, vector), the structure of the tree, settings."""

    apply: Callable[[Any, Tensor], Tensor]
    precondition: Callable[[Any, Tensor], Tensor] | None
    treedef: Any
    rtol: float | None
    max_iter: int | None

    def solve(self, b: Tensor, flat: Any, x0: Tensor | None = None) -> tuple[Tensor, Report]:
        tree, inverse = self.treedef.unflatten(flat), self.precondition
        return conjugate_gradients(
            lambda x: self.apply(tree, x),
            b,
            x0=x0,
            precondition=None if inverse is None else lambda r: inverse(tree, r),
            rtol=self.rtol,
            max_iter=self.max_iter,
        )


class _Linear(torch.autograd.Function):
    """b -> A^-1 b as a linear map with a constant symmetric A: each derivative is one more solve."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: _Plan, b: Tensor, *flat: Tensor) -> Tensor:
        return plan.solve(b, flat)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        plan, _, *flat = inputs
        ctx.plan = plan
        ctx.save_for_backward(*flat)
        ctx.save_for_forward(*flat)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        flat = ctx.saved_tensors
        return None, _Linear.apply(ctx.plan, grads[0], *flat), *[None] * len(flat)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Linear.apply(ctx.plan, tangents[1], *ctx.saved_tensors)


class _Tangent(_Linear):
    """The same map where only its derivatives are wanted: the value 0 costs no solve."""

    @staticmethod
    def forward(plan: _Plan, b: Tensor, *flat: Tensor) -> Tensor:
        return torch.zeros_like(b)


def solve(
    apply: Callable[[Any, Tensor], Tensor],
    tree: Any,
    b: Tensor,
    *,
    precondition: Callable[[Any, Tensor], Tensor] | None = None,
    x0: Tensor | None = None,
    rtol: float | None = None,
    max_iter: int | None = None,
) -> tuple[Tensor, Report]:
    """x with apply(tree, x) = b, and a `Report`, by conjugate gradients with the derivatives of the exact solution.

    `apply` is linear in its second argument `[d]`; every tensor that it or `precondition` reads is in `tree`.
    The derivatives are those of x = A^-1 b with respect to tree and b, in every mode, up to the second order: each costs
    further solves to the same tolerance, none is taken through the iteration.  x0 and the preconditioner have none.

    >>> import torch
    >>> square = lambda a: solve(lambda a, x: a * x, a, torch.ones(2))[0].sum()
    >>> torch.func.grad(square)(torch.tensor([1.0, 2.0]))
    tensor([-1.0000, -0.2500])
    """
    flat, treedef = trees.flatten(tree)
    constants = [t.detach() for t in flat]
    plan = _Plan(apply, precondition, treedef, rtol, max_iter)
    reports = []

    def value(b: Tensor) -> Tensor:
        x, report = plan.solve(b, constants, None if x0 is None else x0.detach())
        reports.append(report)
        return x.detach()

    steps = iter([value])  # the first inverse is the value, the further ones carry derivatives alone
    tangent = lambda r: _Tangent.apply(plan, r, *constants)
    x = refined(lambda r: next(steps, tangent)(r), lambda x: apply(tree, x), b, b.detach())
    return x, trees.map(lambda t: t.detach(), reports[0])
