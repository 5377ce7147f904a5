"""Whether two likelihoods have the same Fisher matrix of the outputs, as far as can be seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fisher.likelihoods.held import array
from linmaps.checks import values

OF_TARGETS = ("ignore_index", "label_smoothing")  # what says which targets count and how, not what the matrix is


def differ(one: Any, other: Any) -> bool:
    """Whether two likelihoods are seen to have different matrices H: of another kind, class axis, weight or noise.

    False where one is not known (None), and where nothing is to be seen: kinds of the user's own, values of a traced function.

    >>> from fisher.likelihoods import Categorical, Gaussian
    >>> differ(Gaussian(), Gaussian(2.0)), differ(Categorical(), Categorical(ignore_index=0)), differ(None, Gaussian())
    (True, False, False)
    """
    if one is None or other is None or one is other:
        return False
    if not (isinstance(one, type(other)) or isinstance(other, type(one))):
        return True
    if not (dataclasses.is_dataclass(one) and dataclasses.is_dataclass(other)):
        return False
    names = {f.name for t in (one, other) for f in dataclasses.fields(t)} - set(OF_TARGETS)
    return any(_apart(getattr(one, name, None), getattr(other, name, None)) for name in names)


def check_agreement(of_matrix: Any, given: Any, name: str, cure: str) -> None:
    """Raise a ValueError that names both where the likelihood of a matrix differs from the one beside it.

    name: what of the two is refused, and what it stands beside.

    >>> from fisher.likelihoods import Gaussian
    >>> check_agreement(Gaussian(), Gaussian(2.0), "F", "make it anew")
    Traceback (most recent call last):
    ValueError: F: is of Gaussian(variance=1.0, ...), expected Gaussian(variance=2.0, ...); make it anew
    """
    if differ(of_matrix, given):
        raise ValueError(f"{name}: is of {of_matrix!r}, expected {given!r}; {cure}")


def _apart(one: Any, other: Any) -> bool:
    """Whether two settings differ by more than the rounding of the coarser one."""
    if not (_numeric(one) and _numeric(other)):
        return bool(one != other)
    a, b = array(one), array(other)
    x, y = values(a), values(b)
    if x is None or y is None:
        return False
    if (x.ndim, y.ndim) != (a.ndim, b.ndim) and x.shape != y.shape:
        return False  # members of an ensemble beside one for all
    try:
        x, y = torch.broadcast_tensors(x.cpu().double(), y.cpu().double())
    except RuntimeError:
        return True
    tol = max(1e-6, 10 * torch.finfo(a.dtype).eps, 10 * torch.finfo(b.dtype).eps)
    return bool(((x - y).abs() > tol * (x.abs() + y.abs())).any())


def _numeric(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_numeric, value))
    return isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool))
