"""What a kind of map says to the laws, and what several kinds' oracles share.  numpy only: no code of the maps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


def NO_PROMISE(spec: Any, W: np.ndarray) -> float:
    return 0.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """residual(spec, W): how far W is from the promise, 0 on the set; member(spec, rng): a random matrix that the map can
    reach; std(spec): the output's standard deviation at init for inputs of unit variance;
    singular(spec): whether a generic member is; projects: whether `from_matrix` looks for the nearest matrix."""

    member: Callable[[Any, np.random.Generator], np.ndarray]
    std: Callable[[Any], float]
    residual: Callable[[Any, np.ndarray], float] = NO_PROMISE
    singular: Callable[[Any], bool] = lambda spec: False
    projects: bool = True


@dataclasses.dataclass(frozen=True)
class Entry:
    """A spec that meets all laws.

    incomplete: why it does not reach every `member` by descent.  dead: why some entries of some leaves get no gradient
    (every leaf must get some).  table: whether it also has rows in the transform table.
    """

    spec: Any
    incomplete: str = ""
    dead: str = ""
    table: bool = False


def free(spec, rng):
    """Any matrix."""
    return rng.standard_normal((spec.in_features, spec.out_features))


def linear_std(spec):
    """As torch.nn.Linear."""
    return (1 / 3) ** 0.5


def determinant(spec):
    """The sign of the determinant that a square spec promises."""
    return (getattr(spec, "det", 1) or 1) if spec.in_features == spec.out_features else None


def orthonormal(rng, rows, columns, det=None):
    Q = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    if det is not None and np.linalg.det(Q) * det < 0:
        Q[:, 0] *= -1
    return Q


def asymmetry(W):
    return float(np.abs(W - W.T).max())


def excess(*differences):
    """The largest of several arrays that must not be positive, or 0."""
    return max(0.0, *(float(np.max(d, initial=0.0)) for d in differences))
