"""Optimal brain surgeon by blocks: constrained quadratic problems written out, exact on a linear model, digits."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes import prune_mask, pruning_scores, surgeon_scores, surgeon_step
from linmaps import trees
from tests.fisher.digits import D, digits, mlp, objective, start
from tests.fisher.recipes.test_influence_options import MODELS
from tests.fisher.recipes.test_pruning import quadratic
from tests.laws import close, noise_like

R = 0.03


def index(F):
    """Which entries of the flat order make each block, by layer and by row."""
    at = F.index()
    rows = [one for t in at.values() for one in (t.reshape(-1, t.shape[-1]) if t.ndim > 1 else t[:, None])]
    return {"layers": [t.flatten() for t in at.values()], "rows": rows}


@pytest.mark.parametrize(
    "representation", [fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatBlockDiag, fisher.PMatMixed, fisher.PMatDiag]
)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("blocks", ["layers", "rows"])
def test_each_block_against_the_problem_written_out(name, representation, blocks):
    f, p, data, likelihood = MODELS[name]
    F, B = (fisher.fim(f, p, data, r, likelihood) for r in (representation, fisher.PMatBlockDiag))
    mask = prune_mask(trees.map(torch.abs, noise_like(p, 3)), 0.4)
    w, kept, dense = trees.ravel(p)[0], trees.ravel(mask)[0].bool(), F.to_torch()
    want, moved = torch.zeros_like(w), torch.zeros_like(w)
    for at in index(B)[blocks]:
        H = dense[at][:, at] + R * torch.eye(len(at), dtype=D)
        want[at] = w[at] ** 2 / torch.linalg.inv(H).diagonal() / 2
        k, out = at[kept[at]], at[~kept[at]]
        inside = dense[k][:, k] + R * torch.eye(len(k), dtype=D)
        moved[k] = w[k] + torch.linalg.solve(inside, dense[k][:, out] @ w[out])
    scores = surgeon_scores(F, p, blocks=blocks, regul=R)
    close(trees.ravel(scores)[0], want, 1e-8, "scores")
    close(trees.ravel(surgeon_step(F, p, mask, blocks=blocks, regul=R))[0], moved, 1e-8, "step")
    damping = B.relative(0.1)
    by_layer = surgeon_step(F, p, mask, blocks=blocks, regul=damping)
    for layer, t in B.split(by_layer).items():
        close(t, B.split(surgeon_step(F, p, mask, blocks=blocks, regul=damping[layer]))[layer], 1e-9, layer)
    if blocks == "layers":
        close(scores, pruning_scores(F, p, method="obs", regul=R), 1e-8, "as without blocks")


def test_the_step_is_retraining_of_a_linear_model():
    f, p, x, y, loss = quadratic()
    F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    mask = {"w": torch.ones(5, 2, dtype=D)}
    mask["w"][0, 0] = mask["w"][3, 0] = mask["w"][1, 1] = 0.0
    got = surgeon_step(F, p, mask, regul=0.0)
    for j, rest in ((0, [1, 2, 4]), (1, [0, 2, 3, 4])):
        close(got["w"][rest, j], torch.linalg.lstsq(x[:, rest], y[:, j]).solution, 1e-9, "retrained")
    assert not got["w"][mask["w"] == 0].any()
    one = {"w": torch.ones(5, 2, dtype=D)}
    one["w"][2, 1] = 0.0
    rise = loss(surgeon_step(F, p, one, regul=0.0)) - loss(p)
    close(surgeon_scores(F, p, regul=0.0)["w"][2, 1], rise, 1e-9, "the score is what it costs")


def test_digits():
    """Half of the weights go: less is lost where the others of a layer make up for it."""
    x, y = digits(250, features=16)
    loss = objective(mlp, x, y, 1e-3)
    p = start(16, 8, 10)
    for _ in range(100):
        p = trees.axpy(-1.0, grad(loss)(p), p)
    for kind in (fisher.PMatKFAC, fisher.PMatBlockDiag):
        F = fisher.fim(mlp, p, x, kind)
        mask = prune_mask(pruning_scores(F, p), 0.5)
        cut = loss(trees.map(torch.mul, p, mask))
        assert loss(surgeon_step(F, p, mask, regul=1e-4)) < cut


def test_an_ensemble_is_one_vmap():
    x, _ = digits(20, features=3)
    members = [start(3, 3, 4, seed=k) for k in range(2)]

    def run(p):
        F = fisher.fim(mlp, p, x, fisher.PMatKFAC)
        scores = surgeon_scores(F, p, blocks="rows", regul=0.1)
        return surgeon_step(F, p, prune_mask(scores, 0.4), blocks="rows", regul=0.1)

    close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-9, "ensemble")


def test_what_does_not_fit_is_refused():
    f, p, x, *_ = quadratic()
    F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    for call, message in [
        (
            lambda: surgeon_scores(F, p, blocks="columns"),
            r"blocks: got 'columns', expected one of \['layers', 'rows'\]",
        ),
        (lambda: surgeon_scores(F, p, blocks="rows"), "'rows' of PMatDense, which knows no layers"),
        (lambda: surgeon_scores(0.0 * F, p, regul=0.0), "surgeon_scores: .*give a regul > 0"),
        (lambda: surgeon_step(F, p, trees.scale(0.5, p)), "mask: w: got numbers other than 0 and 1"),
        (lambda: surgeon_step(F, p, {"w": p["w"][:2]}), "mask: leaf w has shape"),
        (lambda: surgeon_scores(F, {"w": p["w"][:2]}), "params: leaf w has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
