"""PMat: a symmetric matrix on parameter space as a frozen record of tensors with a static layout.

d parameters, v a tree like params, J a map: such a tree whose leaves have leading axes, `[B, C, *leaf]`, or a record with
it as its field `jacobian`.  A PMat is a pytree: it passes through vmap, grad, torch.save.  Of an ensemble (from
`vmap(lambda p: fim(...))`) use the methods by `vmap(lambda F, v: F.mv(v))(F, v)`.
"""

from __future__ import annotations

from numbers import Number
from typing import Any, Literal, cast, overload

from torch import Tensor

from fisher.pmat.contract.acting import Acting
from fisher.pmat.contract.cuts import Cut, Over
from fisher.pmat.contract.damping import Regul, Scalar
from fisher.pmat.contract.handing import handed
from fisher.pmat.contract.inverses import Inverse
from fisher.pmat.contract.made import Inverted, M, Powered, Pseudoinverted, Scaled
from fisher.pmat.contract.stored import DENSE
from linmaps import trees
from linmaps.checks import alike, number
from linmaps.trees import path_str
from linmaps.trees.tree import Tree

Ord = Literal["fro", 2, -2]


class PMat(Acting):
    """Methods common to all representations; F(theta) = 1/B sum over b of J_b' H_b J_b.

    A representation defines `mv`, `_solve`, `get_diag`, `to_torch`, `scaled` and what else has a closed form in it; the
    rest follows.  What has no mathematics in a representation is a ValueError that names what to use instead.
    """

    # --- a representation defines ----------------------------------------------------------------------------------

    def get_diag(self) -> Any:
        """The diagonal of F, a tree like params."""
        raise AttributeError("a representation defines get_diag")

    def to_torch(self) -> Tensor:
        """F as a `[d, d]` tensor in the flat order of `linmaps.trees.ravel`."""
        raise AttributeError("a representation defines to_torch")

    def scaled(self, alpha: Scalar) -> PMat:
        """alpha F."""
        raise AttributeError("a representation defines scaled")

    # --- a representation may define -------------------------------------------------------------------------------

    def eigendecomposition(self, *, group: Any = None) -> PMat:
        """The same matrix in its eigenbasis U: `get_eigenvalues`, `project_to_diag`, `project_from_diag` are cheap there.

        group: a process group (torch.distributed.group.WORLD) over whose ranks the layers are split by their cost n^3; all get
        the same bits.  None: all here.
        """
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

    def _inverses(self, layers: Any, regul: Regul) -> dict[str, Inverse] | None:
        """(F + regul I)^-1 layer by layer, None where F is no direct sum over these layers; regul as methods take it."""
        return None

    def _at_hand(self) -> list[Tensor]:
        """Matrices `[n, n]` and diagonals `[n]` that this one is made of, where they are stored: none elsewhere."""
        return []

    def _plus(self, other: PMat) -> PMat | None:
        """F + other where this representation holds it, else None; layouts are equal."""
        return None

    def _compact(self) -> PMat:
        """The same matrix in the representation that stores less, where a sum has grown beyond it."""
        return self

    # --- functions ---------------------------------------------------------------------------------------------------

    def inverse(self: Inverted[M], regul: Regul = 1e-8) -> M:
        """(F + regul I)^-1, a matrix; regul as in `solve`."""
        return self._inverse(cast(Any, self)._damping(regul))

    def pow(self: Powered[M], p: float, regul: Regul = 0.0) -> M:
        """(F + regul I)^p for a real number p; regul as in `solve`."""
        return self._pow(p, cast(Any, self)._damping(regul))

    def logdet(self, regul: Regul = 1e-8) -> Tensor:
        """log |det(F + regul I)|, over all d dimensions; regul as in `solve`."""
        return self._logdet(self._damping(regul))

    def relative(self, c: Scalar) -> dict[str, Tensor]:
        """A regul in the scale of each layer: {layer: c times the mean eigenvalue of its block}, a number >= 0 times tr / n.

        The layers are those of `fim`, or leaves where the matrix does not know them.  A layer without a gradient has 0.
        """
        number(c, "c", low=0)
        diag = self.get_diag()
        if self.known_layers is not None:
            parts = self.known_layers.views(diag)
        else:
            parts = dict(zip(map(path_str, self.layout.paths), trees.leaves(diag)))
        return {name: c * t.sum() / max(1, t.numel()) for name, t in parts.items()}

    def pinv(self: Pseudoinverted[M], rtol: float | None = None, *, atol: float = 0.0, over: Over = "block") -> M:
        """The pseudo-inverse: eigenvalues up to rtol times the largest of their block, or up to atol, count as zero.

        over: "block", or "matrix": rtol is relative to the largest eigenvalue of the whole matrix, so that a block-diagonal
        matrix has the pseudo-inverse that it has as a dense one.  rtol None: what rounding leaves, or 0 beside an atol.
        """
        return self._pinv(self._cut_off(rtol, atol, over))

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

    def norm(self, ord: Ord | None = None) -> Tensor:
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
        return sum(t.sum() for t in trees.leaves(self.get_diag()))

    # --- algebra -----------------------------------------------------------------------------------------------------

    def mm(self, other: PMat) -> PMat:
        """The product F other, where a representation holds it; ValueError that names `to_torch` elsewhere.

        The product of two symmetric matrices is symmetric only where they commute: its solve is right in any case, and
        what needs a symmetric matrix (pow, sample, ...) raises.
        """
        alike(other, "other", self, f"the {type(self).__name__} before it", strict=True)
        product: PMat = handed("multiply")(self, other)
        return product

    @overload
    def __matmul__(self, v: PMat) -> PMat: ...
    @overload
    def __matmul__(self, v: Tree) -> Tree: ...
    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, PMat):
            return self.mm(v)
        return self.mmap(v)

    def __pow__(self: Powered[M], p: float) -> M:
        power: M = cast(Any, self).pow(p)
        return power

    def __mul__(self: Scaled[M], alpha: Scalar) -> M:
        return _multiple(self, alpha)

    __rmul__ = __mul__

    def __truediv__(self: Scaled[M], alpha: Scalar) -> M:
        return _multiple(self, alpha, divided=True)

    def __neg__(self: Scaled[M]) -> M:
        return self.scaled(-1.0)

    def __add__(self, other: PMat) -> PMat:
        """F + G; the same representation where the sum has it, else a `PMatSum`."""
        if not isinstance(other, PMat):
            raise TypeError(f"{type(self).__name__} + {type(other).__name__}: expected a PMat on the right")
        alike(other, "other", self, f"the {type(self).__name__} it is added to", strict=True)
        total: PMat = handed("add")(self, other)
        return total

    def __sub__(self, other: PMat) -> PMat:
        return self + (-other)


def _multiple(F: Scaled[M], alpha: Any, divided: bool = False) -> M:
    plain = isinstance(alpha, Number) and not isinstance(alpha, bool)
    if not plain and not (isinstance(alpha, Tensor) and alpha.ndim == 0):
        sign = "/" if divided else "*"
        raise TypeError(f"{type(F).__name__} {sign} {type(alpha).__name__}: expected a number or a scalar tensor")
    return F.scaled(1 / alpha if divided else alpha)
