"""Likelihoods of tensors: differentiable in them, with members under vmap, in themselves and in every matrix made with
them.  Predictive probabilities of uncertain outputs.
"""

import dataclasses

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

import fisher
from fisher.likelihoods import Bernoulli, Categorical, Gaussian, Segmentation, probabilities
from tests.fisher.likelihoods.test_likelihoods import SHAPES, in_every_shape, logits, spd, targets_of
from tests.laws import close

D = torch.float64

_S = torch.tensor([0.5, 2.0, 1.3], dtype=D)
_spd2, _spd3 = spd(2), spd(3)
_line = lambda n: torch.cos(torch.arange(n, dtype=D))
TENSORS = {  # a likelihood of a scalar s, through one of its parameters
    "gaussian variance": (lambda s: Gaussian(0.4 + s), (2, 3)),
    "gaussian variances": (lambda s: Gaussian(_S + s * _line(3)), (2, 3, 2)),
    "gaussian variances in a list": (lambda s: Gaussian([0.5 + s, 1.0, 2.0]), (2, 3)),
    "gaussian variances, last": (lambda s: Gaussian(_S[:2] + s, class_axis=-1), (2, 3, 2)),
    "gaussian variance each": (lambda s: Gaussian(torch.ones(3, 2, dtype=D) + s * _line(6).reshape(3, 2)), (2, 3, 2)),
    "gaussian covariance": (lambda s: Gaussian(covariance=_spd3 + s * torch.outer(_line(3), _line(3))), (2, 3, 2)),
    "gaussian covariance, last": (lambda s: Gaussian(covariance=_spd2 * (1 + s), class_axis=-1), (2, 3, 2)),
    "categorical weights": (lambda s: Categorical(weight=_S + s * _line(3)), (2, 3, 2)),
    "segmentation weights": (lambda s: Segmentation(weight=_S + s), (2, 3, 2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_derivatives_in_tensor_parameters_and_ensembles_of_them(name):
    make, shape = TENSORS[name]
    y, u = logits(2, *shape), logits(3, *shape)
    t = targets_of(make(torch.zeros((), dtype=D)), y)
    noise = make(torch.zeros((), dtype=D)).noise((2, *shape), torch.Generator().manual_seed(0), y)

    def all_of(s):
        which = make(s)
        parts = which.root(y), which.sample(y, noise), which.score(y, t), which.log_prob(y, t), which.product(y, u)
        return torch.cat([part.flatten() for part in parts])

    zero, h = torch.zeros((), dtype=D), 1e-5
    first = jacrev(all_of)(zero)
    assert first.abs().max() > 0.01
    close(jacfwd(all_of)(zero), first, 1e-11, "forward")
    close(first, (all_of(zero + h) - all_of(zero - h)) / (2 * h), 1e-7, "differences")
    members = torch.tensor([0.0, 0.1, 0.2], dtype=D)
    close(vmap(all_of)(members), torch.stack([all_of(s) for s in members]), 1e-13, "ensemble")
    classical = zero.clone().requires_grad_()
    assert all_of(classical).requires_grad


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_ensemble_of_covariances_along_any_axis(axis):
    S = torch.stack([spd(2), 2 * spd(2), spd(2) + 1], axis)
    root = lambda S: Gaussian(covariance=S).root(torch.zeros(1, 2, dtype=D))
    close(vmap(root, axis)(S), torch.stack([root(m) for m in S.unbind(axis)]), 1e-13, "ensemble")


REPRESENTATIONS = [
    fisher.PMatDense, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatBlockDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
    fisher.PMatLowRank, fisher.PMatEye, fisher.PMatMixed, fisher.PMatImplicit,
]  # fmt: skip


@pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("name", ["gaussian variances", "gaussian covariance", "categorical weights"])
def test_matrices_are_differentiable_in_them_and_have_members(name, representation):
    make, _ = TENSORS[name]
    f = lambda p, x: torch.tanh(x @ p["w"] + p["b"])
    p, x = {"w": logits(0, 2, 3), "b": logits(1, 3)}, logits(2, 4, 2)
    noise = make(torch.zeros((), dtype=D)).noise((2, 4, 3), torch.Generator().manual_seed(0), x)
    for options in ({}, {"estimator": "mc", "noise": noise}):
        diag = lambda s, o=options: fisher.fim(f, p, x, representation, make(s), **o).get_diag()
        zero, h = torch.zeros((), dtype=D), 1e-5
        first = jacrev(diag)(zero)
        close(jacfwd(diag)(zero), first, 1e-9, "forward")
        near, far = diag(zero + h), diag(zero - h)
        for key in p:
            close(first[key], (near[key] - far[key]) / (2 * h), 1e-6, f"differences of {key}")
        members = torch.tensor([0.0, 0.1], dtype=D)
        loop = [diag(s) for s in members]
        close(vmap(diag)(members), {k: torch.stack([t[k] for t in loop]) for k in p}, 1e-11, "ensemble")


def test_equal_numbers_are_equal_whatever_holds_them():
    for one, other in [
        (Gaussian(torch.tensor([1.0, 2.0])), Gaussian((1.0, 2.0))),
        (Categorical(weight=torch.tensor([1.0, 2.0])), Categorical(weight=[1, 2])),
    ]:
        assert one == other
        assert hash(one) == hash(other)
    assert Gaussian(2.0) != Gaussian(3.0)
    assert Categorical() != Segmentation()
    assert dataclasses.replace(Gaussian(2.0), class_axis=-1) == Gaussian(2.0, class_axis=-1)


# --- predictive probabilities -------------------------------------------------------------------------------------------


@in_every_shape
def test_probabilities_are_those_of_the_output_where_it_is_certain(name):
    """And with variance they are those of the sampled outputs, nearly; a likelihood without classes is refused by name."""
    which, shape = SHAPES[name]
    y = logits(2, *shape)
    if not isinstance(which, Categorical | Bernoulli):
        with pytest.raises(ValueError, match=rf"{type(which).__name__} has no classes.*predict"):
            probabilities(which, y, y**2)
        return
    plain = torch.softmax(y, which.class_axis) if isinstance(which, Categorical) else torch.sigmoid(y)
    close(probabilities(which, y, torch.zeros_like(y)), plain, 1e-14, "no variance")
    p = probabilities(which, y, y**2 + 1)
    if isinstance(which, Categorical):
        close(p.sum(which.class_axis), torch.ones_like(p.sum(which.class_axis)), 1e-13, "sum")
        return
    z = y + (y**2 + 1).sqrt() * logits(9, 100_000, *shape)
    assert (torch.sigmoid(z).mean(0) - p).abs().max() < 0.02


def test_one_class_has_no_probabilities():
    with pytest.raises(ValueError, match=r"one class.*bernoulli"):
        probabilities(Categorical(), torch.zeros(3, 1), torch.zeros(3, 1))
