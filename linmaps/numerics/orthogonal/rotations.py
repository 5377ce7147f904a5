"""Rotations and the skew matrices they come from: S -> exp(S) or the Cayley transform, and back.  n rows and columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linmaps.numerics import lapack
from linmaps.numerics.draws import hashed_normal
from linmaps.numerics.numeric import differentiated, eye_like
from linmaps.numerics.orthogonal import householder
from linmaps.numerics.orthogonal.cayley import cayley_transform
from linmaps.numerics.orthogonal.exponential import skew_exponential
from linmaps.numerics.ranges import limited

EDGE = 0.5  # cosines within +-EDGE may divide the planes that turn far from those that turn little


def rotation(S: Tensor, method: str = "exp") -> Tensor:
    """exp(S), or the Cayley transform 2 (I + S)^-1 - I, of a skew S: of determinant 1, orthonormal to rounding.

    An S of a norm above L = 1 / (8 eps) counts as S L / |S|: beyond it rounding leaves nothing of I beside S, nor of the
    angles of exp(S), and with it the determinant would be lost.

    >>> import torch
    >>> W = rotation(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), "cayley")
    >>> torch.allclose(W, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6)
    True
    """
    return _turned(limited(S, 1 / (8 * torch.finfo(S.dtype).eps)), method)


def _turned(S: Tensor, method: str) -> Tensor:
    return skew_exponential(S) if method == "exp" else cayley_transform(S)


def log_rotation(Q: Tensor, method: str = "exp") -> Tensor:
    """A skew S with `rotation(S, method) = Q` for any orthonormal Q of determinant 1, its angles in [-pi, pi].

    For cayley, S is infinite at the angle pi, so angles come no nearer to it than 2 sqrt(eps), where half of the digits
    of both are left.  Computed in float64.  Derivatives to the second order are those of two steps towards a root of
    Q - rotation(S), by the derivative of S at its value.
    """
    exact = Q.to(torch.float64)
    S0 = _logarithm(_nearest_rotation(exact.detach()))
    angles, P = lapack.eigh(S0 / 1j)
    if method == "cayley":
        far = math.pi - 2 * torch.finfo(Q.dtype).eps ** 0.5
        angles = angles.clamp(-far, far)
        S0 = (P * (-1j * (angles / 2).tan())) @ P.mH
        S0 = (S0.real - S0.real.mT) / 2
    if not differentiated(Q):
        return S0.to(Q.dtype)
    slope = _divided_differences(angles, method)
    S = S0
    for _ in range(2):
        off = (exact - _turned(S, method)).to(P.dtype)
        step = S + (P @ (slope * (P.mH @ off @ P)) @ P.mH).real
        S = S0 + (step - step.detach())
    return S.to(Q.dtype)


def _divided_differences(angles: Tensor, method: str) -> Tensor:
    """(s_i - s_j) / (q_i - q_j), as limits where these meet, for eigenvalues s of S and q = exp(i angle) of its rotation."""
    half = angles / 2
    turn = torch.exp(-1j * (half[:, None] + half))
    if method == "cayley":
        return -turn / (2 * half.cos()[:, None] * half.cos())
    spread = torch.sinc((half[:, None] - half) / math.pi)
    apart = spread.abs() > torch.finfo(angles.dtype).eps ** 0.5  # not so for an angle pi and its opposite
    return turn * torch.where(apart, 1 / torch.where(apart, spread, 1.0), 0.0)


def _nearest_rotation(Q: Tensor) -> Tensor:
    """Q, orthonormal to the rounding of its former dtype, to that of float64 (Newton's iteration for the polar factor)."""
    for _ in range(2):
        Q = 1.5 * Q - 0.5 * Q @ (Q.mT @ Q)
    return Q


def _logarithm(Q: Tensor) -> Tensor:
    """A skew S with exp(S) = Q to rounding, also where angles repeat, are nearly or exactly pi, or sum up to pi.

    An invariant space of planes that turn by more than a right angle or so is divided off, in a gap of the cosines, and
    given another half turn.  The logarithm L of what results is smooth, as no angle is beyond 2 pi / 3.  The half turn is
    undone by pi times J, with J J = -I, of the planes that L turns in that space: S = L - pi J.
    """
    n, m = len(Q), len(Q) // 2
    if m == 0:
        return torch.zeros_like(Q)
    cosines, E = lapack.eigh((Q + Q.mT) / 2)
    # ascending, so that eigenvalues -1 come first, and all come in pairs but for a last 1
    edges = cosines.clamp(-EDGE, EDGE)
    below = torch.cat([edges.new_full((1,), -EDGE), edges[1 : 2 * m : 2]])
    above = torch.cat([edges, edges.new_full((2 * m + 1 - n,), EDGE)])[::2]
    pairs = (above - below).argmax()
    far = torch.arange(n, device=Q.device) < 2 * pairs
    R = (Q @ E) * torch.where(far, -1.0, 1.0).to(Q.dtype) @ E.mT
    U, _, Vh = lapack.svd(R + eye_like(R, n))
    half = U @ Vh  # the square root of R, of half its angles, below pi / 2, where sines tell angles
    sines, P = lapack.eigh((half - half.mT) / 2j)
    L = ((P * (2j * sines.clamp(-1, 1).asin())) @ P.mH).real
    L = (L - L.mT) / 2
    J = E @ _quarter_turns(torch.where(far[:, None] & far, E.mT @ L @ E, 0.0), pairs) @ E.mT
    return L - math.pi * (J - J.mT) / 2


def _quarter_turns(T: Tensor, pairs: Tensor) -> Tensor:
    """J [n, n], skew, with J J = -I on the first 2 `pairs` coordinates and 0 elsewhere, in the planes of T.

    T is skew on these coordinates and 0 elsewhere.  Reflections make it tridiagonal: then even coordinates are coupled to
    odd ones alone, by B say, and the polar factor of B is that of the planes, whatever rounding made of small angles.
    """
    n, m = len(T), len(T) // 2
    at, Z = torch.arange(n, device=T.device), eye_like(T, n)
    for j in range(n - 2):
        x = torch.where(at > j, T[:, j], 0.0)
        size = x.square().sum().sqrt()
        v = torch.where(at == j + 1, x + torch.where(x < 0, -size, size), x)
        squared = v.square().sum()
        v = v * torch.where(squared > 0, 2 / torch.where(squared > 0, squared, 1.0), 0.0).sqrt()  # H = I - v v'
        u = T @ v
        T = T + torch.outer(v, u) - torch.outer(u, v)
        Z = Z - torch.outer(Z @ v, v)
    plane = torch.arange(m, device=T.device) < pairs
    both = plane[:, None] & plane
    B = torch.where(both, T[: 2 * m : 2, 1 : 2 * m : 2], torch.diag(1.0 - plane.to(T.dtype)))
    U, _, Vh = lapack.svd(B)
    turn = torch.where(both, U @ Vh, 0.0)
    zero = torch.zeros_like(turn)
    J = torch.stack([torch.stack([zero, turn], -1), torch.stack([-turn.mT, zero], -1)], 1).reshape(2 * m, 2 * m)
    return Z @ torch.nn.functional.pad(J, (0, n - 2 * m, 0, n - 2 * m)) @ Z.mT


def polar(W: Tensor, det: int | None) -> Tensor:
    """The nearest matrix with orthonormal columns to W [n, r], n >= r; of determinant `det` if that is given.

    >>> import torch
    >>> polar(torch.diag(torch.tensor([3.0, -2.0])), 1)
    tensor([[1., 0.],
            [0., 1.]])
    """
    U, _, Vh = lapack.svd(W)
    if det is None:
        return U @ Vh
    return householder.flip_last(U, householder.wrong_component(U @ Vh, det)) @ Vh


def haar_rotation(seed: int, like: Tensor) -> Tensor:
    """The rotation [n, n] that a seed stands for, uniform over seeds, in the dtype and on the device of `like` [n, n].

    Its numbers are hashes of their places: no random call, which `vmap` would refuse, and the same on every device.  It is no
    part of any derivative.

    >>> haar_rotation(0, torch.empty(1, 1))
    tensor([[1.]])
    """
    n = len(like)
    V = householder.offset(householder.haar_of(hashed_normal(seed, (n - 1, n), like.device)))
    return householder.frame(V, n, det=1).to(like.dtype)
