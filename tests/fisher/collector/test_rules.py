"""Rules and forms: each call is the product of matrices that its form says, whatever its options; views; errors with cures."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fisher
from fisher import rules
from fisher.collector.rules.forms import Arrangement
from linmaps import trees
from tests.laws import close
from tests.oracles import fisher_matrix
from tests.zoo import _randn

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def product(f, params, x, name="w"):
    """z of the only use, as its form says: a W' by group, against the call itself."""
    layers = fisher.LayerCollection.from_function(f, params, x)
    layer = layers[name]
    y, io = fisher.layer_io(f, params, x, layers, lambda y: torch.ones_like(y)[None])
    (k,) = layer.uses
    use = layers.uses[k]
    W = layer.matrix(trees.leaves(params))[..., : layer.shape[1]]
    how = "bsgi,goi->bsgo" if layer.grouped else "bsi,oi->bso"
    return layer, torch.einsum(how, io[k][0], W), use.outputs(y, len(x))


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    small = st.integers(1, 2)
    groups, i, o = draw(small), draw(small), draw(small)
    kernel, stride, dilation = ([draw(st.integers(1, 2 if n == 3 else 3)) for _ in range(n)] for _ in range(3))
    padding = [draw(st.integers(0, 1)) for _ in range(n)]
    size = [d * (k - 1) + 1 + draw(st.integers(0, 2)) for d, k in zip(dilation, kernel)]
    x = randn(2, groups * i, *size, seed=draw(st.integers(0, 99)))
    if draw(st.booleans()):
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation)]
        call = getattr(F, f"conv_transpose{n}d")
        w = randn(groups * i, o, *kernel, seed=1)
        options = {"output_padding": extra}
        if any(
            (s - 1) * t - 2 * p + d * (k - 1) + e + 1 < 1
            for s, t, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra)
        ):
            padding = [0] * n
    else:
        call, w, options = getattr(F, f"conv{n}d"), randn(groups * o, i, *kernel, seed=1), {}
        if stride == [1] * n and draw(st.booleans()):
            padding = draw(st.sampled_from(["same", "valid"]))
    options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (lambda p, x: call(x, p["w"], **options)), {"w": w}, x


@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_are_products_with_patches(case):
    f, params, x = case
    _, got, want = product(f, params, x)
    close(got, want, 1e-12, "patches times kernel")


@given(convolutions())
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_have_the_exact_fisher(case):
    f, params, x = case
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian").matrix, want, 1e-10, "dense")
    close(fisher.fim(f, params, x, fisher.PMatDiag, "gaussian").trace(), want.trace(), 1e-10, "diagonal")


EINSUMS = {
    "bti,oi->bto": (3, 4), "bti,io->bot": (4, 3), "bhi,hoi->bho": (2, 5, 4), "bij,oij->bo": (3, 2, 4), "bti,iop->bpto": (4, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsums_are_products(equation):
    f = lambda p, x: torch.einsum(equation, x, p["w"])
    layer, got, want = product(f, {"w": randn(*EINSUMS[equation])}, randn(3, 2, 4, seed=1))
    assert layer.kind == "einsum"
    close(got, want, 1e-12, equation)


@given(st.permutations(range(4)), st.integers(1, 3), st.sampled_from([1, 2]))
def test_arrangements_go_there_and_back(order, cut, groups):
    shape = (2 * groups, 3, 2, 2)
    if groups > 1:
        order = [k for k in order if k] if cut else order
        axes = [k + 1 for k in order]
        a = Arrangement((1, *axes[:cut]), tuple(axes[cut:]), groups)
    else:
        a = Arrangement(tuple(order[:cut]), tuple(order[cut:]))
    leaf = randn(*shape)
    matrix = a.matrix(leaf)
    assert matrix.ndim == 2 + (groups > 1)
    assert torch.equal(a.leaf(matrix, shape), leaf)


def test_parts_of_a_leaf_are_layers():
    """Slices, splits, chunks and narrow pieces of a weight, each with its own inputs."""

    def f(p, x):
        a, b = p["w"].split([2, 3])
        h = torch.tanh(torch.cat([F.linear(x, a, p["b"][:2]), F.linear(x.sin(), b, p["b"][2:])], 1))
        return F.linear(h, p["v"].narrow(0, 0, 1)) + F.linear(h.cos(), p["v"].chunk(2)[1])

    params = {"w": randn(5, 3), "b": randn(5, seed=1), "v": randn(2, 5, seed=2)}
    x = randn(4, 3, seed=3)
    layers = fisher.LayerCollection.from_function(f, params, x, strict=True)
    assert [l.name for l in layers] == ["v[0:1]", "v[1:2]", "w[0:2]", "w[2:5]"]
    assert all(l.bias is not None for l in layers if l.name.startswith("w"))
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")
    with pytest.raises(ValueError, match=r"w\[0:2\]: shares a leaf with \['w\[2:5\]'\]"):
        layers.select(["w[0:2]"])


def test_a_leaf_of_which_only_a_part_is_used_gets_an_exact_block():
    f = lambda p, x: F.linear(x, p["w"][:2])
    params, x = {"w": randn(5, 3)}, randn(4, 3, seed=3)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert layers["w"].note == "some of its rows are never met in a torch call"
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian").matrix, want, 1e-10, "dense")


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_that_are_no_functions_are_refused(option):
    f = lambda p, x: F.embedding(x, p["w"], **option)
    with pytest.raises(ValueError, match=rf"w: embedding with {next(iter(option))}, expected a plain table.*leave"):
        fisher.LayerCollection.from_function(f, {"w": randn(5, 3)}, torch.tensor([[0, 1], [2, 2]]))


def test_large_table_and_many_classes_stay_small():
    """An embedding of 2,000 rows keeps a diagonal input factor; columns come in chunks."""
    f = lambda p, x: F.embedding(x, p["table"]).mean(1) @ p["head"]
    params = {"table": randn(2000, 8), "head": randn(8, 100, seed=1)}
    x = torch.randint(2000, (6, 5), generator=torch.Generator().manual_seed(0))
    F_ = fisher.fim(f, params, x, chunk_size=10)
    assert F_.factors["table"][0].shape == (2000,)
    diag = fisher.fim(f, params, x, fisher.PMatDiag, chunk_size=10).get_diag()["table"]
    used = torch.zeros(2000, dtype=torch.bool).index_fill(0, x.flatten(), True)
    assert torch.equal(diag.sum(1) > 0, used)
    assert torch.equal(F_.factors["table"][0] > 0, used)


def test_batch_norm_in_train_mode_is_refused_with_the_cure():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    params = {n: t.detach() for n, t in net.named_parameters()}
    with pytest.raises(ValueError, match=r"one example depends on other examples.*model\.eval\(\)"):
        fisher.LayerCollection.from_model(net, params, randn(5, 3))
    net.eval()
    assert [l.kind for l in fisher.LayerCollection.from_model(net, None, randn(5, 3))] == ["linear", "scale"]


def test_a_rule_of_ones_own():
    """A custom call: a linear layer with its weight stored by columns in halves."""

    def split_linear(x, w):
        return (
            torch.overrides.handle_torch_function(split_linear, (x, w), x, w) if _watched(x, w) else x @ w.flatten(0, 1)
        )

    def _watched(*tensors):
        return torch.overrides.has_torch_function(tensors)

    def rule(args, kwargs, view):
        x, w = args
        form = rules.Contraction(x_axes=(0, 1), z_axes=(0, 1), weight=Arrangement((2,), (0, 1)))
        return rules.Match("split_linear", view(w), None, x, form) if view(w) else None

    f = lambda p, x: split_linear(x, p["w"])
    params, x = {"w": randn(2, 3, 4)}, randn(5, 6, seed=1)
    rules.register(split_linear, rule)
    try:
        layers = fisher.LayerCollection.from_function(f, params, x, strict=True)
        assert layers["w"].kind == "split_linear"
        kfac = fisher.fim(f, params, x, fisher.PMatKFAC, "gaussian", layers=layers)
        dense = fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers)
        close(dense.matrix, fisher_matrix(f, params, x, "gaussian"), 1e-10, "dense")
        close(kfac.to_torch(), dense.matrix, 1e-10, "one layer, no sharing: exact")
    finally:
        del rules.RULES[split_linear]


SCALES = {
    "x * w + b": lambda x, w, b: x * w + b,
    "x * w.unsqueeze(0) + b": lambda x, w, b: x * w.unsqueeze(0) + b,
    "x * w[None] + b[None]": lambda x, w, b: x * w[None] + b[None],
    "x * w[None, ...] + b.unsqueeze(-2)": lambda x, w, b: x * w[None, ...] + b.unsqueeze(-2),
    "x * w.view(1, -1) + b": lambda x, w, b: x * w.view(1, -1) + b,
    "x * w.reshape(1, -1) + b.reshape(1, -1)": lambda x, w, b: x * w.reshape(1, -1) + b.reshape(1, -1),
    "x * w.expand_as(x) + b": lambda x, w, b: x * w.expand_as(x) + b,
    "x * w.expand(len(x), -1) + b": lambda x, w, b: x * w.expand(len(x), -1) + b,
    "torch.broadcast_to(w, x.shape) * x + b": lambda x, w, b: torch.broadcast_to(w, x.shape) * x + b,
    "x * (1 + w) + b": lambda x, w, b: x * (1 + w) + b,
    "x * (w - 0.5) + b.to(x.dtype)": lambda x, w, b: x * (w - 0.5) + b.to(x.dtype),
    "addcmul(b, x, w)": lambda x, w, b: torch.addcmul(b, x, w),
    "addcmul(b, w, x)": lambda x, w, b: torch.addcmul(b, w, x),
    "x.mul(w).add(b)": lambda x, w, b: x.mul(w).add(b),
    "x.mul_(w).add_(b)": lambda x, w, b: x.clone().mul_(w).add_(b),
    "x *= w; x += b": lambda x, w, b: _in_place(x.clone(), w, b),
    "einsum('bi,i->bi') + b": lambda x, w, b: torch.einsum("bi,i->bi", x, w) + b,
    "einsum('i,bi->bi') + b": lambda x, w, b: torch.einsum("i,bi->bi", w, x) + b,
}


def _in_place(x, w, b):
    x *= w
    x += b
    return x


@pytest.mark.parametrize("spelled", SCALES)
def test_a_scale_keeps_its_shift_however_it_is_spelled(spelled):
    r = _randn(7)
    p, x = {"v": r(3, 4), "w": r(4), "b": r(4)}, r(5, 3)
    f = lambda p, x: torch.tanh(SCALES[spelled](x @ p["v"], p["w"], p["b"]))
    layers = fisher.LayerCollection.from_function(f, p, x)
    assert [(l.name, l.kind) for l in layers] == [("v", "matmul"), ("w", "scale")]
    fim = lambda representation: fisher.fim(f, p, x, representation, "gaussian", layers=layers).to_torch()
    own = [*range(4), *range(16, 20)]  # b and w in the flat order b, v, w
    close(fim(fisher.PMatBlockDiag)[own][:, own], fim(fisher.PMatImplicit)[own][:, own], 1e-12, spelled)


CASTS = {
    "to(x.dtype)": lambda w, x: w.to(x.dtype),
    "to(x)": lambda w, x: w.to(x),
    "double()": lambda w, x: w.double(),
    "to(device)": lambda w, x: w.to("cpu"),
    "type_as": lambda w, x: w.type_as(x),
    "contiguous": lambda w, x: w.contiguous(),
    "clone": lambda w, x: w.clone(),
    "view_as": lambda w, x: w.view_as(w),
    "[:]": lambda w, x: w[:],
    "squeeze": lambda w, x: w.squeeze(),
    "expand": lambda w, x: w.expand(w.shape),
    "[None].squeeze(0)": lambda w, x: w[None].squeeze(0),
    "flatten.view": lambda w, x: w.flatten().view(w.shape),
    "+ 0.5": lambda w, x: w + 0.5,
}


def factors_of(guise, wide, x, dtype, shift=0.0):
    """KFAC of a network whose leaves, of a dtype, are met in a guise."""
    f = lambda p, x: torch.tanh(F.linear(x, guise(p["w"], x), guise(p["b"], x) + shift)) @ guise(p["v"], x)
    return fisher.fim(f, trees.map(lambda t: t.to(dtype), wide), x, likelihood="gaussian")


WIDE = {"w": randn(3, 4, seed=1), "b": randn(3, seed=2), "v": randn(3, 2, seed=3)}


@pytest.mark.parametrize("cast", CASTS)
def test_a_weight_that_is_cast_or_copied_keeps_its_factors(cast):
    x, shift = randn(5, 4), 0.5 if cast == "+ 0.5" else 0.0
    got = factors_of(CASTS[cast], WIDE, x, D)
    want = factors_of(lambda w, x: w, trees.map(lambda t: t + shift, WIDE), x, D)
    assert got.factors.keys() == {"v", "w"}
    close(got.factors, want.factors, 1e-12, cast)


@pytest.mark.parametrize("cast", ["to(x.dtype)", "to(x)", "type_as"])
def test_half_precision_leaves_cast_to_the_input_have_the_factors_of_what_they_say(cast):
    x = randn(5, 4).float()
    got = factors_of(CASTS[cast], WIDE, x, torch.bfloat16)
    want = factors_of(CASTS[cast], trees.map(lambda t: t.bfloat16().float(), WIDE), x, torch.float32)
    assert got.dtype == torch.bfloat16
    close(trees.map(lambda t: t.float(), got.factors), want.factors, 2e-2, cast)


def test_a_leaf_that_lends_its_type_or_shape_is_not_used():
    f = lambda p, x: torch.tanh(x.to(p["w"]).view_as(p["like"]) @ p["w"].type_as(p["like"]))
    p, x = {"w": torch.ones(3, 2), "like": torch.zeros(4, 3)}, torch.ones(4, 3)
    assert {l.name: l.kind for l in fisher.LayerCollection.from_function(f, p, x)} == {"w": "matmul", "like": "unused"}
