"""Products of sparse factors: butterflies, Monarch matrices, soft permutations, each by its definition entry by entry."""

import cmath
import math

import numpy as np

import linmaps as L
from tests.linmaps.kind import Entry, Kind, excess, linear_std


def butterfly_matrix(twiddle, rows, columns, increasing=True):
    """W from twiddle [stacks, m, N/2, 2, 2] or, tied, [stacks, N - 1, 2, 2]: one column of numbers after the other."""
    stacks, tied = len(twiddle), twiddle.ndim == 4
    N = twiddle.shape[1] + 1 if tied else 2 * twiddle.shape[2]
    m = N.bit_length() - 1
    W = np.zeros((rows, stacks * N), twiddle.dtype)
    for stack in range(stacks):
        for i in range(rows):
            x = [0.0] * N
            x[i] = 1.0
            for level in range(m) if increasing else reversed(range(m)):
                s = 2**level
                for g in range(N // (2 * s)):
                    for j in range(s):
                        t = twiddle[stack, s - 1 + j] if tied else twiddle[stack, level, g * s + j]
                        low, high = g * 2 * s + j, g * 2 * s + j + s
                        x[low], x[high] = t[0, 0] * x[low] + t[0, 1] * x[high], t[1, 0] * x[low] + t[1, 1] * x[high]
            W[i, stack * N : (stack + 1) * N] = x
    kept = 2 ** math.ceil(math.log2(columns))
    if N // kept >= 2:
        W = sum(W[:, i * kept : (i + 1) * kept] for i in range(N // kept)) / (N // kept)
    return W[:, :columns]


def random_block(rng, unitary):
    angle, *phases = rng.uniform(0, 2 * math.pi, 3)
    a, b = math.cos(angle), math.sin(angle)
    if not unitary:
        return a, b
    return a * cmath.exp(1j * phases[0]), b * cmath.exp(1j * phases[1])


def rotation_matrix(spec, rng):
    """W from random rotations of all pairs that exist, tied or not."""
    n = max(spec.in_features, spec.out_features)
    levels = range(math.ceil(math.log2(n)))
    Q = np.eye(n, dtype=complex if spec.complex else float)
    for level in levels if spec.increasing_stride else reversed(levels):
        s, seen = 2**level, {}
        for i in range(n - s):
            if i // s % 2 == 0:
                key = i % s if spec.tied_weight else i
                a, b = seen.setdefault(key, random_block(rng, spec.complex))
                low, high = Q[:, i].copy(), Q[:, i + s].copy()
                Q[:, i], Q[:, i + s] = a * low - np.conj(b) * high, b * low + np.conj(a) * high
    return Q[: spec.in_features, : spec.out_features]


def butterfly_member(spec, rng):
    if spec.blocks == "rotation":
        return rotation_matrix(spec, rng)
    shape = spec.shapes()["twiddle"]
    twiddle = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if spec.complex else 0)
    return butterfly_matrix(twiddle, spec.in_features, spec.out_features, spec.increasing_stride)


def butterfly_residual(spec, W):
    if spec.blocks == "free":
        return 0.0
    tall = W if spec.in_features >= spec.out_features else W.T
    return np.abs(tall.conj().T @ tall - np.eye(tall.shape[1])).max()


def monarch_matrix(first, second):
    (b, p, q), r = first.shape, second.shape[2]
    W = np.zeros((b * p, b * r))
    for k in range(b):
        for u in range(q):
            c, v = divmod(u * b + k, q)
            W[k * p : (k + 1) * p, c * r : (c + 1) * r] += np.outer(first[k, :, u], second[c, v])
    return W


def monarch_sizes(spec):
    p, r = spec.in_features // spec.n_blocks, spec.out_features // spec.n_blocks
    return spec.n_blocks, p, min(p, r), r


def monarch_member(spec, rng):
    b, p, q, r = monarch_sizes(spec)
    return monarch_matrix(rng.standard_normal((b, p, q)), rng.standard_normal((b, q, r)))


def monarch_residual(spec, W):
    """What the singular values of the blocks leave beyond their ranks, counted by following the shuffle."""
    b, p, q, r = monarch_sizes(spec)
    rank = np.zeros((b, b), int)
    for k in range(b):
        for u in range(q):
            rank[k, (u * b + k) // q] += 1
    tails = [
        np.linalg.svd(W[k * p : (k + 1) * p, c * r : (c + 1) * r], compute_uv=False)[rank[k, c] :]
        for k in range(b)
        for c in range(b)
    ]
    return excess(*(abs(tail) for tail in tails))


def permutation_matrix(p, n):
    """W for the probabilities p [m - 1, 3] (n = 2: [1, 1]): a permutation of outputs permutes the columns of W."""

    def mixed(q, order):
        return (1 - q) * W + q * W[:, order]

    W = np.eye(n)
    if n == 2:
        return mixed(p[0, 0], [1, 0])
    for k in range(n.bit_length() - 2, 0, -1):
        s = 2**k
        runs = range(0, n, 2 * s)
        W = mixed(p[k - 1, 0], [start + i for start in runs for i in (*range(0, 2 * s, 2), *range(1, 2 * s, 2))])
        forth, back = list(range(s)), list(range(s))[::-1]
        W = mixed(p[k - 1, 1], [start + i for start in runs for i in (*back, *(s + i for i in forth))])
        W = mixed(p[k - 1, 2], [start + i for start in runs for i in (*forth, *(s + i for i in back))])
    return W


def permutation_member(spec, rng):
    logits = rng.standard_normal(spec.shapes()["logits"])
    return permutation_matrix(1 / (1 + np.exp(-logits)), spec.in_features)


def permutation_std(spec):
    rng = np.random.default_rng(0)
    return math.sqrt(np.mean([np.square(permutation_member(spec, rng)).sum() for _ in range(60)]) / spec.in_features)


KINDS = {
    "butterfly": Kind(butterfly_member, linear_std, butterfly_residual),
    "monarch": Kind(monarch_member, linear_std, monarch_residual),
    "permutation": Kind(
        permutation_member,
        permutation_std,
        lambda spec, W: excess(np.abs(W.sum(0) - 1), np.abs(W.sum(1) - 1), -W),
    ),
}
PADDED = "padding, or outputs that are dropped"
ENTRIES = [
    Entry(L.Butterfly(4), table=True),
    Entry(L.Butterfly(8, tied_weight=False)),
    Entry(L.Butterfly(8, tied_weight=False, increasing_stride=False, bias=True)),
    Entry(L.Butterfly(3, 2, bias=True), dead=PADDED, table=True),
    Entry(L.Butterfly(6, 3, increasing_stride=False), dead=PADDED),
    Entry(L.Butterfly(8, 2)),
    Entry(L.Butterfly(4, 11, tied_weight=False), dead=PADDED),
    Entry(L.Butterfly(2, 4, tied_weight=False, increasing_stride=False), table=True),
    Entry(L.Butterfly(1, 3), dead=PADDED),
    Entry(L.Butterfly(1), dead=PADDED),
    Entry(L.Butterfly(4, complex=True)),
    Entry(L.Butterfly(3, complex=True, tied_weight=False, bias=True), dead=PADDED),
    Entry(L.Butterfly(4, 2, complex=True, increasing_stride=False)),
    Entry(L.Butterfly(4, blocks="rotation"), table=True),
    Entry(L.Butterfly(7, blocks="rotation", tied_weight=False, bias=True)),
    Entry(L.Butterfly(6, 3, blocks="rotation", tied_weight=False)),
    Entry(L.Butterfly(3, 6, blocks="rotation", increasing_stride=False)),
    Entry(L.Butterfly(3, 2, blocks="rotation", tied_weight=False, increasing_stride=False), table=True),
    Entry(L.Butterfly(1, blocks="rotation")),
    Entry(L.Butterfly(1, 4, blocks="rotation")),
    Entry(L.Butterfly(4, blocks="rotation", complex=True)),
    Entry(L.Butterfly(5, 3, blocks="rotation", complex=True, tied_weight=False, bias=True)),
    Entry(L.Monarch(4), table=True),
    Entry(L.Monarch(8, 4, 2, bias=True)),
    Entry(L.Monarch(6, 9)),
    Entry(L.Monarch(6)),
    Entry(L.Monarch(6, 6, 6)),
    Entry(L.Monarch(3, 2), table=True),
    Entry(L.Monarch(1)),
    Entry(L.Permutation(4), table=True),
    Entry(L.Permutation(8)),
    Entry(L.Permutation(2, bias=True), table=True),
    Entry(L.Permutation(1)),
]
