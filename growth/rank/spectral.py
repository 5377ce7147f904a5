"""Reflectors of a Spectral map, W = Q1 diag(s) Q2' with r = min(in, out) columns of each Q: its rank is full always.

What grows is the set of matrices that Q1 and Q2 reach.  A side has n rows and a leaf `[c, n]` of free parameters, row i
the reflector e_i + free_i; `tail` of the coordinates are no column of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growth.closed_form.draws import Draw
from growth.rank.directions import leading
from linmaps import Spectral
from linmaps.checks import Params
from linmaps.numerics.numeric import frobenius, norm_or
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.singular import svd

SIDES = ("U", "V")


def sizes(spec: Spectral) -> dict[str, tuple[int, int]]:
    """(reflectors there are, size n) of each side."""
    shapes = spec.shapes()
    return {side: (shapes[side][0], shapes[side][1]) for side in SIDES}


def tails(spec: Spectral) -> dict[str, int]:
    """How many coordinates may be reflected without a change of W: of square maps the last, whose sign det decides."""
    n, m = spec.in_features, spec.out_features
    return {side: int(n == m) if size == min(n, m) else size - min(n, m) for side, size in (("U", n), ("V", m))}


def cut(spec: Spectral, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Counts, at most those that reach every matrix within the bounds; an even number more where there is no tail."""
    found = []
    for (c, n), tail, count in zip(sizes(spec).values(), tails(spec).values(), counts):
        top = max(c, min(count, householder.default_reflectors(n, min(spec.in_features, spec.out_features))))
        found.append(top - (top - c) % 2 if tail == 0 else top)
    return tuple(found)


def grow(spec: Spectral, leaves: Params, more: tuple[int, ...], draw: Draw, G: Tensor | None) -> dict[str, Tensor]:
    """New reflectors after those that are there, so that W stays.

    Along v in the tail, which moves no column of the frame at first; and in pairs of equal ones, H H = I.  With a gradient
    G of W, Q' dL/dQ = M: the v of the tail are leading left singular vectors of its rows there; the v of pairs lie in the
    leading planes of its skew part, since a pair v + a, v - a turns Q in the plane of v and a.
    """
    new, r = dict(leaves), min(spec.in_features, spec.out_features)
    dets = spec._dets
    frames = [householder.frame(householder.offset(leaves[s]), r, det=d) for s, d in zip(SIDES, dets)]
    values = spec._sigma(leaves)
    for side, k, det, tail, turned in zip(SIDES, more, dets, tails(spec).values(), (False, True)):
        c, n = leaves[side].shape
        ones = min(k, tail)
        ones -= (k - ones) % 2
        pairs = (k - ones) // 2
        Z, Y = draw(tail, ones), draw(n, pairs)
        M = None
        if G is not None:
            raw = householder.frame(householder.offset(leaves[side]), n)
            slope = (G.mT @ frames[0] if turned else G @ frames[1]) * values
            if det is not None:  # det may have changed the sign of the last column
                slope = slope * (frames[1 if turned else 0] * raw).sum(0).detach().sign()
            M = raw.mT @ slope
        if M is None:
            v, w = (leading(t[:, :0], t[:, :0], t, norm_or(t)) for t in (Z, Y))
        else:
            v = leading(M[n - tail :], M[n - tail :, :0], Z, frobenius(M))
            w = _in_planes(M, Y)
        v = torch.cat([v.new_zeros(n - tail, ones), v])
        rows = torch.cat([v.mT, w.mT.repeat_interleave(2, 0)])
        at = torch.eye(c + k, n, dtype=rows.dtype, device=rows.device)[c:]
        new[side] = torch.cat([leaves[side], (rows - at).to(leaves[side].dtype)])
    return new


def _in_planes(M: Tensor, Y: Tensor) -> Tensor:
    """Unit vectors `[n, k]`, one in each of the k leading planes of the skew part of `[M, 0]`, else those of Y."""
    n, k = Y.shape
    if k == 0:
        return Y
    full = torch.nn.functional.pad(M, (0, n - M.shape[1]))
    U, s, _ = svd(full - full.mT)
    planes = min(k, n // 2)
    basis, size = U[:, : 2 * planes].reshape(n, planes, 2), s[: 2 * planes : 2].detach()
    inside = torch.einsum("npi,mpi,mp->np", basis, basis, Y[:, :planes])
    alive = size > 64 * n * torch.finfo(M.dtype).eps * frobenius(M).detach()
    found = torch.cat([torch.where(alive, inside, Y[:, :planes]), Y[:, planes:]], 1)
    return found / torch.linalg.vector_norm(found, dim=0)


def reduce(spec: Spectral, small: Spectral, leaves: Params) -> tuple[dict[str, Tensor], Tensor]:
    """Without the last reflectors, and the relative distance of the matrices."""
    shapes = small.shapes()
    new = {k: t[: shapes[k][0]] if k in SIDES else t for k, t in leaves.items()}
    W = spec._weight(leaves)
    return new, frobenius(small._weight(new) - W) / norm_or(W)
