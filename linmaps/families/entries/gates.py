"""Hard-concrete gates: entries, inputs or outputs of W [in, out] that training can switch off for good."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from linmaps.base import Map, matrix, product
from linmaps.base.registry import register
from linmaps.checks import Params, Shape
from linmaps.checks.precision import HALF
from linmaps.numerics.draws import normal, uniform
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import by_planes

LOW, HIGH = -0.1, 1.1  # the interval that the concrete variable is stretched to before it is cut to [0, 1]
NOISE = 1e-6  # uniform noise is kept this far from 0 and 1

Gate = Literal["weight", "input", "output"]


@register
@dataclass(frozen=True)
class L0(Map):
    """Weights times gates, `W = z * params["W"]`, with a soft penalty on the expected number of open gates.

    The leaf "q" holds log-odds of the gates (log alpha in the paper): [in, out] for gate="weight", [in] for "input", [out]
    for "output" (one gate for a whole row or column).  Without noise, W is deterministic:

        z = min(1, max(0, 1.2 sigmoid(q) - 0.1)).

    With `noise`, uniform numbers in (0, 1) of the shape of q, `effective_W` and `apply` sample

        z = min(1, max(0, 1.2 sigmoid((logit(noise) + q) / temperature) - 0.1)),

    one mask for all of x; for gate="input", `apply` also takes noise [..., in], a mask per example.  Train with noise: the
    deterministic gate has no gradient once it is closed or fully open.  The penalty is

        reg_error = sum over weights of P(z != 0) (lamda + weight_decay / 2 W^2) + weight_decay / 2 |bias|^2,
        P(z != 0) = sigmoid(q - temperature log(0.1 / 1.1))    for the weight's gate.

    `expected_l0` is the expected number of non-zero entries of W.  `project` keeps q in [log .01, log 100], as the
    authors do.  Nothing is promised of W but the zeros that closed gates leave.

    init: q from N(log(1/droprate_init - 1), .01^2), and weights such that inputs of unit variance give outputs of variance
    1/3 through the deterministic gates (those of W's size at most ten times, for a droprate_init near 1).

    ValueError for droprate_init outside (0, 1), temperature <= 0, negative lamda or weight_decay, an unknown gate, or
    noise of another shape.

    Source: Louizos, Welling and Kingma, arXiv:1712.01312.

    >>> import torch, linmaps
    >>> spec = linmaps.L0(3, 2, gate="output")
    >>> params = {"W": torch.ones(3, 2), "q": torch.tensor([-9.0, 9.0])}
    >>> spec.effective_W(params)[0], round(spec.expected_l0(params).item(), 2)
    (tensor([0., 1.]), 3.0)
    """

    name: ClassVar[str] = "l0"
    promise: ClassVar[str] = "sparse, by gates and a penalty on how many are open"
    at_zero: ClassVar[str] = "0"
    hard: ClassVar[bool] = False

    droprate_init: float = field(default=0.5, kw_only=True)
    temperature: float = field(default=2 / 3, kw_only=True)
    weight_decay: float = field(default=1.0, kw_only=True)
    lamda: float = field(default=1.0, kw_only=True)
    gate: Gate = field(default="weight", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("droprate_init", "temperature", "weight_decay", "lamda"):
            self._expect_number(key, 0, above=key in ("droprate_init", "temperature"))
        self._expect(self.droprate_init < 1, "droprate_init", "a number below 1, the probability that a gate is closed")
        self._expect(self.gate in get_args(Gate), "gate", f"one of {get_args(Gate)}")

    def _shapes(self) -> dict[str, Shape]:
        n, m = self.in_features, self.out_features
        return {"W": (n, m), "q": {"weight": (n, m), "input": (n,), "output": (m,)}[self.gate]}

    def _init(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
        shapes, p = self._shapes(), self.droprate_init
        opening = min(1.0, max(0.1, LOW + (HIGH - LOW) * (1 - p)))
        W = uniform(generator, shapes["W"], self.in_features**-0.5 / opening, dtype)
        return {"W": W, "q": math.log(1 / p - 1) + 0.01 * normal(generator, shapes["q"], dtype)}

    def effective_W(self, params: Params, noise: Tensor | None = None) -> Tensor:
        """W [in, out] with the deterministic gates, or with those that the uniform `noise`, of q's shape, opens.

        >>> import torch, linmaps
        >>> spec = linmaps.L0(2, gate="input")
        >>> params = {"W": torch.ones(2, 2), "q": torch.zeros(2)}
        >>> spec.effective_W(params, noise=torch.tensor([0.01, 0.99]))
        tensor([[0., 0.],
                [1., 1.]])
        """
        self._check(params)
        if noise is None:
            return matrix(self._use, params)
        return self._over(params["W"], self._gate(params, self._noise(noise, ())))

    def apply(self, params: Params, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """`x @ W + b` for x [..., in], with `noise` as in `effective_W`; for gate="input" also [..., in], like x.

        >>> import torch, linmaps
        >>> spec = linmaps.L0(2, 1, gate="input")
        >>> params = {"W": torch.ones(2, 1), "q": torch.zeros(2)}
        >>> spec.apply(params, torch.ones(2, 2), noise=torch.tensor([[0.01, 0.01], [0.99, 0.99]]))
        tensor([[0.],
                [2.]])
        """
        self._check(params)
        self._check_x(params, x, "in_features", "apply: x")
        if noise is None:
            y = product(self._use, params, x)
        else:
            y = self._gated(params, x, self._noise(noise, tuple(x.shape[:-1]) if self.gate == "input" else ()))
        return y + params["bias"] if self.bias else y

    def _multiplied(self, params: Params, x: Tensor) -> Tensor:
        return self._gated(params, x, None)

    def _gated(self, params: Params, x: Tensor, noise: Tensor | None) -> Tensor:
        z = self._gate(params, noise)
        if self.gate == "input":
            return by_planes(lambda W, x: (x * z) @ W, params["W"], x)
        if self.gate == "output":
            return by_planes(lambda W, x: x @ W * z, params["W"], x)
        return by_planes(lambda W, x: x @ W, self._over(params["W"], z), x)

    def expected_l0(self, params: Params) -> Tensor:
        """The expected number of non-zero entries of W, a scalar.

        >>> import torch, linmaps
        >>> round(linmaps.L0(2).expected_l0({"W": torch.ones(2, 2), "q": torch.zeros(2, 2)}).item(), 3)
        3.327
        """
        self._check(params)
        return self._over(torch.ones_like(params["W"]), self._open(params)).sum()

    def _gate(self, params: Params, noise: Tensor | None = None) -> Tensor:
        q = params["q"].to(working_dtype(params["q"].dtype))
        if noise is not None:
            q = (torch.logit(noise.to(q.dtype).clamp(NOISE, 1 - NOISE)) + q) / self.temperature
        z = torch.nn.functional.hardtanh(LOW + (HIGH - LOW) * q.sigmoid(), 0.0, 1.0)
        return z.to(params["q"].dtype) if params["q"].dtype in HALF else z

    def _open(self, params: Params) -> Tensor:
        return torch.sigmoid(params["q"] - self.temperature * math.log(-LOW / HIGH))

    def _over(self, W: Tensor, z: Tensor) -> Tensor:
        return W * (z[:, None] if self.gate == "input" else z)

    def _weight(self, params: Params) -> Tensor:
        return self._over(params["W"], self._gate(params))

    def _reg_error(self, params: Params) -> Tensor:
        price = self.lamda + self.weight_decay / 2 * params["W"].square()
        error = self._over(price, self._open(params)).sum()
        return error + self.weight_decay / 2 * params["bias"].square().sum() if self.bias else error

    def _violation(self, W: Tensor) -> Tensor:
        return W.new_zeros(())

    def _project(self, params: Params) -> dict[str, Any]:
        return {**params, "q": params["q"].clamp(math.log(0.01), math.log(100))}

    def _noise(self, noise: Tensor | None, leading: Shape) -> Tensor | None:
        """Noise in the shape of q, or for each example of leading axes; [in, 1] and [1, out] are taken for [in] and [out]."""
        q = self._shapes()["q"]
        shapes = {q, leading + q}
        got = tuple(noise.shape) if isinstance(noise, Tensor) else ()
        if noise is None or got in shapes:
            return noise
        if isinstance(noise, Tensor) and got == {"input": (*q, 1), "output": (1, *q)}.get(self.gate):
            return noise.reshape(q)
        raise ValueError(
            f"{self._title}: noise is {got or type(noise).__name__}, expected uniform numbers of shape "
            f"{' or '.join(map(str, sorted(shapes)))}; draw them with torch.rand(shape, generator=generator)"
        )
