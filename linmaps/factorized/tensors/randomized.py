"""Randomized decompositions, whose sketches are arguments: pure, mapped by vmap, for tensors that dwarf their ranks.

A sketch [n, l] is a matrix of normal numbers, l >= r: A [m, n] times it spans nearly the leading r left singular vectors.
n_power steps of subspace iteration, with QR between, sharpen that where singular values decay slowly; then only l x n
singular value decompositions are left.  A sketch [n, 0] takes A whole, as where l would reach its smaller side.  In mean
over sketches a step adds at most (2 + r / (l - r - 1)) times the squares of the singular values beyond r of T's unfolding to the
squared error, without power iteration, which takes the first term to 1 and the second to 0 (Halko et al. 2011).
Beside T each step holds a few times n l numbers.  Half precision is computed in float32 and cast back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linmaps.factorized.tensors.multilinear import times, unfolded
from linmaps.factorized.tensors.trains import check_tt_ranks
from linmaps.factorized.tensors.tucker import check_tucker_ranks, swept
from linmaps.numerics.draws import normal
from linmaps.numerics.dtypes import restored, working_dtype
from linmaps.numerics.numeric import eye_like
from linmaps.numerics.singular import basis, left, svd

Shapes = list[tuple[int, int]]


def randomized_svd(A: Tensor, r: int, sketch: Tensor, *, n_power: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], s [r], V^H [r, n] near the leading singular triples of A [m, n], from a sketch [n, l], l >= r.

        Q = basis(A sketch),   n_power times Q <- basis(A basis(A^H Q)),   Q^H A = W s V^H,   U = Q W.

    Exact where the rank of A is at most l.  Signs or phases are such that V^H times the first column of the sketch is
    positive.  Derivatives are those of `svd`, of Q^H A.  Source: Halko, Martinsson and Tropp 2011, algorithms 4.4, 5.1.

    ValueError for a sketch of another shape.

    >>> import torch
    >>> A = torch.outer(torch.ones(3), torch.ones(4))
    >>> sketch = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    >>> round(randomized_svd(A, 1, sketch)[1].item(), 4)
    3.4641
    """
    check_sketches(
        "randomized_svd",
        [sketch],
        [(A.shape[1], r, min(A.shape))],
        "torch.randn(n, l, generator=generator)",
        whole=False,
    )
    U, s, Vh = _triples(A.to(working_dtype(A.dtype)), r, sketch, n_power)
    U, s, Vh = restored(A.dtype, [U, s, Vh])
    return U, s, Vh


def _range(A: Tensor, sketch: Tensor, n_power: int) -> Tensor:
    Q = basis(A @ sketch)
    for _ in range(n_power):
        Q = basis(A @ basis(A.mH @ Q))
    return Q


def leading(A: Tensor, r: int, sketch: Tensor, n_power: int) -> Tensor:
    """Columns near the leading r left singular vectors of A [m, n], with phases that A alone decides."""
    if r == len(A) <= A.shape[1]:
        return eye_like(A, r)  # all there are
    if sketch.shape[1]:
        Q = _range(A, sketch.to(A.dtype), n_power)
        U = Q @ left(Q.mH @ A)[:, :r]
    else:
        U = left(A)[:, :r]
    j = torch.arange(1.0, len(A) + 1, dtype=A.dtype.to_real(), device=A.device)
    c = (math.sqrt(2) * j).sin().to(A.dtype) @ U
    return U * torch.where(c == 0, 1.0, c.conj().sgn())  # the next sketch meets coordinates in U


def _triples(A: Tensor, r: int, sketch: Tensor, n_power: int) -> tuple[Tensor, Tensor, Tensor]:
    sketch = sketch.to(A.dtype)
    Q = _range(A, sketch, n_power)
    U, s, Vh = svd(Q.mH @ A)
    c = Vh[:r] @ sketch[:, 0]
    phase = torch.where(c == 0, 1.0, c.sgn())
    return Q @ U[:, :r] * phase, s[:r], phase.conj()[:, None] * Vh[:r]


def check_sketches(
    what: str, sketches: Sequence[Tensor], wanted: Sequence[tuple[int, int, int]], cure: str, *, whole: bool = True
) -> None:
    """Whether the sketches have shapes [n, l], r <= l <= most, or, where whole matrices are taken, l = 0, for each wanted."""
    if len(sketches) != len(wanted):
        raise ValueError(f"{what}: got {len(sketches)} sketches, expected {len(wanted)}; make them with {cure}")
    for k, (sketch, (n, r, most)) in enumerate(zip(sketches, wanted)):
        if not 1 <= r <= most:
            raise ValueError(f"{what}: rank {r}, expected 1 to {most}, the smaller side of the matrix; lower the rank")
        shape = tuple(sketch.shape)
        if len(shape) != 2 or shape[0] != n or not (r <= shape[1] <= most or (whole and shape[1] == 0)):
            columns = str(r) if r == most else f"{r} to {most}"
            other = f", or [{n}, 0] for none" if whole else ""
            raise ValueError(
                f"{what}: sketch {k} has shape {shape}, expected [{n}, {columns}]{other}; make it with {cure}"
            )


def _tt_wanted(sizes: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, int, int]]:
    """For each step of a tensor train: columns, rank and smaller side of the matrix that is cut."""
    after = [math.prod(sizes[k + 1 :]) for k in range(len(sizes) - 1)]
    return [(n, ranks[k + 1], min(ranks[k] * sizes[k], n)) for k, n in enumerate(after)]


def _tucker_wanted(sizes: Sequence[int], ranks: Sequence[int]) -> list[tuple[int, int, int]]:
    """For each mode of a Tucker tensor: columns, rank and smaller side of the unfolding that is cut."""
    others = [math.prod(ranks[:k]) * math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    return [(n, r, min(s, n)) for n, r, s in zip(others, ranks, sizes)]


def drawn(
    generator: torch.Generator, wanted: Sequence[tuple[int, int, int]], oversampling: int, dtype: torch.dtype
) -> list[Tensor]:
    """[n, r + oversampling], or [n, 0] where that is no less than the smaller side."""
    columns = [r + oversampling if r + oversampling < most else 0 for _, r, most in wanted]
    return [normal(generator, (n, l), working_dtype(dtype)) for (n, *_), l in zip(wanted, columns)]


def tt_sketches(
    generator: torch.Generator,
    sizes: Sequence[int],
    ranks: Sequence[int],
    *,
    oversampling: int = 8,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Normal matrices [s_{k+1} ... s_N, r_k + oversampling] for `randomized_tt` of these sizes and ranks.

    Without columns where these would be all that there are: such a step is taken whole.

    ValueError for ranks that the sizes do not allow.

    >>> import torch
    >>> [tuple(t.shape) for t in tt_sketches(torch.Generator(), (9, 9, 9), (1, 2, 2, 1), oversampling=3)]
    [(81, 5), (9, 5)]
    """
    check_tt_ranks("tt_sketches", sizes, ranks)
    return drawn(generator, _tt_wanted(sizes, ranks), oversampling, dtype)


def randomized_tt(T: Tensor, ranks: Sequence[int], sketches: Sequence[Tensor], *, n_power: int = 1) -> list[Tensor]:
    """Cores [r_{k-1}, s_k, r_k] of a tensor train near T, as `tt_svd`, from one sketch [s_{k+1} ... s_N, l] for each r_k.

    Exact for a tensor of these ranks, and in general nearly as good as `tt_svd` where singular values decay.

    ValueError for ranks that the sizes do not allow and for sketches of other shapes.  Source: Huber et al. 2017.

    >>> import torch
    >>> T, ranks = torch.arange(24.0).reshape(2, 3, 4), (1, 2, 2, 1)
    >>> cores = randomized_tt(T, ranks, tt_sketches(torch.Generator().manual_seed(0), T.shape, ranks))
    >>> [tuple(core.shape) for core in cores]
    [(1, 2, 2), (2, 3, 2), (2, 4, 1)]
    """
    check_tt_ranks("randomized_tt", T.shape, ranks)
    wanted = _tt_wanted(T.shape, ranks)
    check_sketches("randomized_tt", sketches, wanted, "tt_sketches(generator, T.shape, ranks)")
    rest, cores = T.to(working_dtype(T.dtype)), []
    for k, (sketch, (n, r, _)) in enumerate(zip(sketches, wanted)):
        rest = rest.reshape(ranks[k] * T.shape[k], n)
        U = leading(rest, r, sketch, n_power)
        cores.append(U.reshape(ranks[k], T.shape[k], r))
        rest = U.mH @ rest
    return restored(T.dtype, [*cores, rest.reshape(ranks[-2], T.shape[-1], 1)])


def tucker_sketches(
    generator: torch.Generator,
    sizes: Sequence[int],
    ranks: Sequence[int],
    *,
    oversampling: int = 8,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Normal matrices [r_1 ... r_{k-1} s_{k+1} ... s_N, r_k + oversampling] for `randomized_hosvd`.

    Without columns where these would be all that there are: such a step is taken whole.

    ValueError for ranks that the sizes do not allow.

    >>> import torch
    >>> [tuple(t.shape) for t in tucker_sketches(torch.Generator(), (9, 9, 9), (2, 2, 2), oversampling=3)]
    [(81, 5), (18, 5), (4, 0)]
    """
    check_tucker_ranks("tucker_sketches", sizes, ranks)
    return drawn(generator, _tucker_wanted(sizes, ranks), oversampling, dtype)


def randomized_hosvd(
    T: Tensor, ranks: Sequence[int], sketches: Sequence[Tensor], *, n_power: int = 1, n_sweeps: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Core [r_1..r_N] and orthonormal factors U_k [s_k, r_k] of a Tucker tensor near T, as `tucker_hosvd`, from sketches.

    One sketch [r_1 ... r_{k-1} s_{k+1} ... s_N, l] for each mode makes the start; the n_sweeps of higher-order orthogonal
    iteration after it, on small projected tensors, are those of `tucker_hosvd`.  Exact for a tensor of these ranks.

    ValueError for ranks that the sizes do not allow and for sketches of other shapes.  Source: Minster et al. 2020.

    >>> import torch
    >>> T, ranks = torch.arange(24.0).reshape(2, 3, 4), (2, 2, 2)
    >>> core, factors = randomized_hosvd(T, ranks, tucker_sketches(torch.Generator().manual_seed(0), T.shape, ranks))
    >>> tuple(core.shape), [tuple(U.shape) for U in factors]
    ((2, 2, 2), [(2, 2), (3, 2), (4, 2)])
    """
    check_tucker_ranks("randomized_hosvd", T.shape, ranks)
    wanted = _tucker_wanted(T.shape, ranks)
    check_sketches("randomized_hosvd", sketches, wanted, "tucker_sketches(generator, T.shape, ranks)")
    dtype, T = T.dtype, T.to(working_dtype(T.dtype))
    core, factors = T, []
    for k, (r, sketch) in enumerate(zip(ranks, sketches)):
        factors.append(leading(unfolded(core, k), r, sketch, n_power))
        core = times(core, factors[k].mH, k)
    core, factors = swept(T, core, factors, n_sweeps)
    return restored(dtype, [core])[0], restored(dtype, factors)
