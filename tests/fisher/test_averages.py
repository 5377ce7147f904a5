"""Averages of matrices are matrices of averages, whatever a matrix keeps: Mean, ema, + against those of to_torch."""

import pytest
import torch

import fisher
from fisher.strategies import REPRESENTATIONS
from linmaps import trees
from tests.laws import close

D = torch.float64


def randn(seed, *shape, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D).to(dtype)


P = {"a": {"weight": randn(0, 3, 2), "bias": randn(1, 3)}, "scale": randn(2, 3), "v": randn(3, 3, 2)}


def f(p, x):
    return torch.tanh(x @ p["a"]["weight"].T + p["a"]["bias"]) * p["scale"] @ p["v"]


LAYERS = fisher.LayerCollection.from_function(f, P, randn(4, 6, 2))
V = trees.map(torch.cos, P)


def made(representation, seed, dtype=D, n=6):
    p = trees.map(lambda t: t.to(dtype), P)
    return fisher.fim(f, p, randn(5 + seed, n, 2, dtype=dtype), representation, "gaussian", layers=LAYERS)


def pulled(seed):
    return fisher.pullback(made(fisher.PMatDiag, seed), lambda t: trees.map(torch.sin, t), P)


KINDS = {
    **{r.__name__: lambda s, r=r: made(r, s) for r in REPRESENTATIONS if r not in (fisher.PMatKFAC, fisher.PMatMixed)},
    "low rank, many rows": lambda s: made(fisher.PMatLowRank, s, n=9),
    "low rank, weighted": lambda s: made(fisher.PMatLowRank, s) * torch.tensor(-0.5, dtype=D),
    "low rank, inverse": lambda s: made(fisher.PMatLowRank, s, n=3).inverse(0.1),
    "low rank, eigenbasis": lambda s: made(fisher.PMatLowRank, s, n=3).eigendecomposition(),
    "KFAC, inverse": lambda s: made(fisher.PMatKFAC, s).inverse(0.1),
    "KFAC, power": lambda s: made(fisher.PMatKFAC, s) ** 0.5,
    "KFAC, pinv": lambda s: made(fisher.PMatKFAC, s).pinv(),
    "KFAC, product": lambda s: made(fisher.PMatKFAC, s) @ made(fisher.PMatKFAC, s + 9),
    "dense, inverse": lambda s: made(fisher.PMatDense, s).inverse(0.1),
    "dense, eigenbasis": lambda s: made(fisher.PMatDense, s).eigendecomposition(),
    "blocks, eigenbasis": lambda s: made(fisher.PMatBlockDiag, s).eigendecomposition(),
    "quasi-diagonal, inverse": lambda s: made(fisher.PMatQuasiDiag, s).inverse(0.1),
    "mixed": lambda s: fisher.fim(
        f, P, randn(5 + s, 6, 2), fisher.PMatMixed, "gaussian", layers=LAYERS, layers_to={"a": fisher.PMatEKFAC}
    ),
    "sum": lambda s: made(fisher.PMatEKFAC, s) + made(fisher.PMatDiag, s),
    "pullback": pulled,
}
every = pytest.mark.parametrize("kind", KINDS)


def is_matrix(F, want):
    """F has the entries `want`, and products, traces, diagonals and solves of its own that agree."""
    close(F.to_torch(), want, 1e-11, "matrix")
    v = trees.ravel(V)[0]
    close(trees.ravel(F.mv(V))[0], want @ v, 1e-11, "mv")
    close(F.trace(), want.trace(), 1e-11, "trace")
    close(trees.ravel(F.get_diag())[0], want.diagonal(), 1e-11, "get_diag")


@every
def test_averages_are_those_of_the_matrices(kind):
    F, G, H = (KINDS[kind](s) for s in range(3))
    A, B, C = (M.to_torch() for M in (F, G, H))
    is_matrix(fisher.ema(F, G, 0.75), 0.75 * A + 0.25 * B)
    is_matrix(fisher.ema(F, G, torch.tensor(0.75, dtype=D)), 0.75 * A + 0.25 * B)
    is_matrix(fisher.ema(fisher.ema(F, G, 0.5), H, 0.5), (A + B + 2 * C) / 4)
    one = fisher.Mean().add(F, 6).add(G, torch.tensor(3.0))
    is_matrix(one.value(), (2 * A + B) / 3)
    want = (6 * A + 3 * B + 11 * C) / 20
    is_matrix(one.add(H, 11).value(), want)
    is_matrix(one.merge(fisher.Mean().add(H, 11)).value(), want)
    is_matrix(fisher.Mean().add(H, 11).merge(one).value(), want)
    nested = fisher.Mean().add({"m": [F], "t": V}, 6).add({"m": [G], "t": V}, 3).value()
    is_matrix(nested["m"][0], (2 * A + B) / 3)
    close(nested["t"], V, 1e-14, "beside it")
    is_matrix(F + G, A + B)
    is_matrix(F - G, A - B)
