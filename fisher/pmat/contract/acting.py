"""How a matrix acts on vectors and maps: products, solves, quadratic forms, samples.

v a tree like params, J a map: such a tree whose leaves have leading axes, `[B, C, *leaf]`, or a record with it as its
field `jacobian`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast, get_args, overload

import torch
from torch import Tensor

from fisher.pmat.contract import maps
from fisher.pmat.contract.cuts import Cut, Over, checked
from fisher.pmat.contract.damping import Regul, normal
from fisher.pmat.contract.stored import DENSE, Stored
from linmaps import trees
from linmaps.checks import values
from linmaps.numerics.eigen import cutoff
from linmaps.trees.tree import Tree

Kind = Literal["default", "lstsq", "eigendecomposition", "pi", "range", "cg"]  # of all representations; each has some
Kinds = Kind | Mapping[Any, Kind]  # one for all parts, or one for each representation among them
Reduction = Literal["sum", "diag"]


class Acting(Stored):
    """A representation defines `mv` and `_solve` of one vector; those of maps follow, and all that these give."""

    _solve: Callable[..., Any]  # (v, regul, kind, **options): what `solve` does to one vector; v and regul are checked
    # kind of solve -> names of its options; None: `_solve` checks both itself
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = None

    # --- a representation defines ----------------------------------------------------------------------------------

    def mv(self, v: Tree) -> Tree:
        """F v, a tree like v."""
        raise AttributeError("a representation defines mv")

    # --- a representation may define -------------------------------------------------------------------------------

    def _sample(self, noise: Any, regul: Regul) -> Any:
        """R noise with R R' = (F + regul I)^-1, for one vector."""
        raise self._unsupported("sample", DENSE)

    def _spectral_norm(self, largest: bool) -> Tensor:
        """The largest (smallest) absolute eigenvalue."""
        raise self._unsupported("norm", f"{DENSE}, or norm('fro')")

    # a representation may do these at once for all vectors of a map; n leading axes

    def _mv_map(self, J: Tree, n: int) -> Tree:
        return cast(Tree, maps.mapped(self.mv, n)(J))

    def _solve_map(self, J: Any, n: int, regul: Regul, kind: str, **options: Any) -> Any:
        return maps.mapped(lambda v: self._solve(v, regul, kind, **options), n)(J)

    def _sample_map(self, noise: Any, n: int, regul: Regul) -> Any:
        return maps.mapped(lambda z: self._sample(z, regul), n)(noise)

    # --- products and solves ---------------------------------------------------------------------------------------

    @overload
    def solve(
        self, v: Tree, regul: Regul = 1e-8, *, kind: Kinds = "default", report: Literal[True], **options: Any
    ) -> tuple[Tree, Any]: ...
    @overload
    def solve(self, v: Tree, regul: Regul = 1e-8, *, kind: Kinds = "default", **options: Any) -> Tree: ...
    def solve(self, v: Any, regul: Regul = 1e-8, *, kind: Kinds = "default", **options: Any) -> Any:
        """(F + regul I)^-1 v of the numbers stored, for a vector or a map v (one factorization for all right-hand sides).

        regul: a number, a mapping {name of a layer: number}, or a tree like params of numbers or tensors (a diagonal), >= 0;
        where blocks are Kronecker products or in an eigenbasis, one number for each layer.
        In float32 they are off by 1e-7 of the largest eigenvalue: at a smaller regul, as the default, rounding rules what v has
        in F's null space; damp more, or keep F in float64.  kind: "default"; "lstsq" is F^+ v whatever regul, with the
        cut-offs of `pinv`; others: see the representation.  ValueError for another kind, option, regul or v.
        """
        return self._solved(v, self._damping(regul), kind, **options)

    def _damping(self, regul: Regul, name: str = "regul") -> Any:
        """regul as the methods beneath take it: a number, or the record of a diagonal; TypeError or ValueError for none."""
        if isinstance(regul, (float, int)):
            return normal(regul, self.layout, None, None, name)
        return normal(regul, self.layout, self.known_layers, self._like(), name)

    def _solved(self, v: Any, regul: Regul, kind: Any, **options: Any) -> Any:
        if self.kinds is not None:
            if not isinstance(kind, str) or kind not in self.kinds:
                raise ValueError(
                    f"solve: got kind={kind!r}, expected {' or '.join(map(repr, self.kinds))} for {type(self).__name__}"
                )
            if unknown := sorted(set(options) - set(self.kinds[kind])):
                raise ValueError(f"solve: got options {unknown}, expected {list(self.kinds[kind])} for kind={kind!r}")
        if kind == "lstsq":
            options = {"cut": self._cut_off(**options)}
        return maps.each(self.layout, v, "v", lambda v, n: self._solve_map(v, n, regul, kind, **options), self._space)

    def mmap(self, J: Tree) -> Tree:
        """F J: each vector of the map times F; J's leading axes are kept."""
        return maps.each(self.layout, J, "J", self._mv_map, self._space)

    def mapTMmap(self, J: Any, reduction: Reduction = "sum") -> Tensor:
        """J_bc' F J_bc: "diag" `[B, C]`, "sum" `[B]`, the sum over the outputs c (the last leading axis)."""
        if reduction not in get_args(Reduction):
            raise ValueError(f"mapTMmap: got reduction={reduction!r}, expected 'sum' or 'diag'")
        tree, lead = maps.conformed(self.layout, J.jacobian if maps.is_map(J) else J, "J")
        if not lead:
            raise ValueError("mapTMmap: got a vector, expected a map with leaves [B, C, *leaf]; for a vector use vTMv")
        pairs = zip(trees.leaves(tree), trees.leaves(self.mmap(tree)))
        parts = [(s * t).reshape(*lead, size).sum(-1) for (s, t), size in zip(pairs, self.layout.sizes)]
        found = sum(parts[1:], parts[0])
        return found.sum(-1) if reduction == "sum" else found

    def vTMv(self, v: Any) -> Tensor:
        """v' F v, a scalar."""
        v = self.check_vector(v)
        return trees.dot(v, self.mv(v))

    def _cut_off(self, rtol: float | None = None, atol: float = 0.0, over: Over = "block") -> Cut:
        cut = checked(rtol, atol, over)
        if over == "block":
            return cut
        relative, _ = cut.of(cutoff(self.layout.numel, self.dtype))
        return Cut(0.0, (relative * self._spectral_norm(True)).clamp_min(atol))

    # --- samples ---------------------------------------------------------------------------------------------------

    def sample(self, generator: torch.Generator | None = None, regul: Regul = 1e-8, *, noise: Any = None) -> Any:
        """A vector from N(0, (F + regul I)^-1), drawn by the generator or made of standard normal `noise`.

        noise: a tree like params; with leading axes as many vectors.  ValueError where F + regul I is not positive definite.
        """
        regul = self._damping(regul)
        if (generator is None) == (noise is None):
            raise ValueError(
                "sample: got " + ("neither" if noise is None else "both") + ", expected a generator or noise"
            )
        return self._sampled(generator, regul, noise)

    def _sampled(self, generator: torch.Generator | None, regul: Regul, noise: Any) -> Any:
        if noise is None:
            noise = self._draw(generator)
        drawn = maps.each(self.layout, noise, "noise", lambda z, n: self._sample_map(z, n, regul), self._space)
        return check_sample(drawn)

    def _draw(self, generator: Any) -> Any:
        like = self._like()
        draw = lambda s: torch.randn(s, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
        return self.layout.unflatten([draw(s) for s in self.layout.shapes])


def check_sample(drawn: Any) -> Any:
    """The tree, if all of it is finite: a root of a negative number is NaN.  Values are looked at only to raise."""
    for t in trees.leaves(drawn):
        fine = values(t.isfinite())
        if fine is not None and not bool(fine.all()):
            raise ValueError(
                "sample: the result is not finite, expected finite noise and F + regul I positive definite: there is no "
                "distribution N(0, (F + regul I)^-1) of another; use a larger regul (of a posterior, prior_precision)"
            )
    return drawn
