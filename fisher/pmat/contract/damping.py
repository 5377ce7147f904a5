"""Damping: how much of the identity is added before a matrix is inverted, F + regul I."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linmaps import checks

Regul = float | Tensor


def check_regul(regul: Any, name: str = "regul") -> None:
    """Raise unless regul is a finite number >= 0, or a tensor of one without axes: TypeError or ValueError."""
    checks.number(
        regul, name, low=0, cure="for another amount per parameter add a matrix, F + PMatDiag(tree, F.layout)"
    )
