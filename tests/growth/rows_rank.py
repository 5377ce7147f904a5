"""Rows of the transform table: ranks of structured maps.  Reduced maps are compared by their matrices, not their gauge."""

import torch

import growth
import linmaps
from tests.laws import Case, Exempt

D = torch.float64
F = linmaps.Factorized


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


SPECS = {
    "low rank": (linmaps.LowRank(5, 4, 2, bias=True), 1),
    "spectral": (linmaps.Spectral(5, 3, n_U_reflectors=1, n_V_reflectors=1), (2, 0)),
    "square spectral": (linmaps.Spectral(4, n_U_reflectors=1, n_V_reflectors=2), (2, 1)),
    "lowrank": (F((2, 3), (3,), factorization="lowrank", rank=1, n_layers=2), 2),
    "cp": (F((2, 3), (3,), factorization="cp", rank=2), 1),
    "tucker": (F((2, 3), (4,), rank=(1, 1, 1)), 1),
    "tt": (F((2, 3), (4,), factorization="tt", rank=1), 1),
    "blocktt": (F((2, 3), (2, 2), factorization="blocktt", rank=1, n_layers=2), 2),
}
A, B = (m.mT @ m + torch.eye(m.shape[1], dtype=D) for m in (randn(7, 5, seed=3), randn(7, 4, seed=4)))

CASES: dict[str, Case | Exempt] = {}
for name, (spec, k) in SPECS.items():
    params = spec.init(torch.Generator().manual_seed(1), dtype=D)
    G = randn(*spec.effective_W(params).shape, seed=2)
    CASES |= {
        f"growth.grow_rank/{name}": Case(lambda p, s=spec, k=k: growth.grow_rank(s, p, k)[1], (params,)),
        f"growth.grow_rank/{name} by gradient": Case(
            lambda p, G, s=spec, k=k: growth.grow_rank(s, p, k, gradient=G)[1], (params, G)
        ),
    }
    if name in ("low rank", "square spectral", "tucker"):
        score = lambda p, G, s=spec, k=k: growth.rank_scores(s, p, G, k)
        CASES[f"growth.rank_scores/{name}"] = Case(score, (params, G))


def reduced(spec, k):
    def run(params):
        small, leaves, error = growth.reduce_rank(spec, params, k)
        return small.effective_W(leaves), error

    return run


for name, spec, k in (
    ("low rank", linmaps.LowRank(5, 4, 3), 1),
    ("spectral", linmaps.Spectral(4, 3), (1, 1)),
    ("lowrank", F((2, 3), (3,), factorization="lowrank", rank=3, n_layers=2, bias=False), 1),
    ("cp", F((3,), (3,), factorization="cp", rank=3, bias=False), 1),
    ("tucker", F((2, 3), (4,), rank=(3, 2, 3), bias=False), (1, 0, 1)),
    ("tt", F((2, 3), (4,), factorization="tt", rank=(1, 3, 3, 1), bias=False), 1),
    ("blocktt", F((2, 3), (2, 2), factorization="blocktt", rank=3, n_layers=2, bias=False), 1),
):
    params = spec.init(torch.Generator().manual_seed(5), dtype=D)
    CASES[f"growth.reduce_rank/{name}"] = Case(reduced(spec, k), (params,), tol=1e-6)

LOW, TRAIN = linmaps.LowRank(5, 4, 1), F((5,), (2, 2), factorization="tt", rank=1, bias=False)
LOW_PARAMS, TRAIN_PARAMS = (s.init(torch.Generator().manual_seed(6), dtype=D) for s in (LOW, TRAIN))
CASES |= {
    "growth.grow_rank/low rank by Fisher": Case(
        lambda p, G, A, B: growth.grow_rank(LOW, p, 1, gradient=G, fisher=(A @ A.mT, B @ B.mT))[1],
        (LOW_PARAMS, randn(5, 4, seed=7), A, B),
        tol=1e-6,
    ),
    "growth.rank_scores/tt by Fisher": Case(
        lambda p, G, A, B: growth.rank_scores(TRAIN, p, G, (0, 1), fisher=(A @ A.mT, B @ B.mT)),
        (TRAIN_PARAMS, randn(5, 4, seed=7), A, B),
        tol=1e-6,
    ),
}
