"""Laws of products with weights of any axes: each call is the product that its form says, and its KFAC is exact where one is."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.func import vjp, vmap

import fisher
from fisher.collector.rules.forms import Convolution
from linmaps import trees
from tests.fisher.collector.test_rules import product, randn
from tests.laws import close
from tests.oracles import fisher_matrix

D = torch.float64
# name: (call of w and x, shape of w, shape of x, kind)
CALLS = {
    "einsum ...i,oi->...o": (lambda w, x: torch.einsum("...i,oi->...o", x, w), (3, 4), (5, 2, 4), "einsum"),
    "einsum b...i,io->...ob": (lambda w, x: torch.einsum("b...i,io->b...o", x, w), (4, 3), (5, 2, 4), "einsum"),
    "einsum oi,...i": (lambda w, x: torch.einsum("oi,...i->...o", w, x), (3, 4), (5, 2, 4), "einsum"),
    "einsum without arrow": (lambda w, x: torch.einsum("bti,io", x, w).transpose(1, 2), (4, 3), (5, 2, 4), "einsum"),
    "tensordot 1": (lambda w, x: torch.tensordot(x, w, 1), (4, 3), (5, 2, 4), "tensordot"),
    "tensordot 2": (lambda w, x: torch.tensordot(x, w, 2), (2, 4, 3), (5, 2, 4), "tensordot"),
    "tensordot dims": (lambda w, x: torch.tensordot(x, w, dims=([1, 2], [2, 0])), (4, 3, 2), (5, 2, 4), "tensordot"),
    "tensordot left": (lambda w, x: torch.tensordot(w, x, ([1], [-1])).movedim(0, -1), (3, 4), (5, 2, 4), "tensordot"),
    "inner": (lambda w, x: torch.inner(x, w), (3, 4), (5, 2, 4), "inner"),
    "inner left": (lambda w, x: torch.inner(w, x).movedim(0, -1), (3, 4), (5, 2, 4), "inner"),
    "W @ x.T": (lambda w, x: (w @ x.T).T, (3, 4), (5, 4), "matmul"),
    "W @ x.mT": (lambda w, x: (w @ x.mT).mT, (3, 4), (5, 2, 4), "matmul"),
    "W @ x[..., None]": (lambda w, x: (w @ x[..., None])[..., 0], (3, 4), (5, 4), "matmul"),
    "x @ w": (lambda w, x: x @ w, (4,), (5, 2, 4), "matmul"),
    "mv": (lambda w, x: torch.mv(x, w)[:, None], (4,), (5, 4), "matmul"),
    "heads": (lambda w, x: x @ w, (2, 4, 3), (5, 2, 1, 4), "matmul"),
    "heads of one x": (lambda w, x: x[:, None] @ w, (2, 4, 3), (5, 3, 4), "matmul"),
    "a weight for all heads": (lambda w, x: x @ w[None], (4, 3), (5, 2, 3, 4), "matmul"),
    "heads of matrices": (lambda w, x: x @ w, (2, 4, 3), (5, 2, 3, 4), "matmul"),
    "bmm": (lambda w, x: torch.bmm(x.transpose(0, 1), w).transpose(0, 1), (2, 4, 3), (5, 2, 4), "matmul"),
    "heads left": (lambda w, x: w @ x[..., None], (2, 3, 4), (5, 2, 4), "matmul"),
    "bilinear": (lambda w, x: F.bilinear(x[..., :2], x[..., 2:], w), (3, 2, 2), (5, 2, 4), "bilinear"),
    "another shape": (lambda w, x: x @ w.flatten(1), (4, 3, 2), (5, 2, 4), "matmul"),
    "linear of another shape": (lambda w, x: F.linear(x, w.reshape(3, 4)), (6, 2), (5, 2, 4), "linear"),
}
over_calls = pytest.mark.parametrize("name", CALLS)
# torch's own, of calls without a batching rule
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


def case(name):
    call, w, x, kind = CALLS[name]
    return call, {"w": randn(*w, seed=1)}, randn(*x, seed=2), kind


@over_calls
def test_a_call_is_the_product_of_its_form(name):
    call, params, x, kind = case(name)
    layer = fisher.LayerCollection.from_function(lambda p, x: call(p["w"], x), params, x)["w"]
    assert (layer.kind, layer.family, layer.note) == (kind, "product", "")
    if name not in MOVED:
        _, got, want = product(lambda p, x: call(p["w"], x), params, x)
        close(got, want, 1e-12, name)


MOVED = {  # their outputs are moved after the call
    "einsum without arrow", "tensordot left", "inner left", "W @ x.T", "W @ x.mT", "W @ x[..., None]", "mv", "bmm",
}  # fmt: skip


@over_calls
def test_every_representation_is_right(name):
    call, params, x, _ = case(name)
    f = lambda p, x: torch.tanh(call(p["w"], x))
    layers = fisher.LayerCollection.from_function(f, params, x, strict=True)
    want = fisher_matrix(f, params, x, "gaussian")
    made = lambda kind: fisher.fim(f, params, x, kind, "gaussian", layers=layers)
    close(made(fisher.PMatDense).matrix, want, 1e-10, "dense")
    close(trees.ravel(made(fisher.PMatDiag).get_diag())[0], want.diagonal(), 1e-10, "diagonal")
    close(made(fisher.PMatBlockDiag).to_torch(), want, 1e-10, "one block")
    J = fisher.jacobian(f, params, x, layers=layers)
    close(J.to_torch(), fisher.jacobian(f, params, x).to_torch(), 1e-10, "rows")


@over_calls
def test_kfac_of_a_linear_function_is_exact_at_one_position(name):
    call, params, x, _ = case(name)
    f = lambda p, x: call(p["w"], x)
    layers = fisher.LayerCollection.from_function(f, params, x)
    (k,) = layers["w"].uses
    _, io = fisher.layer_io(f, params, x, layers, lambda y: torch.ones_like(y)[None])
    if io[k][0].shape[1] > 1:  # several positions: another matrix, which vmap and the ensemble see
        F = fisher.fim(f, params, x, fisher.PMatKFAC, "gaussian", layers=layers)
        assert F.factors.keys() == {"w"}
        return
    made = fisher.fim(f, params, x, fisher.PMatKFAC, "gaussian", layers=layers).to_torch()
    close(made, fisher_matrix(f, params, x, "gaussian"), 1e-10, name)


@over_calls
def test_an_ensemble_is_its_members(name):
    call, params, x, _ = case(name)
    f = lambda p, x: torch.tanh(call(p["w"], x))
    layers = fisher.LayerCollection.from_function(f, params, x)
    kfac = lambda p: fisher.fim(f, p, x, likelihood="gaussian", layers=layers, check_finite=False).factors
    stacked = {"w": torch.stack([params["w"], 2 * params["w"]])}
    members = [kfac({"w": w}) for w in stacked["w"]]
    close(vmap(kfac)(stacked), trees.stack(members), 1e-10, name)


@pytest.mark.parametrize("equation", ["bti,ii->bt", "bti,boi->bto", "bhti,hkio->bhkto", "bi,oi->"])
def test_what_is_no_product_has_an_exact_block(equation):
    """Diagonals, weights with an axis of examples, sums over all."""
    shapes = {"bti,ii->bt": ((4, 4), (3, 2, 4)), "bti,boi->bto": ((1, 3, 4), (3, 2, 4))}
    shape, size = shapes.get(equation, ((3, 4), (3, 4)) if equation[-2:] == "->" else ((2, 2, 4, 3), (3, 2, 5, 4)))

    def f(p, x):
        w = p["w"].expand(len(x), -1, -1) if "boi" in equation else p["w"]
        if equation.endswith("->"):
            return torch.stack([torch.einsum("i,oi->", row, w)[None] for row in x])
        return torch.einsum(equation, x, w).flatten(1)

    params, x = {"w": randn(*shape)}, randn(*size, seed=1)
    layers = fisher.LayerCollection.from_function(f, params, x)
    made = fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix
    close(made, fisher_matrix(f, params, x, "gaussian"), 1e-10, equation)
    assert layers["w"].kind in ("exact", "einsum")


CUTS = {
    "one flat vector": (
        lambda p, x: (
            torch.tanh(F.linear(x, p["flat"][:12].view(3, 4), p["flat"][12:15])) @ p["flat"][15:].reshape(3, 2)
        ),
        {"flat": (21,)},
        ["flat[0:12]", "flat[12:15]", "flat[15:21]"],
    ),
    "weights of layers in one leaf": (
        lambda p, x: F.linear(torch.tanh(F.linear(x, p["w"][0], p["b"][0])), p["w"][-1], p["b"][-1]),
        {"w": (2, 4, 4), "b": (2, 4)},
        ["w[0:1]", "w[1:2]"],
    ),
    "heads one by one": (
        lambda p, x: torch.cat([torch.tanh(x @ w + b) for w, b in zip(p["w"].unbind(0), p["b"])], 1),
        {"w": (2, 4, 3), "b": (2, 3)},
        ["b[0:1]", "b[1:2]", "w[0:1]", "w[1:2]"],
    ),
    "selected": (
        lambda p, x: torch.tanh(x @ torch.select(p["w"], 0, 0)) @ p["w"].select(0, 1)[:3],
        {"w": (2, 4, 3)},
        ["w"],  # some of its rows are never met
    ),
    "multiples": (
        lambda p, x: (-(F.linear(x, p["w"] / 4**0.5) * 1.0)).tanh() @ (2 * p["v"]).T,
        {"w": (3, 4), "v": (2, 3)},
        ["v", "w"],
    ),
    "a multiple of a slice": (
        lambda p, x: torch.cat([x @ (3 * p["w"][:2]).T, x @ (-p["w"][2:]).mT], 1).tanh(),
        {"w": (5, 4)},
        ["w[0:2]", "w[2:5]"],
    ),
    "a scaled norm": (lambda p, x: F.layer_norm(x, (4,), 2 * p["w"], p["b"]), {"w": (4,), "b": (4,)}, ["w"]),
    "once as it is, once twice": (
        lambda p, x: torch.tanh(torch.tanh(x @ p["w"]) @ (2 * p["w"])),
        {"w": (4, 4)},
        ["w"],
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_cuts_and_multiples_of_a_leaf_keep_their_factors(name):
    f, shapes, names = CUTS[name]
    params, x = {k: randn(*s, seed=i) for i, (k, s) in enumerate(shapes.items())}, randn(5, 4, seed=9)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert sorted(layers.names()) == names
    if name != "selected":
        assert not layers.exact
    want = fisher_matrix(f, params, x, "gaussian")
    made = lambda kind: fisher.fim(f, params, x, kind, "gaussian", layers=layers)
    close(made(fisher.PMatDense).matrix, want, 1e-10, "dense")
    close(trees.ravel(made(fisher.PMatDiag).get_diag())[0], want.diagonal(), 1e-10, "diagonal")
    v = trees.map(torch.cos, params)
    close(layers.tree(layers.views(v)), v, 0.0, "there and back")
    K, H = made(fisher.PMatKFAC), made(fisher.PMatEKFAC)
    close(K.mv(K.solve(v, regul=0.1)), trees.axpy(-0.1, K.solve(v, regul=0.1), v), 1e-9, "solve")
    close(H.trace(), want.trace(), 1e-10, "the corrected eigenvalues keep the trace")


def test_a_multiple_has_the_factors_of_its_parametrization():
    """f(2 w) has four times the moments of the gradients, whichever side carries the number."""
    x, w = randn(5, 4, seed=1), randn(3, 4, seed=2)
    one = fisher.fim(lambda p, x: torch.tanh(F.linear(x, p["w"])), {"w": 2 * w}, x, likelihood="gaussian")
    two = fisher.fim(lambda p, x: torch.tanh(F.linear(x, 2 * p["w"])), {"w": w}, x, likelihood="gaussian")
    close(two.to_torch(), 4 * one.to_torch(), 1e-12, "a factor")


def test_a_factor_that_has_no_place_gives_an_exact_block():
    x, params = randn(5, 4, seed=1), {"w": randn(3, 4, seed=2), "b": randn(3, seed=3)}
    f = lambda p, x: torch.tanh(F.linear(x, p["w"], -p["b"]))
    layers = fisher.LayerCollection.from_function(f, params, x)
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (2, 3, 2)])
def test_windows_of_convolutions_map_over_members_when_differentiated(stride, padding, dilation):
    """One vmap of the derivative, without the loop over members that torch falls back to for windows that are views."""
    form = Convolution(kernel=(3, 3), stride=(stride,) * 2, padding=((padding,) * 2,) * 2, dilation=(dilation,) * 2)
    x = torch.randn(3, 2, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = form.inputs(x[0])
    w = torch.randn(3, *rows.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vmap(lambda one, w: vjp(form.inputs, one)[1](w)[0])(x, w)
    torch.testing.assert_close(vmap(form.inputs)(x)[0], rows, rtol=0, atol=0)
    unfolded = lambda one: F.unfold(one, 3, **options).mT.reshape(rows.shape)
    for member, one in enumerate(x):
        torch.testing.assert_close(got[member], vjp(unfolded, one)[1](w[member])[0])
