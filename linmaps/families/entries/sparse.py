"""Sparse matrices and those of one sign: non-negative entries, differences of them, gates.  W [in, out]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from linmaps.base import Map
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.ranges import relu

SMALLEST = 0.05  # of the init's largest entry: the smallest, since a vanishing one would hardly move

# free parameter -> entry >= 0, and back; softplus is scaled by the entries' size, so that none starts in its flat tail
METHODS = {
    "softplus": (lambda w, size: size * F.softplus(w), lambda W, size: W / size + torch.log(-torch.expm1(-W / size))),
    "relu": (lambda w, size: relu(w), lambda W, size: W),
    "square": (lambda w, size: w.square(), lambda W, size: W.sqrt()),
    "exp": (lambda w, size: w.exp(), lambda W, size: W.log()),
}


def draw(generator: torch.Generator, shape: Shape, bound: float, dtype: torch.dtype) -> Tensor:
    """Entries from U(bound / 20, bound)."""
    u = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    return bound * (SMALLEST + (1 - SMALLEST) * u)


def size(t: Tensor) -> Tensor:
    """|t| with derivative 1 at 0, that of entries which are never negative."""
    return torch.where(t < 0, -t, t)


def raised(W: Tensor, method: str, size: float) -> Tensor:
    """The free parameter of W >= 0."""
    return METHODS[method][1](W, size)


def floor(method: str, size: float) -> float:
    """The least entry that `from_matrix` aims at: not 0 where the method reaches it at infinity, or never leaves it."""
    return 0.0 if method == "relu" else 1e-6 * size


@register
@dataclass(frozen=True)
class NonNegative(Map):
    """Entries that are never negative, `W = phi(params["W"]) >= 0`.

    method: phi of a free leaf "W" [in, out]:

    * softplus: `softplus(w) / sqrt(in)`, smooth and never dead (the default).
    * square: `w^2`; a zero entry stays zero.
    * exp: `exp(w)`; steps are relative to the entry.
    * relu: `max(w, 0)`, the one with exact zeros.  An entry below 0 has no gradient: call `project` after each optimizer
      step, which is projected gradient descent, and no entry dies, since the derivative at 0 is taken as 1.

    init: entries from U(1/20, 1) / sqrt(in), so that inputs of unit variance and mean 0 give outputs of variance .35;
    a mean m of the inputs is multiplied by about sqrt(in) / 2.  `violation(W)` is the norm of the negative entries.
    `from_matrix` cuts them.

    >>> import torch, linmaps
    >>> spec = linmaps.NonNegative(3, 2, method="exp")
    >>> bool((spec.effective_W({"W": torch.full((3, 2), -5.0)}) > 0).all())
    True
    """

    name: ClassVar[str] = "non_negative"
    promise: ClassVar[str] = "W >= 0"

    method: str = field(default="softplus", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {tuple(METHODS)}")

    @property
    def _size(self) -> float:
        return self.in_features**-0.5

    def _shapes(self) -> dict[str, Shape]:
        return {"W": (self.in_features, self.out_features)}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        W = draw(generator, self._shapes()["W"], self._size, dtype)
        return {"W": raised(W, self.method, self._size)}

    def _weight(self, params: Params) -> Tensor:
        return METHODS[self.method][0](params["W"], self._size)

    def _violation(self, W: Tensor) -> Tensor:
        return frobenius(W.clamp(max=0))

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, "W": params["W"].clamp(min=0)} if self.method == "relu" else dict(params)

    def _from_matrix(self, W: Tensor) -> Params:
        return {"W": raised(W.clamp(min=floor(self.method, self._size)), self.method, self._size)}


@register
@dataclass(frozen=True)
class Split(Map):
    """A difference of non-negative matrices, `W = B - C`, with a soft penalty on their overlap.

    Leaves "B", "C" [in, out] and method as in `NonNegative`.  `reg_error` is `sum(B * C)`, zero where each entry of W
    has only one of the two.  Any matrix is such a difference, so that nothing is promised of W.  init: B and C from
    U(1/20, 1) sqrt(2 / in) or so, such that outputs have variance 1/3 for inputs of unit variance.  `from_matrix` takes
    the positive and the negative part.

    >>> import torch, linmaps
    >>> spec = linmaps.Split(1, 2, method="relu")
    >>> params = {"B": torch.tensor([[3.0, 0.0]]), "C": torch.tensor([[1.0, 2.0]])}
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[ 2., -2.]]), tensor(3.))
    """

    name: ClassVar[str] = "split"
    promise: ClassVar[str] = "W = B - C with B, C >= 0; their overlap is penalised"
    hard: ClassVar[bool] = False

    method: str = field(default="softplus", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.method in METHODS, "method", f"one of {tuple(METHODS)}")

    @property
    def _size(self) -> float:
        return (2 / self.in_features) ** 0.5 / (1 - SMALLEST)  # so that var(B - C) = 1 / (3 in)

    def _shapes(self) -> dict[str, Shape]:
        shape = (self.in_features, self.out_features)
        return {"B": shape, "C": shape}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes, size = self._shapes(), self._size
        return {k: raised(draw(generator, s, size, dtype), self.method, size) for k, s in shapes.items()}

    def parts(self, params: Params) -> tuple[Tensor, Tensor]:
        """B and C [in, out], both non-negative.

        >>> import torch, linmaps
        >>> linmaps.Split(1, method="square").parts({"B": torch.tensor([[3.0]]), "C": torch.tensor([[2.0]])})
        (tensor([[9.]]), tensor([[4.]]))
        """
        self._check(params)
        phi = METHODS[self.method][0]
        return phi(params["B"], self._size), phi(params["C"], self._size)

    def _weight(self, params: Params) -> Tensor:
        B, C = self.parts(params)
        return B - C

    def _reg_error(self, params: Params) -> Tensor:
        B, C = self.parts(params)
        return (B * C).sum()

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _project(self, params: Params) -> dict[str, Any]:
        if self.method != "relu":
            return dict(params)
        return {**params, "B": params["B"].clamp(min=0), "C": params["C"].clamp(min=0)}

    def _from_matrix(self, W: Tensor) -> Params:
        size, least = self._size, floor(self.method, self._size)
        return {k: raised(t.clamp(min=0) + least, self.method, size) for k, t in (("B", W), ("C", -W))}


@register
@dataclass(frozen=True)
class Lasso(Map):
    """A difference `W = u - v` with the soft penalty `gamma sum(|u| + |v|)`: the lasso by projected gradient descent.

    Leaves "u", "v" [in, out], meant to be >= 0: call `project`, which cuts them there, after each optimizer step.  Where
    both are zero, W has an exact zero; at the optimum `u v = 0`, and the penalty is `gamma |W|_1`.  Plain SGD, whose step
    eta then equals the soft threshold eta gamma, gives the lasso's own solution.  On projected params `reg_error` is
    gamma sum(u + v), and so are its derivatives, at 0 too.

    init: u and v from U(1/20, 1) sqrt(2 / in) or so, such that outputs have variance 1/3 for inputs of unit variance.
    `from_matrix` takes the positive and the negative part.  ValueError for a gamma that is negative.

    Source: Bottou, COMPSTAT 2010, section 5.

    >>> import torch, linmaps
    >>> spec = linmaps.Lasso(1, 2, gamma=0.5)
    >>> params = spec.project({"u": torch.tensor([[3.0, -1.0]]), "v": torch.tensor([[-2.0, -4.0]])})
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[3., 0.]]), tensor(1.5000))
    """

    name: ClassVar[str] = "lasso"
    promise: ClassVar[str] = "sparse, by a penalty and `project`"
    hard: ClassVar[bool] = False

    gamma: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_number("gamma", 0)

    def _shapes(self) -> dict[str, Shape]:
        shape = (self.in_features, self.out_features)
        return {"u": shape, "v": shape}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        bound = (2 / self.in_features) ** 0.5 / (1 - SMALLEST)
        return {k: draw(generator, s, bound, dtype) for k, s in self._shapes().items()}

    def _parts(self, params: Params) -> tuple[Tensor, Tensor]:
        return params["u"], params["v"]

    def _weight(self, params: Params) -> Tensor:
        u, v = self._parts(params)
        return u - v

    def _reg_error(self, params: Params) -> Tensor:
        u, v = self._parts(params)
        return self.gamma * (size(u).sum() + size(v).sum())

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, "u": params["u"].clamp(min=0), "v": params["v"].clamp(min=0)}

    def _from_matrix(self, W: Tensor) -> Params:
        return {"u": W.clamp(min=0), "v": (-W).clamp(min=0)}


@register
@dataclass(frozen=True)
class LassoReLU(Lasso):
    """A difference `W = relu(u) - relu(v)` with the soft penalty `gamma sum(relu(u) + relu(v))`.

    As `Lasso`, but W has exact zeros and the penalty is >= 0 without `project`, too.  An entry below 0 has no gradient
    and stays there; `project` brings it to 0, where the derivative is taken as 1, so that it can come back.

    >>> import torch, linmaps
    >>> spec = linmaps.LassoReLU(1, 2)
    >>> params = {"u": torch.tensor([[3.0, -1.0]]), "v": torch.tensor([[-2.0, -4.0]])}
    >>> spec.effective_W(params), spec.reg_error(params)
    (tensor([[3., 0.]]), tensor(3.))
    """

    name: ClassVar[str] = "lasso_relu"

    def _parts(self, params: Params) -> tuple[Tensor, Tensor]:
        return relu(params["u"]), relu(params["v"])
