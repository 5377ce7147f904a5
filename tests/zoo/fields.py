"""Functions of points: with derivatives by the points inside, with parts that read no data, with weights made by networks."""

import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

from tests.zoo.member import Member, weights

FIELD = {"a": {"weight": (4, 2), "bias": (4,)}, "b": {"weight": (1, 4), "bias": (1,)}}
EXACT = {f"{n}.{k}": "exact" for n in FIELD for k in FIELD[n]}


def _field(p, x):
    """u(x), `[..., 1]`."""
    return F.linear(torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])), p["b"]["weight"], p["b"]["bias"])


def pinn_jvp(r):
    """A field and its derivative along one axis, forward."""

    def f(p, x):
        along = torch.zeros_like(x)
        along[:, 0] = 1.0
        return torch.cat(jvp(lambda x: _field(p, x), (x,), (along,)), -1)

    return Member(f, weights(r, FIELD), r(4, 2), EXACT)


def pinn_closure(r):
    """A field and its gradient, backward, the params those of the function around it."""

    def f(p, x):
        return torch.cat([_field(p, x), grad(lambda x: _field(p, x).sum())(x)], -1)

    return Member(f, weights(r, FIELD), r(4, 2), EXACT)


def pinn_argument(r):
    """The residual of an equation of the second order, each point mapped, the params an argument of what is derived."""

    def f(p, x):
        u = lambda p, x: _field(p, x)[0]
        slope = grad(u, argnums=1)
        second = vmap(lambda x: grad(lambda x: slope(p, x)[0])(x)[0])(x)
        return torch.stack([vmap(u, in_dims=(None, 0))(p, x), second], -1)

    return Member(f, weights(r, FIELD), r(4, 2), EXACT)


def deeponet(r):
    """A branch for the function, a trunk for fixed points where it is read: half of the network reads no data."""
    points = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]

    def f(p, x):
        branch = F.linear(torch.tanh(F.linear(x, p["branch"]["in"])), p["branch"]["out"])
        trunk = torch.tanh(F.linear(torch.tanh(F.linear(points, p["trunk"]["in"])), p["trunk"]["out"]))
        return torch.einsum("bk,qk->bq", branch, trunk) + p["shift"]

    shapes = {"branch": {"in": (3, 4), "out": (3, 3)}, "trunk": {"in": (3, 1), "out": (3, 3)}, "shift": (1,)}
    kinds = {"branch.in": "linear", "branch.out": "linear", "trunk.in": "linear", "trunk.out": "linear"}
    return Member(f, weights(r, shapes, 1.0), r(3, 4), kinds | {"shift": "shift"})


def deeponet_points(r):
    """Points of its own for each example."""

    def f(p, x):
        branch = F.linear(torch.tanh(F.linear(x[:, :3], p["branch"]["in"])), p["branch"]["out"])
        trunk = F.linear(torch.tanh(F.linear(x[:, 3:, None], p["trunk"]["in"])), p["trunk"]["out"])
        return torch.einsum("bk,bqk->bq", branch, trunk)

    shapes = {"branch": {"in": (3, 3), "out": (2, 3)}, "trunk": {"in": (3, 1), "out": (2, 3)}}
    kinds = {f"{n}.{k}": "linear" for n in shapes for k in ("in", "out")}
    return Member(f, weights(r, shapes, 1.0), r(3, 7), kinds)


def hypernetwork(r):
    """A layer makes the weight of another from a code that is learned; no data enter it."""

    def f(p, x):
        w = F.linear(p["code"], p["maker"]["weight"], p["maker"]["bias"]).view(3, 3)
        return F.linear(torch.tanh(F.linear(x, w)), p["head"])

    params = {"code": r(2), "maker": weights(r, {"weight": (9, 2), "bias": (9,)}), "head": r(2, 3)}
    return Member(f, params, r(4, 3), dict.fromkeys(("code", "maker", "head"), "linear"))


def hypernetwork_fixed(r):
    """The same from a code that is a constant, as many rows as there are examples."""
    code = r(3, 2)

    def f(p, x):
        for w in torch.tanh(F.linear(code, p["maker"])).view(3, 3, 3):
            x = torch.tanh(F.linear(x, w))
        return F.linear(x, p["head"])

    return Member(f, {"maker": r(9, 2), "head": r(2, 3)}, r(3, 3), {"maker": "linear", "head": "linear"})


def conditioned(r):
    """The data make the weight that the data meet, and the scale and shift of what comes out."""

    def f(p, x):
        w = F.linear(x, p["maker"]["weight"], p["maker"]["bias"]).unflatten(-1, (3, 3))
        h = torch.tanh(torch.bmm(w, x[..., None])[..., 0])
        gamma, beta = F.linear(x, p["film"]["weight"], p["film"]["bias"]).chunk(2, -1)
        return F.linear((1 + gamma) * h + beta, p["head"])

    shapes = {"maker": {"weight": (9, 3), "bias": (9,)}, "film": {"weight": (6, 3), "bias": (6,)}, "head": (2, 3)}
    return Member(f, weights(r, shapes), r(3, 3), dict.fromkeys(shapes, "linear"))
