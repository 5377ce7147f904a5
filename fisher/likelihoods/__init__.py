"""Likelihoods: the Fisher matrix H_b of the output distribution at f(x_b), as columns r with sum over K of r r' = H_b.

B batch, C classes or coordinates, P positions, K columns, n samples.  Outputs are `[B, C, *positions]`; sum over positions.
Each likelihood also gives the score, the gradient of log p(t | y), at sampled and at given targets.

    names        what they are called
    arrays       outputs with positions as rows
    logits       outputs that are no logits of several classes
    base         what a likelihood answers
    held         the numbers and tensors that a likelihood holds
    agreement    whether two have one matrix
    softmax      columns and scores of a softmax
    categorical  logits; segmentation
    bernoulli    binary logits
    gaussian     means; means and variances
    poisson      log rates
    weights      weights of examples and positions
    columns      estimators: exact, sampled, empirical columns
"""

from __future__ import annotations

from fisher.likelihoods.base import Likelihood, counts, n_columns, probabilities, root_part, score
from fisher.likelihoods.bernoulli import Bernoulli
from fisher.likelihoods.categorical import Categorical, Segmentation
from fisher.likelihoods.gaussian import Gaussian, HeteroscedasticGaussian
from fisher.likelihoods.names import ALIASES, LikelihoodName
from fisher.likelihoods.poisson import Poisson

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Poisson",
    "Segmentation",
    "counts",
    "likelihood",
    "n_columns",
    "probabilities",
    "root_part",
    "score",
]


def __dir__() -> list[str]:
    return sorted(__all__)


LIKELIHOODS: dict[LikelihoodName, Likelihood] = {
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
    "gaussian": Gaussian(),
    "heteroscedastic_gaussian": HeteroscedasticGaussian(),
    "poisson": Poisson(),
    "segmentation": Segmentation(),
}


def likelihood(name: LikelihoodName | Likelihood) -> Likelihood:
    """A likelihood by its name, or by one that losses and other libraries have for it, or the object itself.

    >>> likelihood("categorical"), likelihood("regression")
    (Categorical(class_axis=1, ignore_index=-100, weight=None, label_smoothing=0.0), Gaussian(variance=1.0, ...))
    """
    known = ALIASES.get(name, name) if isinstance(name, str) else None
    if known in LIKELIHOODS:
        return LIKELIHOODS[known]
    if not isinstance(name, (str, type)) and isinstance(name, Likelihood):
        return name
    raise ValueError(
        f"likelihood: got {name!r}, expected one of {sorted(LIKELIHOODS)} or an object with the methods root, noise, "
        f"sample; also known as {sorted(ALIASES)}"
    )
