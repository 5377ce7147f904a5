"""What can be no target of the outputs is said at the first batch, by every estimator, whether it looks at targets or not."""

import warnings

import pytest
import torch
from torch.nn import functional as nnf

import fisher
from fisher.recipes import kfac
from linmaps import trees
from tests.laws import close

D = torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=G, dtype=D)
P = {"w": torch.randn(4, 3, generator=G, dtype=D)}
CLASSES = torch.arange(12) % 3
NONE = {  # of [12, 3] logits
    "halves": CLASSES + 0.5,
    "all -1 as floats": -torch.ones(12),
    "all -1": -torch.ones(12, dtype=torch.int64),
    "complex": CLASSES.to(torch.complex64),
    "complex logits": torch.ones(12, 3, dtype=torch.complex64),
    "one class too many": CLASSES + 1,
    "one-hot": nnf.one_hot(CLASSES),
    "two columns": torch.stack([CLASSES, CLASSES], 1),
    "numbers for each logit": torch.randn(12, 3, generator=G, dtype=D),
    "a regression": torch.randn(12, 7, generator=G, dtype=D),
    "bool": CLASSES > 0,
}
TARGETS = {
    "classes": CLASSES,
    "padded": torch.where(CLASSES == 0, -100, CLASSES),
    "int32": CLASSES.int(),
    "floats": CLASSES.double(),
    "padded floats": torch.where(CLASSES == 0, -100.0, CLASSES.double()),
    "probabilities": torch.softmax(torch.randn(12, 3, generator=G, dtype=D), 1),
    "none": None,
    "of a loss of one's own": ("a", "b"),
}
REAL = {  # likelihood: columns of the output, a target of it
    "gaussian": (3, torch.randn(12, 3, generator=G, dtype=D)),
    "bernoulli": (3, torch.rand(12, 3, generator=G, dtype=D)),
    "poisson": (3, torch.randint(4, (12, 3), generator=G)),
    "heteroscedastic_gaussian": (2, torch.randn(12, 1, generator=G, dtype=D)),
}
REFUSED = (TypeError, ValueError, UserWarning)


def f(p, x):
    return x @ p["w"]


def drawing(estimator):
    return {"generator": torch.Generator().manual_seed(1)} if estimator == "mc" else {}


@pytest.mark.parametrize("kind", ["kfac", "dense", "implicit"])
@pytest.mark.parametrize("estimator", ["exact", "mc"])
def test_classes(kind, estimator):
    run = lambda data: fisher.fim(f, P, data, kind, "categorical", estimator, **drawing(estimator))
    for target in NONE.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(REFUSED, match=r"categorical: .*target.* (has|holds|is)"):
                run((X, target))
    for target in TARGETS.values():
        run((X, target))


@pytest.mark.parametrize("likelihood", REAL)
@pytest.mark.parametrize("kind", ["kfac", "dense", "implicit"])
@pytest.mark.parametrize("estimator", ["exact", "mc"])
def test_numbers(likelihood, kind, estimator):
    columns, target = REAL[likelihood]
    p = trees.map(lambda t: t[:, :columns], P)
    run = lambda t: fisher.fim(f, p, (X, t), kind, likelihood, estimator, **drawing(estimator))
    for right in (target, None, ("a", "b"), CLASSES):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            close(run(right).get_diag(), run(None).get_diag(), 1e-12, "targets are not looked at")


def test_tokens_by_the_axis_that_is_not_theirs():
    x, t = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(3), dtype=D), torch.arange(30).reshape(6, 5) % 3
    with pytest.raises(ValueError, match=r"token logits \[B, T, C\] need class_axis=-1"):
        fisher.fim(f, P, (x, t), fisher.PMatDense)
    fisher.fim(f, P, (x, t), fisher.PMatDense, fisher.Categorical(class_axis=-1))


@pytest.mark.parametrize("rate", [None, 0.1])
@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "bernoulli"])
def test_a_loss_that_has_no_target_is_refused_at_the_first_step(likelihood, rate):
    rule = kfac(f, likelihood, estimator="exact", rate=rate)
    state = rule.init(P, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"target has shape \(12,\), expected \(12, 3\)"):
            rule.update(P, state, P, batch=(X, CLASSES))
    own = kfac(f, likelihood, estimator="exact", rate=rate, loss=lambda p, b: (f(p, b[0]) ** 2).mean())
    own.update(P, state, P, batch=(X, ("a", "b")))
