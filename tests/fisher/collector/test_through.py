"""Leaves seen through the weights that f makes of them: J'(G (x) A)J by an independent derivative of what makes them."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jacrev, vmap

import fisher
import linmaps
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

U, V = torch.ones(4, dtype=torch.float64) / 2, torch.ones(3, dtype=torch.float64) / 3**0.5


def lower(w):
    L = w.new_zeros(4, 4)
    L[*torch.tril_indices(4, 4)] = w
    return L[:, :3]


def written(w):
    W = w.clone()
    W[0] = w[0] * w[1].sum()
    W.mul_(2.0)
    return W


# name: (weight [4, 3] of leaves, their shapes)
MADE = {
    "weight norm": (lambda v, g: torch._weight_norm(v, g, 0), [(4, 3), (4, 1)]),
    "spectral norm, eval": (lambda w: w / torch.vdot(U, torch.mv(w, V)), [(4, 3)]),
    "softmax": (lambda w: torch.softmax(w, 1), [(4, 3)]),
    "positive": (lambda w: F.softplus(w), [(4, 3)]),
    "masked": (lambda w: w * torch.tensor([1.0, 0.0, 1.0]).double(), [(4, 3)]),
    "low-rank sum": (lambda w, b, a: w + 0.5 * (b @ a), [(4, 3), (4, 2), (2, 3)]),
    "exponential of a skew matrix": (lambda w: torch.linalg.matrix_exp(w - w.T)[:, :3], [(4, 4)]),
    "cayley": (lambda w: torch.linalg.solve(torch.eye(4).double() + w - w.T, torch.eye(4).double())[:, 1:], [(4, 4)]),
    "entries put into zeros": (lower, [(10,)]),
    "written in place": (written, [(4, 3)]),
    "kronecker product": (torch.kron, [(2, 1), (2, 3)]),
    "train": (lambda a, b: torch.einsum("ir,rj->ij", a, torch.tanh(b)), [(4, 2), (2, 3)]),
    "rolled": (lambda w: torch.roll(w, 1, 0), [(4, 3)]),
    "outer": (lambda u, v: torch.outer(u, v), [(4,), (3,)]),
    "of one number": (lambda s: s * torch.arange(12.0).double().reshape(4, 3).sin(), [()]),
}

# name: z of (x [5, 6, 3], W [4, 3], b [4])
USED = {
    "linear": lambda x, W, b: F.linear(x, W, b),
    "matmul": lambda x, W, b: x @ W.T + b,
    "einsum": lambda x, W, b: torch.einsum("bti,oi->bto", x, W) + b,
    "convolution": lambda x, W, b: F.conv1d(x.mT, W[:, :, None], b).mT,
    "twice": lambda x, W, b: F.linear(F.linear(x, W, b)[..., :3].sin(), W, b),
    "embedding": lambda x, W, b: F.embedding((x[..., 0] > 0).long() + (x[..., 1] > 0).long(), W)[..., [0, 1, 2, 0]] + b,
}


def network(made, used, split=True):
    """f of the leaves, and the same of the weight: `(f, plain)`."""
    plain = lambda p, x: torch.tanh(used(x, p["W"], p["b"])) @ p["o"]
    f = lambda p, x: plain({"W": made(*p["m"]), "b": p["b"], "o": p["o"]}, x)
    return f, plain


def params(shapes):
    return {"m": [randn(*s, seed=k) for k, s in enumerate(shapes)], "b": randn(4, seed=8), "o": randn(4, 2, seed=9)}


def block_of(layers, matrix, leaves):
    """Rows and columns of some leaves of a dense matrix."""
    offsets = layers.layout.offsets
    where = torch.cat([torch.arange(offsets[n], offsets[n + 1]) for n in leaves])
    return matrix[where][:, where]


def check(made, shapes, used, x):
    f, plain = network(made, used)
    p = params(shapes)
    layers = fisher.LayerCollection.from_function(f, p, x)
    (layer,) = layers.through
    assert all(l.kronecker for l in layers if l != layer)
    F_ = fisher.fim(f, p, x, likelihood="gaussian", layers=layers, largest_block=None)
    W = made(*p["m"])
    own = {"W": W, "b": p["b"], "o": p["o"]}
    of_weight = fisher.fim(plain, own, x, likelihood="gaussian", largest_block=None)
    bias = of_weight.layers["W"].bias is not None
    G = block_of(of_weight.layers, of_weight.to_torch(), (1, 0) if bias else (0,))
    leaves = [trees.leaves(p)[n] for n in layer.leaves]
    assert len(leaves) == len(shapes) + bias
    back = lambda *own: torch.cat([*own[:bias], made(*own[bias:]).flatten()])
    J = torch.cat([j.reshape(W.numel() + 4 * bias, -1) for j in jacrev(back, tuple(range(len(leaves))))(*leaves)], 1)
    want = J.T @ G @ J
    close(F_.exact[layer.name], want, 1e-10, "block")
    small = fisher.fim(f, p, x, likelihood="gaussian", layers=layers, largest_block=1)
    close(small.exact[layer.name], want.diagonal(), 1e-10, "diagonal")
    return f, p, layers, layer


@pytest.mark.parametrize("name", MADE)
def test_the_block_is_that_of_the_weight_taken_back(name):
    made, shapes = MADE[name]
    x = randn(5, 6, 3)
    f, p, layers, _ = check(made, shapes, USED["linear"], x)
    close(
        fisher.fim(f, p, x, fisher.PMatDense, "gaussian", layers=layers).matrix,
        fisher_matrix(f, p, x, "gaussian"),
        1e-10,
        "dense",
    )


@pytest.mark.parametrize("name", USED)
def test_whatever_product_the_weight_enters(name):
    check(*MADE["low-rank sum"], USED[name], randn(5, 6, 3))
    check(*MADE["softmax"], USED[name], randn(5, 6, 3))


@pytest.mark.parametrize("name", MADE)
def test_an_ensemble_is_its_members_and_all_methods_run(name):
    made, shapes = MADE[name]
    f, _ = network(made, USED["linear"])
    p, x = params(shapes), randn(5, 6, 3)
    layers = fisher.LayerCollection.from_function(f, p, x)
    stacked = trees.stack([p, trees.map(torch.sin, p)])
    for kind in (fisher.PMatKFAC, fisher.PMatEKFAC):
        run = lambda p, kind=kind: fisher.fim(f, p, x, kind, "gaussian", layers=layers, check_finite=False).get_diag()
        close(vmap(run)(stacked), trees.stack([run(q) for q in trees.unstack(stacked)]), 1e-9, name)


@pytest.mark.parametrize("name", MADE)
def test_corrected_in_the_eigenbasis_of_the_block(name):
    made, shapes = MADE[name]
    f, _ = network(made, USED["linear"])
    p, x = params(shapes), randn(5, 6, 3)
    layers = fisher.LayerCollection.from_function(f, p, x)
    (layer,) = layers.through
    exact = block_of(layers, fisher_matrix(f, p, x, "gaussian"), layer.leaves)
    plain = fisher.fim(f, p, x, likelihood="gaussian", layers=layers)
    for E in (
        fisher.fim(f, p, x, fisher.PMatEKFAC, "gaussian", layers=layers),
        fisher.fim(f, p, [x[:2], x[2:]], fisher.PMatEKFAC, "gaussian", layers=layers),
        plain.eigendecomposition().update_diag(f, p, x, "gaussian"),
    ):
        (Q,) = E.bases[layer.name]
        turned = Q.T @ plain.exact[layer.name] @ Q
        close(turned - torch.diag(turned.diagonal()), 0 * turned, 1e-9, "eigenvectors")
        close(E.eigenvalues[layer.name], (Q.T @ exact @ Q).diagonal(), 1e-9, "second moments")
    close(plain.eigendecomposition().to_torch(), plain.to_torch(), 1e-9, "as it was")


# --- maps ------------------------------------------------------------------------------------------------------------

SPECS = {
    "orthogonal": linmaps.Orthogonal(4),
    "wide orthogonal": linmaps.Orthogonal(4, 3),
    "spectral": linmaps.Spectral(4, 3),
    "schur": linmaps.Schur(4),
    "butterfly": linmaps.Butterfly(4),
    "low rank": linmaps.LowRank(4, 3, rank=2),
    "train": linmaps.Factorized((2, 2), (3, 1), factorization="tt", rank=2, bias=False),
    "tucker": linmaps.Factorized((2, 2), (3, 1), factorization="tucker", rank="same", bias=False),
}


def with_map(spec, form):
    """f with the map in its own way, and the same with its matrix as a leaf."""
    n = spec.in_features
    f = lambda p, x: torch.tanh(spec.apply(p["m"], x[..., :n]) + p["b"]) @ p["o"]
    if form == "matrix":
        f = lambda p, x: torch.tanh(x[..., :n] @ spec.effective_W(p["m"]) + p["b"]) @ p["o"]
    return f, lambda p, x: torch.tanh(x[..., :n] @ p["W"] + p["b"]) @ p["o"]


def map_params(spec):
    m = spec.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    return {"m": m, "b": randn(spec.out_features, seed=1), "o": randn(spec.out_features, 2, seed=2)}


def check_map(spec, p, x, f, plain):
    layers = fisher.LayerCollection.from_function(f, p, x)
    (layer,) = layers.through
    assert layer.kind == spec.name
    assert len(layer.inner) == 1
    got = fisher.fim(f, p, x, likelihood="gaussian", layers=layers, largest_block=None).exact[layer.name]
    own = {"W": spec.effective_W(p["m"]), "b": p["b"], "o": p["o"]}
    of_weight = fisher.fim(plain, own, x, likelihood="gaussian", largest_block=None)
    G = block_of(of_weight.layers, of_weight.to_torch(), (1, 0))
    vector, back = trees.ravel(p["m"])
    phi = lambda b, v: torch.cat([b, spec.effective_W(back(v)).flatten()])
    J = torch.cat(jacrev(phi, (0, 1))(p["b"], vector), 1)
    close(got, J.T @ G @ J, 1e-10, spec.name)
    return layers


@pytest.mark.parametrize("form", ["apply", "matrix"])
@pytest.mark.parametrize("name", SPECS)
def test_a_map_is_one_use_of_its_matrix(name, form):
    spec = SPECS[name]
    f, plain = with_map(spec, form)
    p, x = map_params(spec), randn(5, 4)
    layers = check_map(spec, p, x, f, plain)
    close(
        fisher.fim(f, p, x, fisher.PMatDense, "gaussian", layers=layers).matrix,
        fisher_matrix(f, p, x, "gaussian"),
        1e-10,
        "dense",
    )


@pytest.mark.parametrize("name", sorted({*linmaps.maps} - {"factorized"}))
def test_all_maps_of_the_registry(name):
    spec = linmaps.maps[name](4)
    f, plain = with_map(spec, "apply")
    params = map_params(spec)
    if spec.complex_W:  # its leaves get an exact block
        f = lambda p, x: torch.tanh(spec.apply(p["m"], x).abs() + p["b"]) @ p["o"]
        got = fisher.fim(f, params, randn(5, 4), likelihood="gaussian").exact["m"]
        own = slice(4, 4 + spec.n_params)  # after b
        close(got, fisher_matrix(f, params, randn(5, 4), "gaussian")[own, own], 1e-10, name)
    elif trees.leaves(params["m"]):
        check_map(spec, params, randn(5, 4), f, plain)
    else:  # the map is a constant: what it gives is data
        layers = fisher.LayerCollection.from_function(f, params, randn(5, 4))
        assert {layer.name for layer in layers} == {"b", "o"}


@pytest.mark.parametrize("kind", ["dense", "cp", "tucker", "tt", "blocktt", "lowrank"])
def test_all_factorizations(kind):
    spec = linmaps.Factorized((2, 2), (3, 1), factorization=kind, rank="same", bias=False)
    f, plain = with_map(spec, "apply")
    check_map(spec, map_params(spec), randn(5, 4), f, plain)


@pytest.mark.parametrize("name", MADE)
def test_in_float32_too(name):
    made, shapes = MADE[name]
    single = lambda *own: made(*(t.double() for t in own)).float()  # the constants of the weights are float64
    x, p = randn(5, 6, 3), params(shapes)
    p["m"][0] = p["m"][0] if p["m"][0].ndim == 0 else torch.where(p["m"][0].abs() < 0.1, 0.0, p["m"][0])
    x[..., 0] = 0.0  # a dead input
    want = fisher.fim(network(made, USED["linear"])[0], p, x, likelihood="gaussian")
    f, q = network(single, USED["linear"])[0], trees.map(lambda t: t.float(), p)
    layers = fisher.LayerCollection.from_function(f, q, x.float())
    (layer,) = layers.through
    got = fisher.fim(f, q, x.float(), likelihood="gaussian", layers=layers).exact[layer.name]
    reference = want.exact[want.layers.through[0].name]
    assert got.dtype == torch.float32
    close(got.double() / reference.abs().max(), reference / reference.abs().max(), 1e-5, name)


@pytest.mark.parametrize("kind", [fisher.PMatKFAC, fisher.PMatEKFAC])
@pytest.mark.parametrize("name", ["weight norm", "softmax", "low-rank sum", "exponential of a skew matrix"])
def test_derivatives_go_through_what_makes_the_weight(name, kind):
    made, shapes = MADE[name]
    f, p, x = network(made, USED["linear"])[0], params(shapes), randn(5, 6, 3)
    layers = fisher.LayerCollection.from_function(f, p, x)
    value = lambda p: fisher.fim(f, p, x, kind, "gaussian", layers=layers, check_finite=False).trace()
    v = trees.map(torch.cos, p)
    moved = lambda t: trees.axpy(t, v, p)
    numeric = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    got = trees.dot(torch.func.grad(value)(p), v)
    close(got / numeric, torch.ones_like(numeric), 1e-6, "reverse")
    close(torch.func.jvp(value, (p,), (v,))[1] / numeric, torch.ones_like(numeric), 1e-6, "forward")


def test_a_factorized_convolution_is_one_use_of_its_kernel():
    spec = linmaps.factorized.FactorizedConv(2, 3, (3,), factorization="tt", rank=2)
    m = {k: t.double() for k, t in spec.init(torch.Generator().manual_seed(0)).items()}
    p, x = {"m": m, "o": randn(3, 2)}, randn(5, 2, 7)
    f = lambda p, x: torch.tanh(spec.apply_conv(p["m"], x, padding=1, stride=2)).mean(-1) @ p["o"]
    layers = fisher.LayerCollection.from_function(f, p, x)
    (layer,) = layers.through
    assert (layer.kind, len(layer.inner), layer.inner[0].kind) == ("factorized_conv", 1, "factorized_conv")
    plain = lambda q, x: torch.tanh(F.conv1d(x, q["K"], q["b"], 2, 1)).mean(-1) @ q["o"]
    own = {"K": spec.kernel(m), "b": m["bias"], "o": p["o"]}
    G = block_of((w := fisher.fim(plain, own, x, likelihood="gaussian")).layers, w.to_torch(), (0, 1))
    vector, back = trees.ravel(m)
    J = jacrev(lambda v: torch.cat([spec.kernel(back(v)).flatten(), back(v)["bias"]]))(vector)
    close(fisher.fim(f, p, x, likelihood="gaussian", layers=layers).exact[layer.name], J.T @ G @ J, 1e-10, "conv")


def test_a_map_made_of_maps_is_met_as_its_parts():
    spec = linmaps.Product(linmaps.Orthogonal(4), linmaps.LowRank(4, 3, rank=2))
    f = lambda p, x: torch.tanh(spec.apply(p["m"], x)) @ p["o"]
    p = {"m": spec.init(torch.Generator().manual_seed(0), dtype=torch.float64), "o": randn(3, 2)}
    layers = fisher.LayerCollection.from_function(f, p, randn(5, 4))
    assert [layer.kind for layer in layers.through] == ["orthogonal", "low_rank"]


def test_one_leaf_in_several_weights_adds_up():
    """The blocks of two weights of one leaf; each has factors of its own."""
    f = lambda p, x: torch.tanh(x @ torch.exp(p["w"])) @ torch.sin(p["w"])
    plain = lambda p, x: torch.tanh(x @ p["W"]) @ p["Z"]
    w, x = randn(3, 3), randn(5, 3)
    layers = fisher.LayerCollection.from_function(f, {"w": w}, x)
    got = fisher.fim(f, {"w": w}, x, likelihood="gaussian", layers=layers).exact["w"]
    parts = fisher.fim(plain, {"W": w.exp(), "Z": w.sin()}, x, likelihood="gaussian").matrices()
    one, two = torch.diag(w.exp().flatten()), torch.diag(w.cos().flatten())
    order = lambda m: m.reshape(3, 3, 3, 3).permute(1, 0, 3, 2).reshape(9, 9)  # from [out, in] to the leaf's [in, out]
    close(got, one @ order(parts["W"]) @ one + two @ order(parts["Z"]) @ two, 1e-10, "sum")


def test_a_leaf_used_as_it_is_too_has_an_exact_block_and_the_reason():
    f = lambda p, x: torch.tanh(x @ p["w"]) @ torch.exp(p["w"])
    layers = fisher.LayerCollection.from_function(f, {"w": randn(3, 3)}, randn(5, 3))
    assert layers["w"].family == "exact"
    assert layers["w"].note == "used as it is and through exp: no rule"


def test_the_table_says_through_and_by_what():
    spec = linmaps.Orthogonal(4)
    f = lambda p, x: torch.tanh(spec.apply(p["enc"], x)) @ p["o"]
    p = {"enc": spec.init(torch.Generator().manual_seed(0)), "o": torch.ones(4, 2)}
    table = str(fisher.LayerCollection.from_function(f, p, torch.ones(3, 4).cumsum(0))).splitlines()
    assert table[2].split()[:3] == ["enc", "through", "orthogonal"]


def test_a_derived_bias_leaves_the_weight_its_factors():
    f = lambda p, x: torch.tanh(F.linear(x, p["w"], torch.exp(p["b"]))) @ p["o"]
    p, x = {"w": randn(4, 3), "b": randn(4), "o": randn(4, 2)}, randn(5, 3)
    layers = fisher.LayerCollection.from_function(f, p, x)
    assert {l.name: l.family for l in layers} == {"b": "through", "o": "product", "w": "product"}
    got = fisher.fim(f, p, x, likelihood="gaussian", layers=layers).exact["b"]
    exact = fisher.fim(f, p, x, fisher.PMatBlockDiag, "gaussian", layers=layers).blocks["b"]
    close(got, exact, 1e-10, "a bias at one position: its factor is its block")


def test_what_is_detached_is_a_constant_however_often():
    f = lambda p, x: torch.tanh(x @ p["w"]) * p["s"].detach().detach().sin() + p["s"].detach().mul(2.0).view(4)
    p = {"w": randn(3, 4), "s": randn(4)}
    layers = fisher.LayerCollection.from_function(f, p, randn(5, 3))
    assert {layer.name: layer.kind for layer in layers} == {"s": "unused", "w": "matmul"}


@pytest.mark.parametrize("name", ["softmax", "low-rank sum"])
def test_sharing_reduce_is_that_of_the_weight(name):
    made, shapes = MADE[name]
    f, plain = network(made, USED["linear"])
    p, x, options = params(shapes), randn(5, 6, 3), {"likelihood": "gaussian", "sharing": "reduce"}
    got = fisher.fim(f, p, x, **options)
    (layer,) = got.layers.through
    of_weight = fisher.fim(plain, {"W": made(*p["m"]), "b": p["b"], "o": p["o"]}, x, **options)
    G = block_of(of_weight.layers, of_weight.to_torch(), (1, 0))
    back = lambda b, *own: torch.cat([b, made(*own).flatten()])
    J = torch.cat([j.reshape(16, -1) for j in jacrev(back, tuple(range(1 + len(shapes))))(p["b"], *p["m"])], 1)
    close(got.exact[layer.name], J.T @ G @ J, 1e-10, name)
