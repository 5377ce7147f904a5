"""fim: the Fisher information of a pure function at params, in any representation, in as few passes as it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.data import one_batch
from fisher.collector.blocks.sizes import LARGEST_BLOCK, LARGEST_FACTOR
from fisher.collector.collection import LayerCollection
from fisher.distributed.stages import LOCAL, Reduce, callable_or_none, group_of
from fisher.likelihoods import Likelihood
from fisher.likelihoods import likelihood as find_likelihood
from fisher.likelihoods.agreement import check_agreement
from fisher.likelihoods.columns import Estimator
from fisher.likelihoods.columns import estimator as make_estimator
from fisher.likelihoods.names import LikelihoodName
from fisher.passes.checkpoints import Path, opened
from fisher.passes.matrix_free import unsummed
from fisher.passes.run import Pass, summed
from fisher.pmat import PMat, PMatEKFAC, PMatImplicit, PMatKFAC, PMatMixed
from fisher.pmat.contract.handing import hands_over
from fisher.pmat.names import by_name
from fisher.pmat.representation import Representation
from fisher.reducers import REDUCERS, Options
from fisher.reducers.base import Sharing
from fisher.reducers.ekfac import EKFAC, Both, Correction
from fisher.reducers.mixed import Mixed
from linmaps.checks import size
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision

SHARING = get_args(Sharing)


@full_precision("f")
@typed
def fim(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    representation: type[Representation] = PMatKFAC,  # type: ignore[assignment]  # the TypeVar's own default
    likelihood: LikelihoodName | Likelihood = "categorical",
    estimator: Estimator = "exact",
    layers: LayerCollection | None = None,
    generator: torch.Generator | None = None,
    n_samples: int = 1,
    chunk_size: int | None = None,
    progress: bool = False,
    *,
    noise: Tensor | None = None,
    sharing: Sharing = "expand",
    centered: bool = False,
    layers_to: Mapping[str, type[PMat]] | None = None,
    dtype: torch.dtype | None = None,
    largest_block: int | None = LARGEST_BLOCK,
    largest_factor: int | None = LARGEST_FACTOR,
    check_finite: bool = True,
    reduce: Reduce | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
) -> Representation:
    """Fisher information F = 1/B sum over b of J_b' H_b J_b of `f(params, x)`, as a matrix object.

    J_b is the Jacobian of f at x_b with respect to params, H_b the Fisher matrix of the output distribution at f(x_b).

    data: one batch x, `(x, target)` or `(x, target, weight)`, or an iterable of those; the mean is over all B examples seen.
    weight: `[B]`, or `[B, *positions]` of an output `[B, C, *positions]`, numbers >= 0 (or bool): F = 1/B sum of w_b J_b' H_b J_b
    (target None where there is none).
    representation: a PMat class (or its name, "kfac").  likelihood: "categorical" (logits), "gaussian", ..., or an object.
    estimator: "exact"; "mc" with `n_samples` targets drawn by `generator` (or by `noise` `[n, *y.shape]` under vmap);
    "empirical" and "gradient_covariance" at the targets of data, the latter less the mean gradient if `centered`.
    Positions whose target is the likelihood's ignore_index count nowhere, whatever the estimator.
    layers: from `LayerCollection.from_function`; made and checked here if not given (two forwards, four backwards more).
    A sub-collection gives a matrix on the vectors `{path: leaf}` of its leaves.
    chunk_size: output columns differentiated at once; memory is C B S O per layer for C columns.
    sharing: "expand" or "reduce", what KFAC does over positions.  layers_to: of PMatMixed, `{kind or name: representation}`.
    largest_block, largest_factor: of PMatKFAC, PMatEKFAC and PMatMixed: blocks without factors (exact, or seen through) of more
    parameters, and factors of more rows, are kept as diagonals (4,096 and 8,192 unless given); None lifts a limit.
    dtype: in which sums over batches are kept (torch.float64 for float32 params), float32 at least.
    check_finite: report NaN in data, params and result.
    reduce: `(sums, count) -> (sums, count)`, called once for each pass (of PMatEKFAC and its parts: twice) before the mean is
    taken, adds over processes: `fisher.distributed.all_reduce()`.  A rank may have no example, with layers given.
    checkpoint: a file that the sums are written to after each `every` batches.  The same call goes on from it after the process
    has ended in mid-pass, skips the batches that are done (the loader must give them again, in the same order) and ends with the
    bits of a pass that was not cut off, its generator too; a call with other arguments, data or f is refused.  The file is
    removed when the pass is complete.  With reduce each rank has a file of its own.

    One forward and one backward over C columns (C - 1 of C classes).  PMatEKFAC of several batches passes over them twice,
    for its bases and for the second moments in them: give it a list or a loader, not a generator.  Pure; composes with vmap
    over stacked params, grad, jacrev, jacfwd.  Raises ValueError or TypeError that name path, what was got, what was
    expected and the cure.

    KFAC: Martens and Grosse (2015); convolutions: Grosse and Martens (2016); expand and reduce: Eschenhagen et al. (2023);
    EKFAC: George et al. (2018).

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"]
    >>> p = {"w": torch.ones(2, 3), "b": torch.zeros(3), "v": torch.eye(3)}
    >>> F = fisher.fim(f, p, torch.ones(4, 2), fisher.PMatKFAC)
    >>> F
    PMatKFAC(2 factored + 0 exact blocks, d = 18, 36 numbers stored, float32, cpu)
    >>> natural = F.solve({"w": torch.ones(2, 3), "b": torch.ones(3), "v": torch.ones(3, 3)}, regul=1e-2)
    """
    f = doors.function(f)
    params = parameters(params)
    doors.options(
        chunk_size=chunk_size, n_samples=n_samples, generator=generator, noise=noise, dtype=dtype, layers=layers
    )
    if layers is not None:
        params = layers.layout.check(params, "params (of the LayerCollection)")
    callable_or_none(reduce)
    representation = by_name(representation)
    known = {*REDUCERS, PMatEKFAC, PMatMixed, PMatImplicit}
    if not isinstance(representation, type) or representation not in known:
        got = "a tensor" if isinstance(representation, Tensor) else getattr(representation, "__name__", representation)
        cure = "; targets go with the inputs, data=(x, target)" if isinstance(representation, Tensor) else ""
        raise ValueError(
            f"representation: got {got!r}, expected one of {sorted(r.__name__ for r in known)}, or such a name{cure}"
        )
    for name, limit in (("largest_block", largest_block), ("largest_factor", largest_factor)):
        if limit is not None:
            size(limit, name, 1, cure="or None for no limit")
    if sharing not in SHARING:
        raise ValueError(f"sharing: got {sharing!r}, expected one of {list(SHARING)}")
    if centered and estimator != "gradient_covariance":
        raise ValueError(f"centered: got True with estimator={estimator!r}, expected estimator='gradient_covariance'")
    if layers_to is not None:
        doors.of_type(layers_to, Mapping, "layers_to", "a mapping {kind or name of a layer: representation}")
        layers_to = {key: by_name(kind) for key, kind in layers_to.items()}
    if layers_to is not None and representation is not PMatMixed:
        raise ValueError(f"layers_to: got it with {representation.__name__}, expected representation=PMatMixed")
    columns = make_estimator(
        estimator, find_likelihood(likelihood), generator=generator, noise=noise, n_samples=n_samples
    )
    if checkpoint is not None and representation is PMatImplicit:
        raise ValueError(
            "checkpoint: got it with PMatImplicit, which keeps data, not sums; expected another representation"
        )
    if checkpoint is not None and reduce is not None and representation in (PMatEKFAC, PMatMixed):
        raise ValueError(
            f"checkpoint: got it with reduce and {representation.__name__}, whose two passes some ranks may have done and "
            "others not; expected PMatKFAC, and of it .eigendecomposition().update_diag(..., reduce=reduce)"
        )
    kept = opened(
        checkpoint,
        every,
        f,
        params,
        generator,
        representation=representation.__name__,
        likelihood=columns.likelihood,
        estimator=estimator,
        layers=layers,
        n_samples=n_samples,
        chunk_size=chunk_size,
        noise=noise,
        sharing=sharing,
        centered=centered,
        layers_to={key: kind.__name__ for key, kind in (layers_to or {}).items()},
        dtype=dtype,
        largest_block=largest_block,
        largest_factor=largest_factor,
    )
    once = noise is not None
    run = Pass(f, params, columns, layers, chunk_size, progress, dtype, check_finite, once, reduce, kept)
    limited = Options(sharing, centered, largest_block=largest_block, largest_factor=largest_factor)
    sampled = columns if estimator != "exact" else None
    made = _made(run, data, representation, sampled, limited, layers_to)
    kept.end()
    asked: Representation = made.made_of(columns.likelihood)
    return asked


def _made(
    run: Pass,
    data: Any,
    representation: type[PMat],
    columns: Any,
    options: Options,
    layers_to: Mapping[str, Any] | None,
) -> Any:
    if representation is PMatImplicit:
        if run.reduce is not None:
            raise ValueError(LOCAL)
        return unsummed(run, data, columns, options)
    if representation is PMatEKFAC:
        if one_batch(data) and run.chunk_size is None and run.reduce is None:
            return summed(run, data, EKFAC, options)
        factors = lambda: summed(run, data, REDUCERS[PMatKFAC], options)
        F = run.kept.once(lambda: factors().eigendecomposition(group=group_of(run.reduce)))
        return correct(F, run, data, options)
    if representation is PMatMixed:
        made = run.kept.once(lambda: summed(run, data, Mixed.of(layers_to or {}), options))
        return correct(made, run, data, options) if made.corrigible else made
    return summed(run, data, REDUCERS[representation], options)


def correct(F: Any, run: Pass, data: Any, options: Options) -> Any:
    """F with its eigenvalues in Kronecker eigenbases replaced by the second moments of the gradients there."""
    if isinstance(F, PMatMixed):
        again = lambda G: run.kept.once(lambda: correct(G, run, data, options)) if isinstance(G, PMatEKFAC) else G
        return F.replaced(list(map(again, F.parts)))
    return summed(run.on(F.layers), data, Correction.of(F), options)


@full_precision("f")
def factors_and_moments(
    f: Callable[..., Tensor],
    params: Any,
    batch: Any,
    bases: PMatEKFAC,
    likelihood: Likelihood,
    estimator: Estimator,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    reduce: Reduce | None = None,
) -> tuple[PMatKFAC, PMatEKFAC]:
    """What `fim(..., PMatKFAC)` and `bases.update_diag(...)` give of one batch, from one pass over the same columns."""
    params = parameters(params)
    columns = make_estimator(estimator, likelihood, generator=generator, noise=noise)
    once = noise is not None
    run = Pass(doors.function(f), params, columns, bases.layers, None, False, None, False, one_only=once, reduce=reduce)
    limits = Options(largest_block=LARGEST_BLOCK, largest_factor=LARGEST_FACTOR)
    found: tuple[PMatKFAC, PMatEKFAC] = summed(run, batch, Both.of(bases), limits)
    return found


@hands_over("update_diag")
@full_precision("f")
def update_diag(
    F: Any,
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    likelihood: LikelihoodName | Likelihood = "categorical",
    estimator: Estimator = "exact",
    *,
    generator: torch.Generator | None = None,
    n_samples: int = 1,
    noise: Tensor | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    centered: bool = False,
    reduce: Reduce | None = None,
) -> Any:
    """What `PMatEKFAC.update_diag` does; the arguments are those of `fim`."""
    params = parameters(params)
    f = doors.function(f)
    doors.options(chunk_size=chunk_size, n_samples=n_samples, generator=generator, noise=noise)
    callable_or_none(reduce)
    params = F.layers.layout.check(params, "params")
    columns = make_estimator(
        estimator, find_likelihood(likelihood), generator=generator, noise=noise, n_samples=n_samples
    )
    check_agreement(
        F.likelihood, columns.likelihood, "update_diag: F", "as likelihood= says; give likelihood=F.likelihood"
    )
    once = noise is not None
    run = Pass(f, params, columns, F.layers, chunk_size, progress, None, True, one_only=once, reduce=reduce)
    return correct(F, run, data, Options(centered=centered)).made_of(columns.likelihood)
