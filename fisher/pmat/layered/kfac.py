"""PMatKFAC: a Kronecker product G (x) A per layer.

A [I, I] second moment of the layer's inputs (the bias's one last), G [O, O] of its output-gradients, V = [W | b] [O, I].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.collector.blocks.uses import Layer
from fisher.collector.collection import LayerCollection
from fisher.distributed.splitting import Job, cubes, shared
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.cuts import LSTSQ, NO_CUT, Cut
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.decompositions import exact
from fisher.pmat.decompositions.eigenblocks import BasisBlock, bases_like, in_basis
from fisher.pmat.layered.ekfac import PMatEKFAC
from fisher.pmat.layered.factored import KroneckerBlock, layer_blocks, unstacked
from linmaps import trees


@trees.record(static=("layers", "symmetric", "moments"))
class PMatKFAC(Layerwise):
    """F ~ blockdiag(G (x) A): A = 1/B sum over b, s of a a', G = 1/(B S) sum over columns, b, s of g g'.

    `factors[name] = (A, G)` per layer (weight and bias jointly), `exact[name]` the exact block of a leaf without a rule.  Leaves
    of a weight W = phi(leaves) that f computes (weight norm, a LoRA sum, a map of linmaps) have J'(G (x) A)J there, with
    J = d vec W / d leaves and the factors of the products that W enters: the block "through" of the table.  A weight that is
    used as W and as W' has A = sum of r r' and G = sum of l l' over all its uses, each kind scaled to keep its trace.
    A 1-d A or G is the diagonal of a diagonal matrix, as of lookups and of factors that are kept as diagonals; a 1-d exact block
    `[n]` too; grouped layers have an axis of groups in front of A and G.
    One forward and one backward over the columns; memory I^2 + O^2 per layer.

    solve(v, regul) is Tikhonov exactly, by eigen-decomposition of both factors: (G (x) A + regul I)^-1 v; its derivatives
    are right up to the second order, for repeated eigenvalues too.  `kind="pi"` damps the factors instead:
    (G + sqrt(regul)/pi I)^-1 V (A + pi sqrt(regul) I)^-1 with pi^2 = (tr A / I) / (tr G / O), pi = 1 where a trace is 0
    (Martens and Grosse, 2015, section 6.3).  pow and pinv without damping or cut-offs stay Kronecker products, all else is
    a PMatEKFAC; to differentiate at repeated eigenvalues use `solve` instead of `inverse`.

    moments: whether the factors are second moments, whose mean over batches is that of all data; not so of powers and
    products, which `fisher.Mean` and `fisher.ema` add as matrices.  F + G is a PMatKFAC where the two share the factors of
    one side (the same tensors, as in F + 2 F), else a PMatSum.

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
    symmetric: bool = True
    moments: bool = True
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {
        "default": (),
        "pi": (),
        "eigendecomposition": (),
        "lstsq": LSTSQ,
    }

    __repr__ = PMat.__repr__

    @property
    def linear(self) -> bool:
        return self.moments

    def _about(self) -> str:
        return f"{len(self.factors)} factored + {len(self.exact)} exact blocks, "

    def _blocks(self) -> dict[str, Any]:
        def factored(layer: Layer) -> KroneckerBlock:
            A, G = self.factors[layer.name]
            self._check_factor(A, layer, layer.diagonal)
            self._check_factor(G, layer)
            return KroneckerBlock(A, G)

        return layer_blocks(self, factored)

    def eigendecomposition(self, *, group: Any = None) -> PMatEKFAC:
        """The same matrix in the eigenbases of its factors; there every function of it is cheap.

        group: a process group (torch.distributed.group.WORLD) over whose ranks the layers are split by their cost I^3 + O^3;
        all get the same bits.
        """
        blocks = self.spectral("eigendecomposition")

        def made(name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
            if name in self.factors:
                block = unstacked(blocks[name].eigen())
                return block.D, (block.U, block.W)
            whole = self.exact[name]
            one = in_basis(whole, len(whole)) if whole.ndim == 2 else BasisBlock(whole, torch.ones_like(whole))
            return one.D, (one.U,)

        through = [l.name for l in self.layers.through if self.exact[l.name].ndim]
        jobs = {
            name: Job(cubes(A, G), partial(made, name), bases_like(A, G, self.layers[name].grouped))
            for name, (A, G) in self.factors.items()
        }
        for name in through:
            m = self.exact[name]
            jobs[name] = Job(cubes(m), partial(made, name), (m[0] if m.ndim == 2 else m, (m,)))
        found = shared(jobs, group)
        values = {name: D for name, (D, _) in found.items()}
        bases = {name: own for name, (_, own) in found.items()}
        exact = {name: m for name, m in self.exact.items() if name not in through}
        return PMatEKFAC(values, bases, exact, self.layers)

    def _inverse(self, regul: Regul) -> PMatEKFAC:
        return self.eigendecomposition()._inverse(regul)

    def _pinv(self, cut: Cut) -> PMat:
        if cut != NO_CUT:  # of eigenvalues of the product
            return self.eigendecomposition()._pinv(cut)
        return self._mapped("pinv", lambda block: block.pinv(), exact.exact_pinv)

    def _pow(self, p: float, regul: Regul) -> PMat:
        if not isinstance(regul, float | int) or regul != 0:
            return self.eigendecomposition()._pow(p, regul)
        return self._mapped("pow", lambda block: block.pow(p), lambda m: exact.exact_power(m, p, 0.0))

    def get_KFE(self, name: str, split_weight_bias: bool = True) -> Tensor:
        """The dense eigenbasis `[n, n]` of a layer, see `PMatEKFAC.get_KFE`."""
        return self.eigendecomposition().get_KFE(name, split_weight_bias)

    def scaled(self, alpha: Scalar) -> PMatKFAC:
        factors = {name: (A, alpha * G) for name, (A, G) in self.factors.items()}
        return dataclasses.replace(self, factors=factors, exact={name: alpha * m for name, m in self.exact.items()})

    def matrices(self) -> dict[str, Tensor]:
        return {
            name: exact.exact_dense(self.exact[name]) if name in self.exact else b.dense()
            for name, b in self._blocks().items()
        }

    def _mapped(self, method: str, factored: Callable[[Any], Any], each: Callable[[Tensor], Tensor]) -> PMatKFAC:
        blocks = self.spectral(method)
        found = {name: unstacked(factored(blocks[name])) for name in self.factors}
        parts = {name: each(m) for name, m in self.exact.items()}
        return PMatKFAC({name: (b.A, b.G) for name, b in found.items()}, parts, self.layers, moments=False)

    def _plus(self, other: PMat) -> PMat | None:
        """G (x) A + H (x) A = (G + H) (x) A, and so for the other side."""
        if not isinstance(other, PMatKFAC) or other.layers != self.layers:
            return None
        factors = {}
        for name, (A, G) in self.factors.items():
            B, H = other.factors[name]
            if A is not B and G is not H:
                return None
            mixed = (A.ndim, G.ndim) != (B.ndim, H.ndim)
            if mixed:
                return None
            factors[name] = (A, G + H) if A is B else (A + B, G)
        parts = {name: exact.exact_sum(m, other.exact[name]) for name, m in self.exact.items()}
        flags = self.symmetric and other.symmetric, self.moments and other.moments
        return PMatKFAC(factors, parts, self.layers, *flags)
