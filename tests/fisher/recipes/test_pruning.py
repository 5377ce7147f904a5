"""Pruning: exact increases of a quadratic loss, masks of exact size, digits against random and magnitude masks."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes.pruning import prune_mask, pruning_scores, unit_mask, unit_scores
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, objective, start, trained
from tests.laws import close, noise_like


def quadratic():
    """A linear-Gaussian model at its minimum."""
    x, label = digits(40, features=5)
    y = torch.stack([torch.sin(label.to(D)), torch.cos(label.to(D))], 1)
    f = lambda p, x: x @ p["w"]
    p = trained(f, {"w": torch.zeros(5, 2, dtype=D)}, x, y, steps=1)
    return f, p, x, y, objective(f, x, y)


def test_scores_are_the_increases_of_a_quadratic_loss():
    f, p, x, y, loss = quadratic()
    F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    obd, obs = (pruning_scores(F, p, method=m, regul=0.0)["w"] for m in ("obd", "obs"))
    for i in range(5):
        for j in range(2):
            cut = p["w"].clone()
            cut[i, j] = 0.0
            close(obd[i, j], loss({"w": cut}) - loss(p), 1e-12, "all else fixed")
            rest = [k for k in range(5) if k != i]
            cut[rest, j] = torch.linalg.lstsq(x[:, rest], y[:, j]).solution
            close(obs[i, j], loss({"w": cut}) - loss(p), 1e-12, "all else retrained")
    assert (obs <= obd).all()


@pytest.mark.parametrize("representation", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag])
def test_formulas_in_each_representation(representation):
    x, _ = digits(30, features=6)
    p = start(6, 4, 10)
    F = fisher.fim(mlp, p, x, representation)
    vector, unravel = trees.ravel(p)
    dense = F.to_torch()
    close(pruning_scores(F, p), unravel(vector**2 * dense.diagonal() / 2), 1e-12, "obd")
    inverse = torch.linalg.inv(dense + 0.01 * torch.eye(len(vector), dtype=D))
    close(pruning_scores(F, p, method="obs", regul=0.01), unravel(vector**2 / inverse.diagonal() / 2), 1e-9, "obs")


def test_units():
    x, _ = digits(30, features=6)
    p = start(6, 4, 10)
    layers = fisher.LayerCollection.from_function(mlp, p, x)
    scores = pruning_scores(fisher.fim(mlp, p, x, fisher.PMatDiag), p)
    units = unit_scores(scores, layers)
    for name in ("hidden", "output"):
        close(units[name], scores[name]["weight"].sum(1) + scores[name]["bias"], 1e-13, name)
    mask = unit_mask({"hidden": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=D)}, layers, p)
    kept = trees.map(torch.mul, p, mask)
    assert not kept["hidden"]["weight"][1:3].any()
    assert not kept["hidden"]["bias"][1:3].any()
    close(kept["hidden"]["weight"][[0, 3]], p["hidden"]["weight"][[0, 3]], 0.0, "other units")
    close(kept["output"], p["output"], 0.0, "other layers")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_masks_have_the_size_asked_for(fraction):
    scores = noise_like(start(6, 4, 10), 0)
    for tree in (scores, trees.map(torch.zeros_like, scores)):  # equal scores too
        mask = trees.ravel(prune_mask(tree, fraction))[0]
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert (mask == 0).sum() == int(fraction * len(mask))
    flat, mask = trees.ravel(scores)[0], trees.ravel(prune_mask(scores, fraction))[0].bool()
    assert not mask.any() or mask.all() or flat[~mask].max() < flat[mask].min()


def test_digits():
    """Half of the weights of a trained network: by score the loss rises least."""
    x, y = digits(250, features=16)
    loss = objective(mlp, x, y, 1e-3)
    p = start(16, 8, 10)
    for _ in range(100):
        p = trees.axpy(-1.0, grad(loss)(p), p)
    F = fisher.fim(mlp, p, x, fisher.PMatDense)
    cut = lambda scores: loss(trees.map(torch.mul, p, prune_mask(scores, 0.5))) - loss(p)
    random = sum(cut(noise_like(p, k)) for k in range(5)) / 5
    assert cut(pruning_scores(F, p)) < 0.2 * random
    assert cut(pruning_scores(fisher.fim(mlp, p, x, fisher.PMatDiag), p)) < 0.2 * random
    layers = fisher.LayerCollection.from_function(mlp, p, x)
    units = {"hidden": unit_scores(pruning_scores(F, p), layers)["hidden"]}
    without = lambda scores: loss(trees.map(torch.mul, p, unit_mask(prune_mask(scores, 0.25), layers, p)))
    assert without(units) < without({"hidden": -units["hidden"]})


def test_an_ensemble_is_one_vmap():
    x, _ = digits(20, features=3)
    members = [start(3, 4, seed=k) for k in range(3)]

    def run(p):
        scores = pruning_scores(fisher.fim(linear, p, x, fisher.PMatKFAC), p, method="obs", regul=0.1)
        return scores, prune_mask(scores, 0.4)

    close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-10, "ensemble")


def test_errors():
    f, p, x, _, _ = quadratic()
    F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    with pytest.raises(ValueError, match="scores: got NaN"):
        prune_mask({"w": torch.tensor([1.0, float("nan")])}, 0.5)
    g, q = lambda p, x: x @ p["w"], {"w": torch.ones(2, 3)}
    layers = fisher.LayerCollection.from_function(g, q, torch.eye(2))
    for mask, message in [
        ({"v": torch.ones(3)}, "mask: got a layer 'v'"),
        ({"w": torch.ones(2)}, r"w: got shape \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            unit_mask(mask, layers, q)
    with pytest.raises(ValueError, match="method: got 'magnitude'"):
        pruning_scores(F, p, method="magnitude")
    with pytest.raises(ValueError, match="fraction: got 2"):
        prune_mask(p, 2)
    with pytest.raises(ValueError, match="params: leaf w has shape"):
        pruning_scores(F, {"w": torch.ones(2, 2, dtype=D)})
