"""Names in place of classes and objects: those of the classes, and those that other libraries use."""

from typing import get_args

import pytest
import torch

import fisher
from fisher.likelihoods import LIKELIHOODS, likelihood
from fisher.likelihoods.names import ALIASES, LikelihoodName
from fisher.pmat.names import KINDS, NAMES, by_name
from fisher.reducers import REDUCERS

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
PARAMS = {"w": torch.ones(3, 2), "v": torch.eye(2)}


def f(params, x):
    return torch.tanh(x @ params["w"]) @ params["v"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_a_representation_by_its_name(kind):
    name = kind.__name__.removeprefix("PMat")
    for spelled in (name, name.lower(), kind.__name__):
        assert isinstance(fisher.fim(f, PARAMS, X, spelled), kind)


def test_names_are_of_all_that_fim_makes():
    assert set(KINDS) == {*REDUCERS, fisher.PMatEKFAC, fisher.PMatMixed, fisher.PMatImplicit}
    assert set(NAMES.values()) == set(KINDS)
    assert by_name("kron") is fisher.PMatKFAC
    assert by_name("Low-Rank") is fisher.PMatLowRank


def test_names_elsewhere():
    loss = lambda y, t: ((y - t) ** 2).sum(1)
    data = (X, X[:, :2])
    assert isinstance(fisher.ggn(f, loss, PARAMS, data, "diag"), fisher.PMatDiag)
    assert isinstance(fisher.hessian(lambda p, x, t: loss(f(p, x), t), PARAMS, data, "implicit"), fisher.PMatImplicit)
    assert isinstance(fisher.jacobian(f, PARAMS, X, "implicit"), fisher.PFMapImplicit)
    mixed = fisher.fim(f, PARAMS, X, "mixed", layers_to={"w": "diag", "v": fisher.PMatBlockDiag})
    assert {type(part) for part in mixed.parts} == {fisher.PMatDiag, fisher.PMatBlockDiag}


def test_likelihoods_by_the_names_of_losses_and_of_others():
    assert set(get_args(LikelihoodName)) == {*LIKELIHOODS, *ALIASES}
    for name, own in ALIASES.items():
        assert likelihood(name) is LIKELIHOODS[own]
    assert fisher.fim(f, PARAMS, X, likelihood="regression").likelihood == fisher.Gaussian()


def test_log_probabilities_are_logits():
    logs = lambda p, x: f(p, x).log_softmax(1)
    p, x = {k: t.double() for k, t in PARAMS.items()}, X.double()
    one, other = fisher.fim(f, p, x, "dense"), fisher.fim(logs, p, x, "dense", "classif_logsoftmax")
    torch.testing.assert_close(one.to_torch(), other.to_torch())


def test_what_is_no_name():
    with pytest.raises(ValueError, match=r"representation: got 'kfca', expected one of \['PMatBlockDiag'"):
        fisher.fim(f, PARAMS, X, "kfca")
    with pytest.raises(ValueError, match=r"representation: got 'a tensor'.*data=\(x, target\)"):
        fisher.fim(f, PARAMS, X, torch.zeros(5))
    with pytest.raises(ValueError, match=r"likelihood: got 'mse', expected one of .*also known as"):
        fisher.fim(f, PARAMS, X, likelihood="mse")
    with pytest.raises(ValueError, match="representation: got PMatKFAC, expected PMatDense"):
        fisher.hessian(lambda p, x: f(p, x).sum(1), PARAMS, X, "kfac")
