"""LikelihoodName, what stands for a likelihood: the names of `fisher.likelihoods.LIKELIHOODS`, and those that others use."""

from __future__ import annotations

from typing import Literal

LikelihoodName = Literal[
    "bernoulli",
    "categorical",
    "gaussian",
    "heteroscedastic_gaussian",
    "poisson",
    "segmentation",
    "classification",
    "classif_logits",
    "classif_logsoftmax",
    "cross_entropy",
    "classif_binary_logits",
    "regression",
    "squared_error",
    "segmentation_logits",
]
ALIASES: dict[str, LikelihoodName] = {
    "classification": "categorical",
    "classif_logits": "categorical",
    "classif_logsoftmax": "categorical",  # the softmax of log-probabilities are the probabilities
    "cross_entropy": "categorical",
    "classif_binary_logits": "bernoulli",
    "regression": "gaussian",
    "squared_error": "gaussian",  # half the sum of squares
    "segmentation_logits": "segmentation",
}
