"""Kronecker-factored blocks: the linear algebra of one layer.

V `[K, O, I]`: the layer's matrix view of K vectors.  A `[I, I]` on the side of the inputs, G `[O, O]` of the outputs;
G (x) A takes V to G V A.  A 1-d A or G is the diagonal of a diagonal matrix, a 1-d basis the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.uses import Layer
from fisher.pmat.contract.cuts import NO_CUT, Cut
from fisher.pmat.contract.damping import Scalar
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.decompositions import exact, spectra
from fisher.pmat.decompositions.eigenblocks import KIND, EigenBlock, diagonal, full, kron, left, left_t, right, right_t
from fisher.pmat.decompositions.precise import kept_precise, precisely, singly
from linmaps import trees
from linmaps.checks.precision import HALF
from linmaps.numerics.eigen import constant_eigh, cutoff, denoised
from linmaps.numerics.linalg import damped, refined, solve
from linmaps.numerics.numeric import differentiated


def layer_blocks(F: Any, factored: Callable[[Layer], Any]) -> dict[str, Any]:
    """The blocks of a matrix by layer: exact ones of `F.exact`, else factored ones, one for each group."""
    shapes = F.shapes() if F.exact else {}
    blocks: dict[str, Any] = {}
    for layer in F.layers:
        name = layer.name
        if name not in F.exact:
            block = factored(layer)
            blocks[name] = Stacked(block) if layer.grouped else block
        else:
            whole = F.exact[name].ndim == 1 and F.exact[name].numel() == math.prod(shapes[name])
            F.check_single(1 if whole else 2 if F.exact[name].ndim else 0, F.exact[name])
            blocks[name] = exact.exact_block(F.exact[name], shapes[name], getattr(F, "symmetric", True))
    return blocks


def kronecker_product(A: Tensor, G: Tensor, grouped: bool) -> Any:
    """G (x) A, or that of each group."""
    block = KroneckerBlock(A, G)
    return Stacked(block) if grouped else block


def unstacked(block: Any) -> Any:
    """The block with its groups in front of its fields."""
    return block.block if isinstance(block, Stacked) else block


@trees.record()
class KroneckerBlock:
    """G (x) A.  V may be one view `[O, I]` too."""

    A: Tensor
    G: Tensor
    one: ClassVar[bool] = True

    @property
    def noise(self) -> tuple[float, float]:
        """What rounding leaves on null directions of A and G, relative."""
        return tuple(0.0 if m.ndim == 1 else cutoff(len(m), m.dtype) for m in (self.A, self.G))  # type: ignore[return-value]

    def mv(self, V: Tensor) -> Tensor:
        if self.A.ndim == self.G.ndim == 2 and self.A.dtype not in HALF:
            return self.G @ (V @ self.A.mT)
        return self._acted(V)

    @singly
    def _acted(self, V: Tensor) -> Tensor:
        return left(self.G, right_t(V, self.A))

    def solve(self, V: Tensor, regul: Scalar, kind: str, cut: Cut = NO_CUT) -> Tensor:
        if kind == "pi":
            return self._pi_damped(V.reshape(-1, *V.shape[-2:]), regul).reshape(V.shape)
        if kind == "lstsq":
            return self.pinv().mv(V) if cut == NO_CUT else self.eigen().pinv(cut).mv(V)
        return self._tikhonov(V, regul, self.noise if kind == KIND else (0.0, 0.0))

    @precisely
    def _tikhonov(self, V: Tensor, regul: Scalar, noise: tuple[float, float]) -> Tensor:
        """X with G X A + regul X = V; eigh's own derivatives are infinite at repeated eigenvalues, X's are not."""
        (a, U), (g, W) = (_constant(m) for m in (self.A, self.G))
        a, g = denoised(a, noise[0]), denoised(g, noise[1])
        values = torch.outer(g, a) + (regul.detach() if isinstance(regul, Tensor) else regul)
        inverse = lambda B: left(W, right_t(left_t(W, right(B, U)) / values, U))
        if not any(map(differentiated, (V, self.A, self.G, *((regul,) if isinstance(regul, Tensor) else ())))):
            return inverse(V)
        return refined(inverse, lambda X: left(self.G, right(X, self.A)) + regul * X, V, V.detach())

    @precisely
    def _pi_damped(self, V: Tensor, regul: Scalar) -> Tensor:
        a, g = diagonal(self.A), diagonal(self.G)
        ratio = a.mean() / g.mean()
        sane = (ratio > 0) & ratio.isfinite()
        pi = torch.where(sane, torch.where(sane, ratio, 1.0).sqrt(), 1.0)
        root = regul**0.5
        K, O, I = V.shape
        if self.G.ndim == 1:
            X = V / (self.G + root / pi)[:, None]
        else:
            rows = V.transpose(0, 1).reshape(O, K * I)
            X = solve(damped(self.G, root / pi), rows).reshape(O, K, I).transpose(0, 1)
        if self.A.ndim == 1:
            return X / (self.A + root * pi)
        return solve(damped(self.A, root * pi), X.reshape(K * O, I).mT).mT.reshape(K, O, I)

    @property
    def invertible(self) -> bool:
        """Whether it has an inverse in constant eigenbases: not where derivatives are asked of its factors."""
        return not (differentiated(self.A) or differentiated(self.G))

    @kept_precise
    def inverted(self, regul: Scalar) -> EigenBlock:
        """(G (x) A + regul I)^-1 in its eigenbases, in the dtype that solves compute in."""
        (a, U), (g, W) = (_constant(m) for m in (self.A, self.G))
        return EigenBlock(1 / (torch.outer(g, a) + regul), U, W)

    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        return self._sample(Z, regul, max(self.noise))

    @precisely
    def _sample(self, Z: Tensor, regul: Scalar, noise: float) -> Tensor:
        """(G (x) A + regul I)^-1/2 Z, by the Taylor formula of `spectra.Spectrum` for the product of two."""
        a, g = spectra.spectrum(self.A), spectra.spectrum(self.G)
        h, h1, h2 = spectra.power(spectra.shifted(torch.outer(g.values, a.values), regul, -0.5, noise), -0.5)

        def change(Z: Tensor) -> Tensor:
            """What the N of both add to diag(g) Z diag(a): zero as a number."""
            NZ = left(g.N, Z)
            return NZ * a.values + g.values[:, None] * right(Z, a.N) + right(NZ, a.N)

        Z = left_t(g.U, right(Z, a.U))
        first = change(Z)
        return left(g.U, right_t(h * Z + h1 * first + h2 * change(first) / 2, a.U))

    @precisely
    def logdet(self, regul: Scalar) -> Tensor:
        """As `spectra.logdet`, in the eigenbases: D = G (x) A + regul I minus its numbers is never formed."""
        (a, U), (g, W) = (_constant(m) for m in (self.A, self.G))
        a = a if self.A.ndim == 1 else spectra.unregulated(a, regul)
        g = g if self.G.ndim == 1 else spectra.unregulated(g, regul)
        r0 = regul.detach() if isinstance(regul, Tensor) else regul
        r = regul - r0
        values = torch.outer(g, a) + r0
        x = 1 / values
        dG, dA = _rotated(self.G - self.G.detach(), W), _rotated(self.A - self.A.detach(), U)
        beside, below = diagonal(dG)[:, None] * a, g[:, None] * diagonal(dA)
        across = diagonal(dG)[:, None] * diagonal(dA)
        first = (x * (beside + below + across + r)).sum()
        xa, xg = x * a, x * g[:, None]
        second = ((xa**2).sum(1) * dG**2).sum() if dG.ndim == 1 else ((xa @ xa.mT) * dG**2).sum()
        second = second + ((xg**2 * dA**2).sum() if dA.ndim == 1 else ((xg.mT @ xg) * dA**2).sum())
        second = second + (x**2 * (r * r + 2 * beside * below + 2 * r * (beside + below))).sum()
        return spectra.log_abs(values) + first - second / 2

    def pinv(self) -> KroneckerBlock:
        """G^+ (x) A^+."""
        return KroneckerBlock(exact.exact_pinv(self.A), exact.exact_pinv(self.G))

    def pow(self, p: float) -> KroneckerBlock:
        """G^p (x) A^p."""
        return KroneckerBlock(exact.exact_power(self.A, p, 0.0), exact.exact_power(self.G, p, 0.0))

    @precisely
    def eigen(self) -> EigenBlock:
        """The same in its eigenbases."""
        a, g = spectra.spectrum(self.A), spectra.spectrum(self.G)
        values = [s.values + diagonal(s.N) for s in (g, a)]
        return EigenBlock(torch.outer(*values), a.U, g.U)

    def diag(self) -> Tensor:
        return torch.outer(diagonal(self.G), diagonal(self.A))

    def dense(self) -> Tensor:
        return kron(full(self.G), full(self.A))

    @precisely
    def squares(self) -> Tensor:
        return (self.A**2).sum() * (self.G**2).sum()

    @precisely
    def extreme(self, largest: bool) -> Tensor:
        a, g = (spectra.extremes(spectra.spectrum_values(m), largest) for m in (self.A, self.G))
        return a * g


@trees.record()
class Stacked:
    """One block per group: `block` has an axis of groups in front, V is `[K, groups, O, I]`."""

    block: Any

    @property
    def D(self) -> Tensor:
        return self.block.D

    @property
    def invertible(self) -> bool:
        return getattr(self.block, "invertible", False)

    def _rows(self, method: str, V: Tensor, *args: Any, axis: int = 1, **options: Any) -> Tensor:
        one = lambda b, V: getattr(b, method)(V, *args, **options)
        return vmap(one, in_dims=(0, axis), out_dims=axis)(self.block, V)

    def _each(self, method: str, *args: Any) -> Any:
        return vmap(lambda b: getattr(b, method)(*args))(self.block)

    def mv(self, V: Tensor) -> Tensor:
        return self._rows("mv", V)

    def solve(self, V: Tensor, regul: Scalar, kind: str, **options: Any) -> Tensor:
        return self._rows("solve", V, regul, kind, **options)

    def sample(self, Z: Tensor, regul: Scalar) -> Tensor:
        return self._rows("sample", Z, regul)

    def to_diag(self, V: Tensor) -> Tensor:
        return self._rows("to_diag", V)

    def from_diag(self, Z: Tensor) -> Tensor:
        return self._rows("from_diag", Z)

    def of_inputs(self, a: Tensor) -> Tensor:
        return self._rows("of_inputs", a, axis=-2)

    def of_outputs(self, g: Tensor) -> Tensor:
        return self._rows("of_outputs", g, axis=-2)

    def inverted(self, regul: Scalar) -> Stacked:
        return Stacked(self._each("inverted", regul))

    def logdet(self, regul: Scalar) -> Tensor:
        return self._each("logdet", regul).sum()

    def pow(self, *args: Any) -> Any:
        return self._each("pow", *args)

    def pinv(self, *args: Any) -> Any:
        return self._each("pinv", *args)

    def eigen(self) -> Any:
        return self._each("eigen")

    def diag(self) -> Tensor:
        return self._each("diag")

    def basis(self) -> Tensor:
        return self._spread("basis")

    def dense(self) -> Tensor:
        return self._spread("dense")

    def _spread(self, method: str) -> Tensor:
        """The matrices of all groups on one diagonal."""
        D = self.diag()
        check_dense(D.numel(), "a dense block of all groups of a layer", PRODUCTS, dtype=D.dtype)
        return torch.block_diag(*self._each(method).unbind(0))

    def squares(self) -> Tensor:
        return self._each("squares").sum()

    def extreme(self, largest: bool) -> Tensor:
        return spectra.extremes(self._each("extreme", largest), largest)


def _constant(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and basis of a factor as constants."""
    return (A.detach(), torch.ones_like(A).detach()) if A.ndim == 1 else constant_eigh(A)


def _rotated(A: Tensor, U: Tensor) -> Tensor:
    """U' A U."""
    return A if A.ndim == 1 else U.mT @ A @ U
