"""Several optimizers, each for some of the leaves: each does what it does alone; growth; errors; TorchOpt's chain."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
import growth
from fisher.recipes import compiled_step, kfac, partitioned
from linmaps import trees
from tests.fisher.digits import digits, mlp, objective, start
from tests.laws import close

try:
    import torchopt
except ImportError:
    torchopt = None


def problem(n=60):
    x, y = digits(n, features=6)
    return start(6, 5, 10), (x, y), objective(mlp, x, y)


def both(p, batch, **options):
    layers = fisher.LayerCollection.from_function(mlp, p, batch[0]).select(["output"])
    rule = kfac(mlp, layers=layers, estimator="exact", **options)
    return rule, partitioned({"kfac": (layers, rule)}, rest=growth.adam(0.01))


def test_each_does_what_it_does_alone():
    p, batch, loss = problem()
    rule, two = both(p, batch)
    g, adam = grad(loss)(p), growth.adam(0.01)
    updates, state = two.update(g, two.init(p, batch), p, batch=batch)
    close(updates["output"], rule.update(g, rule.init(p, batch), p, batch=batch)[0]["output"], 0.0, "kfac")
    close(updates["hidden"], adam.update(g["hidden"], adam.init(p["hidden"]), p["hidden"])[0], 0.0, "adam")
    assert set(state["rest"]["mean"]) == {"hidden.bias", "hidden.weight"}
    for which in ("output", ["output.weight", "output.bias"], lambda path: path.startswith("output")):
        same = partitioned({"first": (which, growth.sgd(0.5)), "second": ("hidden", growth.sgd(0.25))})
        found, _ = same.update(g, same.init(p), p)
        close(found["output"], trees.scale(-0.5, g["output"]), 1e-15, "first")
        close(found["hidden"], trees.scale(-0.25, g["hidden"]), 1e-15, "second")


def test_an_ensemble_over_several_steps():
    p, batch, loss = problem()
    _, two = both(p, batch, bases_every=2)

    def run(p):
        state = two.init(p, batch)
        for _ in range(3):
            updates, state = two.update(grad(loss)(p), state, p, batch=batch)
            p = trees.add(p, updates)
        return p

    members = [start(6, 5, 10, seed=k) for k in range(3)]
    close(vmap(run)(trees.stack(members)), trees.stack([run(q) for q in members]), 1e-10, "ensemble")


def test_states_go_along_with_growth():
    p, batch, loss = problem()
    _, two = both(p, batch)
    _, state = two.update(grad(loss)(p), two.init(p, batch), p, batch=batch)
    pad = torch.nn.functional.pad
    larger = {
        "hidden": {"weight": pad(p["hidden"]["weight"], (0, 0, 0, 2)), "bias": pad(p["hidden"]["bias"], (0, 2))},
        "output": {"weight": pad(p["output"]["weight"], (0, 2)), "bias": p["output"]["bias"]},
    }
    carried = growth.grow_like(state, p, larger)
    updates, _ = two.update(grad(loss)(larger), carried, larger, batch=batch)
    trees.check_like(updates, larger, "updates")


def test_errors():
    p, batch, _ = problem()
    layers = fisher.LayerCollection.from_function(mlp, p, batch[0])
    plain = growth.sgd(0.1)
    for parts, rest, error, said in [
        ({}, plain, ValueError, "parts: got none"),
        ({"rest": ("hidden", plain)}, None, ValueError, "parts: got the name 'rest'"),
        ({"a": plain.init}, None, TypeError, r"parts: a: got function, expected \(which"),
        (
            {"a": ("hidden", torch.optim.SGD)},
            None,
            TypeError,
            "parts: a: got type without a function init.*a torch.optim",
        ),
        ({"a": ("hidden", plain)}, torch.optim.SGD, TypeError, "rest: got type without a function init"),
    ]:
        with pytest.raises(error, match=said):
            partitioned(parts, rest)
    for parts, rest, error, said in [
        ({"a": ("hidden", plain)}, None, ValueError, "output.bias: is in no part"),
        (
            {"a": ("hidden", plain), "b": ("hidden.bias", plain)},
            plain,
            ValueError,
            r"hidden.bias: is in the parts \['a', 'b'\]",
        ),
        ({"a": ("first", plain)}, plain, ValueError, "a: first: no such leaf"),
        ({"a": (3, plain)}, plain, TypeError, "a: got int"),
        ({"a": ("hidden", kfac(mlp, estimator="exact"))}, plain, ValueError, "a: the optimizer moves"),
        ({"a": (layers.select(["output"]), kfac(mlp, estimator="exact"))}, plain, ValueError, "a: the optimizer moves"),
    ]:
        with pytest.raises(error, match=said):
            partitioned(parts, rest).init(p, batch)


class OfTorchOpt:
    """A pair in the form of TorchOpt's: params by keyword, in place unless told otherwise."""

    init = staticmethod(lambda params: {"seen": torch.zeros(())})

    @staticmethod
    def update(updates, state, *, params=None, inplace=True):
        rate = 0.25 + 0 * trees.leaves(params)[0].sum()
        scaled = trees.map(lambda g: g.mul_(-rate) if inplace else -rate * g, updates)
        return scaled, {"seen": state["seen"] + 1}


def of_torchopt():
    return {"fake": OfTorchOpt} | ({} if torchopt is None else {"torchopt": torchopt.sgd(0.25)})


@pytest.mark.parametrize("name", of_torchopt())
def test_pairs_of_torchopt(name):
    rule = of_torchopt()[name]
    p, batch, loss = problem()
    g = grad(loss)(p)
    kept, want = trees.map(torch.clone, g), trees.scale(-0.25, g)
    for parts, rest in [({"a": ("hidden", rule)}, growth.sgd(0.25)), ({"a": ("hidden", growth.sgd(0.25))}, rule)]:
        two = partitioned(parts, rest)
        updates, state = two.update(g, two.init(p), p)
        close(updates, want, 1e-15, "updates")
        close(g, kept, 0.0, "the gradient stays")
        two.update(g, state, p)
    step = compiled_step(lambda p, batch: loss(p), rule, backend="eager")
    moved, _, _ = step(p, rule.init(p), batch)
    close(moved, trees.add(p, want), 1e-15, "compiled step")


def test_in_a_chain_of_torchopt():
    """An update is a gradient transformation once the batch is bound: what comes after sees the natural step."""
    if torchopt is None:
        pytest.skip("torchopt is not installed")
    p, batch, loss = problem()
    rule = kfac(mlp, estimator="exact")
    bound = torchopt.base.GradientTransformation(
        lambda params: rule.init(params, batch),
        lambda updates, state, *, params=None, inplace=False: rule.update(updates, state, params, batch=batch),
    )
    chained = torchopt.chain(bound, torchopt.transform.scale(0.5))
    g = grad(loss)(p)
    updates, state = chained.update(g, chained.init(p), params=p)
    want, after = rule.update(g, rule.init(p, batch), p, batch=batch)
    close(updates, trees.scale(0.5, want), 1e-15, "chain")
    close(state[0], after, 0.0, "state")
    close(torchopt.apply_updates(p, updates, inplace=False), trees.add(p, updates), 0.0, "applied")
