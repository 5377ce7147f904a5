"""Columns: the estimators, as cotangents `[K, B, *out]` at f's output whose sum of outer products is the Fisher's core.

exact: the root of H_b.  mc: scores at n sampled targets over sqrt(n), unbiased.  empirical, gradient_covariance: the score
at the given target.  Positions whose given target says that they do not count (`ignore_index`) have columns of zeros in
all of them; of weighted data they are times sqrt(w) (`fisher.likelihoods.weights`).  B batch, K columns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import grad

from fisher.likelihoods.base import Likelihood, counts, n_columns, noticed, root_part, score
from fisher.likelihoods.weights import weighed
from linmaps import checks
from linmaps.checks import values

MOST = 2**28  # random numbers at once: more is met before memory is
Estimator = Literal["exact", "mc", "empirical", "gradient_covariance"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


class Columns:
    """What `estimator` returns: `columns(y, target, weight)` is `[K, B, *out]`; `columns.parts(...)` yields it in parts."""

    likelihood: Likelihood

    def __call__(self, y: Tensor, target: Any = None, weight: Tensor | None = None) -> Tensor:
        """All columns `[K, B, *out]` at f's output y `[B, *out]`, of data of this weight."""
        return self.weighed(self._all(y, target), y, weight)

    def _all(self, y: Tensor, target: Any) -> Tensor:
        raise AttributeError("an estimator defines _all")

    def weighed(self, columns: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Columns of data of weight 1 as those of data of this weight."""
        return weighed(columns, self.likelihood, y, weight)

    def in_squares(self, weight: Tensor | None) -> Tensor | None:
        """What the squares of the columns are times."""
        return weight

    def counts(self, y: Tensor, target: Any = None) -> Tensor | None:
        """Which entries of y count by the target, bool, in a shape that expands to y's; None where all do."""
        return counts(self.likelihood, y, target)

    def parts(
        self, y: Tensor, target: Any = None, size: int | None = None, weight: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The same columns in the same order, at most `size` at a time (None: all at once), each made when asked for.

        There is always at least one part: where there is no column (one class, a distribution without parameters) it is a
        column of zeros.  Raises ValueError for a size below 1.
        """
        check_size(size)
        noticed(self.likelihood, y)
        found = (part if part.shape[0] else torch.zeros_like(y)[None] for part in self._parts(y, target, size))
        return (self.weighed(part, y, weight) for part in found)

    def _parts(self, y: Tensor, target: Any, size: int | None) -> Iterator[Tensor]:
        yield from chunks(self._all(y, target), size)


@dataclasses.dataclass(frozen=True)
class Exact(Columns):
    """The columns of the likelihood's root.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> [part.shape[0] for part in Exact(Categorical()).parts(torch.zeros(2, 6), size=3)]
    [3, 2]
    """

    likelihood: Likelihood

    def _all(self, y: Tensor, target: Any) -> Tensor:
        return counted(self.likelihood.root(y), counts(self.likelihood, y, target))

    def _parts(self, y: Tensor, target: Any, size: int | None) -> Iterator[Tensor]:
        if size is None or not hasattr(self.likelihood, "root_part"):
            yield from chunks(self._all(y, target), size)
            return
        total, kept = n_columns(self.likelihood, y), counts(self.likelihood, y, target)
        for start in range(0, max(1, total), size):
            yield counted(root_part(self.likelihood, y, start, min(start + size, total)), kept)


@dataclasses.dataclass(frozen=True)
class Sampled(Columns):
    """Scores at n sampled targets over sqrt(n), one column per trial; each example and position draws its own target.

    The noise is drawn at once, one trial after the other, so that the numbers do not depend on the size of the parts.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> Sampled(Gaussian(), torch.Generator().manual_seed(0), None, 7)(torch.zeros(5, 3)).shape
    torch.Size([7, 5, 3])
    """

    likelihood: Likelihood
    generator: torch.Generator | None
    noise: Tensor | None
    n_samples: int

    def _all(self, y: Tensor, target: Any) -> Tensor:
        return next(self._parts(y, target, None))

    def _parts(self, y: Tensor, target: Any, size: int | None) -> Iterator[Tensor]:
        noise, kept = self._draw(y), counts(self.likelihood, y, target)
        scale = math.sqrt(noise.shape[0])
        for part in chunks(noise, size):
            yield counted(self.likelihood.sample(y, part), kept) / scale

    def _draw(self, y: Tensor) -> Tensor:
        if self.generator is not None:
            most = max(1, MOST // max(1, y.numel()))
            checks.size(
                self.n_samples, "n_samples", 1, most, cure="for more average matrices of fewer, with fisher.Mean"
            )
            return self.likelihood.noise((self.n_samples, *y.shape), self.generator, y)
        noise = torch.as_tensor(self.noise)
        if not noise.is_floating_point():
            raise TypeError(f"noise: got dtype {noise.dtype}, expected a real floating one")
        if tuple(noise.shape[1:]) != tuple(y.shape) or noise.ndim == 0 or noise.shape[0] == 0:
            raise ValueError(
                f"noise: got shape {tuple(noise.shape)}, expected [n, {', '.join(map(str, y.shape))}] with n >= 1"
            )
        if getattr(self.likelihood, "uniform_noise", False):
            inside = values((noise >= 0) & (noise <= 1))
            if inside is not None and not bool(inside.all()):
                raise ValueError(
                    f"noise: got numbers outside [0, 1], expected uniform noise in (0, 1) for {self.likelihood!r}; use torch.rand"
                )
        return noise


@dataclasses.dataclass(frozen=True)
class Given(Columns):
    """The score at the given target, one column.

    >>> import torch
    >>> from fisher.likelihoods import Categorical
    >>> Given("empirical", Categorical())(torch.zeros(1, 2), torch.tensor([0]))
    tensor([[[ 0.5000, -0.5000]]])
    """

    name: Estimator
    likelihood: Likelihood

    def weighed(self, columns: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return weighed(columns, self.likelihood, y, weight, squared=self.name != "gradient_covariance")

    def in_squares(self, weight: Tensor | None) -> Tensor | None:
        return weight if weight is None or self.name != "gradient_covariance" else weight**2

    def _all(self, y: Tensor, target: Any) -> Tensor:
        if target is None:
            raise ValueError(
                f"estimator={self.name!r}: got data without targets, expected (x, target); "
                "give pairs (of a mapping that holds the targets too: (batch, batch['labels'])), or use estimator='exact' or 'mc'"
            )
        if self.name == "gradient_covariance" and getattr(self.likelihood, "weight", None) is not None:
            log_prob = self.likelihood.log_prob  # type: ignore[attr-defined]
            return grad(lambda y: log_prob(y, target).sum())(y)[None]  # of the weighted loss, not its root
        return score(self.likelihood, y, target)[None]


def estimator(
    name: Estimator,
    likelihood: Likelihood,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    n_samples: int = 1,
) -> Columns:
    """The function from f's output y `[B, *out]`, and the target where it is used, to the columns.

    mc needs a `generator` (eager use) or the `noise` itself `[n, *y.shape]` (anywhere, under vmap too): uniform in (0, 1)
    for categorical, segmentation, bernoulli and poisson, standard normal for the gaussian likelihoods; the others use
    neither.  empirical and gradient_covariance need targets, and have the same columns (with weights w, of classes or of
    examples, those of the first are sqrt(w) times the score, as in F, those of the second w times it, the gradient of the
    weighted loss): the covariance is centered, if it is to be, where columns become gradients of params.

    >>> import torch
    >>> from fisher.likelihoods import Gaussian
    >>> estimator("exact", Gaussian())(torch.zeros(5, 3)).shape
    torch.Size([3, 5, 3])
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator: got {name!r}, expected one of {list(ESTIMATORS)}")
    if name != "mc" and noise is not None:
        raise ValueError(f"estimator={name!r}: got noise, expected none; it draws nothing (or say 'mc')")
    if name == "exact":
        return Exact(likelihood)
    if name != "mc":
        return Given(name, likelihood)
    if (noise is None) == (generator is None):  # neither or both
        raise ValueError("estimator='mc': give either generator=torch.Generator() or noise=<tensor [n, *y.shape]>")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: got {type(generator).__name__}, expected a torch.Generator; pass torch.Generator().manual_seed(seed)"
        )
    checks.size(n_samples, "n_samples", 1)
    return Sampled(likelihood, generator, noise, n_samples)


def counted(columns: Tensor, kept: Tensor | None) -> Tensor:
    """The columns `[K, B, *out]`, zero where `kept` (of `counts`) says that a position does not count.

    >>> import torch
    >>> counted(torch.ones(1, 2, 1), torch.tensor([[True], [False]])).flatten()
    tensor([1., 0.])
    """
    return columns if kept is None else torch.where(kept, columns, 0.0)


def check_size(size: int | None) -> None:
    """Raise unless `size` is None or at least 1."""
    if size is not None:
        checks.size(size, "chunk_size", 1, cure="a number of columns, or None for all at once")


def chunks(columns: Tensor, size: int | None) -> Iterator[Tensor]:
    """The columns in parts of at most `size`: memory for output-gradients is proportional to it.

    >>> import torch
    >>> [len(part) for part in chunks(torch.zeros(5, 2), 3)]
    [3, 2]
    """
    check_size(size)
    yield from columns.split(size or max(1, columns.shape[0]))
