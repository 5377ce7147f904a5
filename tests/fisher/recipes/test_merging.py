"""Merging and online consolidation: the quadratic problem that is solved, exact cases, each representation."""

import pytest
import torch

import fisher
from fisher.recipes import ewc_online, ewc_penalty, merge
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, objective, start, trained
from tests.laws import close, noise_like

KINDS = [fisher.PMatDense, fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatLowRank, fisher.PMatImplicit]


def models(representation):
    x, _ = digits(30, features=5)
    p = start(5, 3, 10)
    thetas = [p, trees.axpy(0.3, noise_like(p, 0), p), trees.axpy(0.3, noise_like(p, 1), p)]
    return thetas, [fisher.fim(mlp, q, x[10 * k : 10 * k + 10], representation) for k, q in enumerate(thetas)]


@pytest.mark.parametrize("representation", KINDS)
def test_a_merged_model_solves_the_sum_of_the_quadratic_problems(representation):
    thetas, Fs = models(representation)
    weights, regul = [1.0, 0.5, 2.0], 0.05
    flat = [trees.ravel(t)[0] for t in thetas]
    dense = [F.to_torch() for F in Fs]
    mean = sum(w * t for w, t in zip(weights, flat)) / 3.5
    A = sum(w * F for w, F in zip(weights, dense)) + regul * torch.eye(len(mean), dtype=D)
    b = sum(w * F @ t for w, F, t in zip(weights, dense, flat)) + regul * mean
    got = merge(thetas, Fs, weights, regul=regul)
    close(trees.ravel(got)[0], torch.linalg.solve(A, b), 1e-8, "merged")
    close(merge([thetas[1]] * 3, Fs, regul=regul), thetas[1], 1e-9, "of one and the same")
    one = merge([thetas[0], thetas[2]], Fs[:2], [torch.tensor(1.0, dtype=D), 0.0], regul=1e-3)
    close(one, thetas[0], 1e-9, "of weight zero")


def test_two_linear_gaussian_models_merge_to_the_one_of_all_data():
    f = lambda p, x: x @ p["w"]
    x, label = digits(80, features=5)
    y = torch.cos(label[:, None].to(D))
    zero = {"w": torch.zeros(5, 1, dtype=D)}
    parts = [slice(0, 30), slice(30, 80)]
    each = [trained(f, zero, x[s], y[s], steps=1) for s in parts]
    Fs = [fisher.fim(f, p, x[s], fisher.PMatDense, "gaussian") for p, s in zip(each, parts)]
    close(merge(each, Fs, [30.0, 50.0], regul=0.0), trained(f, zero, x, y, steps=1), 1e-8, "all data")


def test_merged_digits_know_both_halves():
    """Two models from one start, one trained on the digits 0 to 4, one on 5 to 9: better on all than their mean."""
    x, y = digits(300, features=12)
    halves = [y < 5, y >= 5]
    both = trained(linear, start(12, 10), x, y, ridge=1e-2, steps=3)
    each = [trained(linear, both, x[h], y[h], ridge=1e-2, steps=5) for h in halves]
    loss = objective(linear, x, y)
    mean = trees.scale(0.5, trees.add(*each))
    for kind in (fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag):
        Fs = [fisher.fim(linear, p, x[h], kind) for p, h in zip(each, halves)]
        assert loss(merge(each, Fs, regul=1e-4)) < loss(mean)


@pytest.mark.parametrize("representation", [*KINDS[:5], fisher.PMatEye])
def test_online_matrices_are_the_decayed_sum(representation):
    thetas, Fs = models(representation)
    F, want = None, 0.0
    for new in Fs:
        F = ewc_online(F, new, 0.7)
        want = 0.7 * want + new.to_torch()
    close(F.to_torch(), want, 1e-10, "sum")
    step = trees.ravel(trees.sub(thetas[0], thetas[2]))[0]
    close(ewc_penalty(F, thetas[2], thetas[0], 3.0), 1.5 * step @ want @ step, 1e-10, "penalty")
    close(ewc_online(ewc_online(None, Fs[0]), Fs[1]).to_torch(), (Fs[0] + Fs[1]).to_torch(), 1e-12, "none forgotten")
    if representation in (fisher.PMatDiag, fisher.PMatDense):
        assert type(F) is representation


def test_what_does_not_fit_is_refused():
    thetas, Fs = models(fisher.PMatDiag)
    other = fisher.fim(linear, start(3, 4), digits(4, features=3)[0], fisher.PMatDiag)
    for call, message in [
        (lambda: merge([], []), "got 0 models, 0 matrices and 0 weights"),
        (lambda: merge(thetas, Fs[:2]), "got 3 models, 2 matrices and 3 weights"),
        (lambda: merge(thetas, Fs, [1.0]), "got 3 models, 3 matrices and 1 weights"),
        (lambda: merge(thetas, Fs, [1.0, -1.0, 1.0]), "weights: 1: got -1.0"),
        (lambda: merge(thetas, Fs, [0.0, 0.0, 0.0]), "weights: their sum: got 0"),
        (lambda: merge([thetas[0], start(3, 4)], Fs[:2]), "models: 1: "),
        (lambda: merge([thetas[0], start(3, 4)], [Fs[0], other]), "Fs: 1: is a matrix of other params"),
        (lambda: merge(thetas[:2], [0.0 * F for F in Fs[:2]], regul=0.0), "merge: .*NaN or infinite.*give a regul > 0"),
        (lambda: ewc_online(Fs[0], Fs[1], 1.5), "decay: got 1.5"),
        (lambda: ewc_online(Fs[0], other), "layouts differ"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
