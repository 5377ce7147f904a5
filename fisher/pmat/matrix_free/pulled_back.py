"""PMatPullback: the metric J'F J that a metric F of weights = effective(theta) gives to theta, J = d effective / d theta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fisher.checks import finiteness, purity
from fisher.checks.arguments import parameters
from fisher.derivatives.forward import jvp, vjp
from fisher.pmat.contract.damping import Regul, Scalar, times
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.matrix_free.matrixfree import MatrixFree
from fisher.trials import modes
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


@trees.record(static=("effective",))
class PMatPullback(MatrixFree):
    """J'F J: mv by one forward-mode pass, F, and one reverse-mode pass; all else as every matrix-free matrix.

    Made by `pullback`.  sample needs a root of F (a representation with `pow`, or a PMatImplicit).

    >>> import torch, fisher
    >>> F = fisher.PMatLowRank({"w": torch.tensor([[1.0, 2.0]])})
    >>> fisher.pullback(F, lambda p: {"w": 2 * p}, torch.zeros(2)).get_diag()
    tensor([ 4., 16.])
    """

    F: Any
    params: Any
    effective: Callable[[Any], Any]

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return f"of {type(self.F).__name__} with d = {self.F.layout.numel:,}, "

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return Layout.of(self.params)

    def _like(self) -> Tensor:
        return trees.leaves(self.params)[0]

    @property
    def _space(self) -> Any:
        return self.params

    def mv(self, v: Tree) -> Tree:
        v = self.check_vector(v)
        _, u = jvp(self.effective, (self.params,), (v,))
        made: Tree = self._pulled(self.F.mv(u))
        return made

    def vTMv(self, v: Any) -> Tensor:
        """(J v)'F (J v), a scalar."""
        v = self.check_vector(v)
        return self.F.vTMv(jvp(self.effective, (self.params,), (v,))[1])

    def _pulled(self, w: Any) -> Any:
        return vjp(self.effective, self.params)[1](w)

    def scaled(self, alpha: Scalar) -> PMatPullback:
        return PMatPullback(self.F.scaled(alpha), self.params, self.effective)

    def _sampled(self, generator: torch.Generator | None, regul: Regul, noise: Any) -> Any:
        """By one solve of J'F^(1/2) e + sqrt(regul) z; noise a pair (z, e): z a tree like theta, e a tree like the weights
        (for a PMatImplicit its own noise), standard normal."""
        z, e = (self._draw(generator), None) if noise is None else self._pair(noise, "a tree like the weights")
        colored = self._colored(generator, e)
        return self._solved(trees.add(times(regul, z, 0.5), colored), regul, "default")

    def _colored(self, generator: torch.Generator | None, noise: Any = None) -> Any:
        """J'F^(1/2) e, a vector from N(0, J'F J)."""
        if isinstance(self.F, MatrixFree):
            return self._pulled(self.F._colored(generator, noise))  # type: ignore[attr-defined]
        e = self.F._draw(generator) if noise is None else self.F.check_vector(noise, "noise: e")
        return self._pulled(self.F.pow(0.5).mv(e))


@full_precision("effective")
@typed
def pullback(
    F: PMat, effective: Callable[[Any], Any], params: Any, *, check: bool = True, check_finite: bool = True
) -> PMatPullback:
    """The metric of theta = `params` where the weights are effective(theta) and F is their metric: J'F J, matrix-free.

    For F = fisher.fim(f, effective(params), ...) it is the Fisher of p -> f(effective(p), x).  Under vmap make F and this
    of one member inside the mapped function.  Amari (1998).
    Raises ValueError with the path where effective(params) is no vector of F's space.  check: ValueError where effective is
    random, or torch's modes differ on it (two forwards and backwards, two products).  check_finite: report NaN in params,
    weights, F and products.

    >>> import torch, fisher
    >>> F = fisher.PMatLowRank({"w": torch.tensor([[1.0, 2.0]])})
    >>> pullback(F, lambda p: {"w": torch.exp(p)}, torch.zeros(2)).to_torch()
    tensor([[1., 2.],
            [2., 4.]])
    """
    if not isinstance(F, PMat):
        raise TypeError(
            f"pullback: got {type(F).__name__}, expected a PMat; make one with fisher.fim at effective(params)"
        )
    params = parameters(params, check_finite)
    weights = effective(params)
    F.check_vector(weights, "effective(params)")
    if check_finite:
        finiteness.finite(weights, "effective(params)", "it overflows at these params")
        finiteness.finite(F, "F", "make it of finite data and params")
    made = PMatPullback(F, params, effective)
    if check:
        purity.repeatable(lambda params, _: effective(params), params, (), "effective(params)")
        modes.symmetric(made, "pullback", check_finite)
    return made
