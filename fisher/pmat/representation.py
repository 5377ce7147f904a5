"""Representation: the class of a matrix in a signature that returns what was asked for, `type[Representation] -> Representation`.

A type checker takes the default of a TypeVar where the argument is left out; when the program runs there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fisher.pmat.contract.pmat import PMat
from fisher.pmat.layered.kfac import PMatKFAC
from fisher.pmat.whole.dense import PMatDense

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Representation = TypeVar("Representation", bound=PMat, default=PMatKFAC)
    SecondDerivative = TypeVar("SecondDerivative", bound=PMat, default=PMatDense)
else:
    from typing import TypeVar

    Representation = TypeVar("Representation", bound=PMat)
    SecondDerivative = TypeVar("SecondDerivative", bound=PMat)
