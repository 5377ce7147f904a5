"""LikelihoodName, the names that stand for a likelihood: those of the table `fisher.likelihoods.LIKELIHOODS`."""

from __future__ import annotations

from typing import Literal

LikelihoodName = Literal[
    "bernoulli",
    "categorical",
    "gaussian",
    "heteroscedastic_gaussian",
    "poisson",
    "segmentation",
]
