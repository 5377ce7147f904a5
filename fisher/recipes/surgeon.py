"""Optimal brain surgeon, by blocks: what weights add to the loss when they go and others make up for it, and how these move.

K blocks of n weights each, in which H = F + regul I is inverted: layers, or the rows of a layer, one output unit each.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks.finiteness import finite
from fisher.pmat import PMatDiag, PMatEye, PMatKFAC, PMatMixed
from fisher.pmat.contract.blocks import Layerwise
from fisher.pmat.contract.damping import Regul, flat, normal
from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.linalg import inv, solve
from linmaps.trees.tree import Tree

Blocks = Literal["layers", "rows"]
BLOCKS = get_args(Blocks)
SINGULAR = "F + regul I has no inverse, or F or params are not finite: give a regul > 0"


@typed
@full_precision()
def surgeon_scores(F: PMat, params: Tree, *, blocks: Blocks = "layers", regul: Regul = 1e-8) -> Tree:
    """w_i^2 / (2 [(F_b + regul I)^-1]_ii): what each weight adds to the loss when it goes and the rest of its block b moves to
    make up for it, a tree like params.

    blocks: "layers", the dense block of each (of a matrix that is not made of layers all of it), n^2 numbers of n weights; or
    "rows", each output unit of a layer by itself, O I^2 numbers.  Of a diagonal each entry is a block, PMatMixed goes by its
    parts.  ValueError for rows of a matrix without layers, and where F + regul I is singular.

    Hassibi and Stork (1993); by rows Frantar and Alistarh (2022).

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.tensor([[1.0], [2.0]])}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), fisher.PMatKFAC, "gaussian")
    >>> surgeon_scores(F, p, blocks="rows", regul=0.0)["w"].T
    tensor([[0.2500, 0.5000]])
    """

    def each(H: Tensor, w: Tensor) -> Tensor:
        return w**2 / inv(H).diagonal() / 2

    found: Tree = _by_blocks(each, F, params, [], blocks, regul)
    finite(found, "surgeon_scores", SINGULAR)
    return found


@typed
@full_precision()
def surgeon_step(F: PMat, params: Tree, mask: Tree, *, blocks: Blocks = "layers", regul: Regul = 1e-8) -> Tree:
    """The params with those at a mask of 0 set to zero and those at 1 moved to make up for it, block by block.

    Of a block with kept weights k and pruned ones p, H = F_b + regul I: w_k + H_kk^-1 H_kp w_p, the minimizer of
    1/2 (w' - w)' H (w' - w) over all w' with w'_p = 0; any number of weights at once.  mask: a tree like params of 0 and 1, as
    of `prune_mask`, or bool; arguments as of `surgeon_scores`.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.tensor([[1.0], [2.0]])}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), fisher.PMatKFAC, "gaussian")
    >>> surgeon_step(F, p, {"w": torch.tensor([[0.0], [1.0]])}, regul=0.0)["w"].T
    tensor([[0., 3.]])
    """
    like = trees.leaves(params)[0]
    mask = trees.map(lambda t: t.to(like.dtype) if getattr(t, "dtype", None) is torch.bool else t, mask)
    mask = F.check_vector(mask, "mask")
    for path, t in zip(trees.paths(mask), trees.leaves(mask)):
        seen = checks.values(t)
        if seen is not None and not bool(((seen == 0) | (seen == 1)).all()):
            raise ValueError(
                f"mask: {trees.path_str(path)}: got numbers other than 0 and 1, expected 1 where a weight is kept"
            )

    def each(H: Tensor, w: Tensor, kept: Tensor) -> Tensor:
        inside = kept[:, None] * H * kept + torch.diag(1 - kept)
        return kept * (w + solve(inside, kept * (H @ ((1 - kept) * w))))

    found: Tree = _by_blocks(each, F, params, [mask], blocks, regul)
    finite(found, "surgeon_step", SINGULAR)
    return found


def _by_blocks(each: Any, F: PMat, params: Any, others: list[Any], blocks: Blocks, regul: Regul) -> Any:
    """each(H `[n, n]`, w `[n]`, ...) of every block, as a tree like params."""
    if blocks not in BLOCKS:
        raise ValueError(f"blocks: got {blocks!r}, expected one of {list(BLOCKS)}")
    params = F.check_vector(params, "params")
    for name, v in [("params", params), *(("mask", v) for v in others)]:
        checks.alike(v, name, F, "the matrix", strict=True)
    like = trees.leaves(params)[0]
    amount = flat(normal(regul, F.layout, F.known_layers, like), like)
    damping = F.layout.unravel(amount.expand(F.layout.numel))
    return _each_block(each, F, [damping, params, *others], blocks)


def _each_block(each: Any, F: PMat, vectors: list[Any], blocks: Blocks) -> Any:
    """The same, of vectors that are known to fit: the damping, w, ..."""
    if isinstance(F, PMatMixed):
        shares = zip(F.parts, *(F._cut(v) for v in vectors))
        return F._join([_each_block(each, part, own, blocks) for part, *own in shares])
    if isinstance(F, PMatDiag | PMatEye):  # an entry is a block
        alone = lambda h, d, *parts: vmap(each)((h + d).reshape(-1, 1, 1), *(t.reshape(-1, 1) for t in parts))
        return trees.map(lambda h, *own: alone(h, *own).reshape(h.shape), F.get_diag(), *vectors)
    if not isinstance(F, Layerwise):
        if blocks == "rows":
            raise ValueError(
                f"blocks: got 'rows' of {type(F).__name__}, which knows no layers, expected 'layers'; or use PMatKFAC"
            )
        d, *whole = [trees.ravel(v)[0] for v in vectors]
        return F.layout.unravel(each(F.to_torch() + torch.diag(d), *whole))
    views = [F.split(v) for v in vectors]
    found = {}
    for name, w in views[0].items():
        shape = w.shape if w.ndim > 1 else (*w.shape, 1)
        H = F.get_block(name)[None] if blocks == "layers" else _rows_of(F, name, tuple(shape))
        d, *parts = [v[name].reshape(len(H), H.shape[-1]) for v in views]
        found[name] = vmap(each)(H + torch.diag_embed(d), *parts).reshape(w.shape)
    return F.join(found)


def _rows_of(F: Layerwise, name: str, shape: tuple[int, ...]) -> Tensor:
    """The blocks `[K, n, n]` of the rows of a view `[..., n]`."""
    n = shape[-1]
    if isinstance(F, PMatKFAC) and name in F.factors:  # G_oo A
        A, G = F.factors[name]
        grouped = F.layers[name].grouped
        A = torch.diag_embed(A) if A.ndim == 1 + grouped else A
        g = G if G.ndim == 1 + grouped else G.diagonal(dim1=-2, dim2=-1)
        return (g[..., None, None] * A[..., None, :, :]).reshape(-1, n, n)
    whole = F.get_block(name)
    rows = whole.reshape(len(whole) // n, n, len(whole) // n, n)
    return rows.diagonal(dim1=0, dim2=2).movedim(-1, 0)
