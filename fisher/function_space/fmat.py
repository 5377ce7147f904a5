"""FMatDense: a matrix on function space, the empirical neural tangent kernel J J' of `fisher.gram`.

B examples and C outputs of the rows, B2 examples of the columns; u a vector of function space, `[B2, C]`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks.doors import entry
from fisher.pmat.contract.damping import check_number
from fisher.pmat.contract.pmat import Ord
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision_methods
from linmaps.numerics import lapack
from linmaps.numerics.eigen import eigh, pinv
from linmaps.numerics.linalg import damped, logabsdet, solve
from linmaps.numerics.numeric import positive_root

Regul = float | Tensor
Kernel = Literal["full", "outputs", "trace"]
AXES: dict[Kernel, int] = {"full": 4, "outputs": 3, "trace": 2}


@trees.record(static=("kind", "symmetric"))
class FMatDense:
    """Theta in memory, by `kind`:

    full: `[B, C, B2, C]`, acts on u `[B2, C]`;
    outputs: `[C, B, B2]`, the kernel of each output and nothing between outputs, acts on u `[B2, C]`;
    trace: `[B, B2]`, summed over outputs, acts on u `[B2]` or on the columns of u `[B2, k]`.

    trace, logdet, norm are those of the whole matrix: for "outputs" of the block-diagonal matrix of the C kernels.
    `symmetric`: columns are the examples of the rows.  solve, logdet, trace, diag ask for a square matrix,
    eigendecomposition for a symmetric one: ValueError otherwise.

    >>> import torch
    >>> K = FMatDense(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "trace", True)
    >>> K, K.solve(torch.ones(2), regul=1.0), (K + K).trace()
    (FMatDense(trace, 2 x 2, float32, cpu), tensor([0.3333, 0.5000]), tensor(6.))
    """

    kernel: Tensor
    kind: Kernel
    symmetric: bool

    # --- the matrix as one matrix, or one for each output ----------------------------------------------------------

    def _matrix(self) -> Tensor:
        """`[n, m]`, or `[C, n, m]` where there is one for each output."""
        k = self.kernel
        if k.ndim != AXES[self.kind]:
            raise ValueError(
                f"FMatDense: a kernel of shape {tuple(k.shape)}, expected {AXES[self.kind]} axes for kind {self.kind!r}; "
                "for a stacked ensemble use torch.func.vmap(lambda K, u: K.mv(u))(K, u)"
            )
        return k.reshape(k.shape[0] * k.shape[1], k.shape[2] * k.shape[3]) if self.kind == "full" else k

    def _square(self, method: str) -> Tensor:
        m = self._matrix()
        if m.shape[-1] != m.shape[-2]:
            raise ValueError(
                f"{method}: got a kernel of {m.shape[-2]} rows and {m.shape[-1]} columns, expected a square one; make it by "
                "gram(f, params, x) without x2"
            )
        return m

    def _symmetric(self, method: str) -> Tensor:
        if not self.symmetric:
            raise ValueError(
                f"{method}: got the kernel of two sets of examples, expected a symmetric one; make it by gram(f, params, x) "
                "without x2, or use torch.linalg.svd(K.to_torch())"
            )
        return self._square(method)

    def _each(self, fn: Callable[..., Any], *args: Tensor) -> Any:
        return vmap(fn)(*args) if self.kind == "outputs" else fn(*args)

    def _columns(self, u: Tensor, examples: int, name: str) -> Tensor:
        """u as what each matrix acts on: `[m]`, `[C, m]`, or `[m, k]` for kind "trace"."""
        k = self.kernel
        width = {"full": (k.shape[1],), "outputs": (k.shape[0],), "trace": tuple(u.shape[1:2])}[self.kind]
        if tuple(u.shape) != (examples, *width):
            raise ValueError(f"{name}: got u of shape {tuple(u.shape)}, expected {(examples, *width)}")
        return u.reshape(u.numel()) if self.kind == "full" else u.mT if self.kind == "outputs" else u

    def _back(self, u: Tensor, examples: int) -> Tensor:
        if self.kind == "full":
            return u.reshape(examples, self.kernel.shape[1])
        return u.mT if self.kind == "outputs" else u

    @property
    def _examples(self) -> tuple[int, int]:
        """(B, B2)."""
        k = self.kernel
        return (k.shape[0], k.shape[2]) if self.kind == "full" else (k.shape[-2], k.shape[-1])

    # --- products --------------------------------------------------------------------------------------------------

    @typed
    def mv(self, u: Tensor) -> Tensor:
        """Theta u, `[B, C]` for u `[B2, C]` (kind "trace": `[B]` for `[B2]`)."""
        m, (rows, columns) = self._matrix(), self._examples
        return self._back(self._each(torch.matmul, m, self._columns(u, columns, "mv")), rows)

    def __matmul__(self, u: Tensor) -> Tensor:
        return self.mv(u)

    @typed
    def vTMv(self, u: Tensor) -> Tensor:
        """u' Theta u, a scalar: the squared norm of J' u in parameter space (for "trace" the sum over columns of u)."""
        self._square("vTMv")
        return (u * self.mv(u)).sum()

    @typed
    def solve(self, u: Tensor, regul: Regul = 1e-8, *, kind: Literal["default", "lstsq"] = "default") -> Tensor:
        """(Theta + regul I)^-1 u by QR; kind="lstsq": the pseudo-inverse of Theta + regul I (symmetric kernels)."""
        check_number(regul)
        if kind not in ("default", "lstsq"):
            raise ValueError(f"solve: got kind={kind!r}, expected 'default' or 'lstsq'")
        m = self._square("solve") if kind == "default" else self._symmetric("solve(kind='lstsq')")
        one = solve if kind == "default" else lambda m, u: pinv(m) @ u
        n = self._examples[0]
        return self._back(self._each(lambda m, u: one(damped(m, regul), u), m, self._columns(u, n, "solve")), n)

    # --- spectrum --------------------------------------------------------------------------------------------------

    def eigendecomposition(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ascending `[n]` and eigenvectors `[n, n]` of `to_torch()` (`[C, n]`, `[C, n, n]` for "outputs")."""
        return self._each(eigh, self._symmetric("eigendecomposition"))

    @typed
    def logdet(self, regul: Regul = 1e-8) -> Tensor:
        """log det (Theta + regul I), a scalar."""
        check_number(regul)
        return self._each(lambda m: logabsdet(damped(m, regul)), self._square("logdet")).sum()

    def trace(self) -> Tensor:
        """Sum of the diagonal, a scalar."""
        return self.diag().sum()

    def diag(self) -> Tensor:
        """The diagonal: `[B, C]`, for kind "trace" `[B]`; squared norms of the rows of J."""
        m = self._square("diag")
        return self._back(self._each(torch.diagonal, m), self._examples[0])

    @typed
    def norm(self, ord: Ord | None = None) -> Tensor:
        """Frobenius norm (None, "fro"), largest (2) or smallest (-2) singular value, a scalar."""
        if ord in (None, "fro"):
            return positive_root((self.kernel**2).sum())
        if ord not in (2, -2):
            raise ValueError(f"norm: got ord={ord!r}, expected None, 'fro', 2 or -2")
        s = self._each(lapack.svdvals, self._matrix())
        return s.amax() if ord == 2 else s.amin()

    # --- algebra ---------------------------------------------------------------------------------------------------

    def transpose(self) -> FMatDense:
        """Theta(x2, x) of Theta(x, x2)."""
        swapped = self.kernel.permute(2, 3, 0, 1) if self.kind == "full" else self.kernel.mT
        return FMatDense(swapped, self.kind, self.symmetric)

    def centered(self) -> FMatDense:
        """The kernel of Jacobians minus their mean over examples, each side by its own: (I - 1/B) Theta (I - 1/B2)."""
        axes = (0, 2) if self.kind == "full" else (-2, -1)
        k = self.kernel
        for axis in axes:
            k = k - k.mean(axis, keepdim=True)
        return FMatDense(k, self.kind, self.symmetric)

    def to_torch(self) -> Tensor:
        """`[B C, B2 C]` (examples outside, outputs inside); `[C, B, B2]` for "outputs", `[B, B2]` for "trace"."""
        return self._matrix()

    @overload
    def size(self, dim: None = None) -> tuple[int, ...]: ...
    @overload
    def size(self, dim: int) -> int: ...
    @typed
    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Shape of `to_torch()`, or one of its entries."""
        shape = tuple(self._matrix().shape)
        return entry(shape, dim)

    @typed
    def __add__(self, other: FMatDense) -> FMatDense:
        if not isinstance(other, FMatDense):
            raise TypeError(f"FMatDense + {type(other).__name__}: expected a FMatDense on the right")
        if (self.kind, self.kernel.shape) != (other.kind, other.kernel.shape):
            raise ValueError(
                f"FMatDense + FMatDense: got {other.kind} {tuple(other.kernel.shape)}, expected {self.kind} "
                f"{tuple(self.kernel.shape)}; add kernels of one kind on the same examples"
            )
        return FMatDense(self.kernel + other.kernel, self.kind, self.symmetric and other.symmetric)

    def __sub__(self, other: FMatDense) -> FMatDense:
        return self + -1.0 * other

    @typed
    def __mul__(self, alpha: Regul) -> FMatDense:
        if not isinstance(alpha, Number) and not (isinstance(alpha, Tensor) and alpha.ndim == 0):
            raise TypeError(f"FMatDense * {type(alpha).__name__}: expected a number or a scalar tensor")
        return FMatDense(alpha * self.kernel, self.kind, self.symmetric)

    __rmul__ = __mul__

    @typed
    def __truediv__(self, alpha: Regul) -> FMatDense:
        return self * (1 / alpha)

    def __neg__(self) -> FMatDense:
        return self * -1.0

    def __repr__(self) -> str:
        shape, dtype = " x ".join(str(n) for n in self.size()), str(self.kernel.dtype).removeprefix("torch.")
        return f"FMatDense({self.kind}, {shape}, {dtype}, {self.kernel.device})"


full_precision_methods(FMatDense)
