"""`compiled_step`: the params and states of the step by hand, over every boundary of the schedules, in few graphs."""

import copy
import dataclasses

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import growth
from fisher import LayerCollection
from fisher.recipes import Optimizer, compiled_step, kfac, partitioned, soap
from linmaps import trees
from tests.laws import close

D = torch.float64
_r = torch.Generator().manual_seed(0)
P = {"w": torch.randn(3, 4, generator=_r, dtype=D), "v": torch.randn(4, 2, generator=_r, dtype=D)}
X, T = torch.randn(8, 3, generator=_r, dtype=D), torch.arange(8) % 2
BATCH = (X, T)


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def loss(p, batch):
    return torch.nn.functional.cross_entropy(f(p, batch[0]), batch[1])


LAYERS = LayerCollection.from_function(f, P, X)
ONLY = LAYERS.select(["w"])
TWICE = {"factors_every": 2, "bases_every": 3, "adapt_every": 2}
RULES = {
    "kfac": (kfac(f, layers=LAYERS, bases_every=3, adapt_every=2), 4),
    "kfac, found layers": (kfac(f, bases_every=3, adapt_every=2), 4),
    "kfac, everything now and then": (kfac(f, **TWICE), 4),
    "kfac, corrected": (kfac(f, correct=True, **TWICE), 5),
    "kfac, own loss": (kfac(f, loss=loss, l2=0.1, clip=0.5, **TWICE), 4),
    "kfac, schedules": (
        kfac(
            f, rate=lambda n: 0.1 / (1 + n), momentum=lambda n: 0.9 * n / (1 + n), weight_decay=lambda n: 0.01 * n,
            damping=lambda n: 1.0 / (1 + n), bases_every=2,
        ), 2,
    ),
    "soap": (soap(f, rate=lambda n: 0.01 * n, bases_every=3), 2),
    "partitioned": (
        partitioned({"k": (ONLY, kfac(f, layers=ONLY, **TWICE))}, rest=growth.adam(0.01)), 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_steps_are_those_by_hand(name):
    rule, most = RULES[name]
    step = compiled_step(loss, rule, backend="eager")
    one, two = (torch.Generator().manual_seed(1) for _ in range(2))
    p = q = P
    state, other = (rule.init(P, BATCH, generator=g) for g in (one, two))
    for n in range(8):
        before = loss(p, BATCH)
        updates, state = rule.update(grad(loss)(p, BATCH), state, p, batch=BATCH, generator=one)
        p = trees.add(p, updates)
        q, other, value = step(q, other, BATCH, generator=two)
        close(value, before, 1e-9, f"loss at step {n}")
        close(q, p, 1e-8, f"params after step {n}")
        close(_numbers(other), _numbers(state), 1e-7, f"state after step {n}")
    assert len(step.graphs) <= most, step.graphs
    assert one.get_state().equal(two.get_state()), "other draws"


def _numbers(state):
    """The tensors of a state; bases, whose vectors may have other signs, by what they do."""
    if isinstance(state, dict):
        return [t for own in state.values() for t in _numbers(own)]
    if not dataclasses.is_dataclass(state):
        return [t.to(D) for t in trees.leaves(state)]
    plain = [t.to(D) for t in trees.leaves((state.step, state.factors, state.weight, state.velocity, state.damping))]
    v = trees.map(torch.ones_like, state.factors.layers.restrict(P))
    return plain + trees.leaves(state.bases.mv(v))


@pytest.mark.parametrize("nested", [False, True])
def test_noise_reaches_the_parts_that_ask_for_it(nested):
    noisy = Optimizer(lambda params: (), lambda g, state, params, noise: (trees.scale(-noise.sum(), g), state))
    rule = partitioned({"k": (ONLY, kfac(f, layers=ONLY))}, rest=noisy)
    rule = partitioned({"all": (LAYERS, rule)}) if nested else rule
    state = rule.init(P, BATCH, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(1, 8, 2, dtype=D, generator=torch.Generator().manual_seed(2))
    updates, _ = rule.update(grad(loss)(P, BATCH), state, P, batch=BATCH, noise=noise)
    close(
        compiled_step(loss, rule, backend="eager")(P, state, BATCH, noise=noise)[0],
        trees.add(P, updates),
        1e-12,
        "noise",
    )


def test_a_part_that_draws_inside_is_refused():
    draws = lambda g, state, params, generator: (
        trees.map(lambda t: torch.randn(t.shape, generator=generator), g),
        state,
    )
    rule = partitioned({"k": (ONLY, kfac(f, layers=ONLY))}, rest=Optimizer(lambda params: (), draws))
    state = rule.init(P, BATCH, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"draws random numbers .*test_compiled_step"):
        compiled_step(loss, rule, backend="eager")(P, state, BATCH, generator=torch.Generator().manual_seed(1))


def test_an_ensemble_by_vmap():
    rule = kfac(f, layers=LAYERS, bases_every=2, adapt_every=2)
    step = compiled_step(loss, rule, backend="eager")
    members = [trees.map(lambda t, k=k: t * (1 + k), P) for k in range(3)]
    noise = torch.rand(4, 3, 1, 8, 2, generator=torch.Generator().manual_seed(2), dtype=D)
    states = [rule.init(p, BATCH, noise=noise[0, k]) for k, p in enumerate(members)]
    stacked, state = trees.stack(members), trees.stack(states)
    for n in range(3):
        stacked, state, values = vmap(lambda p, s, u: step(p, s, BATCH, noise=u))(stacked, state, noise[n])
        each = [step(p, s, BATCH, noise=noise[n, k]) for k, (p, s) in enumerate(zip(members, states))]
        members, states = [p for p, _, _ in each], [s for _, s, _ in each]
        close(stacked, trees.stack(members), 1e-8, f"step {n}")
        close(values, torch.stack([v for *_, v in each]), 1e-9, f"losses of step {n}")


def test_targets_that_are_none_are_said_at_the_first_step():
    rule = kfac(f, layers=LAYERS)
    state = rule.init(P, BATCH, generator=torch.Generator().manual_seed(0))
    step = compiled_step(lambda p, batch: f(p, batch[0]).mean(), rule, backend="eager")
    with pytest.raises(ValueError, match="target"):
        step(P, state, (X, T + 7), generator=torch.Generator().manual_seed(0))


def test_the_state_of_another_optimizer_is_refused():
    state = soap(f, layers=LAYERS).init(P, BATCH, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="is one of soap"):
        compiled_step(loss, kfac(f, layers=LAYERS), backend="eager")(P, state, BATCH)


@pytest.mark.parametrize("modes", [(jacfwd,), (jacrev,), (jacrev, jacrev)], ids=["forward", "reverse", "reverse twice"])
def test_derivatives_through_a_step(modes):
    rule = growth.sgd(0.1, momentum=0.0)
    step = compiled_step(loss, rule, backend="eager")
    moved = lambda move: lambda s: loss(move(trees.scale(1 + s, P)), BATCH)
    by_hand = lambda p: trees.axpy(-0.1, grad(loss)(p, BATCH), p)
    got, want = moved(lambda p: step(p, rule.init(p), BATCH)[0]), moved(by_hand)
    for mode in modes:
        got, want = mode(got), mode(want)
    at = torch.zeros((), dtype=D)
    close(got(at), want(at), 1e-10, "derivative")


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_is_a_pair(name):
    """As chains of other libraries take it."""
    init, update = rule = RULES[name][0]
    assert rule == (init, update)
    assert rule.prepare is not None
    assert copy.copy(rule).prepare is rule.prepare
    assert growth.sgd().prepare is None


@pytest.mark.slow
def test_steps_by_inductor_are_those_by_hand():
    """In layers of some size, whose results inductor would put where operands lie."""
    sizes, g = (32, 256, 64, 256, 32), torch.Generator().manual_seed(0)
    params = {str(k): torch.randn(o, i, generator=g) / i**0.5 for k, (i, o) in enumerate(zip(sizes, sizes[1:]))}

    def deep(p, x):
        for k in range(len(p)):
            x = torch.nn.functional.linear(torch.tanh(x) if k else x, p[str(k)])
        return x

    x = torch.rand(100, 32, generator=g)
    batch, of = (
        (x, x.round()),
        lambda p, b: torch.nn.functional.binary_cross_entropy_with_logits(deep(p, b[0]), b[1]) * 32,
    )
    rule = kfac(
        deep, "bernoulli", estimator="exact", adapt_every=1, layers=LayerCollection.from_function(deep, params, x)
    )
    step, p = compiled_step(of, rule), params
    state = other = rule.init(params, batch)
    for _ in range(2):
        updates, after = rule.update(grad(of)(p, batch), other, p, batch=batch)
        q, state, _ = step(p, state, batch)
        close(state.velocity, after.velocity, 1e-3, "velocity")
        close(q, trees.add(p, updates), 1e-3, "params")
        p, state = q, after
        other = after


WRONG = {
    "each example": (lambda p, batch: f(p, batch[0]).sum(1), r"got a result of shape \(8,\), .* take .mean\(\)"),
    "a number": (lambda p, batch: 0.0, "got a result of type float"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_loss_that_is_no_scalar_is_refused(kind):
    wrong, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        compiled_step(wrong, growth.adam(0.1), "eager")(P, growth.adam(0.1).init(P), BATCH)


def test_float32_steps_of_soap_are_those_by_hand():
    p, batch = trees.map(torch.Tensor.float, P), (X.float(), T)
    rule = soap(f, layers=LAYERS, estimator="exact", rate=1e-2, bases_every=3)
    step, state = compiled_step(loss, rule, "eager"), rule.init(p, batch)
    q, own = p, state
    for _ in range(12):
        q, own, _ = step(q, own, batch)
        updates, state = rule.update(grad(loss)(p, batch), state, p, batch=batch)
        p = trees.add(p, updates)
    close(q, p, 1e-5, "params")
