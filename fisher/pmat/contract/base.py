"""PMat: a symmetric matrix on parameter space as a frozen record of tensors with a static layout.

d parameters, v a tree like params, J a map: such a tree whose leaves have leading axes, `[B, C, *leaf]`, or a record with
it as its field `jacobian`.  A PMat is a pytree: it passes through vmap, grad, torch.save.  Of an ensemble (from
`vmap(lambda p: fim(...))`) use the methods by `vmap(lambda F, v: F.mv(v))(F, v)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.pmat.contract import maps
from fisher.pmat.contract.cuts import Cut, checked
from fisher.pmat.contract.handed import handed
from fisher.pmat.contract.origin import keep_origin
from linmaps import checks, trees
from linmaps.checks import alike, values
from linmaps.checks.precision import full_precision_methods
from linmaps.checks.typed import typed_methods
from linmaps.numerics.linalg import cutoff
from linmaps.trees import Layout

Regul = float | Tensor


class PMat:
    """Methods common to all representations; F(theta) = 1/B sum over b of J_b' H_b J_b.

    A representation defines `mv`, `_solve`, `get_diag`, `to_torch`, `scaled` and what else has a closed form in it; the
    rest follows here.  What has no mathematics in a representation is a ValueError that names what to use instead.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keep_origin(cls)
        typed_methods(cls)
        full_precision_methods(cls)

    layout: Layout  # structure and shapes of params: a static field, or a property
    _solve: Callable[..., Any]  # (v, regul, kind, **options): what `solve` does to one vector; v and regul are checked
    # kind of solve -> names of its options; None: `_solve` checks both itself
    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = None
    # of a matrix as `fim` made it, for those who predict with it; no part of the tree: what is made of the matrix has None
    likelihood: ClassVar[Any] = None

    @property
    def linear(self) -> bool:
        """Whether the mean of the numbers stored is that of the matrices, so that leaves may be averaged or all-reduced.

        Of moments in Kronecker factors it is True by convention: the mean over batches of a PMatKFAC, as `fim` takes it, is
        that of its factors.  False for eigenbases, rows, and functions kept with their data: `fisher.Mean`, `fisher.ema`
        and `+` add such matrices as matrices.
        """
        return False

    # --- a representation defines ----------------------------------------------------------------------------------

    def mv(self, v: Any) -> Any:
        """F v, a tree like v."""
        raise AttributeError("a representation defines mv")

    def get_diag(self) -> Any:
        """The diagonal of F, a tree like params."""
        raise AttributeError("a representation defines get_diag")

    def to_torch(self) -> Tensor:
        """F as a `[d, d]` tensor in the flat order of `linmaps.trees.ravel`."""
        raise AttributeError("a representation defines to_torch")

    def scaled(self, alpha: Regul) -> PMat:
        """alpha F."""
        raise AttributeError("a representation defines scaled")

    # --- a representation may define -------------------------------------------------------------------------------

    def eigendecomposition(self) -> PMat:
        """The same matrix in its eigenbasis U: `get_eigenvalues`, `project_to_diag`, `project_from_diag` are cheap there."""
        raise self._unsupported("eigendecomposition", DENSE)

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        raise self._unsupported("frobenius_norm", DENSE)

    def get_block(self, name: str) -> Tensor:
        """The dense block of a layer, over its flattened view."""
        raise self._unsupported("get_block", "use PMatBlockDiag")

    def _inverse(self, regul: Regul) -> PMat:
        raise self._unsupported("inverse", "use F.solve(v, regul)")

    def _pinv(self, cut: Cut) -> PMat:
        raise self._unsupported("pinv", DENSE)

    def _pow(self, p: float, regul: Regul) -> PMat:
        raise self._unsupported("pow", DENSE)

    def _logdet(self, regul: Regul) -> Tensor:
        raise self._unsupported("logdet", DENSE)

    def _sample(self, noise: Any, regul: Regul) -> Any:
        """R noise with R R' = (F + regul I)^-1, for one vector."""
        raise self._unsupported("sample", DENSE)

    def _spectral_norm(self, largest: bool) -> Tensor:
        """The largest (smallest) absolute eigenvalue."""
        raise self._unsupported("norm", f"{DENSE}, or norm('fro')")

    def _plus(self, other: PMat) -> PMat | None:
        """F + other where this representation holds it, else None; layouts are equal."""
        return None

    def _compact(self) -> PMat:
        """The same matrix in the representation that stores less, where a sum has grown beyond it."""
        return self

    # --- products and solves ---------------------------------------------------------------------------------------

    def solve(self, v: Any, regul: Regul = 1e-8, *, kind: str | Mapping[Any, str] = "default", **options: Any) -> Any:
        """(F + regul I)^-1 v of the numbers stored, for a vector or a map v (one factorization for all right-hand sides).

        In float32 they are off by 1e-7 of the largest eigenvalue: at a smaller regul, as the default, rounding rules what v has
        in F's null space; damp more, or keep F in float64.  kind: "default"; "lstsq" is F^+ v whatever regul, with the
        cut-offs of `pinv`; others: see the representation.  ValueError for another kind, option, regul (a number >= 0) or v.
        """
        check_regul(regul)
        return self._solved(v, regul, kind, **options)

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

    def mmap(self, J: Any) -> Any:
        """F J: each vector of the map times F; J's leading axes are kept."""
        return maps.each(self.layout, J, "J", self._mv_map, self._space)

    def mapTMmap(self, J: Any, reduction: str = "sum") -> Tensor:
        """J_bc' F J_bc: "diag" `[B, C]`, "sum" `[B]`, the sum over the outputs c (the last leading axis)."""
        if reduction not in ("sum", "diag"):
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

    def mm(self, other: PMat) -> PMat:
        """The product F other, where a representation holds it; ValueError that names `to_torch` elsewhere.

        The product of two symmetric matrices is symmetric only where they commute: its solve is right in any case, and
        what needs a symmetric matrix (pow, sample, ...) raises.
        """
        alike(other, "other", self, f"the {type(self).__name__} before it", strict=True)
        return handed("multiply")(self, other)

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, PMat):
            return self.mm(v)
        return self.mmap(v)

    def made_of(self, likelihood: Any) -> Any:
        """The same matrix, that knows its likelihood."""
        made = copy.copy(self)
        object.__setattr__(made, "likelihood", likelihood)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "likelihood"}

    def sample(self, generator: torch.Generator | None = None, regul: Regul = 1e-8, *, noise: Any = None) -> Any:
        """A vector from N(0, (F + regul I)^-1), drawn by the generator or made of standard normal `noise`.

        noise: a tree like params; with leading axes as many vectors.  ValueError where F + regul I is not positive definite.
        """
        check_regul(regul)
        return self._sampled(generator, regul, noise)

    def _sampled(self, generator: torch.Generator | None, regul: Regul, noise: Any) -> Any:
        if (generator is None) == (noise is None):
            raise ValueError(
                "sample: got " + ("neither" if noise is None else "both") + ", expected a generator or noise"
            )
        if noise is None:
            noise = self._draw(generator)
        drawn = maps.each(self.layout, noise, "noise", lambda z, n: self._sample_map(z, n, regul), self._space)
        return check_sample(drawn)

    # a representation may do these at once for all vectors of a map; n leading axes

    def _mv_map(self, J: Any, n: int) -> Any:
        return maps.mapped(self.mv, n)(J)

    def _solve_map(self, J: Any, n: int, regul: Regul, kind: str, **options: Any) -> Any:
        return maps.mapped(lambda v: self._solve(v, regul, kind, **options), n)(J)

    def _sample_map(self, noise: Any, n: int, regul: Regul) -> Any:
        return maps.mapped(lambda z: self._sample(z, regul), n)(noise)

    # --- functions ---------------------------------------------------------------------------------------------------

    def inverse(self, regul: Regul = 1e-8) -> PMat:
        """(F + regul I)^-1, a matrix."""
        check_regul(regul)
        return self._inverse(regul)

    def pow(self, p: float, regul: Regul = 0.0) -> PMat:
        """(F + regul I)^p for a real number p."""
        check_regul(regul)
        return self._pow(p, regul)

    def logdet(self, regul: Regul = 1e-8) -> Tensor:
        """log |det(F + regul I)|, over all d dimensions."""
        check_regul(regul)
        return self._logdet(regul)

    def pinv(self, rtol: float | None = None, *, atol: float = 0.0, over: str = "block") -> PMat:
        """The pseudo-inverse: eigenvalues up to rtol times the largest of their block, or up to atol, count as zero.

        over: "block", or "matrix": rtol is relative to the largest eigenvalue of the whole matrix, so that a block-diagonal
        matrix has the pseudo-inverse that it has as a dense one.  rtol None: what rounding leaves, or 0 beside an atol.
        """
        return self._pinv(self._cut_off(rtol, atol, over))

    def _cut_off(self, rtol: float | None = None, atol: float = 0.0, over: str = "block") -> Cut:
        cut = checked(rtol, atol, over)
        if over == "block":
            return cut
        relative, _ = cut.of(cutoff(self.layout.numel, self.dtype))
        return Cut(0.0, (relative * self._spectral_norm(True)).clamp_min(atol))

    # --- the spectrum ------------------------------------------------------------------------------------------------

    def get_eigenvalues(self) -> Any:
        """The eigenvalues, in the structure of `project_to_diag`."""
        return self.eigendecomposition().get_eigenvalues()

    def project_to_diag(self, v: Any) -> Any:
        """U'v, the coordinates of v in the eigenbasis: F = U diag(get_eigenvalues()) U'."""
        return self.eigendecomposition().project_to_diag(v)

    def project_from_diag(self, u: Any) -> Any:
        """U u, the tree like params with these coordinates."""
        return self.eigendecomposition().project_from_diag(u)

    def norm(self, ord: str | int | None = None) -> Tensor:
        """None or "fro": the Frobenius norm; 2 (-2): the largest (smallest) singular value."""
        if ord in (None, "fro"):
            return self.frobenius_norm()
        if ord in (2, -2):
            return self._spectral_norm(ord == 2)
        raise ValueError(
            f"norm: got ord={ord!r}, expected None, 'fro', 2 or -2; for others torch.linalg.matrix_norm(F.to_torch(), ord)"
        )

    def trace(self) -> Tensor:
        """Sum of the diagonal."""
        return sum(t.sum() for t in trees.leaves(self.get_diag()))  # type: ignore[return-value]

    # --- algebra ---------------------------------------------------------------------------------------------------

    def __pow__(self, p: float) -> PMat:
        return self.pow(p)

    def __mul__(self, alpha: Regul) -> PMat:
        if not isinstance(alpha, Number) and not (isinstance(alpha, Tensor) and alpha.ndim == 0):
            raise TypeError(f"{type(self).__name__} * {type(alpha).__name__}: expected a number or a scalar tensor")
        return self.scaled(alpha)  # type: ignore[arg-type]

    __rmul__ = __mul__

    def __truediv__(self, alpha: Regul) -> PMat:
        return self * (1 / alpha)

    def __neg__(self) -> PMat:
        return self.scaled(-1.0)

    def __add__(self, other: PMat) -> PMat:
        """F + G; the same representation where the sum has it, else a `PMatSum`."""
        if not isinstance(other, PMat):
            raise TypeError(f"{type(self).__name__} + {type(other).__name__}: expected a PMat on the right")
        alike(other, "other", self, f"the {type(self).__name__} it is added to", strict=True)
        return handed("add")(self, other)

    def __sub__(self, other: PMat) -> PMat:
        return self + (-other)

    # --- facts -----------------------------------------------------------------------------------------------------

    def size(self, dim: int | None = None) -> tuple[int, int] | int:
        """(d, d), or d for a given axis."""
        if dim is not None and dim not in (0, 1, -1, -2):
            raise ValueError(f"size: got dim {dim}, expected 0 or 1")
        d = self.layout.numel
        return (d, d) if dim is None else d

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers stored."""
        return self._like().dtype

    @property
    def device(self) -> torch.device:
        """Of the numbers stored."""
        return self._like().device

    @property
    def _space(self) -> Any:
        """What says which dtypes and device vectors have."""
        return self

    def _like(self) -> Tensor:
        return (*trees.leaves(self), torch.zeros(0))[0]

    def __repr__(self) -> str:
        stored = sum(u.numel() for u in trees.leaves(self))
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}"
        return f"{type(self).__name__}({self._about()}d = {self.layout.numel:,}, {stored:,} numbers stored, {kind})"

    def _about(self) -> str:
        return ""

    # --- checks ----------------------------------------------------------------------------------------------------

    def check_vector(self, v: Any, name: str = "v") -> Any:
        """v with its mappings as those of params; ValueError or TypeError that names the path unless it is a tree like params."""
        v = self.layout.check(v, name)
        alike(v, name, self._space, f"the {type(self).__name__}", strict=True)
        return v

    def check_single(self, ndim: int, t: Tensor) -> None:
        """Raise unless `t` has `ndim` axes: one more is a stacked ensemble."""
        if t.ndim != ndim:
            raise ValueError(
                f"{type(self).__name__}: a tensor of shape {tuple(t.shape)}, expected {ndim} axes; for a stacked ensemble "
                "use torch.func.vmap(lambda F, v: F.mv(v))(F, v)"
            )

    def _unsupported(self, method: str, cure: str) -> ValueError:
        return ValueError(f"{type(self).__name__}.{method}: no such function of this representation; {cure}")

    def _draw(self, generator: Any) -> Any:
        like = self._like()
        draw = lambda s: torch.randn(s, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
        return self.layout.unflatten([draw(s) for s in self.layout.shapes])


typed_methods(PMat)

DENSE = "use PMatDense(F.to_torch(), F.layout)"


def identical(a: Any, b: Any) -> bool:
    """Whether two trees hold the same tensors, not only equal ones."""
    s, t = trees.leaves(a), trees.leaves(b)
    return len(s) == len(t) and all(x is y for x, y in zip(s, t))


def check_regul(regul: Any, name: str = "regul") -> None:
    """Raise unless regul is a finite number >= 0, or a tensor of one without axes: TypeError or ValueError."""
    checks.number(
        regul, name, low=0, cure="for another amount per parameter add a matrix, F + PMatDiag(tree, F.layout)"
    )


def check_sample(drawn: Any) -> Any:
    """The tree, if all of it is finite: a root of a negative number is NaN.  Values are looked at only to raise."""
    for t in trees.leaves(drawn):
        fine = values(t.isfinite())
        if fine is not None and not bool(fine.all()):
            raise ValueError(
                "sample: the result is not finite, expected finite noise and F + regul I positive definite: there is no "
                "distribution N(0, (F + regul I)^-1) of another; use a larger regul"
            )
    return drawn


full_precision_methods(PMat)
