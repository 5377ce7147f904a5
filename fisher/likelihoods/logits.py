"""Outputs that are no logits of several classes: seen, and said.  B batch, C classes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from linmaps.checks import values


def _hidden(y: Tensor) -> bool:
    """Whether y is inside of a transform, where no values are looked at."""
    return torch.compiler.is_compiling() or is_functorch_wrapped_tensor(y)


def are_probabilities(y: Tensor, class_axis: int = 1) -> bool:
    """Whether all rows of y along the class axis are distributions, and not all of them certain.

    False inside of transforms, where no values are looked at.

    >>> are_probabilities(torch.tensor([[0.1, 0.9], [0.5, 0.5]])), are_probabilities(torch.eye(2))
    (True, False)
    """
    if _hidden(y) or y.ndim < 2 or not -y.ndim <= class_axis < y.ndim:
        return False
    found = values(y)
    if found is None or found.numel() == 0 or found.shape[class_axis] < 2 or float(found.amin()) < 0:
        return False
    tol = max(1e-5, 8 * torch.finfo(found.dtype).eps)
    whole = bool(((found.double().sum(class_axis) - 1).abs() < tol).all())
    return whole and bool((found.amax(class_axis) < 1).any())


def expect_logits(y: Tensor, class_axis: int = 1, name: str = "f(params, x)") -> None:
    """Warn if y holds probabilities: the softmax would be taken twice."""
    if are_probabilities(y, class_axis):
        warnings.warn(
            f"{name}: rows are >= 0 and sum to 1, as those of a softmax, expected logits, of which the softmax is taken; return "
            "logits, or log-probabilities (y.log()), whose softmax they are",
            stacklevel=2,
        )


def expect_classes(y: Tensor, class_axis: int = 1, name: str = "f(params, x)") -> None:
    """Warn if y has a single class: its probability is 1, and the Fisher matrix zero."""
    if not _hidden(y) and -y.ndim <= class_axis < y.ndim and y.shape[class_axis] == 1 and y.numel():
        warnings.warn(
            f"{name}: has shape {tuple(y.shape)} with one class, whose probability is 1 whatever the params are, so that the "
            "matrix is zero; of a regression use likelihood='gaussian', of one logit of yes or no 'bernoulli'",
            stacklevel=2,
        )


def expect_target(got: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    """Warn of real numbers given as a target that are no probabilities of these outputs: an input, or another likelihood's."""
    warnings.warn(
        f"{name}: the target holds real numbers of shape {got}, expected classes, or probabilities {expected}; of a regression "
        "use likelihood='gaussian', and several inputs go into one x: ((x1, x2), target)",
        stacklevel=2,
    )
