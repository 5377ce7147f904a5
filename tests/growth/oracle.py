"""Brute force: rows of a pair and gradients sample by sample with plain autograd, and the mean loss of any params."""

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev
from torch.nn import functional as F

from growth.strategies import Network


def leaf(net: Network, params, name: str, part: str) -> Tensor | None:
    key = f"{name}.{part}"
    return params.get(key) if key in params or name not in params else params[name].get(part)


def layer(net: Network, params, name: str, x: Tensor) -> Tensor:
    return F.linear(x, leaf(net, params, name, "weight"), leaf(net, params, name, "bias"))


def losses(net: Network, y: Tensor, target: Tensor) -> Tensor:
    """Loss of one sample, a scalar: y [C] or [T, C]."""
    if net.loss == "cross_entropy":
        return F.cross_entropy(y.reshape(-1, y.shape[-1]), target.reshape(-1), reduction="sum")
    return 0.5 * ((y - target) ** 2).sum()


def rows(net: Network, x: Tensor | None = None, target: Tensor | None = None):
    """b2, b1 (with their ones) and g, one row per sample and position, by one backward per sample."""
    x, target = net.x if x is None else x, net.target if target is None else target
    kept = ([], [], [])
    for xi, ti in zip(x, target):
        xi = xi.reshape(-1, xi.shape[-1])
        b2 = torch.tanh(layer(net, net.params, "first", xi))
        b1 = net.activation(layer(net, net.params, "hidden", b2))
        a = layer(net, net.params, "output", b1).detach().requires_grad_()
        loss = losses(net, layer(net, net.params, "head", torch.tanh(a)), ti.reshape(-1, *ti.shape[net.x.ndim - 2 :]))
        (g,) = torch.autograd.grad(loss, a)
        for store, t, one in zip(kept, (b2, b1, g), (*net.bias, False)):
            store.append(torch.cat([t, torch.ones(t.shape[0], int(one), dtype=t.dtype)], 1).detach())
    return tuple(torch.cat(store) for store in kept)


def mean_loss(net: Network, params) -> Tensor:
    return torch.stack([losses(net, net.f(params, xi[None])[0], ti) for xi, ti in zip(net.x, net.target)]).mean()


def close(got: Tensor, want: Tensor, tol: float) -> None:
    assert got.shape == want.shape, f"{tuple(got.shape)} against {tuple(want.shape)}"
    if got.numel():
        scale = max(1.0, want.abs().max().item())
        error = (got - want).abs().max().item() / scale
        assert error <= tol, f"differs by {error:.3g}, allowed {tol:.3g}"


def slope(fn, h: float = 1e-3, *, root: bool = False) -> float:
    """One-sided derivative at 0+ by Richardson's extrapolation, error O(h^3).

    root: of a function whose expansion is in powers of the root of its argument, as the amplitude of new units.
    """
    zero = fn(0.0)
    steps = [h / 2**i for i in range(3)]
    d = [(fn(s * s) - zero) / (s * s) if root else (fn(s) - zero) / s for s in steps]
    first = [2 * d[1] - d[0], 2 * d[2] - d[1]]
    return ((4 * first[1] - first[0]) / 3).item()


def clear(rows: Tensor, least: float = 1e-4) -> bool:
    """Whether the singular values of rows are zero or well above it: of those between, the squares are lost in S."""
    s = torch.linalg.svdvals(rows) if rows.numel() else rows.new_zeros(0)
    s = s / s.max() if s.numel() and s.max() > 0 else s
    return not bool(((s > 1e-12) & (s < least)).any())


def twice_differentiable(value) -> None:
    """First and second derivative at 0 of a scalar function equal central differences, in all nested modes."""
    zero, h = torch.zeros((), dtype=torch.float64), 3e-3
    v = {i: value(zero + i * h) for i in (-2, -1, 0, 1, 2)}
    first = (8 * (v[1] - v[-1]) - (v[2] - v[-2])) / (12 * h)
    second = (16 * (v[1] + v[-1]) - (v[2] + v[-2]) - 30 * v[0]) / (12 * h * h)
    for outer in (jacfwd, jacrev):
        close(outer(value)(zero), first, 1e-6)
        for inner in (jacfwd, jacrev):
            close(outer(inner(value))(zero), second, 1e-4)
