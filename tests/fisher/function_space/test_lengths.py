"""Batches of several lengths, as a collate function pads each to its longest example: taken together where that is possible,
else refused by the shapes that differ."""

import pytest
import torch

import fisher
from fisher.recipes import functional_laplace, laplace
from tests.laws import close

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


PARAMS = {"embed": randn(9, 4, seed=1), "mix": randn(4, 4, seed=2), "head": randn(3, 4, seed=3)}


def tokens(p, x):
    """An output at each position, `[B, T, 3]`."""
    return torch.tanh(p["embed"][x["ids"]] @ p["mix"]) @ p["head"].T


def texts(p, x):
    """An output for each text `[B, 3]`, whatever its padding."""
    mask = x["mask"][..., None]
    return (tokens(p, x) * mask).sum(1) / mask.sum(1)


def batch(length, seed):
    ids = torch.randint(9, (3, length), generator=torch.Generator().manual_seed(seed))
    return {"ids": ids, "mask": (torch.arange(length) <= torch.tensor([1, 2, length])[:, None]).to(D)}


SHORT, LONG = batch(4, 0), batch(6, 1)
RAGGED = [SHORT, LONG]
PADDED = [{name: torch.nn.functional.pad(t, (0, 2)) for name, t in SHORT.items()}, LONG]


@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDiag, fisher.PMatDense])
@pytest.mark.parametrize("joint", [False, True])
def test_predictions_do_not_depend_on_the_padding(representation, joint):
    F = fisher.fim(texts, PARAMS, RAGGED, representation)
    posterior = laplace(texts, PARAMS, F, n_examples=6)
    got, want = (posterior.predict(x, joint=joint) for x in (RAGGED, PADDED))
    close(got, want, 1e-10, "padding")


def test_rows_and_kernels_do_not_depend_on_the_padding():
    J = [fisher.jacobian(texts, PARAMS, x).jacobian for x in (RAGGED, PADDED)]
    close(J[0], J[1], 1e-12, "rows")
    close(*(fisher.gram(texts, PARAMS, x).kernel for x in (RAGGED, PADDED)), 1e-10, "kernel")


X = "ids: got batches of shapes [B, 4] and [B, 6], expected one shape behind the examples"
Y = "f(params, x): got batches of shapes [B, 4, 3] and [B, 6, 3], expected one shape"
POSTERIOR = laplace(tokens, PARAMS, fisher.fim(tokens, PARAMS, SHORT, likelihood="gaussian"), n_examples=3)
IN_FUNCTIONS = functional_laplace(texts, PARAMS, SHORT)
REFUSED = {
    "jacobian, implicit": (X, lambda: fisher.jacobian(texts, PARAMS, RAGGED, fisher.PFMapImplicit)),
    "functional_laplace": (X, lambda: functional_laplace(texts, PARAMS, RAGGED)),
    "predict of functional_laplace": (X, lambda: IN_FUNCTIONS.predict(RAGGED, joint=True)),
    "jacobian": (
        "f(params, x): got batches of shapes [B, 12] and [B, 18]",
        lambda: fisher.jacobian(tokens, PARAMS, RAGGED),
    ),
    "gram": (Y, lambda: fisher.gram(tokens, PARAMS, RAGGED)),
    "gram of two": (Y, lambda: fisher.gram(tokens, PARAMS, SHORT, LONG)),
    "traces of two": (Y, lambda: fisher.gram(tokens, PARAMS, SHORT, LONG, kind="trace")),
    "predict": (Y, lambda: POSTERIOR.predict(RAGGED)),
    "predict, joint": (Y, lambda: POSTERIOR.predict(RAGGED, joint=True)),
    "probabilities": (Y, lambda: POSTERIOR.predict(RAGGED, noise=True)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_together_is_said_by_its_shapes(name):
    words, call = REFUSED[name]
    with pytest.raises(ValueError, match="pad all examples to one length, or give one batch at a time") as caught:
        call()
    assert words in str(caught.value)


def test_one_batch_by_itself_may_have_any_length():
    close(IN_FUNCTIONS.predict(RAGGED), IN_FUNCTIONS.predict(PADDED), 1e-10, "padding")
