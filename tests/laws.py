"""Laws that every public function obeys, whatever it computes.

`Case` says how to call a function with trees of float64 tensors; each `law_*` takes a Case and fails with a message.
`LAWS` is the list that the transform table runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from linmaps import trees


@dataclasses.dataclass(frozen=True)
class Case:
    """`fn(*args)` with trees of float64 tensors in and a tree of tensors out.

    skip: names of laws that have no meaning here, each with its reason (the table prints them).
    tol: relative tolerance of derivatives against each other; vmap against the loop is held to 1e-10.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    skip: dict[str, str] = dataclasses.field(default_factory=dict)
    tol: float = 1e-7


@dataclasses.dataclass(frozen=True)
class Exempt:
    """A public name that maps no tensors to tensors (a spec, a strategy, a printed table): the reason says why."""

    reason: str


def close(got: Any, want: Any, tol: float, what: str) -> None:
    """Equal trees up to `tol`, relative to the largest entry of each leaf (at least 1)."""
    a, b = optree.tree_leaves(got), optree.tree_leaves(want)
    assert len(a) == len(b), f"{what}: {len(a)} leaves against {len(b)}"
    for i, (s, t) in enumerate(zip(a, b)):
        assert s.shape == t.shape, f"{what}: leaf {i} has shape {tuple(s.shape)} against {tuple(t.shape)}"
        if s.numel():
            scale = max(1.0, t.abs().max().item())
            error = (s - t).abs().max().item() / scale
            assert error <= tol, f"{what}: leaf {i} differs by {error:.3g} (scale {scale:.3g}), allowed {tol:.3g}"


def noise_like(tree: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return trees.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype), tree)


def perturbed(tree: Any, seed: int, size: float = 0.05) -> Any:
    return trees.axpy(size, noise_like(tree, seed), tree)


def scalar(fn: Callable[..., Any]) -> Callable[..., Tensor]:
    """A generic smooth scalar of fn's float outputs: a fixed random inner product of each leaf."""

    def wrapped(*args: Any) -> Tensor:
        out = [t for t in optree.tree_leaves(fn(*args)) if t.is_floating_point() or t.is_complex()]
        total = torch.zeros((), dtype=torch.float64)
        for i, t in enumerate(out):
            r = torch.cos(torch.arange(t.numel(), dtype=torch.float64) * 1.7 + i).reshape(t.shape)
            total = total + ((t.real + 0.3 * t.imag if t.is_complex() else t) * r).sum()
        return total

    return wrapped


def law_pure(case: Case) -> None:
    """No argument is changed, the global generator does not move, the same arguments give the same bits."""
    before = trees.map(torch.clone, case.args)
    state = torch.random.get_rng_state()
    first, second = case.fn(*case.args), case.fn(*case.args)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator moved"
    for p, s, t in zip(trees.paths(before), trees.leaves(before), trees.leaves(case.args)):
        assert torch.equal(s, t), f"argument {trees.path_str(p)} was changed"
    for s, t in zip(trees.leaves(first), trees.leaves(second), strict=True):
        assert torch.equal(s, t), "two calls with the same arguments differ"


def law_vmap(case: Case) -> None:
    """`vmap` over stacked arguments equals the loop."""
    members = [tuple(perturbed(a, 10 * k + i) for i, a in enumerate(case.args)) for k in range(3)]
    stacked = tuple(trees.stack(list(column)) for column in zip(*members))
    loop = trees.stack([case.fn(*m) for m in members])
    close(vmap(case.fn)(*stacked), loop, 1e-10, "vmap against the loop")


def law_grad(case: Case) -> None:
    """Reverse mode equals forward mode equals central differences along a random direction."""
    f, direction = scalar(case.fn), tuple(noise_like(a, 7 + i) for i, a in enumerate(case.args))
    reverse = grad(f, argnums=tuple(range(len(case.args))))(*case.args)
    _, forward = jvp(f, case.args, direction)
    close(trees.dot(reverse, direction), forward, case.tol, "grad against jvp")
    h = 1e-5
    at = lambda s: f(*(trees.axpy(s, d, a) for d, a in zip(direction, case.args)))
    close(forward, (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h), 1e-6, "jvp against differences")


def law_jac(case: Case) -> None:
    """`jacrev` equals `jacfwd`, once and nested, along a line through the arguments."""
    direction = tuple(noise_like(a, 70 + i) for i, a in enumerate(case.args))
    f = scalar(case.fn)

    def line(t: Tensor) -> Tensor:
        return f(*(trees.axpy(t, d, a) for d, a in zip(direction, case.args)))

    zero = torch.zeros((), dtype=torch.float64)
    close(jacrev(line)(zero), jacfwd(line)(zero), case.tol, "jacrev against jacfwd")
    modes = {
        a.__name__ + "(" + b.__name__ + ")": a(b(line))(zero) for a, b in itertools.product([jacfwd, jacrev], repeat=2)
    }
    for name, value in modes.items():
        close(value, modes["jacrev(jacrev)"], 10 * case.tol, f"{name} against jacrev(jacrev)")


def law_dtype(case: Case) -> None:
    """float32 in, float32 out, close to the float64 answer."""
    single = trees.map(lambda t: t.float() if t.is_floating_point() else t, case.args)
    out, want = case.fn(*single), case.fn(*case.args)
    for s, t in zip(trees.leaves(out), trees.leaves(want), strict=True):
        expected = {torch.float64: torch.float32, torch.complex128: torch.complex64}.get(t.dtype, t.dtype)
        assert s.dtype == expected, f"float32 arguments gave {s.dtype}"
    close(
        trees.map(lambda t: t.to(torch.promote_types(t.dtype, torch.float64)), out),
        want,
        5e-3,
        "float32 against float64",
    )


LAWS: dict[str, Callable[[Case], None]] = {
    "pure": law_pure,
    "vmap": law_vmap,
    "grad": law_grad,
    "jac": law_jac,
    "dtype": law_dtype,
}
