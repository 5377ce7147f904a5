"""What a posterior predicts, in parameter space or in function space: moments of the outputs, and probabilities.

B examples, C outputs of one example (all output axes, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor

from fisher.checks import finiteness
from fisher.checks.axes import batch_size
from fisher.checks.data import batches, one_batch, weighted_batches
from fisher.collector.collection import LayerCollection
from fisher.likelihoods import Gaussian, Likelihood
from fisher.likelihoods.held import Emptied
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.posterior.links import Link, linked
from fisher.recipes.posterior.saved import Savable
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision_methods
from linmaps.numerics.dtypes import working
from linmaps.numerics.linalg import inv
from linmaps.trees.printed import cell
from linmaps.trees.seals import sealed


class Predictive(Savable):
    """A posterior says what the outputs of some inputs are (`_moments`); predictions follow."""

    params: Any
    kind: Likelihood | Emptied | None  # the likelihood without its tensors
    numbers: dict[str, Any]
    temperature: Tensor | None

    @property
    def likelihood(self) -> Likelihood | None:
        """The likelihood of the outputs, with the noise of the posterior; None where it is not known."""
        return self.kind.filled(self.numbers) if isinstance(self.kind, Emptied) else self.kind

    def _of(self) -> str:
        """The name of the likelihood."""
        if self.kind is None:
            return "no likelihood"
        return (self.kind.cls if isinstance(self.kind, Emptied) else type(self.kind)).__name__

    def _warm(self) -> str | None:
        """The temperature for a line of print, where it is not 1."""
        shown = "1" if self.temperature is None else cell(self.temperature)
        return None if shown == "1" else f"temperature = {shown}"

    def _moments(self, parts: list[Any], joint: bool, layers: LayerCollection | None) -> tuple[Tensor, Tensor]:
        """Outputs `[B, *out]` of several batches, and their covariance `[B, C, C]`, or jointly `[B C, B C]`."""
        raise AttributeError("a posterior defines moments")

    # --- what tuning asks ------------------------------------------------------------------------------------------------

    @property
    def _space(self) -> PMat:
        """A matrix on the leaves that the posterior is of."""
        raise AttributeError("a posterior defines its space")

    def _effective(self, of: Callable[[Any], Any], at: Any, counts: Any, name: str) -> Any:
        """counts - d logdet(N F / T + of(at)) / d at: effective numbers of groups of so many entries, at logs of precisions."""
        raise AttributeError("a posterior defines effective numbers")

    def _under(self, P: Any, name: str | None = None) -> Self:
        """The posterior with this precision of the prior; name: who says so where it has no density."""
        raise AttributeError("a posterior defines another prior")

    def _louder(self, c: Tensor, known: Likelihood) -> Self:
        """The posterior with c times the noise, that of a known likelihood."""
        raise AttributeError("a posterior defines more noise")

    def _prior_trace(self, P: Any) -> Tensor:
        """tr(N F P^-1)."""
        raise AttributeError("a posterior defines a trace")

    # --- predictions -----------------------------------------------------------------------------------------------------

    def _of_inputs(self, x: Any, joint: bool, layers: LayerCollection | None) -> tuple[Tensor, Tensor]:
        """`_moments` at x; what f says of a tuple is said with what a tuple means."""
        try:
            return self._moments(several(x), joint, layers)
        except Exception as error:
            if isinstance(x, tuple):
                self._check_inputs(x)
            raise error

    def _check_inputs(self, x: tuple[Any, ...]) -> None:
        try:
            self.f(self.params, sealed(x))
        except Exception as error:
            raise ValueError(
                f"x: got a tuple of {len(x)}, the several inputs of f, which says of them: {error}; give x alone, and batches "
                "with targets, which are left aside, in a list, [(x, target)]"
            ) from error

    @typed
    def predict(
        self, x: Any, *, layers: LayerCollection | None = None, joint: bool = False, noise: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean `[B, C]` and covariance `[B, C, C]` of f's flattened outputs: f(x_b) and J_b (N F / T + P)^-1 J_b'.

        That of the model linearized at params (Khan et al., 2019; Immer, Korzepa and Bauer, 2021).  x: one batch, a tuple (or a
        mapping) being the several inputs of f, not (x, target); or an iterable of batches x or (x, target), as a DataLoader or
        [(x, target)], whose targets are left aside.  joint: of all examples together, `[B C]` and `[B C, B C]`.  noise: with the
        noise of a gaussian likelihood, the moments of the targets.  layers: makes the Jacobian faster; those of the matrix where
        it knows them.
        """
        y, covariance = self._of_inputs(x, joint, layers)
        mean = y.reshape(len(y), math.prod(y.shape[1:]))
        if noise:
            covariance = covariance + self._noise(y, joint)
        return (mean.reshape(mean.numel()) if joint else mean), covariance

    @typed
    def probabilities(
        self,
        x: Any,
        *,
        link: Link = "probit",
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        n_samples: int = 100,
        layers: LayerCollection | None = None,
    ) -> Tensor:
        """Predictive probabilities, in the shape of f's output `[B, *out]`, of logits of this mean m and covariance S.

        link: "probit": categorical: softmax(m / sqrt(1 + pi/8 diag S)) over the class axis, apart for each position; bernoulli:
        sigmoid of the same at each coordinate (MacKay, 1992).  "bridge" (categorical): the mean of the Dirichlet distribution
        that is nearest in the logits (Hobbhahn et al., 2022).  "mc": the mean over `n_samples` of N(m, S), by the generator or by
        standard normal noise `[n, B, C]`.  x as in `predict`.  ValueError for a likelihood without probabilities (gaussian,
        poisson: see `predict`), and for a posterior that knows no likelihood.
        """
        known = self._known("probabilities")
        y, covariance = self._of_inputs(x, False, layers)
        return linked(known, y, covariance, link, generator, noise, n_samples)

    @typed
    def log_likelihood(self, data: Any) -> Tensor:
        """log p(data | params), a scalar: the sum over all examples of `(x, target)` or batches of these.

        Of outputs in half precision it is computed and added up in float32: a sum in bfloat16 stops growing after 256 terms.
        ValueError where the likelihood is not known or has no density of given targets.
        """
        known: Any = self._known("log_likelihood")
        if not hasattr(known, "log_prob"):
            raise ValueError(
                f"log_likelihood: {type(known).__name__} has no density, expected a likelihood with log_prob(y, target)"
            )
        found = [
            weighed(known.log_prob(working(self.f(self.params, x)), _given(t)), w) for x, t, w in weighted_batches(data)
        ]
        return sum(found[1:], found[0])

    def _known(self, name: str) -> Likelihood:
        if self.likelihood is None:
            raise ValueError(
                f"{name}: the likelihood of these outputs is not known, expected it of fisher.fim's matrix or by name; "
                "make the posterior with laplace(..., likelihood='categorical') or another"
            )
        return self.likelihood

    def _noise(self, y: Tensor, joint: bool) -> Tensor:
        """The covariance of targets around their mean, `[C, C]`, or jointly `[B C, B C]`."""
        known = self._known("predict")
        if not isinstance(known, Gaussian):
            raise ValueError(
                f"noise: got True for {type(known).__name__}, expected the likelihood 'gaussian', whose noise does not depend on "
                "the outputs; of others take predict(x) without it, or probabilities(x)"
            )
        example = y[:1] if len(y) else y.new_zeros(1, *y.shape[1:])
        r = known.root(example).reshape(-1, math.prod(y.shape[1:]))
        S = inv(r.mT @ r)
        return torch.kron(torch.eye(len(y), dtype=S.dtype, device=S.device), S) if joint else S


def _given(target: Any) -> Any:
    if target is None:
        raise ValueError("log_likelihood: got data without targets, expected pairs (x, target)")
    return target


def weighed(values: Tensor, weight: Tensor | None) -> Tensor:
    """The sum of numbers `[B]` of examples, each of its weight."""
    if weight is not None and weight.ndim != 1:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [{len(values)}]: the likelihood of an example has one weight"
        )
    return values.sum() if weight is None else (values * weight).sum()


def several(x: Any) -> list[Any]:
    """The inputs of each batch: of one, or of an iterable of batches, with or without targets.

    >>> several([(torch.zeros(2, 3), None), (torch.ones(1, 3), None)])[1]
    tensor([[1., 1., 1.]])
    """
    if one_batch(x) or not isinstance(x, Iterable):
        return [_finite(sealed(x), "x")]
    found = [_finite(part, f"x: batch {n}") for n, (part, _) in enumerate(batches(x, what="predict"))]
    return [part for part in found if batch_size(part)] or found[:1]


def _finite(x: Any, name: str) -> Any:
    finiteness.finite(x, name, "clean or drop these examples")
    return x


full_precision_methods(Predictive)
