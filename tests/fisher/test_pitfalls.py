"""Pitfalls of watching a function: compiled, traced, checkpointed and autocast callables, fused attention, in-place changes."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fisher
from linmaps import trees
from tests.laws import close
from tests.zoo import MODELS, perturbed

D = torch.float64


def test_a_graph_of_fim_replays():
    """The matrix of a graph traced by make_fx is that of fim; shapes are baked in."""
    m = MODELS["attention"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)

    def factors(p, x):
        return fisher.fim(m.f, p, x, likelihood="gaussian", layers=layers, check_finite=False).factors

    graph = make_fx(factors)(m.params, m.x)
    other = perturbed(m.params, 4)
    close(graph(other, m.x), factors(other, m.x), 1e-12, "replayed")


def test_autocast_casts_below():
    m = MODELS["module"]
    single = trees.map(lambda t: t.float(), m.params)
    plain = fisher.LayerCollection.from_function(m.f, single, m.x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers = fisher.LayerCollection.from_function(m.f, single, m.x.float(), check=False)
    assert layers == plain


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpointed_function_is_refused_with_cause_and_cure(use_reentrant):
    f = lambda p, x: checkpoint(lambda w, h: torch.tanh(h @ w), p["w"], x, use_reentrant=use_reentrant)
    with pytest.raises(ValueError, match=r"f\(params, x\): .*checkpointing.*run it without checkpointing"):
        fisher.fim(f, {"w": torch.ones(3, 2)}, torch.ones(4, 3))


def test_a_compiled_function_inside_is_refused_with_cause_and_cure():
    fast = torch.compile(lambda p, x: torch.tanh(x @ p["w"]), backend="eager")
    f = lambda p, x: 2 * fast(p, x)
    with pytest.raises(ValueError, match=r"f\(params, x\): calls what torch.compile made.*give the function or module"):
        fisher.fim(f, {"w": torch.ones(3, 2)}, torch.ones(4, 3))


def with_dropout(params, x):
    return torch.nn.functional.dropout(x @ params["w"], 0.5, True) @ params["v"]


SOURCE = torch.Generator().manual_seed(0)


def with_noise_of_its_own(params, x):
    return (x @ params["w"] + torch.rand(len(x), 3, generator=SOURCE)) @ params["v"]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("f", "head"), [(with_dropout, 1.0), (with_dropout, 0.0), (with_noise_of_its_own, 1.0)])
@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatDense, fisher.PMatImplicit])
def test_a_random_function_is_refused_with_its_cause(f, head, representation, given):
    """Whether its layers are found in the call or known before; also where a layer of zeros hides the noise."""
    r = torch.Generator().manual_seed(1)
    params = {"w": torch.randn(3, 3, generator=r), "v": head * torch.randn(3, 2, generator=r)}
    calm = lambda p, x: x @ p["w"] @ p["v"]
    layers = fisher.LayerCollection.from_function(calm, params, torch.ones(4, 3)) if given else None
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"f\(params, x\): is random.*eval"):
        fisher.fim(f, params, torch.ones(40, 3), representation, layers=layers)
    assert f is not with_noise_of_its_own or torch.equal(before, torch.get_rng_state())


def test_fused_attention_is_exact_and_no_switch_is_turned():
    net = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True).eval()
    wide = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True).double().eval()
    params = {n: t.detach() for n, t in net.named_parameters()}
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    fast = torch.backends.mha.get_fastpath_enabled()
    fim = lambda net, p, x: fisher.fim(
        lambda p, x: functional_call(net, p, (x,)), p, x, fisher.PMatDiag, fisher.Categorical(class_axis=-1)
    ).get_diag()
    want = fim(wide, trees.map(lambda t: t.double(), params), x.double())
    close(trees.map(lambda t: t.double(), fim(net, params, x)), want, 1e-4, "float32")
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_shapes_that_follow_the_values_are_no_trouble_in_eager_use():
    """A branch on values is run as it comes; another branch at another point is found by the comparison of uses."""
    f = lambda p, x: x @ p["w"] if x.sum() > 0 else (x @ p["w"]) @ p["v"]
    params = {"w": torch.ones(3, 3), "v": torch.ones(3, 3)}
    layers = fisher.LayerCollection.from_function(f, params, torch.ones(2, 3))
    with pytest.raises(ValueError, match="f took another way"):
        fisher.fim(f, params, -torch.ones(2, 3), layers=layers)


def test_dropout_in_train_mode_needs_no_seed_but_is_random():
    """Each pass draws its own mask from torch's generator, as f itself does: put models into eval mode."""
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    params = {n: t.detach() for n, t in net.named_parameters()}
    f = lambda p, x: functional_call(net, p, (x,))
    x = torch.ones(4, 3)
    close(fisher.fim(f, params, x), fisher.fim(f, params, x), 0.0, "eval mode")


def test_logdet_of_factors_has_derivatives():
    m = MODELS["conv1d"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    g = lambda p: fisher.fim(m.f, p, m.x, likelihood="gaussian", layers=layers, check_finite=False).logdet(0.1)
    direction = trees.map(torch.cos, m.params)
    at = lambda s: g(trees.axpy(s, direction, m.params))
    h = 1e-4
    want = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    close(trees.dot(grad(g)(m.params), direction), want, 1e-7, "logdet of KFAC")


def test_nothing_is_written_to_the_model():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    params = {n: t.detach() for n, t in net.named_parameters()}
    fisher.fim(lambda p, x: functional_call(net, p, (x,)), params, torch.ones(5, 3, dtype=D))
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name])
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_an_ensemble_of_convolutional_networks_is_the_loop():
    m = MODELS["conv2d"]
    members = [perturbed(m.params, k) for k in range(3)]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)

    def run(p):
        K = fisher.fim(m.f, p, m.x, fisher.PMatKFAC, layers=layers)
        return K.solve(p, 0.1), K.logdet(0.1), K.mv(p)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vmap(run)(trees.stack(members))
    close(got, trees.stack([run(p) for p in members]), 1e-10, "vmap")


def without_products(params, x):
    """A network in which autocast finds nothing to cast."""
    h = torch.tanh((x[:, :, None] * params["w"]).sum(1) + params["b"])
    return (h[:, :, None] * params["v"]).sum(1)


def under_autocast(fn, *args):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return fn(*args)


EVERY = [
    fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
    fisher.PMatLowRank, fisher.PMatImplicit, fisher.PMatMixed, fisher.PMatEye,
]  # fmt: skip


@pytest.mark.parametrize("representation", EVERY)
def test_autocast_around_a_matrix_leaves_its_numbers_alone(representation):
    """What autocast casts is in f, not in what is made of it: same bits, and the dtype of params."""
    r = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(3, 4, generator=r), "b": torch.zeros(4), "v": torch.randn(4, 2, generator=r)}
    x = torch.randn(6, 3, generator=r)
    v = trees.map(torch.cos, params)

    def made():
        F = fisher.fim(without_products, params, x, representation)
        extra = () if representation is fisher.PMatImplicit else (F.trace(), F.norm(), F.logdet(0.1))
        return F.mv(v), F @ v, F.solve(v, 0.1), F.vTMv(v), F.get_diag(), (2.0 * F + F).mv(v), *extra

    plain, cast = made(), under_autocast(made)
    assert {t.dtype for t in trees.leaves(cast)} == {torch.float32}
    close(cast, plain, 0.0, "bits")


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("representation", EVERY)
def test_autocast_in_f_is_watched_at_its_precision(representation, where):
    """Products in bfloat16, norms with wider weights: the matrix is that of float32 to the digits of bfloat16."""
    r = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.Linear(8, 2)
    )
    params = {n: torch.randn(t.shape, generator=r) for n, t in net.named_parameters()}
    x = torch.randn(16, 3, generator=r)
    f = lambda p, x: functional_call(net, p, (x,))
    plain = fisher.fim(f, params, x, representation, "gaussian").get_diag()
    if where == "around":
        cast = under_autocast(lambda: fisher.fim(f, params, x, representation, "gaussian")).get_diag()
    else:
        cast = fisher.fim(lambda p, x: under_autocast(f, p, x), params, x, representation, "gaussian").get_diag()
    assert {t.dtype for t in cast.values()} == {torch.float32}
    for name in params:
        assert (cast[name] - plain[name]).norm() <= 0.1 * plain[name].norm(), name
