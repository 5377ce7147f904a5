"""Functions that call an autograd.Function whose forward takes ctx, as most of them do: no transform of torch.func runs it."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import vmap
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

import fisher
from fisher import recipes
from linmaps import trees
from tests.laws import close

D = torch.float64


class Reversal(torch.autograd.Function):
    """x, whose gradient is turned round and scaled (Ganin and Lempitsky, 2015)."""

    @staticmethod
    def forward(ctx, x, rate):
        ctx.rate = rate
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.rate * g, None


class Squashed(torch.autograd.Function):
    """tanh x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Once(Squashed):
    """tanh x, whose backward is differentiable once."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return Squashed.backward(ctx, g)


class Newer(torch.autograd.Function):
    """`Reversal` by half, as transforms take it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return -0.5 * g

    @staticmethod
    def jvp(ctx, v):
        return -0.5 * v


class Product(torch.autograd.Function):
    """x W'."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


def _randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


P = {"a": _randn(5, 4, seed=0), "s": _randn(5, seed=1), "b": _randn(3, 5, seed=2)}
X, T = _randn(8, 4, seed=3), torch.arange(8) % 3
OLDER = lambda p, x: linear(Reversal.apply(Squashed.apply(linear(x, p["a"])) * p["s"], 0.5), p["b"])
NEWER = lambda p, x: linear(Newer.apply(torch.tanh(linear(x, p["a"])) * p["s"]), p["b"])
REPRESENTATIONS = [
    fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatQuasiDiag,
    fisher.PMatLowRank, fisher.PMatImplicit,
]  # fmt: skip


def _fim(f, kind, estimator):
    drawn = {"generator": torch.Generator().manual_seed(0)} if estimator == "mc" else {}
    return fisher.fim(f, P, (X, T), kind, estimator=estimator, **drawn).mv(P)


def _losses(f):
    return lambda p, x, t: cross_entropy(f(p, x), t, reduction="none")


def _step(optimizer):
    return optimizer.update(P, optimizer.init(P, (X, T)), P, batch=(X, T))[0]


MADE = {
    **{
        f"{kind.__name__}, {estimator}": lambda f, kind=kind, estimator=estimator: _fim(f, kind, estimator)
        for kind in REPRESENTATIONS
        for estimator in ("exact", "mc", "empirical")
    },
    "batches, layers known": lambda f: fisher.fim(
        f, P, [X[:3], X[3:]], fisher.PMatKFAC, layers=fisher.LayerCollection.from_function(f, P, X)
    ).mv(P),
    "the whole of PMatImplicit": lambda f: fisher.fim(f, P, X, fisher.PMatImplicit).to_torch(),
    "its trace": lambda f: fisher.fim(f, P, X, fisher.PMatImplicit).trace(),
    "its solve": lambda f: fisher.fim(f, P, X, fisher.PMatImplicit).solve(P, regul=1.0),
    "jacobian": lambda f: fisher.jacobian(f, P, X).to_torch(),
    "jvp": lambda f: fisher.jacobian(f, P, X, fisher.PFMapImplicit).jvp(P),
    "vjp": lambda f: fisher.jacobian(f, P, X, fisher.PFMapImplicit).vjp(torch.ones(8, 3, dtype=D)),
    "gram": lambda f: fisher.gram(f, P, X).kernel,
    "example_gradients": lambda f: fisher.example_gradients(_losses(f), P, (X, T)).to_torch(),
    "ggn": lambda f: fisher.ggn(f, lambda y, t: cross_entropy(y, t, reduction="none"), P, (X, T)).mv(P),
    "kfac": lambda f: _step(recipes.kfac(f, estimator="exact")),
    "soap": lambda f: _step(recipes.soap(f, estimator="exact")),
    "laplace": lambda f: recipes.laplace(f, P, fisher.fim(f, P, X), 8).probabilities(X),
    "influence": lambda f: recipes.influence(
        f, P, (X, T), fisher.fim(f, P, X, fisher.PMatEKFAC), (X[:2], T[:2]), regul=0.1
    ),
    "function space": lambda f: recipes.functional_laplace(f, P, X).sample(torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_is_what_transforms_make(name):
    tensors = lambda made: [t for t in trees.leaves(made) if t.is_floating_point()]
    close(tensors(MADE[name](OLDER)), tensors(MADE[name](NEWER)), 1e-10, name)


def test_a_weight_inside_has_an_exact_block_where_asked_for():
    f = lambda p, x: Product.apply(torch.tanh(linear(x, p["a"])), p["b"])
    with pytest.raises(ValueError, match=r"b: has a gradient but is used by no torch call.*exact=\('b',\)"):
        fisher.fim(f, P, X, fisher.PMatBlockDiag)
    plain = lambda p, x: linear(torch.tanh(linear(x, p["a"])), p["b"])
    own = {"a": P["a"], "b": P["b"]}
    made, want = (
        fisher.fim(
            g, own, X, fisher.PMatBlockDiag, layers=fisher.LayerCollection.from_function(g, own, X, exact=("b",))
        )
        for g in (f, plain)
    )
    close(made.mv(own), want.mv(own), 1e-12, "exact block")


def test_modules_with_hooks_at_their_backward():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    f, params = fisher.functional(module)
    want = fisher.fim(f, params, X).mv(params)
    module[1].register_full_backward_hook(lambda module, before, after: None)
    f, params = fisher.functional(module)
    close(fisher.fim(f, params, X).mv(params), want, 1e-12, "hooks")


@pytest.mark.parametrize("entry", ["fim", "jvp"])
def test_no_graph_is_lost(entry):
    """Of a tensor that f closes over: torch.func.vjp would keep it, and so it is refused; of weights it stays."""
    c = torch.ones(5, dtype=D, requires_grad=True)
    f = lambda p, x: OLDER({**p, "s": p["s"] * c}, x)
    entries = {
        "fim": lambda: fisher.fim(f, P, X),
        "jvp": lambda: fisher.PFMapImplicit(f, P, X).jvp(P),
    }
    with pytest.raises(ValueError, match=r"forward takes ctx"):
        entries[entry]()


@pytest.mark.parametrize("kind", [fisher.PMatDense, fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatEKFAC])
def test_weights_keep_their_graph(kind):
    """The slope of a trace in the weights of examples is that of the newer function."""

    def slope(f):
        w = torch.linspace(0.5, 2.0, 8, dtype=D).requires_grad_()
        made = fisher.fim(f, P, (X, T, w), kind, layers=fisher.LayerCollection.from_function(f, P, X))
        return torch.autograd.grad(made.trace(), w)[0]

    close(slope(OLDER), slope(NEWER), 1e-12, kind.__name__)


class Swish(torch.autograd.Function):
    """x sigmoid(x), which saves its sigmoid: torch takes that for a constant in second derivatives."""

    @staticmethod
    def forward(ctx, x):
        s = torch.sigmoid(x)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * (s + x * s * (1 - s))


@pytest.mark.parametrize("kind", [fisher.PMatDense, fisher.PMatImplicit, fisher.PMatDiag])
@pytest.mark.parametrize("function", [Squashed, Swish])
def test_hessians_are_refused_and_products_with_jacobians_right(function, kind):
    f = lambda p, x: linear(function.apply(linear(x, p["a"])) * p["s"], p["b"])
    with pytest.raises(ValueError, match=r"forward takes ctx.*ggn or fim"):
        fisher.hessian(_losses(f), P, (X, T), kind).mv(P)
    plain = torch.tanh if function is Squashed else nn.functional.silu
    g = lambda p, x: linear(plain(linear(x, p["a"])) * p["s"], p["b"])
    close(fisher.fim(f, P, X, fisher.PMatImplicit).mv(P), fisher.fim(g, P, X, fisher.PMatImplicit).mv(P), 1e-12, "F v")


def test_transforms_and_checkpoints_are_refused_by_cause():
    with pytest.raises(ValueError, match=r"forward takes ctx.*expected one with setup_context"):
        vmap(lambda p: fisher.fim(OLDER, p, X).trace())(trees.stack([P, P]))
    f = lambda p, x: checkpoint(lambda z: linear(torch.tanh(linear(z, p["a"])), p["b"]), x, use_reentrant=True)
    with pytest.raises(ValueError, match=r"gradient checkpointing.*run it without checkpointing"):
        fisher.fim(f, {"a": P["a"], "b": P["b"]}, X)


PRODUCTS = {
    "jvp": lambda f: fisher.PFMapImplicit(f, P, X).jvp(P),
    "F v": lambda f: fisher.PMatImplicit.of(f, P, X).mv(P),
    "jacobian": lambda f: fisher.jacobian(f, P, X, fisher.PFMapImplicit).jvp(P),
    "ggn": lambda f: fisher.ggn(f, lambda y, t: cross_entropy(y, t, reduction="none"), P, (X, T)).mv(P),
    "kfac": MADE["kfac"],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_backward_that_is_differentiable_once_are_refused(name):
    f = lambda p, x: OLDER(p, Once.apply(x @ p["a"].T @ p["a"]))
    with pytest.raises(ValueError, match=r"backward has no derivative of its own.*once_differentiable.*PMatDense"):
        PRODUCTS[name](f)
    assert fisher.fim(f, P, X, fisher.PMatDense).trace() > 0
