"""PMatImplicit: F as a product alone.  N examples in batches, K columns of one example, d parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.checks.data import NO_EXAMPLE
from fisher.derivatives.plain import plainly
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.columns import Columns
from fisher.likelihoods.held import emptied
from fisher.likelihoods.names import LikelihoodName
from fisher.likelihoods.weights import weighed
from fisher.pmat.contract.acting import check_sample
from fisher.pmat.contract.damping import Regul, Scalar, times
from fisher.pmat.contract.pmat import PMat
from fisher.pmat.matrix_free.curvature import ColumnCurvature, Curvature, FisherCurvature, example_columns
from fisher.pmat.matrix_free.matrixfree import LARGEST_CHUNK, MatrixFree
from fisher.trials import functions, modes
from fisher.trials.data import examples, several
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.numerics.numeric import running
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


@trees.record(static=("curvature",))
class PMatImplicit(MatrixFree):
    """scale times the sum over batches of J'H J (or of any curvature of this room), at params and data that it keeps.

    mv: one forward-mode and one reverse-mode pass over the data, whatever the number of outputs; vTMv the first alone.
    It is one fixed matrix: what is random in it (sampled columns) was drawn when it was made.  trace and get_diag are
    exact by one vjp per column and example, or estimated; `fisher.pmat.matrix_free.matrixfree.MatrixFree` says the rest.

    Made by `fim`, `hessian`, `ggn`, or by `PMatImplicit.of`.

    >>> import torch
    >>> F = PMatImplicit.of(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}, torch.eye(2), "gaussian")
    >>> F.mv({"w": torch.ones(2, 1)})["w"].T, F.solve({"w": torch.ones(2, 1)}, regul=0.5)["w"].T, F.trace()
    (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]), tensor(1.))
    """

    params: Any
    batches: tuple[tuple[Any, ...], ...]
    scale: Tensor
    curvature: Curvature

    __repr__ = PMat.__repr__

    @classmethod
    def of(
        cls,
        f: Callable[..., Tensor],
        params: Any,
        data: Any,
        likelihood: LikelihoodName | Likelihood = "categorical",
        *,
        columns: Sequence[Tensor] | Callable[..., Tensor] | None = None,
        check: bool = True,
        check_finite: bool = True,
    ) -> PMatImplicit:
        """The Fisher of f at params: 1/N sum over b of J_b'H_b J_b.

        data: as in `fim`.  columns: None for the exact H of the likelihood; else one `[K, B, *out]` per batch, or a
        function (y, target) -> `[K, B, *out]` called once per batch (an estimator), with H = sum over K of r r', times the weight
        of data that have one.
        check: ValueError where f is random or examples mix (about ten forwards of the largest batch).  check_finite: report
        NaN in data and params.
        """
        f, params = doors.function(f), parameters(params, check_finite)
        seen = list(examples(data, "fim", check_finite))
        full = [x for x, *_ in seen if batch_size(x)]
        if check and full:
            functions.function(f, params, several(full), finite=check_finite)
            modes.forward(f, params, full[0], "PMatImplicit")
        if columns is None:
            rest, tensors = emptied(find_likelihood(likelihood))
            curvature: Curvature = FisherCurvature(f, rest)
            masked = hasattr(rest if not tensors else rest.cls, "counts")
            given = lambda part: () if part is None else part
            return cls.sum_of(
                curvature, params, [(x, given(t if masked else None), tensors, given(w)) for x, t, w in seen]
            )
        if callable(columns):
            columns = [_columns(columns, plainly(f)(params, x), t, w, likelihood) for x, t, w in seen]
        elif any(w is not None for *_, w in seen):
            raise ValueError(
                "columns: got tensors with data of weights, expected a function (y, target) -> [K, B, *out]"
            )
        if len(columns) != len(seen):
            raise ValueError(f"columns: got {len(columns)}, expected one per batch, of which there are {len(seen)}")
        return cls.sum_of(ColumnCurvature(f), params, [(x, c) for (x, *_), c in zip(seen, columns)])

    @classmethod
    def sum_of(cls, curvature: Curvature, params: Any, parts: Sequence[tuple[Any, ...]]) -> PMatImplicit:
        """1/N times the sum of a curvature over batches `(x, ...)`."""
        n = sum(batch_size(part[0]) for part in parts)
        if n == 0:
            raise ValueError(NO_EXAMPLE)
        like = trees.leaves(params)[0]
        scale = torch.full((), 1 / n, dtype=like.dtype, device=like.device)
        return cls(params, tuple(p for p in parts if batch_size(p[0])), scale, curvature)

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return Layout.of(self.params)

    def _like(self) -> Tensor:
        return trees.leaves(self.params)[0]

    def _total(self, fn: Callable[[tuple[Any, ...]], Any]) -> Any:
        self.check_single(0, self.scale)
        total = None
        for batch in self.batches:
            total = running(total, fn(batch))
        return trees.map(lambda t: self._back(self.scale * t), total)

    def _back(self, t: Tensor) -> Tensor:
        """From the dtype of sums over batches."""
        return t.to(self.scale.dtype) if working(self.scale) is not self.scale else t

    @property
    def _space(self) -> Any:
        return self.params

    def mv(self, v: Tree) -> Tree:
        v = self.check_vector(v)
        made: Tree = self._total(lambda batch: self.curvature.product(self.params, batch, v))
        return made

    def vTMv(self, v: Any) -> Tensor:
        """v'F v, a scalar, from the forward-mode pass alone."""
        v = self.check_vector(v)
        return self._total(lambda batch: self.curvature.quadratic(self.params, batch, v))

    def scaled(self, alpha: Scalar) -> PMatImplicit:
        return PMatImplicit(self.params, self.batches, alpha * self.scale, self.curvature)

    # --- by columns --------------------------------------------------------------------------------------------------

    def _by_columns(self, reduce: Callable[[Any], Any], chunk_size: int | None) -> Any:
        """Sum over batches, and chunks of examples, of reduce(gradients `[B, K, *leaf]`)."""

        def one(batch: tuple[Any, ...]) -> Any:
            columns = self.curvature.columns(self.params, batch)
            n, total = batch_size(batch[0]), None
            each = max(1, len(columns) * self.layout.numel)  # type: ignore[arg-type]
            size = max(1, LARGEST_CHUNK // each) if chunk_size is None else chunk_size
            if size < 1:
                raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1 example, or None")
            for start in range(0, n, size):
                x = trees.map(lambda t: t[start : start + size], batch[0])  # noqa: B023
                part = reduce(example_columns(self.curvature.f, self.params, x, columns[:, start : start + size]))  # type: ignore[attr-defined, index]
                total = running(total, part)
            return total

        return self._total(one)

    def _has_columns(self) -> bool:
        return isinstance(self.curvature, (FisherCurvature, ColumnCurvature))

    def _exact_diag(self, chunk_size: int | None) -> Any:
        if not self._has_columns():
            return super()._exact_diag(chunk_size)
        return self._by_columns(lambda g: trees.map(lambda t: (t**2).sum((0, 1)), g), chunk_size)

    def _exact_trace(self, chunk_size: int | None) -> Tensor:
        if not self._has_columns():
            return super()._exact_trace(chunk_size)
        return self._by_columns(lambda g: trees.dot(g, g), chunk_size)

    # --- samples -----------------------------------------------------------------------------------------------------

    def _sampled(self, generator: torch.Generator | None, regul: Regul, noise: Any) -> Any:
        """(F + regul I)^-1 (R'e + sqrt(regul) z) with R'R = F, by one solve; noise a pair (z, e): z a tree like params, e one
        `[K, B]` per batch, standard normal.  ValueError for a Hessian, which has no root."""
        z, e = (self._draw(generator), None) if noise is None else self._pair(noise, "one tensor [K, B] per batch")
        colored = self._colored(generator, e)
        return self._solved(check_sample(trees.add(times(regul, z, 0.5), colored)), regul, "default")

    def _colored(self, generator: torch.Generator | None, noise: Any = None) -> Any:
        """R'e with R'R = F: a vector from N(0, F)."""
        if not self._has_columns():
            raise self._unsupported("sample", "a Hessian has no root; use PMatDense(F.to_torch(), F.layout)")
        if noise is not None and (not isinstance(noise, tuple | list) or len(noise) != len(self.batches)):
            raise ValueError(f"noise: e: expected {len(self.batches)} tensors [K, B] in a tuple, one per batch")
        total = None
        for number, batch in enumerate(self.batches):
            columns = self.curvature.columns(self.params, batch)
            shape, like = tuple(columns.shape[:2]), columns  # type: ignore[union-attr]
            if noise is None:
                e = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)  # type: ignore[union-attr]
            else:
                e = noise[number]
                if not isinstance(e, Tensor) or tuple(e.shape) != shape:
                    got = tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__
                    raise ValueError(f"noise: e: {number}: got {got}, expected a tensor {shape}, [K, B]")
            w = torch.einsum("kb...,kb->b...", columns, e)
            part = self.curvature.pulled(self.params, batch, w)  # type: ignore[attr-defined]
            total = running(total, part)
        return trees.map(lambda t: self._back(self.scale.sqrt() * t), total)


def _columns(made: Callable[..., Tensor], y: Tensor, target: Any, weight: Tensor | None, likelihood: Any) -> Tensor:
    """The columns of a batch, those of an estimator or of a function (y, target), times the root of the weight."""
    if isinstance(made, Columns):
        return made(y, target, weight)
    found = made(y, target)
    return found if weight is None else weighed(found, find_likelihood(likelihood), y, weight)
