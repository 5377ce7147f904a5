"""SOAP: Adam where the bases are the axes, the law of turned moments, ensembles, saved states."""

import io

import pytest
import torch
from torch.func import grad, vmap

import fisher
import growth
from fisher.recipes import soap
from fisher.recipes.optimizers.curvature import eigenbases
from fisher.recipes.optimizers.rotated import turned
from linmaps import trees
from tests.fisher.digits import D, digits, mlp, objective, start
from tests.fisher.recipes.optimizers.test_kfac import trained
from tests.laws import close, noise_like


def problem(n=60):
    x, y = digits(n, features=6)
    return start(6, 5, 10), (x, y), objective(mlp, x, y)


def test_in_the_bases_of_the_axes_it_is_adam():
    """Two outputs of scales by input, so that both factors are diagonal, and what has no factors is taken entry by entry."""
    f = lambda p, x: x @ p["w"] * p["scale"]
    x = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=D))
    p = {"w": torch.ones(3, 1, dtype=D), "scale": torch.ones(1, dtype=D)}
    loss = lambda p: ((f(p, x) - 2) ** 2).mean()
    rule, other = soap(f, "gaussian", estimator="exact", rate=0.1, bases_every=2), growth.adam(0.1, betas=(0.95, 0.95))
    q, state, own = p, rule.init(p, x), other.init(p)
    for _ in range(5):
        g = grad(loss)(p)
        updates, state = rule.update(g, state, p, batch=x)
        want, own = other.update(g, own, p)
        close(updates, want, 1e-7, "update")
        p = trees.add(p, updates)
    assert loss(p) < loss(q)


def test_moments_are_those_of_the_turned_gradients():
    p, batch, loss = problem()
    rule = soap(mlp, estimator="exact", bases_every=100, betas=(0.9, 0.5), rate=0.01)
    state = rule.init(p, batch)
    total, mean = None, trees.zeros_like(p)
    for _ in range(3):
        g = grad(loss)(p)
        updates, state = rule.update(g, state, p, batch=batch)
        squares = {n: t**2 for n, t in state.bases.project_to_diag(g).items()}
        total = trees.scale(0.5, squares) if total is None else trees.axpy(0.5, total, trees.scale(0.5, squares))
        mean = trees.axpy(0.9, mean, trees.scale(0.1, g))
        p = trees.add(p, updates)
    close(state.bases.eigenvalues, total, 1e-12, "second moments")
    close(state.velocity, mean, 1e-12, "first moments")


def test_turned_moments_are_the_diagonal_of_the_matrix_in_the_new_bases():
    p, batch, _ = problem()
    F, G = (eigenbases(fisher.fim(mlp, trees.axpy(s, noise_like(p, 1), p), batch)) for s in (0.0, 0.3))
    for name, D_new in turned(F, G).eigenvalues.items():
        U, W = G.bases[name]
        Q = torch.kron(W.contiguous(), U.contiguous())
        close(D_new.flatten(), (Q.T @ F.get_block(name) @ Q).diagonal(), 1e-10, name)
    close(turned(F, F), F, 1e-12, "the same bases")


def test_an_ensemble_and_a_saved_state():
    p, batch, loss = problem()
    rule = soap(mlp, bases_every=2, rate=lambda n: 0.05 / (n + 1), weight_decay=0.1)
    noise = torch.rand(1, 60, 10, dtype=D, generator=torch.Generator().manual_seed(0))
    run = lambda p, noise: trained(rule, p, [batch], lambda b: loss, 4, noise=noise)
    members, many = [start(6, 5, 10, seed=k) for k in range(3)], torch.stack([noise, 1 - noise, noise.flip(1)])
    params, state = vmap(run)(trees.stack(members), many)
    want = [run(q, n) for q, n in zip(members, many)]
    close(params, trees.stack([q for q, _ in want]), 1e-9, "params")
    file = io.BytesIO()
    torch.save(want[0][1], file)
    file.seek(0)
    args = {"batch": batch, "noise": noise}
    one, two = (rule.update(grad(loss)(p), s, p, **args) for s in (want[0][1], torch.load(file)))
    close(one, two, 0.0, "bits")
    larger = vmap(lambda s, q, n: rule.update(grad(loss)(q), s, q, batch=batch, noise=n)[0])(state, params, many)
    assert all(bool(t.isfinite().all()) for t in trees.leaves(larger))


def test_narrow_params_and_a_part_of_the_layers():
    p, (x, y), _ = problem()
    p, batch = trees.map(lambda t: t.to(torch.bfloat16), p), (x.to(torch.bfloat16), y)
    layers = fisher.LayerCollection.from_function(mlp, p, batch[0]).select(["hidden"])
    rule = soap(mlp, layers=layers, rate=0.05, bases_every=3)
    loss = objective(mlp, *batch)
    q, _ = trained(rule, p, [batch], lambda b: loss, 8, generator=torch.Generator().manual_seed(0))
    assert {t.dtype for t in trees.leaves(q)} == {torch.bfloat16}
    close(q["output"], p["output"], 0.0, "the rest stays")
    assert loss(q) < 0.9 * loss(p)


def test_ahead_of_adam_where_the_inputs_are_correlated():
    """Inputs of condition 1e4 in a basis that is not that of the axes: Adam does not see it, for any rate."""
    r = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=r, dtype=D) * torch.logspace(0, -2, 12, dtype=D)
    x = x @ torch.linalg.qr(torch.randn(12, 12, generator=r, dtype=D))[0]
    f, p = lambda p, x: x @ p["w"], {"w": torch.zeros(12, 2, dtype=D)}
    batch = (x, x @ torch.randn(12, 2, generator=r, dtype=D))
    loss = lambda p: ((f(p, x) - batch[1]) ** 2).sum() / 128
    found = {"soap": [], "adam": []}
    for rate in (0.01, 0.03, 0.1):
        rule = soap(f, "gaussian", estimator="exact", rate=rate)
        found["soap"].append(loss(trained(rule, p, [batch], lambda b: loss, 60)[0]).item())
        rule, plain = growth.adam(rate, betas=(0.95, 0.95)), p
        state = rule.init(p)
        for _ in range(60):
            updates, state = rule.update(grad(loss)(plain), state, plain)
            plain = trees.add(plain, updates)
        found["adam"].append(loss(plain).item())
    assert min(found["soap"]) < 0.5 * min(found["adam"]), found


def test_errors():
    for options, error, said in [
        ({"betas": (0.9, 1.0)}, ValueError, "betas: got 1.0"),
        ({"rate": -1.0}, ValueError, "rate: got -1.0"),
        ({"eps": -1e-8}, ValueError, "eps: got"),
        ({"decay": 2.0}, ValueError, "decay: got 2.0"),
        ({"estimator": "kfac"}, ValueError, "estimator: got 'kfac'"),
    ]:
        with pytest.raises(error, match=said):
            soap(mlp, **options)


def test_a_direction_without_gradient_stays():
    """All logits moved alike change no class: what the rotations round to there is no slope, in float32 neither."""
    generator = torch.Generator().manual_seed(0)
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"]
    p = {name: torch.randn(shape, generator=generator) for name, shape in (("w", (6, 5)), ("v", (5, 4)))}
    x, y = torch.randn(30, 6, generator=generator), torch.arange(30) % 4
    rule = soap(f, estimator="exact", rate=1e-2, bases_every=3)
    q, state = p, rule.init(p, (x, y))
    for _ in range(12):
        g = grad(lambda p: torch.nn.functional.cross_entropy(f(p, x), y))(q)
        updates, state = rule.update(g, state, q, batch=(x, y))
        q = trees.add(q, updates)
    assert (q["v"] - p["v"]).abs().max() > 0.05
    assert (q["v"] - p["v"]).sum(1).abs().max() < 1e-5
