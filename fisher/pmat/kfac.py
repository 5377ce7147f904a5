"""PMatKFAC: a Kronecker product G (x) A per layer.

A [I, I] second moment of the layer's inputs (the bias's one last), G [O, O] of its output-gradients, V = [W | b] [O, I].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisher.layers import LayerCollection
from fisher.pmat.base import Regul, check_regul
from fisher.pmat.blocks import Blockwise, exact_mv, exact_solve
from fisher.pmat.ekfac import PMatEKFAC
from fisher.uses import Layer
from linmaps import trees
from linmaps.linalg import constant_eigh, damped, denoised, eigh, positive_root, refined, solve


@trees.record(static=("layers",))
class PMatKFAC(Blockwise):
    """F ~ blockdiag(G (x) A): A = 1/B sum over b, s of a a', G = 1/(B S) sum over columns, b, s of g g'.

    `factors[name] = (A, G)` per layer (weight and bias jointly), `exact[name]` the exact block of a leaf without a rule.
    One forward and one backward over the columns; memory I^2 + O^2 per layer.

    solve(v, regul) is Tikhonov exactly, by eigen-decomposition of both factors: (G (x) A + regul I)^-1 v; its derivatives
    are right up to the second order, for repeated eigenvalues too.  `kind="pi"` damps the factors instead:
    (G + sqrt(regul)/pi I)^-1 V (A + pi sqrt(regul) I)^-1 with pi^2 = (tr A / I) / (tr G / O)
    (Martens and Grosse, 2015, section 6.3).

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.eye(2), fisher.PMatKFAC, "gaussian")
    >>> F, F.factors["w"][0]
    (PMatKFAC(1 factored + 0 exact blocks, d = 2, 5 numbers stored, float32, cpu), tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]]))
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    exact: dict[str, Tensor]
    layers: LayerCollection

    __repr__ = Blockwise.__repr__

    def _factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        A, G = self.factors[layer.name]
        self.check_single(2, A)
        return A, G

    def mv(self, v: Any) -> Any:
        def factored(layer: Layer, V: Tensor) -> Tensor:
            A, G = self._factors(layer)
            return G @ V @ A

        return self.apply(v, factored, exact_mv)

    def solve(self, v: Any, regul: Regul = 1e-8, *, kind: str = "exact") -> Any:
        if kind not in ("exact", "pi"):
            raise ValueError(f"solve: got kind={kind!r}, expected 'exact' or 'pi'")
        method = _tikhonov if kind == "exact" else _pi_damped
        return self.apply(v, lambda layer, V: method(*self._factors(layer), V, regul), exact_solve(regul))

    def eigendecomposition(self) -> PMatEKFAC:
        """The same matrix in the eigenbases of its factors; there every function of it is cheap."""
        bases, eigenvalues = {}, {}
        for layer in self.layers:
            if layer.kronecker:
                (a, U), (g, W) = (eigh(m) for m in self._factors(layer))
                bases[layer.name], eigenvalues[layer.name] = (U, W), torch.outer(denoised(g), denoised(a))
        return PMatEKFAC(eigenvalues, bases, self.exact, self.layers)

    def inverse(self, regul: Regul = 1e-8) -> PMatEKFAC:
        """(F + regul I)^-1 exactly, in the eigenbases.  To differentiate at repeated eigenvalues use `solve`."""
        return self.eigendecomposition().inverse(regul)

    def block(self, layer: Layer) -> Tensor:
        A, G = self._factors(layer)
        return torch.einsum("op,ij->oipj", G, A).reshape(len(G) * len(A), len(G) * len(A))

    def block_diag(self, layer: Layer) -> Tensor:
        A, G = self._factors(layer)
        return torch.outer(G.diagonal(), A.diagonal())

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries: |G (x) A| = |G| |A|."""

        def factored(layer: Layer) -> Tensor:
            A, G = self._factors(layer)
            return (A**2).sum() * (G**2).sum()

        return positive_root(self.squares(factored))

    def scaled(self, alpha: Regul) -> PMatKFAC:
        factors = {name: (A, alpha * G) for name, (A, G) in self.factors.items()}
        return PMatKFAC(factors, self.exact_map(lambda m: alpha * m), self.layers)


def _tikhonov(A: Tensor, G: Tensor, V: Tensor, regul: Regul) -> Tensor:
    """X with G X A + regul X = V; eigh's own derivatives are infinite at repeated eigenvalues, X's are not."""
    check_regul(regul)
    (a, U), (g, W) = constant_eigh(A), constant_eigh(G)
    spectrum = torch.outer(g, a) + (regul.detach() if isinstance(regul, Tensor) else regul)
    return refined(lambda B: W @ ((W.mT @ B @ U) / spectrum) @ U.mT, lambda X: G @ X @ A + regul * X, V, V.detach())


def _pi_damped(A: Tensor, G: Tensor, V: Tensor, regul: Regul) -> Tensor:
    check_regul(regul)
    ratio = (A.trace() / len(A)) / (G.trace() / len(G))
    sane = (ratio > 0) & ratio.isfinite()
    pi = torch.where(sane, torch.where(sane, ratio, 1.0).sqrt(), 1.0)
    root = regul**0.5
    return solve(damped(A, root * pi), solve(damped(G, root / pi), V).mT).mT
