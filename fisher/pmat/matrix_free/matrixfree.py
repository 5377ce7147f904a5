"""MatrixFree: what follows from products alone; solve by conjugate gradients, spectra by Lanczos, estimated traces.

d parameters.  The base class of PMatImplicit and PMatPullback; its subclasses define mv.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.exact_rows import mapped
from fisher.iterative import cg, lanczos, traces
from fisher.pmat.contract import maps
from fisher.pmat.contract.damping import Amounts, Regul, detached, flat, unflat
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.contract.pmat import Ord, PMat
from fisher.pmat.whole.eigen import raveled
from fisher.pmat.whole.range import PMatRange
from linmaps import trees
from linmaps.numerics.numeric import positive_root

OPTIONS = ("preconditioner", "x0", "rtol", "max_iter", "report")
LARGEST_CHUNK = 2**24  # numbers in the vectors of one chunk
Trace = Literal["exact", traces.Estimator]
Diagonal = Literal["exact", "hutchinson"]


class MatrixFree(PMat):
    """A PMat that is only multiplied with.

    solve(v, regul, preconditioner=, x0=, rtol=, max_iter=, report=False): conjugate gradients, for a positive
    semi-definite F; of a map all right-hand sides at once, each standing still once it has converged.  preconditioner: a
    PMat M, applied as (M + regul I)^-1, or a callable from a vector to a vector that closes over no transformed tensor.
    rtol: None is ten machine epsilons; max_iter: None is 1000.  report=True: (x, `fisher.iterative.cg.Report`).
    Derivatives are those of the exact solution.
    """

    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": OPTIONS, "cg": OPTIONS}

    def _flat(self, v: Tensor) -> Tensor:
        return raveled(self.mv(self.layout.unravel(v)), self.layout)

    def _rows(self, Z: Tensor) -> Tensor:
        return mapped(lambda: vmap(self._flat)(Z), lambda: torch.stack([self._flat(z) for z in Z]))

    # --- solve -------------------------------------------------------------------------------------------------------

    def _solve(
        self,
        v: Any,
        regul: Regul,
        kind: str,
        *,
        preconditioner: Any = None,
        x0: Any = None,
        rtol: float | None = None,
        max_iter: int | None = None,
        report: bool = False,
    ) -> Any:
        unravel = self.layout.unravel
        b = raveled(v, self.layout)
        start = None if x0 is None else raveled(x0, self.layout)
        shared = {"F": self, "regul": flat(regul, b)}
        precondition = None
        if isinstance(preconditioner, MatrixFree):
            shared["M"] = preconditioner
            precondition = lambda s, r: raveled(
                s["M"]._solved(unravel(r), unflat(s["regul"], self.layout), "default"), self.layout
            )
        elif isinstance(preconditioner, PMat):  # factorized once, not in each iteration
            constant = trees.map(lambda t: t.detach(), preconditioner)
            amount = unflat(flat(regul, b).detach(), self.layout)
            amount = amount if not isinstance(regul, Amounts) or regul.named is None else regul.map(detached)
            shared["M"] = constant._inverse(amount)
            precondition = lambda s, r: raveled(s["M"].mv(unravel(r)), self.layout)
        elif preconditioner is not None:
            precondition = lambda s, r: raveled(preconditioner(unravel(r)), self.layout)
        x, how = cg.solve(
            lambda s, x: s["F"]._flat(x) + s["regul"] * x,
            shared,
            b,
            precondition=precondition,
            x0=start,
            rtol=rtol,
            max_iter=max_iter,
        )
        return (unravel(x), how) if report else unravel(x)

    def _solve_map(self, J: Any, n: int, regul: Regul, kind: str, *, x0: Any = None, **options: Any) -> Any:
        if x0 is not None:
            x0, lead = maps.conformed(self.layout, x0, "x0")
            if lead != maps.leading(self.layout, J, "v"):
                raise ValueError("x0: leading axes differ from those of v; give one start for each right-hand side")
        solve = lambda v, x0: self._solve(v, regul, kind, x0=x0, **options)
        for _ in range(n):
            solve = vmap(solve, in_dims=(0, None if x0 is None else 0))
        return solve(J, x0)

    # --- entries -----------------------------------------------------------------------------------------------------

    def _identity_chunks(self, chunk_size: int | None) -> Any:
        """The rows of the identity in chunks `[k, d]`."""
        d, like = self.layout.numel, self._like()
        size = max(1, LARGEST_CHUNK // max(1, d)) if chunk_size is None else chunk_size
        if size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1 vector, or None")
        columns = torch.arange(d, device=like.device)
        for start in range(0, d, size):
            yield (torch.arange(start, min(start + size, d), device=like.device)[:, None] == columns).to(like.dtype)

    def to_torch(self, *, chunk_size: int | None = None) -> Tensor:
        """F `[d, d]`, by d products, `chunk_size` at once."""
        check_dense(self.layout.numel, f"{type(self).__name__}.to_torch", PRODUCTS, dtype=self._like().dtype)
        parts = [self._rows(rows) for rows in self._identity_chunks(chunk_size)]
        return torch.cat(parts) if parts else self._like().new_zeros(0, 0)

    def get_diag(
        self,
        *,
        method: Diagonal = "exact",
        generator: torch.Generator | None = None,
        n_probes: int = 30,
        probes: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """The diagonal, a tree like params: method "exact", or "hutchinson" by signs (`generator` or `probes`)."""
        if method == "exact":
            return self._exact_diag(chunk_size)
        if method != "hutchinson":
            raise ValueError(f"get_diag: got method={method!r}, expected 'exact' or 'hutchinson'")
        return self.layout.unravel(traces.diagonal(self._rows, self._probes(generator, n_probes, probes)))

    def _exact_diag(self, chunk_size: int | None) -> Any:
        parts = [(rows * self._rows(rows)).sum(1) for rows in self._identity_chunks(chunk_size)]
        return self.layout.unravel(torch.cat(parts) if parts else self._like().new_zeros(0))

    def trace(
        self,
        *,
        method: Trace = "exact",
        generator: torch.Generator | None = None,
        n_probes: int = 30,
        probes: Any = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """The trace: method "exact", or an unbiased estimate from `n_probes` products: "hutchinson", "hutch++", "xtrace".

        The probes are drawn by the generator, or given: a tree like params with one leading axis (`fisher.iterative.traces`).
        """
        if method == "exact":
            return self._exact_trace(chunk_size)
        return traces.trace(self._rows, self._probes(generator, n_probes, probes), method)

    def _exact_trace(self, chunk_size: int | None) -> Tensor:
        parts = [t.sum() for t in trees.leaves(self._exact_diag(chunk_size))]
        return sum(parts[1:], parts[0])

    def frobenius_norm(self, *, chunk_size: int | None = None) -> Tensor:
        """sqrt of the sum of squared entries, by d products."""
        parts = [(self._rows(rows) ** 2).sum() for rows in self._identity_chunks(chunk_size)]
        return positive_root(sum(parts[1:], parts[0]))

    # --- the spectrum ------------------------------------------------------------------------------------------------

    def eigendecomposition(
        self,
        k: int = 10,
        *,
        steps: int | None = None,
        start: Any = None,
        generator: torch.Generator | None = None,
        group: Any = None,
    ) -> PMatRange:
        """The k largest eigenpairs by Lanczos, as the matrix of rank k that they make: a PMatRange with rest 0.

        `.core` [k] ascending, `.basis` a tree `[k, *leaf]`.  start: a vector; None draws it by the generator, or takes a
        fixed one.  steps: products (None: 2 k + 30); `fisher.iterative.lanczos.eigenpairs` also gives residuals.
        group: None; ValueError for a process group, over which nothing here is split.
        """
        if group is not None:
            raise ValueError(
                f"group: got one for {type(self).__name__}, expected None: it has no layers to be split over ranks, and its "
                "products are with the data of this rank; decompose PMatKFAC or PMatDense(F.to_torch(), F.layout)"
            )
        values, vectors, _ = lanczos.eigenpairs(self._flat, self._start(start, generator), k, steps)
        return PMatRange(values, vmap(self.layout.unravel)(vectors), values.new_zeros(()))

    def _start(self, start: Any, generator: torch.Generator | None) -> Tensor:
        if start is not None:
            return raveled(self.check_vector(start, "start"), self.layout)
        like = self._like()
        if generator is None:
            return torch.cos(torch.arange(self.layout.numel, dtype=like.dtype, device=like.device) ** 2)
        return raveled(self._draw(generator), self.layout)

    def norm(self, ord: Ord | None = None, *, steps: int | None = None) -> Tensor:
        """None or "fro": the Frobenius norm, by d products; 2: the largest singular value by Lanczos (`steps`: None, 60)."""
        if ord == 2:
            return lanczos.extreme(self._flat, self._start(None, None), steps)
        return super().norm(ord)

    def logdet(
        self,
        regul: Regul = 1e-8,
        *,
        generator: torch.Generator | None = None,
        n_probes: int = 30,
        probes: Any = None,
        steps: int | None = None,
    ) -> Tensor:
        """An ESTIMATE of log det(F + regul I) by stochastic Lanczos quadrature; the probes as in `trace`.

        Standard deviation of the order |log(F + regul I)|_F / sqrt(n_probes).
        """
        r = flat(self._damping(regul), self._like())
        found = self._probes(generator, n_probes, probes)
        return lanczos.log_quadrature(lambda v: self._flat(v) + r * v, found, steps)

    def _probes(self, generator: torch.Generator | None, n_probes: int, probes: Any) -> Tensor:
        """`[m, d]`."""
        if (generator is None) == (probes is None):
            raise ValueError(
                f"{type(self).__name__}: got {'neither' if probes is None else 'both'}, expected a generator or probes "
                "(a tree like params with one leading axis) for a stochastic estimate"
            )
        if probes is None:
            like = self._like()
            return traces.signs(generator, n_probes, self.layout.numel, dtype=like.dtype, device=like.device)  # type: ignore[arg-type]
        probes, lead = maps.conformed(self.layout, probes, "probes")
        if len(lead) != 1:
            raise ValueError(f"probes: got {len(lead)} leading axes, expected one: a tree with leaves [m, *leaf]")
        return vmap(lambda z: raveled(z, self.layout))(probes)

    def _pair(self, noise: Any, other: str) -> tuple[Any, Any]:
        """The noise of a sample: (z, e), z a tree like params and e what `other` says."""
        if not isinstance(noise, tuple | list) or len(noise) != 2:
            raise ValueError(
                f"noise: got {type(noise).__name__}, expected a pair (z, e) of standard normal numbers for "
                f"{type(self).__name__}: z a tree like params, e {other}; or give a generator"
            )
        return self.check_vector(noise[0], "noise: z"), noise[1]

    # --- what has no mathematics here --------------------------------------------------------------------------------

    def _inverse(self, regul: Regul) -> PMat:
        raise self._unsupported("inverse", "use F.solve(v, regul), which takes a map too")

    def _spectral_norm(self, largest: bool) -> Tensor:
        raise self._unsupported("norm", "use norm(2) or norm('fro'), or PMatDense(F.to_torch(), F.layout)")
