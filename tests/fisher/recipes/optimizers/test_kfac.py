"""K-FAC steps: the linear case exactly, the laws of the average, of the lengths and of the damping, ensembles, saved states."""

import dataclasses
import io

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.recipes import kfac
from fisher.recipes.optimizers.curvature import averaged, damped_solve, eigenbases
from linmaps import trees
from tests.fisher.digits import D, digits, linear, mlp, objective, start
from tests.laws import close, noise_like

EXACT = {"estimator": "exact"}


def regression(n=60, features=5):
    """(f, params, batch, loss): least squares on digits, whose Fisher matrix is one Kronecker product exactly."""
    x, _ = digits(n, features=features)
    y = torch.sin(torch.arange(2.0 * n, dtype=D)).reshape(n, 2)
    return linear, start(features, 2), (x, y), objective(linear, x, y)


def classes(n=80, features=6, hidden=5):
    x, y = digits(n, features=features)
    return mlp, start(features, hidden, 10), (x, y), objective(mlp, x, y)


def trained(optimizer, params, batches, loss_of, steps, state=None, **options):
    """(params, state) after so many steps over the batches in turn."""
    state = optimizer.init(params, batches[0], **options) if state is None else state
    for k in range(steps):
        batch = batches[k % len(batches)]
        updates, state = optimizer.update(grad(loss_of(batch))(params), state, params, batch=batch, **options)
        params = trees.add(params, updates)
    return params, state


def test_one_step_without_damping_is_the_optimum_of_a_linear_model():
    f, p, batch, loss = regression()
    for rate in (None, 1.0):
        optimizer = kfac(f, "gaussian", **EXACT, damping=0.0, adapt=False, rate=rate, momentum=0.0)
        q, _ = trained(optimizer, p, [batch], lambda b: loss, 1)
        assert trees.norm(grad(loss)(q)) < 1e-10


def test_a_step_is_the_damped_natural_gradient_of_a_linear_net():
    f, p, batch, loss = regression()
    F, g = fisher.fim(f, p, batch, fisher.PMatDense, "gaussian"), grad(loss)(p)
    optimizer = kfac(f, "gaussian", **EXACT, damping=0.3, adapt=False, rate=0.7, kind="default")
    updates, state = optimizer.update(g, optimizer.init(p, batch), p, batch=batch)
    close(updates, trees.scale(-0.7, F.solve(g, 0.3)), 1e-12, "update")
    close(state.velocity, updates, 0.0, "velocity")
    again, _ = optimizer.update(g, state, p, batch=batch)
    close(again, trees.axpy(0.9, updates, updates), 1e-12, "with momentum")


def test_length_and_momentum_minimise_the_model_of_the_whole_matrix():
    f, p, batch, loss = classes()
    optimizer = kfac(f, **EXACT, damping=0.2, l2=0.1, adapt=False)
    q, state = trained(optimizer, p, [batch], lambda b: loss, 3)
    F, g = fisher.fim(f, q, batch, fisher.PMatDense), trees.axpy(0.1, q, grad(loss)(q))
    s, after = optimizer.update(grad(loss)(q), state, q, batch=batch)
    slope = trees.add(g, trees.axpy(0.2 + 0.1, s, F.mv(s)))
    d = damped_solve(after.bases, g, 0.3)
    assert abs(trees.dot(slope, d)) < 1e-10
    assert abs(trees.dot(slope, state.velocity)) < 1e-10
    assert trees.norm(slope) > 1e-4
    lengths = torch.linalg.lstsq(torch.stack([_flat(d), _flat(state.velocity)]).T, _flat(s)[:, None]).solution
    close(lengths[0, 0] * _flat(d) + lengths[1, 0] * _flat(state.velocity), _flat(s), 1e-10, "span")
    alone, _ = kfac(f, **EXACT, damping=0.2, l2=0.1, adapt=False, momentum=0.0).update(
        grad(loss)(q), state, q, batch=batch
    )
    close(_flat(alone) / _flat(alone).norm(), -_flat(d) / _flat(d).norm(), 1e-12, "without momentum")


def _flat(tree):
    return torch.cat([t.flatten() for t in trees.leaves(tree)])


def test_where_the_model_is_the_loss_the_damping_falls():
    f, p, batch, loss = regression()
    optimizer = kfac(f, "gaussian", **EXACT, damping=0.5, adapt_every=1, factor=2.0, minimum=0.2)
    _, state = trained(optimizer, p, [batch], lambda b: loss, 1)
    close(state.damping, torch.tensor(0.25, dtype=D), 0.0, "ratio 1")
    _, state = trained(optimizer, p, [batch], lambda b: loss, 3)
    close(state.damping, torch.tensor(0.2, dtype=D), 0.0, "minimum")


@pytest.mark.parametrize("rate", [None, 1.0])
def test_where_the_loss_rises_the_damping_grows(rate):
    f, p, batch, loss = regression()
    lies = lambda params, b: -loss(params)
    optimizer = kfac(f, "gaussian", **EXACT, damping=0.5, factor=2.0, loss=lies, rate=rate)
    _, state = trained(optimizer, p, [batch], lambda b: loss, 4)
    close(state.damping, torch.tensor(0.5, dtype=D), 0.0, "every five steps alone")
    _, state = trained(optimizer, p, [batch], lambda b: loss, 5)
    close(state.damping, torch.tensor(1.0, dtype=D), 0.0, "a bad ratio")


@pytest.mark.parametrize("rate", [None, 0.5])
def test_the_ratio_with_l2_is_that_of_the_whole_objective(rate):
    """Of a quadratic loss with l2 the model is exact, so that thresholds close to 1 tell."""
    f, p, batch, loss = regression()
    rules = {
        "damping": 0.5,
        "adapt_every": 1,
        "factor": 2.0,
        "upper": 1 - 1e-9,
        "lower": 1 - 1e-6,
        "l2": 0.3,
        "rate": rate,
    }
    _, state = trained(kfac(f, "gaussian", **EXACT, **rules), p, [batch], lambda b: loss, 1)
    close(state.damping, torch.tensor(0.25, dtype=D), 0.0, "ratio 1")
    per_example = lambda q, b: ((f(q, b[0]) - b[1]) ** 2).sum(1) / 2
    _, other = trained(kfac(f, "gaussian", **EXACT, **rules, loss=per_example), p, [batch], lambda b: loss, 1)
    close(other.damping, state.damping, 0.0, "a loss of one's own")


def test_the_average_is_without_bias():
    values = [torch.tensor(v, dtype=D) for v in (3.0, -1.0, 2.0, 7.0)]
    mean, weight = torch.zeros((), dtype=D), torch.zeros((), dtype=D)
    for v in values:
        mean, weight = averaged(mean, v, weight, 0.8)
    shares = torch.tensor([0.8**k for k in (3, 2, 1, 0)], dtype=D)
    close(mean, (shares * torch.stack(values)).sum() / shares.sum(), 1e-14, "mean")
    close(weight, torch.tensor(1 - 0.8**4, dtype=D), 1e-14, "weight")


def test_factors_and_bases_are_made_when_it_is_their_turn():
    f, p, _, _ = classes()
    batches = [(digits(40, 40 * k, features=6)) for k in range(4)]
    loss_of = lambda b: objective(f, *b)
    optimizer = kfac(f, **EXACT, factors_every=2, bases_every=3, adapt=False)
    state, states = optimizer.init(p, batches[0]), []
    for k in range(7):
        state = optimizer.update(grad(loss_of(batches[k % 4]))(p), state, p, batch=batches[k % 4])[1]
        states.append(state)
    same = lambda a, b: all(torch.equal(s, t) for s, t in zip(trees.leaves(a), trees.leaves(b)))
    assert [same(a.factors, b.factors) for a, b in zip(states, states[1:])] == [True, False, True, False, True, False]
    assert [same(a.bases, b.bases) for a, b in zip(states, states[1:])] == [True, True, False, True, True, False]
    want = fisher.fim(f, p, batches[0], layers=state.factors.layers)
    close(states[0].factors, want, 1e-13, "the average of equals")
    close(states[3].bases, eigenbases(states[3].factors), 0.0, "bases of what was known then")
    close(state.weight, torch.tensor(1 - 0.95**5, dtype=D), 1e-14, "weight")


def test_corrected_eigenvalues_are_second_moments():
    """Of equal batches the average is that of `update_diag`, in the old bases and, for a linear net, in new ones."""
    f, p, batch, loss = classes()
    g, optimizer = grad(loss)(p), kfac(f, **EXACT, bases_every=4, adapt=False, correct=True)
    _, state = optimizer.update(g, optimizer.init(p, batch), p, batch=batch)
    close(state.bases, eigenbases(state.factors), 0.0, "those of the factors at first")
    for _ in range(3):
        _, state = optimizer.update(g, state, p, batch=batch)
    want = state.bases.update_diag(f, p, batch)
    old = eigenbases(state.factors).eigenvalues
    share = 0.95**3 * (1 - 0.95**2) / (1 - 0.95**5)  # of what was known when the bases were made
    close(
        state.bases.eigenvalues, trees.axpy(share, old, trees.scale(1 - share, want.eigenvalues)), 1e-12, "the average"
    )
    _, after = optimizer.update(g, state, p, batch=batch)
    close(after.bases.bases, eigenbases(after.factors).bases, 0.0, "new bases")
    name = "output"
    U, W = after.bases.bases[name]
    Q = torch.kron(W.contiguous(), U.contiguous())
    moved, _ = averaged(state.bases.eigenvalues, want.eigenvalues, state.weight, 0.95)
    block = dataclasses.replace(state.bases, eigenvalues=moved).get_block(name)
    close(after.bases.eigenvalues[name].flatten(), (Q.T @ block @ Q).diagonal(), 1e-10, "turned")
    scales = lambda p, x: f(p, x) * p["scale"]
    whole = {**p, "scale": torch.ones(10, dtype=D)}
    other = kfac(scales, **EXACT, bases_every=3, adapt_every=1, correct=True)
    q, state = trained(other, whole, [batch], lambda b: lambda p: objective(scales, *b)(p), 6)
    assert objective(scales, *batch)(q) < 0.5 * objective(scales, *batch)(whole)


def test_several_batches_at_the_start_are_burn_in():
    f, p, _, _ = classes()
    batches = [digits(40, 40 * k, features=6) for k in range(3)]
    state = kfac(f, **EXACT).init(p, batches)
    close(state.factors, fisher.fim(f, p, batches), 1e-13, "factors")
    close(state.weight, torch.tensor(1 - 0.95**3, dtype=D), 1e-14, "weight")


def test_bases_solve_as_the_factors_do():
    x = torch.randn(7, 2, 9, dtype=D, generator=torch.Generator().manual_seed(0))
    p = {"kernel": torch.randn(4, 1, 3, dtype=D), "scale": torch.randn(4, dtype=D), "table": torch.randn(3, 4, dtype=D)}

    def f(p, x):
        z = torch.nn.functional.conv1d(x, p["kernel"], groups=2).mean(-1) * p["scale"]
        return z + p["table"][(x[:, 0, 0] > 0).long()]

    F = fisher.fim(f, p, x, fisher.PMatKFAC, "gaussian")
    v = noise_like(p, 1)
    for kind in ("default", "pi"):
        close(damped_solve(eigenbases(F), v, 0.1, kind), F.solve(v, 0.1, kind=kind), 1e-10, kind)


@pytest.mark.parametrize(
    "options", [{}, {"rate": 0.3, "clip": 0.5}, {"rate": 0.3, "norm_constraint": 1e-3, "l2": 0.1}, {"correct": True}]
)
def test_an_ensemble_is_one_vmap(options):
    f, _, batch, loss = classes(40)
    optimizer = kfac(f, bases_every=2, adapt_every=2, **options)
    noise = torch.rand(4, 1, 40, 10, dtype=D, generator=torch.Generator().manual_seed(0))

    def run(p, noise):
        state = optimizer.init(p, batch, noise=noise[0])
        for own in noise:
            updates, state = optimizer.update(grad(loss)(p), state, p, batch=batch, noise=own)
            p = trees.add(p, updates)
        return p, state

    members = [start(6, 5, 10, seed=k) for k in range(3)]
    many = torch.stack([noise, noise.flip(2), 1 - noise])
    params, state = vmap(run)(trees.stack(members), many)
    want, states = zip(*[run(q, n) for q, n in zip(members, many)])
    close(params, trees.stack(want), 1e-10, "params")
    close(state.damping, torch.stack([s.damping for s in states]), 1e-10, "damping")
    # a stacked state goes on, step by step
    more = lambda s, p, n: optimizer.update(grad(loss)(p), s, p, batch=batch, noise=n)[0]
    got = vmap(more)(state, params, many[:, 0])
    close(got, trees.stack([more(s, q, n[0]) for s, q, n in zip(states, want, many)]), 1e-10, "a step more")
    assert state.step.shape == (3,)
    apart = trees.stack([states[0], optimizer.init(members[1], batch, noise=noise[0])])
    with pytest.raises(ValueError, match=r"state\.step: got members after 0 and after 4 steps"):
        vmap(more)(apart, trees.stack(members[:2]), many[:2, 0])


def test_a_saved_state_goes_on_bit_by_bit():
    f, p, batch, loss = classes()
    optimizer = kfac(f, bases_every=3)
    draw = lambda: torch.Generator().manual_seed(3)
    params, state = trained(optimizer, p, [batch], lambda b: loss, 4, generator=draw())
    file = io.BytesIO()
    torch.save((params, state), file)
    file.seek(0)
    loaded, again = torch.load(file)
    assert repr(again) == repr(state)
    one = trained(optimizer, params, [batch], lambda b: loss, 3, state, generator=draw())
    two = trained(optimizer, loaded, [batch], lambda b: loss, 3, again, generator=draw())
    close(two, one, 0.0, "bits")


def test_the_clip_bounds_the_norm_of_the_whole_matrix():
    f, p, batch, loss = classes()
    F, g = fisher.fim(f, p, batch, fisher.PMatDense), grad(loss)(p)
    for rate in (None, 2.0):
        free, bound = (kfac(f, **EXACT, rate=rate, clip=clip, damping=1e-3) for clip in (None, 1e-3))
        s, _ = free.update(g, free.init(p, batch), p, batch=batch)
        t, _ = bound.update(g, bound.init(p, batch), p, batch=batch)
        assert F.vTMv(s) > 1e-3
        close(F.vTMv(t), torch.tensor(1e-3, dtype=D), 1e-12, "on the bound")
        close(t, trees.scale((1e-3 / F.vTMv(s)).sqrt(), s), 1e-12, "the same direction")
        wide = kfac(f, **EXACT, rate=rate, clip=1e3, damping=1e-3)
        close(wide.update(g, wide.init(p, batch), p, batch=batch)[0], s, 0.0, "inside")


def test_the_norm_constraint_bounds_the_step_by_the_factors():
    f, p, batch, loss = classes()
    g = grad(loss)(p)
    optimizer = kfac(f, **EXACT, rate=2.0, norm_constraint=1e-3, damping=0.1, kind="default")
    s, state = optimizer.update(g, optimizer.init(p, batch), p, batch=batch)
    squared = state.factors.vTMv(s) + 0.1 * trees.dot(s, s)
    close(1e3 * squared, torch.tensor(1.0, dtype=D), 1e-9, "rate^2 d'(F + damping I)d")
    natural = _flat(state.factors.solve(g, 0.1))
    close(_flat(s) / _flat(s).norm(), -natural / natural.norm(), 1e-9, "way")


def test_schedules_and_decoupled_decay():
    f, p, batch, loss = classes()
    g = grad(loss)(p)
    fixed = kfac(f, **EXACT, rate=0.25, damping=0.4, momentum=0.5, adapt=False)
    moving = kfac(
        f, **EXACT, rate=lambda n: 0.5 / (n + 1), damping=lambda n: 0.2 * (n + 1), momentum=lambda n: 0.5 * n,
        weight_decay=lambda n: 0.1 * n,
    )  # fmt: skip
    _, state = moving.update(g, moving.init(p, batch), p, batch=batch)
    close(state.damping, torch.tensor(0.2, dtype=D), 0.0, "scheduled, not adapted")
    got, after = moving.update(g, state, p, batch=batch)
    want, same = fixed.update(g, dataclasses.replace(state, damping=2 * state.damping), p, batch=batch)
    close(got, trees.axpy(-0.25 * 0.1, p, want), 1e-14, "rate, damping, momentum, decay at step 1")
    close(after.velocity, same.velocity, 1e-15, "the decay is no part of the velocity")
    exact = kfac(f, **EXACT, weight_decay=0.1, momentum=0.0)
    got, after = exact.update(g, state, p, batch=batch)
    d = after.factors.solve(g, state.damping, kind="pi")
    length = -trees.dot(after.velocity, after.velocity) / trees.dot(after.velocity, d)
    close(got, trees.axpy(-0.1 * length, p, after.velocity), 1e-10, "the exact length is the rate")


def test_a_part_of_the_layers():
    f, p, batch, loss = classes()
    layers = fisher.LayerCollection.from_function(f, p, batch[0]).select(["output"])
    optimizer = kfac(f, **EXACT, layers=layers, adapt_every=1, weight_decay=0.1)
    g = grad(loss)(p)
    updates, state = optimizer.update(g, optimizer.init(p, batch), p, batch=batch)
    assert not any(t.any() for t in trees.leaves(updates["hidden"]))
    own = fisher.fim(lambda q, x: f({**p, "output": q}, x), p["output"], batch)
    s = trees.scale(-1.0, own.solve(g["output"], 0.1))
    assert _flat(updates["output"]) @ _flat(s) > 0
    assert set(state.velocity) == {"output.weight", "output.bias"}
    whole = lambda q, b: objective(f, *b)(q)
    other = kfac(f, **EXACT, layers=layers, adapt_every=1, weight_decay=0.1, loss=whole)
    close(other.update(g, other.init(p, batch), p, batch=batch), (updates, state), 1e-12, "a loss of whole params")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_params_have_wide_states(dtype):
    f, p, (x, y), _ = classes()
    p, batch = trees.map(lambda t: t.to(dtype), p), (x.to(dtype), y)
    loss = objective(f, *batch)
    optimizer = kfac(f, bases_every=2, adapt_every=1, correct=True)
    r = torch.Generator().manual_seed(0)
    q, state = trained(optimizer, p, [batch], lambda b: loss, 6, generator=r)
    assert {t.dtype for t in trees.leaves(q)} == {dtype}
    assert {t.dtype for t in trees.leaves(state)} == {torch.float32, torch.int64}
    assert loss(q) < 0.8 * loss(p)


def test_singular_factors_in_single_precision():
    """Inputs that are mostly dead, of rank one, and all zero: a step is finite, and goes nowhere where nothing is known."""
    f = lambda p, x: x @ p["w"]
    for x in (torch.zeros(8, 30), torch.ones(8, 30), torch.eye(30)[:8]):
        p = {"w": torch.ones(30, 3) / 30}
        batch = (x, torch.zeros(8, dtype=torch.int64))
        optimizer = kfac(f, **EXACT, adapt_every=1, damping=1e-6)
        q, state = trained(optimizer, p, [batch], lambda b: objective(f, *b), 3)
        assert all(bool(t.isfinite().all()) for t in trees.leaves((q, state)))
        if not x.any():
            close(q, p, 0.0, "no gradient, no step")
            close(state.damping, torch.tensor(1e-6), 0.0, "nor is anything learned of the damping")


def test_digits_ahead_of_adam():
    import growth

    x, y = digits(600, features=30)
    f, p = mlp, start(30, 12, 10)
    batches = [(x[k : k + 100], y[k : k + 100]) for k in range(0, 600, 100)]
    loss_of = lambda b: objective(f, *b)
    q, _ = trained(kfac(f), p, batches, loss_of, 10, generator=torch.Generator().manual_seed(0))
    best, rule = torch.inf, None
    for lr in (3e-3, 1e-2, 3e-2, 1e-1):
        rule, plain = growth.adam(lr), p
        state = rule.init(p)
        for k in range(10):
            updates, state = rule.update(grad(loss_of(batches[k % 6]))(plain), state, plain)
            plain = trees.add(plain, updates)
        best = min(best, objective(f, x, y)(plain).item())
    assert objective(f, x, y)(q) < 0.9 * best


def normed(p, x):
    """Batch norm as in eval mode, with its statistics as leaves of params."""
    z = linear(p["hidden"], x)
    z = torch.nn.functional.batch_norm(z, p["norm"]["mean"], p["norm"]["var"], p["norm"]["scale"], p["norm"]["shift"])
    return linear(p["output"], torch.tanh(z))


def of_the_batch(p, x):
    z = linear(p["hidden"], x)
    return {"norm.mean": z.mean(0), ("norm", "var"): z.var(0, unbiased=False)}


def test_batch_norm_in_train_mode():
    x, y = digits(80, features=6)
    ones, zeros = torch.ones(5, dtype=D), torch.zeros(5, dtype=D)
    p = start(6, 5, 10) | {"norm": {"mean": zeros, "var": ones, "scale": ones, "shift": zeros}}

    def in_train_mode(p, x):
        z, norm = linear(p["hidden"], x), p["norm"]
        z = torch.nn.functional.batch_norm(z, None, None, norm["scale"], norm["shift"], training=True)
        return linear(p["output"], torch.tanh(z))

    loss = objective(in_train_mode, x, y)
    optimizer = kfac(normed, **EXACT, statistics=of_the_batch, adapt_every=1, forget=0.25)
    state, g = optimizer.init(p, (x, y)), grad(loss)(p)
    updates, after = optimizer.update(g, state, p, batch=(x, y))
    stats = of_the_batch(p, x)
    close(updates["norm"]["mean"], 0.25 * stats["norm.mean"], 1e-14, "running mean")
    close(updates["norm"]["var"], 0.25 * (stats["norm", "var"] - 1), 1e-14, "running variance")
    there = p | {"norm": p["norm"] | {"mean": stats["norm.mean"], "var": stats["norm", "var"]}}
    close(
        after.factors,
        fisher.fim(normed, there, x, layers=after.factors.layers),
        1e-13,
        "at the statistics of the batch",
    )
    assert not {"norm.mean", "norm.var"} & set(after.velocity)
    q, _ = trained(optimizer, p, [(x, y)], lambda b: loss, 15)
    assert loss(q) < 0.5 * loss(p)
    close(q["norm"]["mean"], of_the_batch(q, x)["norm.mean"], 0.5, "they follow")
    burnt = optimizer.init(p, [(x[:40], y[:40]), (x[40:], y[40:])])
    assert burnt.factors.layers == state.factors.layers
    for wrong, error, said in [
        (lambda p, x: x, TypeError, "statistics: returned Tensor"),
        (lambda p, x: {"norm.std": ones}, ValueError, "statistics: norm.std: no such leaf"),
        (lambda p, x: {"norm.mean": x}, ValueError, r"statistics: norm.mean: got \(80, 6\)"),
    ]:
        with pytest.raises(error, match=said):
            kfac(normed, **EXACT, statistics=wrong).init(p, (x, y))


def steps_of(optimizer, params, batch, loss, n=6):
    state, dampings = optimizer.init(params, batch), []
    for _ in range(n):
        updates, state = optimizer.update(grad(loss)(params), state, params, batch=batch)
        params = trees.add(params, updates)
        dampings.append(state.damping)
    return params, torch.stack(dampings)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_weights_are_copies(rate):
    """Of examples with weights w B / sum(w), as with w copies of each: steps, and the damping that follows the ratio."""
    f, p, (x, y), _ = classes()
    copies = torch.arange(len(y)) % 3
    w = copies.to(D) * len(y) / copies.sum()
    many = x.repeat_interleave(copies, 0), y.repeat_interleave(copies, 0)
    weighted = lambda q: (w * torch.nn.functional.cross_entropy(f(q, x), y, reduction="none")).mean()
    optimizer = kfac(f, **EXACT, adapt_every=1, bases_every=2, rate=rate)
    got, dampings = steps_of(optimizer, p, (x, y, w), weighted)
    want, expected = steps_of(optimizer, p, many, objective(f, *many))
    close(got, want, 1e-9, "params")
    close(dampings, expected, 1e-12, "dampings")
    assert len(set(dampings.tolist())) > 1


def test_masked_positions_are_ignored_ones():
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(12, 4, 3, generator=g, dtype=D), torch.randint(0, 5, (12, 4), generator=g)
    kept = torch.rand(12, 4, generator=g) < 0.6
    p = {"a": torch.randn(6, 3, generator=g, dtype=D), "b": torch.randn(5, 6, generator=g, dtype=D)}
    f = lambda q, x: torch.tanh(x @ q["a"].mT) @ q["b"].mT
    marked = torch.where(kept, t, -100)
    loss = lambda q: torch.nn.functional.cross_entropy(f(q, x).movedim(-1, 1), marked, reduction="sum") / 12
    optimizer = kfac(f, fisher.Categorical(class_axis=-1), **EXACT, adapt_every=1)
    got, dampings = steps_of(optimizer, p, (x, t, kept), loss)
    want, expected = steps_of(optimizer, p, (x, marked), loss)
    close(got, want, 1e-9, "params")
    close(dampings, expected, 1e-12, "dampings")
    counts = fisher.Poisson()
    y = lambda q: torch.tanh(x @ q["a"].mT)
    one = kfac(lambda q, x: torch.tanh(x @ q["a"].mT), counts, **EXACT, adapt_every=1)
    own, whole = {"a": p["a"]}, torch.rand(12, 4, 6, generator=g, dtype=D)
    w = torch.rand(12, 4, 6, generator=g, dtype=D)
    mean = lambda q: (w * (y(q).exp() - whole * y(q))).sum() / 12
    moved, dampings = steps_of(one, own, (x, whole, w), mean)
    assert mean(moved) < mean(own)
    several = fisher.Gaussian(torch.eye(5, dtype=D) + 0.1)
    with pytest.raises(ValueError, match=r"weight: got weights of positions with Gaussian|weight: got shape"):
        steps_of(kfac(f, several, **EXACT, adapt_every=1), p, (x, f(p, x), kept), loss)


def test_errors():
    f, p, batch, loss = classes()
    g = grad(loss)(p)
    for options, error, said in [
        ({"decay": 1.0}, ValueError, "decay: got 1.0"),
        ({"factors_every": 0}, ValueError, "factors_every: got 0"),
        ({"bases_every": 2.0}, TypeError, "bases_every: got float"),
        ({"damping": -1.0}, ValueError, "damping: got -1.0"),
        ({"rate": "fast"}, TypeError, "rate: got str"),
        ({"momentum": 1.0}, ValueError, "momentum: got 1.0"),
        ({"estimator": "monte carlo"}, ValueError, "estimator: got 'monte carlo'"),
        ({"clip": 0.0}, ValueError, "clip: got 0.0"),
        ({"norm_constraint": 0.1}, ValueError, "norm_constraint: got it with rate=None"),
        ({"factor": 1.0}, ValueError, "expected factor > 1"),
        ({"loss": 3}, TypeError, "loss: got int"),
        ({"kind": "cg"}, ValueError, "kind: got 'cg'"),
    ]:
        with pytest.raises(error, match=said):
            kfac(f, **options)
    optimizer = kfac(f)
    with pytest.raises(ValueError, match="give either generator"):
        optimizer.init(p, batch)
    state = optimizer.init(p, batch, generator=torch.Generator())
    with pytest.raises(ValueError, match="give either generator"):
        optimizer.update(g, state, p, batch=batch)
    draw = {"generator": torch.Generator()}
    with pytest.raises(ValueError, match=r"batch: got no target, expected \(x, target\)"):
        optimizer.update(g, state, p, batch=batch[0], **draw)
    with pytest.raises(TypeError, match="batch: got list, expected one batch"):
        optimizer.update(g, state, p, batch=[batch], **draw)
    with pytest.raises(TypeError, match="state: got dict"):
        optimizer.update(g, {}, p, batch=batch, **draw)
    with pytest.raises(ValueError, match="grads"):
        optimizer.update({"hidden": g["hidden"]}, state, p, batch=batch, **draw)
    falling = kfac(f, **EXACT, rate=lambda n: -1.0)
    state = falling.init(p, batch)
    with pytest.raises(ValueError, match=r"rate\(0\): got -1.0"):
        falling.update(g, state, p, batch=batch)
