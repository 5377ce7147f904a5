"""Moving averages of Kronecker factors without bias, and their eigenbases.  A [I, I], G [O, O] of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.uses import Layer
from fisher.distributed.splitting import Job, cubes, shared
from fisher.passes.fold import ema
from fisher.pmat import PMatEKFAC, PMatKFAC
from fisher.pmat.decompositions.eigenblocks import bases_like, diagonal
from linmaps import trees
from linmaps.checks.precision import full_precision
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import eigh
from linmaps.numerics.linalg import damped

Damped = Literal["pi", "default"]
Found = dict[str, tuple[Tensor, tuple[Tensor, ...]]]  # eigenvalues and bases by layer


def widened(tree: Any) -> Any:
    """Half precision in float32, in which averages move."""
    return trees.map(working, tree)


def averaged(old: Any, new: Any, weight: Tensor, decay: float | Tensor) -> tuple[Any, Tensor]:
    """(the moving average with `new`, its weight): weights decay^k (1 - decay), over their sum so far.

        w <- decay w + 1 - decay,   mean <- mean + (1 - decay)/w (new - mean)

    The first value counts alone, and a constant is its own average from the start.

    >>> import torch
    >>> averaged(torch.zeros(()), torch.tensor(4.0), torch.tensor(0.0), 0.75)
    (tensor(4.), tensor(0.2500))
    """
    weight = decay * weight + (1 - decay)
    share = (1 - decay) / torch.where(weight > 0, weight, 1.0)
    return ema(old, widened(new), 1 - share), weight


@full_precision()
def eigenbases(F: PMatKFAC, group: Any = None) -> PMatEKFAC:
    """The matrix in the eigenbases of its factors, decomposed in their own dtype: quicker than `F.eigendecomposition`, and
    right to what float32 knows, which damping hides.  Exact blocks are decomposed too.
    group: a process group over whose ranks the layers are split.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> F = fisher.fim(f, {"w": torch.ones(2, 1)}, torch.diag(torch.tensor([1.0, 2.0])), fisher.PMatKFAC, "gaussian")
    >>> eigenbases(F).eigenvalues["w"]
    tensor([[0.5000, 2.0000]])
    """
    jobs = {}
    for layer in F.layers:
        if layer.name in F.factors:
            A, G = F.factors[layer.name]
            jobs[layer.name] = Job(cubes(A, G), partial(_of_factors, layer, A, G), bases_like(A, G, layer.grouped))
        elif layer.by_leaf and F.exact[layer.name].ndim == 2:
            m = F.exact[layer.name]
            jobs[layer.name] = Job(cubes(m), partial(_of_block, m), (m[0], (m,)))
    return _in_bases(F, shared(jobs, group))


@full_precision()
def own_axes(F: PMatKFAC) -> PMatEKFAC:
    """The diagonal of the matrix, as a matrix in the eigenbases of the identity: a start that costs nothing."""
    found: Found = {}
    eye = lambda m, thin: torch.ones_like(m) if m.ndim == thin else torch.eye(m.shape[-1]).to(m).expand(m.shape).clone()
    for layer in F.layers:
        thin = 1 + layer.grouped
        if layer.name in F.factors:
            A, G = F.factors[layer.name]
            a, g = (m if m.ndim == thin else m.diagonal(dim1=-2, dim2=-1) for m in (A, G))
            found[layer.name] = g[..., :, None] * a[..., None, :], (eye(A, thin), eye(G, thin))
        elif layer.by_leaf and F.exact[layer.name].ndim == 2:
            block = F.exact[layer.name]
            found[layer.name] = diagonal(block).clone(), (eye(block, 1),)
    return _in_bases(F, found)


def damped_solve(
    F: PMatEKFAC, v: Any, damping: float | Tensor | Mapping[str, float | Tensor], kind: Damped = "pi"
) -> Any:
    """(F + damping I)^-1 v, damping a number or {layer: number}; kind="pi": the damping on both factors of a product, as
    `PMatKFAC.solve(v, damping, kind="pi")` has it, in their eigenbases.

    With D = g a' the eigenvalues of G (x) A, (g_o + sqrt(damping)/pi)(a_i + pi sqrt(damping)) is by the means r_o of the rows of
    D, c_i of its columns and m of all of it

        D_oi + sqrt(damping / m) (r_o + c_i) + damping,

    which has a meaning for any D: there is no basis to be made anew where the damping changes.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}
    >>> F = fisher.fim(f, p, torch.diag(torch.tensor([1.0, 2.0])), fisher.PMatKFAC, "gaussian")
    >>> damped_solve(eigenbases(F), p, 0.1)["w"].T, F.solve(p, 0.1, kind="pi")["w"].T
    (tensor([[0.9133, 0.3312]]), tensor([[0.9133, 0.3312]]))
    """
    if kind != "pi":
        return F.solve(v, damping)
    own = damping if isinstance(damping, Mapping) else dict.fromkeys((*F.eigenvalues, *F.exact), damping)
    found = {n: _spread(D, own[n]) if len(F.bases[n]) == 2 else D + own[n] for n, D in F.eigenvalues.items()}
    exact = {n: damped(m, own[n]) if m.ndim == 2 else m + own[n] for n, m in F.exact.items()}
    return PMatEKFAC(found, F.bases, exact, F.layers).solve(v, 0.0)


def _spread(D: Tensor, damping: float | Tensor) -> Tensor:
    mean = D.mean((-2, -1), keepdim=True)
    some = mean > 0
    root = (damping / torch.where(some, mean, 1.0)).sqrt()
    return D + torch.where(some, root, 0.0) * (D.mean(-1, keepdim=True) + D.mean(-2, keepdim=True)) + damping


def turned(old: PMatEKFAC, new: PMatEKFAC) -> PMatEKFAC:
    """The matrix `old` in the bases of `new`, less what is no diagonal there: D <- (W'V)^2 D (T'U)^2.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 1.0]]), fisher.PMatKFAC, "gaussian").eigendecomposition()
    >>> G = fisher.fim(f, p, torch.tensor([[1.0, 0.0]]), fisher.PMatKFAC, "gaussian").eigendecomposition()
    >>> turned(F, G).eigenvalues["w"]
    tensor([[1.0000, 1.0000]])
    """
    found = {}
    for layer in old.layers:
        if layer.name in old.bases:
            D, before, after = old.eigenvalues[layer.name], old.bases[layer.name], new.bases[layer.name]
            found[layer.name] = vmap(_turned)(D, before, after) if layer.grouped else _turned(D, before, after)
    return PMatEKFAC(found, new.bases, old.exact, old.layers)


def _turned(D: Tensor, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> Tensor:
    shares = [None if U.ndim == 1 else (V.mT @ U) ** 2 for U, V in zip(before, after)]
    if len(shares) == 1:
        return D if shares[0] is None else shares[0] @ D
    D = D if shares[0] is None else D @ shares[0].mT
    return D if shares[1] is None else shares[1] @ D


def _in_bases(F: PMatKFAC, found: Found) -> PMatEKFAC:
    values, bases = {n: D for n, (D, _) in found.items()}, {n: own for n, (_, own) in found.items()}
    return PMatEKFAC(values, bases, {n: m for n, m in F.exact.items() if n not in found}, F.layers)


def _of_factors(layer: Layer, A: Tensor, G: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(D, (U, W)), with an axis of groups in front where there are some."""

    def one(A: Tensor, G: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        (a, U), (g, W) = _eigh(A), _eigh(G)
        return torch.outer(g, a), (U, W)

    return vmap(one)(A, G) if layer.grouped else one(A, G)


def _of_block(m: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    values, Q = _eigh(m)
    return values, (Q,)


def _eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues >= 0 and eigenvectors of a second moment `[n, n]`, or of the diagonal `[n]` of one."""
    if m.ndim == 1:
        return m, torch.ones_like(m)
    values, vectors = eigh(m)
    return values.clamp_min(0.0), vectors
