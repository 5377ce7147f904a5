"""Categorical and Segmentation: softmax over the class axis, apart for each position.

B batch, C classes, P positions, K columns, n samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.likelihoods.arrays import (
    Rooted,
    check_axis,
    check_target,
    class_axis_of,
    classes_last,
    moderated,
    part_of_columns,
    per_example,
    place,
    uniform,
)
from fisher.likelihoods.held import Held, array, check_values, numbers
from fisher.likelihoods.logits import expect_classes, expect_logits, expect_target
from fisher.likelihoods.softmax import plain_columns, softmax_score, weighted_columns
from linmaps import trees
from linmaps.checks import number, values
from linmaps.checks.annotations import typed
from linmaps.numerics.numeric import positive_root


@trees.static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Categorical(Held, Rooted):
    """Softmax over the class axis: H = diag(p) - p p', the same for each position, nothing between positions.

    The exact root has C - 1 columns per position, in which no difference of close numbers is taken: with q_k = sum over
    j > k of p_j,

        r_k = sqrt(p_k q_k / (p_k + q_k)) (e_k - sum over j > k of (p_j / q_k) e_j),   k = 1 .. C-1.

    class_axis: where the C logits are in the output (1, or -1 for token logits `[B, T, C]`).
    ignore_index: the target of positions that do not count: in no estimator, wherever targets are given.
    weight: of each class, `[C]`, numbers or a tensor >= 0; each target counts so many times: H is the sum over classes of
    w_t p_t (e_t - p)(e_t - p)', by C columns.
    label_smoothing: e of given targets q, which are (1 - e) q + e / C then; H is that of any target.
    Targets: classes `[B, *positions]`, or probabilities like y.  Noise: uniform in (0, 1).

    >>> import torch
    >>> r = Categorical().root(torch.tensor([[0.0, 1.0, 2.0]]))[:, 0]
    >>> p = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    >>> torch.allclose(r.T @ r, torch.diag(p) - torch.outer(p, p), atol=1e-6)
    True
    """

    class_axis: int = 1
    ignore_index: int = -100
    weight: Any = None
    label_smoothing: float = 0.0
    uniform_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_axis(self.class_axis, self._name)
        if not isinstance(self.ignore_index, int) or isinstance(self.ignore_index, bool):
            raise TypeError(f"{self._name}: ignore_index is {self.ignore_index!r}, expected a whole number")
        number(self.label_smoothing, f"{self._name}: label_smoothing", low=0.0, high=1.0, tensor=False)
        if self.weight is not None:
            object.__setattr__(self, "weight", numbers(self.weight, f"{self._name}: weight"))
            check_values(array(self.weight), f"{self._name}: weight", low=0.0)
            if array(self.weight).ndim != 1:
                raise ValueError(f"{self._name}: weight has shape {tuple(array(self.weight).shape)}, expected [C]")

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def notice(self, y: Tensor) -> None:
        """Warn where y holds probabilities in place of logits, or one class, whose probability is 1."""
        expect_logits(y, self.class_axis)
        expect_classes(y, self.class_axis)

    def _axis(self, y: Tensor) -> int:
        return class_axis_of(y, self.class_axis, self._name)

    @typed
    def n_columns(self, y: Tensor) -> int:
        """(C - 1) P, with weights C P."""
        return self._number(y.shape, self._axis(y))

    def _number(self, shape: Sequence[int], axis: int) -> int:
        return max(0, shape[axis] - (self.weight is None)) * math.prod(shape[1:axis]) * math.prod(shape[axis + 1 :])

    @typed
    def root_part(self, y: Tensor, start: int, stop: int) -> Tensor:
        """`root(y)[start:stop]`, without the memory of the rest."""
        axis = self._axis(y)
        last = classes_last(y, axis)
        positions = math.prod(last.shape[1:-1])
        span, first, end = part_of_columns(start, stop, self._number(y.shape, axis), positions)
        z, w = last.reshape(y.shape[0], positions, last.shape[-1]), self._weights(last)
        core = plain_columns(z, first, end) if w is None else weighted_columns(z, w, first, end)
        return place(core, first, span, y, axis)

    @typed
    def product(self, y: Tensor, u: Tensor) -> Tensor:
        """H u `[B, *out]`: p (u - <p, u>), with weights q - p sum(q), q = w p (u - <p, u>)."""
        axis = self._axis(y)
        p, u = torch.softmax(y, axis).movedim(axis, -1), u.movedim(axis, -1)
        q = p * (u - (p * u).sum(-1, keepdim=True))
        w = self._weights(p)
        return (q if w is None else w * q - p * (w * q).sum(-1, keepdim=True)).movedim(-1, axis)

    @typed
    def noise(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Uniform noise in (0, 1)."""
        return uniform(shape, generator, like)

    @typed
    def sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """Scores `[n, *y.shape]` at classes drawn by Gumbel's argmax, apart for each position.

        With weights, whose roots give scores a mean: at quantiles of the first noise, and of a sign that the last one draws,
        so that between positions the mean product stays zero.
        """
        axis = self._axis(y)
        z, u = y.movedim(axis, -1), noise.movedim(axis + 1, -1)
        if self.weight is None:
            drawn = (z - torch.log(-torch.log(u))).argmax(-1, keepdim=True)
        else:
            drawn = (torch.softmax(z, -1).cumsum(-1)[..., :-1] < u[..., :1]).sum(-1, keepdim=True)
        hot = drawn == torch.arange(z.shape[-1], device=z.device)
        found = self._scores(z.expand(hot.shape), hot)
        if self.weight is not None:
            found = torch.where(u[..., -1:] < 0.5, -found, found)
        return found.movedim(-1, axis + 1)

    @typed
    def score(self, y: Tensor, target: Any) -> Tensor:
        """e_t - p for class targets, zero where the target is `ignore_index`; sum over t of q_t (e_t - p) for probabilities q.

        With weights each e_t - p is times the root of its class's weight, so that the square is that of `root`.

        Raises TypeError for targets that are not whole numbers, ValueError for shapes and classes that do not fit.
        """
        axis = self._axis(y)
        z = y.movedim(axis, -1)
        q = self._probabilities(y, target)
        if q is not None:
            w = self._weights(z)
            q = q if w is None else q * positive_root(w)
            return (q - torch.softmax(z, -1) * q.sum(-1, keepdim=True)).movedim(-1, axis)
        t, counts = self._classes(z, target)
        hot = t[..., None] == torch.arange(z.shape[-1], device=z.device)
        return torch.where(counts[..., None], self._scores(z, hot), 0.0).movedim(-1, axis)

    @typed
    def log_prob(self, y: Tensor, target: Any) -> Tensor:
        """Sum `[B]` over positions of log p_t, times the weight of the class t."""
        z = y.movedim(self._axis(y), -1)
        w = self._weights(z)
        logp = torch.log_softmax(z, -1)
        logp = logp if w is None else w * logp
        q = self._probabilities(y, target)
        if q is not None:
            return per_example(torch.where(q != 0, q * logp, 0.0))  # a class that is masked has log p = -inf
        t, counts = self._classes(z, target)
        found = logp.gather(-1, torch.where(counts, t, 0)[..., None])[..., 0]
        return per_example(torch.where(counts, found, 0.0))

    @typed
    def counts(self, y: Tensor, target: Any) -> Tensor | None:
        """Which positions count, bool, with one entry along the class axis; None where all do.

        Probabilities mark nothing, nor does what is no tensor, which is for a loss of the user's own; real numbers of a shape
        that neither classes nor probabilities have are warned of, but for one of each example; whole numbers in a floating dtype
        are classes.  TypeError or ValueError for other tensors that are no target.
        """
        if not isinstance(target, Tensor):
            return None
        axis = self._axis(y)
        z, seen = y.movedim(axis, -1), values(target == self.ignore_index)
        if target.is_floating_point() and target.shape != z.shape[:-1]:
            if target.ndim > 1 and self._given(y, target) is None:
                expect_target(tuple(target.shape), tuple(y.shape), self._name)
            return None
        if target.is_floating_point() and ((t := values(target)) is None or bool((t == t.round()).all())):
            target = target.long()  # classes in another dtype
        _, kept = self._classes(z, target)
        return None if seen is not None and not bool(seen.any()) else kept.unsqueeze(axis)

    @typed
    def probabilities(self, mean: Tensor, variance: Tensor) -> Tensor:
        """softmax(m / sqrt(1 + pi/8 v)) over the class axis, for logits of mean m and variance v (MacKay, 1992)."""
        axis = self._axis(mean)
        if mean.shape[axis] < 2:
            raise ValueError(
                f"{self._name}: output has shape {tuple(mean.shape)} with one class, whose probability is 1; for one logit of "
                "yes or no use likelihood='bernoulli'"
            )
        return torch.softmax(moderated(mean, variance), axis)

    def _weights(self, z: Tensor) -> Tensor | None:
        """`[C]` for logits with the classes last."""
        if self.weight is None:
            return None
        w = array(self.weight, z)
        if len(w) != z.shape[-1]:
            raise ValueError(f"{self._name}: weight is of {len(w)} classes, expected {z.shape[-1]} as the output has")
        return w

    def _scores(self, z: Tensor, hot: Tensor) -> Tensor:
        w = self._weights(z)
        found = softmax_score(z, hot)
        return found if w is None else found * torch.where(hot, positive_root(w), 0.0).sum(-1, keepdim=True)

    def _probabilities(self, y: Tensor, target: Any) -> Tensor | None:
        """Targets that are probabilities, or that smoothing makes so, classes last, zero where masked; None where they are
        classes."""
        q, e = self._given(y, target), self.label_smoothing
        if not e:
            return q
        z = y.movedim(self._axis(y), -1)
        if q is not None:
            return (1 - e) * q + e / z.shape[-1]
        t, counts = self._classes(z, target)
        hot = (t[..., None] == torch.arange(z.shape[-1], device=z.device)).to(z.dtype)
        return torch.where(counts[..., None], (1 - e) * hot + e / z.shape[-1], 0.0)

    def _given(self, y: Tensor, target: Any) -> Tensor | None:
        if not isinstance(target, Tensor) or not target.is_floating_point() or target.shape != y.shape:
            return None
        q = target.movedim(self._axis(y), -1).to(y.dtype)
        if _seen_apart(target, self._axis(y)):
            others = [k for k in range(1, y.ndim) if not _seen_apart(target, k)]
            cure = "give classes as whole numbers, or apply torch.softmax"
            if others:
                k = -1 if others[-1] == y.ndim - 1 else others[-1]
                cure = f"over axis {k} they do: say class_axis={k}, as in fisher.Categorical(class_axis={k})"
            raise ValueError(
                f"{self._name}: target of shape {tuple(target.shape)} holds numbers that are no probabilities over the class "
                f"axis {self.class_axis}, expected numbers >= 0 that sum to one; {cure}"
            )
        return q

    def _classes(self, z: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """(classes, which of them count) `[B, *positions]` for z `[B, *positions, C]`."""
        classes = z.shape[-1]
        hint = (
            f", one class of {classes} for each position (of one-hot targets target.argmax(class_axis)); token logits "
            "[B, T, C] need class_axis=-1"
        )
        t = check_target(self._name, target, tuple(z.shape[:-1]), whole=True, hint=hint).long()
        counts = t != self.ignore_index
        seen = values(t)
        if seen is not None:
            wrong = ((seen < 0) | (seen >= classes)) & (seen != self.ignore_index)
            if bool(wrong.any()):
                raise ValueError(
                    f"{self._name}: target holds class {int(seen[wrong][0])}, expected 0 to {classes - 1} or "
                    f"ignore_index={self.ignore_index}; give the ignored class by ignore_index, or count classes from 0"
                )
        return t, counts


def _seen_apart(target: Tensor, axis: int) -> bool:
    """Whether numbers are seen to be no probabilities over an axis."""
    q = target.detach()
    off = (q.sum(axis) - 1).abs() > 10 * torch.finfo(q.dtype).eps ** 0.5
    wrong = values(off | (q < 0).any(axis))
    return wrong is not None and bool(wrong.any())


@trees.static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Categorical):
    """`Categorical` for each pixel, of logits `[B, C, *pixels]`: sums over pixels, means over images.

    >>> import torch
    >>> Segmentation().root(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([32, 2, 3, 4, 4])
    """

    def _axis(self, y: Tensor) -> int:
        if y.ndim < 3:
            raise ValueError(
                f"segmentation: output has shape {tuple(y.shape)}, expected logits [B, C, *pixels]; "
                "use 'categorical' for one class per example"
            )
        return super()._axis(y)
