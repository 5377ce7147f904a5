"""Laws of derivatives: forward mode is the transpose of reverse mode, for torch's own layers too, under vmap too."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vjp, vmap

import fisher
from fisher.derivatives.forward import jvp
from fisher.derivatives.plain import plainly
from linmaps import trees
from tests.laws import close

D = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class First(nn.Module):
    """The first of several outputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


class Grouped(nn.Module):
    """Two heads of queries for each of keys and values."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        return (
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            .transpose(1, 2)
            .flatten(2)
        )


class Call(nn.Module):
    """A call at the outputs of a layer."""

    def __init__(self, call):
        super().__init__()
        self.inner, self.call = nn.Linear(4, 6), call

    def forward(self, x):
        return self.call(self.inner(x))


def sampled(y):
    """Maps read at places that the layer chooses (a spatial transformer)."""
    maps = torch.arange(36, dtype=y.dtype).sin().reshape(1, 1, 6, 6).expand(len(y), 1, 6, 6)
    return nn.functional.grid_sample(maps, y.tanh().reshape(len(y), 1, 3, 2), align_corners=False)


REVERSE_ALONE = {  # torch has no forward mode of these
    "maps sampled": sampled,
    "distances": lambda y: torch.cdist(y, torch.eye(6, dtype=y.dtype)),
    "distances of p 1": lambda y: torch.cdist(y, torch.eye(6, dtype=y.dtype), p=1.0),
    "distances of p 0": lambda y: torch.cdist(y, torch.eye(6, dtype=y.dtype), p=0.0),
    "distances of many": lambda y: torch.cdist(y, torch.arange(180, dtype=y.dtype).sin().reshape(30, 6)),
    "distances among rows": lambda y: torch.stack([nn.functional.pdist(t.reshape(3, 2)) for t in y]),
    "a sparse product": lambda y: torch.sparse.mm(torch.eye(3, len(y), dtype=y.dtype).to_sparse(), y),
    "incomplete gamma": lambda y: torch.special.gammainc(torch.full_like(y, 2.0), 1 + y**2),
}
LAYERS = {
    **{name: (lambda call=call: Call(call), randn(2, 4)) for name, call in REVERSE_ALONE.items()},
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), randn(2, 4)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.SiLU()),
        randn(2, 2, 4, 4),
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), randn(2, 3, 4)),
    "attention": (Attention, randn(2, 3, 4)),
    "causal attention": (Causal, randn(2, 3, 4)),
    "attention in groups": (Grouped, randn(2, 3, 4)),
    "a recurrent layer": (lambda: First(nn.LSTM(4, 3, batch_first=True)), randn(2, 3, 4)),
    "a bag": (lambda: nn.EmbeddingBag(5, 3, padding_idx=0), torch.tensor([[0, 2, 1], [3, 0, 0]])),
    "embedding with padding": (lambda: nn.Embedding(5, 3, padding_idx=0), torch.tensor([[0, 2, 1], [3, 0, 0]])),
    "batch norm": (lambda: nn.BatchNorm1d(4), randn(2, 4)),
}


def function(name):
    """(f, params) of a layer in eval mode with its own random numbers."""
    make, x = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double().eval()
    return lambda p: functional_call(module, p, (x,)), {k: t.detach() for k, t in module.named_parameters()}


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_the_transpose_of_reverse(name):
    f, params = function(name)
    y, back = vjp(plainly(f), params)
    for seed in range(3):
        u = randn(*y.shape, seed=seed)
        v = trees.map(lambda t, seed=seed: randn(*t.shape, seed=seed + 7), params)
        made, push = jvp(f, (params,), (v,))
        assert torch.allclose(made, y)
        assert abs(float((u * push).sum() - trees.dot(back(u)[0], v))) <= 1e-12 * float(u.norm() * push.norm() + 1)


@pytest.mark.parametrize("name", LAYERS)
def test_plain_functions_keep_their_values(name):
    f, params = function(name)
    assert torch.allclose(plainly(f)(params), f(params), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REVERSE_ALONE)
def test_products_where_torch_has_no_forward_mode(name):
    """F v is that of the dense matrix, its second derivatives too; under vmap over vectors."""
    call, params, x = REVERSE_ALONE[name], {"w": randn(4, 6)}, randn(2, 4, seed=3)
    f = lambda p, x: call(x @ p["w"])
    y, back = vjp(lambda p: f(p, x), params)
    J = torch.stack([back(e.reshape(y.shape))[0]["w"].flatten() for e in torch.eye(y.numel(), dtype=D)])
    vectors = {"w": randn(3, 4, 6, seed=5)}
    for v in trees.unstack(vectors):
        y, Jv = jvp(lambda p: f(p, x), (params,), (v,))
        close(Jv.flatten(), J @ v["w"].flatten(), 1e-10, name)
    if name == "a sparse product":  # of which torch has no batches and no more derivatives
        return
    together = vmap(lambda v: jvp(lambda p: f(p, x), (params,), (v,))[1])(vectors)
    close(together[-1], Jv, 1e-12, name)
    slope = grad(lambda p: jvp(lambda p: f(p, x), (p,), (v,))[1].sin().sum())(params)["w"]
    step = 1e-6 * randn(4, 6, seed=9)
    value = lambda w: jvp(lambda p: f(p, x), ({"w": w},), (v,))[1].sin().sum()
    close((value(params["w"] + step) - value(params["w"] - step)) / 2e-6, (slope * step).sum() / 1e-6, 1e-6, name)


def test_a_call_without_any_second_derivative_is_named():
    f = lambda p, x: torch.segment_reduce(x @ p["w"], "sum", lengths=torch.ones(len(x), dtype=torch.int64))
    with pytest.raises(ValueError, match=r"calls segment_reduce, of which torch has no forward mode.*PMatDense"):
        jvp(lambda p: f(p, randn(3, 4)), ({"w": randn(4, 2)},), ({"w": randn(4, 2)},))


@pytest.mark.parametrize(
    "mode", ["use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"]
)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("rows", [2, 30])
def test_distances_are_those_of_torch(rows, p, mode):
    """With their gradients, where points coincide too; in float32 under autocast and in half precision."""
    a, b, u = randn(2, 4, 3), randn(rows, 3, seed=1), randn(2, 4, rows, seed=2)
    b[0] = a[0, 0]
    u[0, 0, 0] = 0.0 if mode.startswith("use") and p == 2.0 else 1.0  # there a product gives rounding for 0
    run = lambda a, b: torch.cdist(a, b, p, mode)
    (y, back), (want, torchs) = vjp(plainly(run), a, b), vjp(run, a, b)
    close((y, *back(u)), (want, *torchs(u)), 3e-8, "values and gradients")
    assert plainly(run)(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(plainly(run)(a.bfloat16(), b.float()), run(a.bfloat16(), b.float()), 1e-3, "autocast")


def test_experts_of_a_mixture():
    """torch's grouped products: F v of all experts at once is J'HJ v, which no forward mode gives."""
    offsets = torch.tensor([2, 4], dtype=torch.int32)
    x, w = (
        torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(0)),
        {"experts": torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1)) / 4},
    )

    def f(p, x):
        rows = x.transpose(0, 1).flatten(0, 1)  # the first position of all examples is of the first expert
        y = torch._grouped_mm(rows, p["experts"], offs=(offsets / 2 * len(x)).to(torch.int32))
        return y.unflatten(0, (2, len(x))).transpose(0, 1).tanh().sum(1)

    dense = fisher.fim(f, w, x, fisher.PMatDense, "gaussian")
    implicit = fisher.fim(f, w, x, fisher.PMatImplicit, "gaussian")
    close(implicit.mv(w), dense.mv(w), 1e-5, "experts")


def test_forward_mode_of_an_ensemble():
    x = randn(5, 3)
    f = lambda p: torch.tanh(x @ p["w"])
    stacked, v = {"w": randn(4, 3, 2, seed=1)}, {"w": randn(4, 3, 2, seed=2)}
    both = vmap(lambda p, v: jvp(f, (p,), (v,))[1])(stacked, v)
    for k in range(4):
        assert torch.allclose(both[k], jvp(f, ({"w": stacked["w"][k]},), ({"w": v["w"][k]},))[1])
