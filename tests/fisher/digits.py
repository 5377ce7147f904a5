"""The handwritten digits of scikit-learn, two small models of them, and their training by damped Newton steps."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch.func import grad

import fisher
from linmaps import trees

D = torch.float64


@cache
def digits(n=300, start=0, features=None):
    """x [n, features], the leading principal components of the pixels (all 64 pixels if None), and labels [n]."""
    found = load_digits()
    pixels = torch.tensor(found.data, dtype=D) / 16 - 0.3
    if features is not None:
        pixels = pixels @ torch.linalg.svd(pixels, full_matrices=False)[2][:features].T
    return pixels[start : start + n], torch.tensor(found.target)[start : start + n]


def linear(p, x):
    return torch.nn.functional.linear(x, p["weight"], p["bias"])


def mlp(p, x):
    return linear(p["output"], torch.tanh(linear(p["hidden"], x)))


def start(*sizes, seed=0):
    r = torch.Generator().manual_seed(seed)
    dense = lambda i, o: {"weight": torch.randn(o, i, generator=r, dtype=D) / i**0.5, "bias": torch.zeros(o, dtype=D)}
    layers = [dense(i, o) for i, o in zip(sizes, sizes[1:])]
    return layers[0] if len(layers) == 1 else dict(zip(("hidden", "output"), layers, strict=True))


def objective(f, x, y, ridge=0.0):
    """Mean cross entropy (squared error for a float target) + ridge/2 |params|^2."""

    def loss(p):
        out = f(p, x)
        if y.is_floating_point():
            data = ((out - y) ** 2).sum() / (2 * len(x))
        else:
            data = torch.nn.functional.cross_entropy(out, y)
        return data + ridge / 2 * trees.dot(p, p)

    return loss


def quadratic():
    """Params, loss and Fisher matrix of a least-squares problem on digits: its quadratic model is exact."""
    x, _ = digits(40, features=5)
    f = lambda p, x: x @ p["w"]
    y = torch.sin(torch.arange(80, dtype=D)).reshape(40, 2)
    p = {"w": torch.ones(5, 2, dtype=D)}
    return p, objective(f, x, y), fisher.fim(f, p, x, fisher.PMatDense, "gaussian")


def trained(f, params, x, y, ridge=0.0, steps=30):
    """The minimum of the objective: Gauss-Newton steps, halved until the objective falls (Newton's for a linear f)."""
    likelihood = "gaussian" if y.is_floating_point() else "categorical"
    loss = objective(f, x, y, ridge)
    layers = fisher.LayerCollection.from_function(f, params, x)
    for _ in range(steps):
        F = fisher.fim(f, params, x, fisher.PMatDense, likelihood, layers=layers)
        step, size = F.solve(grad(loss)(params), ridge), 1.0
        if trees.norm(step) < 1e-13 * (1 + trees.norm(params)):
            break
        while size > 1e-3 and not loss(trees.axpy(-size, step, params)) <= loss(params):
            size /= 2
        params = trees.axpy(-size, step, params)
    return params
