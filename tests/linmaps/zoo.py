"""The one list of specs that runs all laws of maps, gathered from `kinds`, with oracles that share no code with the maps."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch

from linmaps import trees
from tests.linmaps import kinds
from tests.linmaps.kind import NO_PROMISE, Entry, Kind

__all__ = ["ENTRIES", "KINDS", "NO_PROMISE"]

KINDS: dict[str, Kind] = {}
ENTRIES: list[Entry] = []
for _module in pkgutil.iter_modules(kinds.__path__):
    _family = importlib.import_module(f"{kinds.__name__}.{_module.name}")
    KINDS |= _family.KINDS
    ENTRIES += _family.ENTRIES


def label(entry):
    changed = [
        f"{f.name}={getattr(entry.spec, f.name)}"
        for f in dataclasses.fields(entry.spec)
        if getattr(entry.spec, f.name) != f.default and f.name not in ("in_features", "out_features")
    ]
    return "-".join([entry.spec.name, f"{entry.spec.in_features}x{entry.spec.out_features}", *changed])


def residual(spec, W):
    """The oracle of the promise, independent of `spec.violation`."""
    return KINDS[spec.name].residual(spec, W.detach().to(torch.promote_types(W.dtype, torch.float64)).numpy())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_params(spec, seed, dtype=torch.float64):
    return spec.init(generator(seed), dtype=dtype)


def minimize(loss, params, lr, steps):
    """Adam; returns the params."""
    params = trees.map(torch.clone, params)
    leaves = trees.leaves(params)
    if not leaves:
        return params
    slope, optimizer = torch.func.grad(loss), torch.optim.Adam(leaves, lr=lr)
    for _ in range(steps):
        for leaf, gradient in zip(leaves, trees.leaves(slope(params))):
            leaf.grad = gradient.resolve_conj()
        optimizer.step()
    return params


def descend(spec, loss, seed, steps, lr):
    """Adam from a random init towards a smaller `loss(W)`; returns the params."""
    return minimize(lambda p: loss(spec.effective_W(p)), random_params(spec, seed), lr, steps)


def symmetric(spec, params):
    """Whether `eig` gives real eigenvalues."""
    return not spec.eig(params).is_complex()


def trainable(spec):
    """Whether W has params."""
    return spec.n_params > spec.bias * spec.out_features


def condition(spec, params):
    """Condition number of W."""
    W = spec.effective_W(params)
    return float(torch.linalg.cond(W)) if W.any() else float("inf")


def squared(t):
    """Sum of squares, also of complex entries."""
    return (t * t.conj()).real.sum() if t.is_complex() else t.square().sum()


def singular(spec):
    """Whether a generic member has no inverse."""
    return KINDS[spec.name].singular(spec)


def matrix(spec, params):
    """W, in float64 for a map without params, which has no dtype of its own."""
    W = spec.effective_W(params)
    return W if spec.n_params else W.double()


def closed_form(spec):
    """Whether `from_matrix` has one; if not, the error must say what to do."""
    zeros = torch.zeros(spec.in_features, spec.out_features, dtype=torch.float64)
    try:
        spec.from_matrix(zeros)
    except ValueError:
        with pytest.raises(ValueError, match="no closed form takes a matrix to these params; fit them by descent"):
            spec.from_matrix(zeros)
        return False
    return True


def by_eigenvectors(spec):
    """Whether `from_matrix` goes by eigenvectors of a matrix that is not symmetric."""
    rotations = getattr(spec, "method", "") in ("cayley", "exp") or spec.name == "damped_skew_symmetric"
    return rotations or getattr(spec, "exact", False)
