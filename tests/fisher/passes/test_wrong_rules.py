"""A call whose rule for several columns at once is wrong: what is made of f is right all the same."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import fisher
import growth
from fisher.recipes import functional_laplace, laplace
from linmaps import trees
from tests.laws import close

D = torch.float64


class Slope(torch.autograd.Function):
    """g cos x; half of it more under vmap."""

    @staticmethod
    def forward(g, x):
        return g * x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, h):
        g, x = ctx.saved_tensors
        return h * x.cos(), -h * g * x.sin()

    @staticmethod
    def jvp(ctx, dg, dx):
        g, x = ctx.saved_tensors
        return dg * x.cos() - g * dx * x.sin()

    @staticmethod
    def vmap(info, dims, g, x):
        g, x = (t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape) for t, d in zip((g, x), dims))
        return 1.5 * Slope.apply(g, x), 0


class Sine(torch.autograd.Function):
    """sin x, by `Slope`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return Slope.apply(g, ctx.saved_tensors[0])

    @staticmethod
    def jvp(ctx, v):
        return v * ctx.saved_tensors[0].cos()


def _randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


P = {"a": _randn(4, 3, seed=0), "b": _randn(3, 4, seed=1), "c": _randn(4, seed=2)}
X, T = _randn(6, 4, seed=3), torch.arange(6) % 4


def of(sine):
    return lambda p, x: sine(sine(x @ p["a"]) @ p["b"]) * p["c"]


REPRESENTATIONS = [
    fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatQuasiDiag,
    fisher.PMatLowRank, fisher.PMatImplicit,
]  # fmt: skip
MADE = {
    **{
        f"{kind.__name__}, {estimator}": lambda f, kind=kind, estimator=estimator: (
            fisher.fim(f, P, (X, T), kind, estimator=estimator).mv(P)
        )
        for kind in REPRESENTATIONS
        for estimator in ("exact", "empirical")
        if kind is not fisher.PMatImplicit
    },
    "layers of another batch": lambda f: fisher.fim(
        f, P, X, fisher.PMatKFAC, layers=fisher.LayerCollection.from_function(f, P, X[:3])
    ).mv(P),
    "some layers": lambda f: fisher.fim(
        f, P, X, fisher.PMatKFAC, layers=fisher.LayerCollection.from_function(f, P, X).select(["a"])
    ).mv({"a": P["a"]}),
    "gram": lambda f: fisher.gram(f, P, X).kernel,
    "hessian": lambda f: fisher.hessian(
        lambda p, x, t: cross_entropy(f(p, x), t, reduction="none"), P, (X, T), fisher.PMatDense
    ).mv(P),
    "laplace": lambda f: laplace(f, P, fisher.fim(f, P, X, fisher.PMatKFAC), 6).probabilities(X),
    "functional laplace": lambda f: functional_laplace(f, P, X).probabilities(X),
    "kfac": lambda f: _step(fisher.recipes.kfac(f, estimator="exact")),
    "statistics": lambda f: growth.statistics(
        lambda p, x: f(p, torch.relu(x @ p["first"])), P | {"first": torch.eye(4, dtype=D)}, (X, T),
        growth.Pair("first", "a", layout="in_out"), loss="cross_entropy"),
}  # fmt: skip


def _step(optimizer):
    return optimizer.update(P, optimizer.init(P, (X, T)), P, batch=(X, T))[0]


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_of_a_function_with_a_wrong_rule(name):
    tensors = lambda made: [t for t in trees.leaves(made) if t.is_floating_point()]
    close(tensors(MADE[name](of(Sine.apply))), tensors(MADE[name](of(torch.sin))), 1e-10, name)


class Half(Sine):
    """sin x; half of its derivative in forward mode."""

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, v):
        return 0.5 * v * ctx.saved_tensors[0].cos()


REFUSED = {
    "PMatImplicit": lambda f: fisher.fim(f, P, X, fisher.PMatImplicit),
    "PMatImplicit, layers known": lambda f: fisher.fim(
        f, P, X, fisher.PMatImplicit, layers=fisher.LayerCollection.from_function(f, P, X)
    ),
    "ggn": lambda f: fisher.ggn(f, lambda y, t: cross_entropy(y, t, reduction="none"), P, (X, T), fisher.PMatDense),
}
FORWARD = REFUSED | {
    "PMatImplicit.of": lambda f: fisher.PMatImplicit.of(f, P, X),
    "PFMapImplicit": lambda f: fisher.jacobian(f, P, X, fisher.PFMapImplicit),
    "ggn, implicit": lambda f: fisher.ggn(f, lambda y, t: cross_entropy(y, t, reduction="none"), P, (X, T), fisher.PMatImplicit),
    "kfac": MADE["kfac"],
    "a sample in function space": lambda f: functional_laplace(f, P, X).sample(torch.Generator().manual_seed(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED, "jacobian"])
def test_products_with_several_vectors_are_refused(name):
    run = REFUSED.get(name, lambda f: fisher.jacobian(f, P, X))
    with pytest.raises(ValueError, match=r"wrong rule for torch.func.vmap"):
        run(of(Sine.apply))


@pytest.mark.parametrize("name", FORWARD)
def test_a_wrong_forward_mode_is_refused(name):
    """Of a factor of each layer too, of which products stay symmetric."""
    with pytest.raises(ValueError, match=r"forward mode and by its reverse mode differ"):
        FORWARD[name](of(Half.apply))
    with pytest.raises(ValueError, match=r"forward mode and by its reverse mode differ"):
        FORWARD[name](lambda p, x: Half.apply(of(torch.sin)(p, x)))


def test_the_layers_say_that_columns_go_one_by_one():
    made = fisher.LayerCollection.from_function(of(Sine.apply), P, X)
    assert made.singly
    assert made.select(["a"]).singly
    assert not fisher.LayerCollection.from_function(of(torch.sin), P, X).singly
    assert "columns one by one" in repr(made).splitlines()[0]


SPELLED = {
    "cdist": lambda p, x: -torch.cdist(x.tanh() @ p["a"], p["c"][:3] * p["b"].T),
    "as_strided": lambda p, x: (x @ p["a"]).as_strided((len(x), 2, 2), (3, 1, 1)).tanh().sum(2) @ p["b"][:2] * p["c"],
    "roll": lambda p, x: (x @ p["a"] @ p["b"].roll(3)) * p["c"].roll(1),
}


@pytest.mark.parametrize("name", SPELLED)
def test_what_is_written_by_other_calls_goes_in_columns_and_products(name):
    f = SPELLED[name]
    assert not fisher.LayerCollection.from_function(f, P, X).singly
    close(fisher.fim(f, P, X, fisher.PMatImplicit).mv(P), fisher.fim(f, P, X, fisher.PMatDense).mv(P), 1e-10, name)


def written(p, x):
    """Half of a copy is doubled, through a view with strides of its own."""
    h = x @ p["a"] + 0.0
    h.as_strided((len(x), 2), (3, 1)).mul_(2.0)
    return h.tanh() @ p["b"]


def test_a_view_that_is_written_into_stays_one():
    own = {"a": P["a"], "b": P["b"]}
    plain = lambda p, x: (x @ p["a"] * torch.tensor([2.0, 2.0, 1.0], dtype=D)).tanh() @ p["b"]
    close(fisher.jacobian(written, own, X).to_torch(), fisher.jacobian(plain, own, X).to_torch(), 1e-10, "rows")
    layers = fisher.LayerCollection.from_function(written, own, X)
    with pytest.raises(RuntimeError, match=r"being modified inplace"):  # under vmap it is a copy
        torch.func.vmap(lambda p: fisher.fim(written, p, X, layers=layers).trace())(trees.stack([own, own]))


def test_a_leaf_that_moves_no_output_has_zero_rows():
    """The code book of quantized units, whose nearest entries are constants: none of its gradients knows an example."""

    def f(p, x):
        h = x @ p["a"]
        nearest = p["codes"][torch.cdist(h, p["codes"]).argmin(1)]
        return (h + (nearest - h).detach()) @ p["b"]

    params = {"a": P["a"], "b": P["b"], "codes": _randn(7, 3, seed=5)}
    for kind in (fisher.PMatDense, fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatEKFAC):
        F = fisher.fim(f, params, X, kind)
        assert not F.mv(params)["codes"].any()
    J = fisher.jacobian(f, params, X)
    close(
        fisher.gram(f, params, X).kernel.flatten(),
        (J.to_torch().flatten(0, 1) @ J.to_torch().flatten(0, 1).T).flatten(),
        1e-10,
        "kernel",
    )
