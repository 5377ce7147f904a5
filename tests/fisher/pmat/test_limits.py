"""What would be made dense beyond the one limit is refused before it is allocated, with its size and what to use instead."""

import functools

import pytest
import torch

import fisher
from linmaps import trees
from tests.laws import close

P = {"w": torch.linspace(-1, 1, 256 * 160).reshape(256, 160).cos(), "b": torch.ones(160)}
X = torch.linspace(-1, 1, 3 * 256).reshape(3, 256).sin()


def f(p, x):
    return (x @ p["w"] + p["b"]) @ torch.ones(160, 2)


@functools.cache
def layers():
    return fisher.LayerCollection.from_function(f, P, X)


@functools.cache
def make(kind):
    sums = {
        "sum of two": lambda: make(fisher.PMatKFAC) + make(fisher.PMatEKFAC),
        "KFAC + diagonal": lambda: make(fisher.PMatKFAC) + make(fisher.PMatDiag),
        "low rank + diagonal": lambda: make(fisher.PMatLowRank) + make(fisher.PMatDiag),
        "inverse of low rank": lambda: make(fisher.PMatLowRank).inverse(0.1),
        "pullback": lambda: fisher.pullback(make(fisher.PMatDiag), lambda p: p, P),
    }
    return sums[kind]() if isinstance(kind, str) else fisher.fim(f, P, X, kind, "gaussian", layers=layers())


SUMS = ["sum of two", "KFAC + diagonal", "low rank + diagonal"]
KINDS = [
    fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDiag, fisher.PMatEye, fisher.PMatQuasiDiag, fisher.PMatLowRank,
    fisher.PMatImplicit, fisher.PMatMixed, *SUMS, "inverse of low rank", "pullback",
]  # fmt: skip
REFUSED = r"41,120 x 41,120 is (?:6.8|13.5) GB, expected at most 32,768 rows \((?:4.3|8.6) GB\); use "


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_matrix_is_refused(kind):
    with pytest.raises(ValueError, match=REFUSED):
        make(kind).to_torch()


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize(
    "method",
    [
        lambda F: F.dense(),
        lambda F: F.logdet(0.1),
        lambda F: F.inverse(0.1),
        lambda F: F.pow(0.5, 0.1),
        lambda F: F.pinv(),
        lambda F: F.eigendecomposition(),
        lambda F: F.norm(2),
        lambda F: F.sample(noise=P, regul=0.1),
        lambda F: F.solve(P, kind="lstsq"),
        lambda F: F.get_block("w"),
    ],
    ids=["dense", "logdet", "inverse", "pow", "pinv", "eigendecomposition", "norm", "sample", "lstsq", "get_block"],
)
def test_what_a_sum_does_densely_is_refused(kind, method):
    with pytest.raises(ValueError, match=REFUSED):
        method(make(kind))


@pytest.mark.parametrize(
    "call",
    [
        lambda: make(fisher.PMatKFAC).get_block("w"),
        lambda: make(fisher.PMatKFAC).matrices(),
        lambda: make(fisher.PMatEKFAC).get_block("w"),
        lambda: make(fisher.PMatEKFAC).get_KFE("w"),
        lambda: make(fisher.PMatQuasiDiag).inverse(0.1),
        lambda: make(fisher.PMatQuasiDiag).eigendecomposition(),
        lambda: make(fisher.PMatQuasiDiag).get_block("w"),
        lambda: make(fisher.PMatDense),
        lambda: make(fisher.PMatBlockDiag),
        lambda: fisher.hessian(lambda p, x: (f(p, x) ** 2).mean(), P, X),
        lambda: fisher.hessian(lambda p, x: (f(p, x) ** 2).mean(), P, X, fisher.PMatBlockDiag, layers=layers()),
        lambda: fisher.ggn(f, lambda y, t: (y**2).sum(-1), P, (X, X)),
        lambda: fisher.ggn(f, lambda y, t: (y**2).sum(-1), P, (X, X), fisher.PMatBlockDiag, layers=layers()),
    ],
)
def test_blocks_are_refused(call):
    with pytest.raises(ValueError, match=REFUSED):
        call()


def test_rows_of_a_gram_matrix_are_counted():
    F = fisher.PMatLowRank({"w": torch.zeros(2**15 + 1, 1).expand(-1, 2**16)})
    for call in (lambda: F.solve({"w": torch.zeros(2**16)}, 0.1), lambda: F.frobenius_norm(), lambda: F.inverse(0.1)):
        with pytest.raises(ValueError, match=r"32,769 x 32,769 is 4.3 GB.*; use "):
            call()


def test_matrices_of_many_units_are_counted():
    wide = {"w": torch.ones(1600, 700), "b": torch.ones(700)}
    found = fisher.LayerCollection.from_function(lambda p, x: x @ p["w"] + p["b"], wide, torch.ones(2, 1600))
    F = fisher.PMatQuasiDiag(wide, {found.names()[0]: torch.zeros(700, 1600)}, found)
    for call in (lambda: F.norm(2), lambda: F.solve(wide, kind="lstsq")):
        with pytest.raises(ValueError, match=r"700 of 1,601 x 1,601 are 14.4 GB.*; use "):
            call()


@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_is_solved_without_a_dense_matrix(kind):
    F = make(kind)
    regul = F.trace() / 100
    x = F.solve(P, regul)
    close(trees.axpy(regul, x, F.mv(x)), P, 1e-4, "solve")
