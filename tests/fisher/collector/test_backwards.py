"""The vjp at the taps by autograd itself: the numbers and the refusals of `torch.func.vjp`, and no graph lost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import vjp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fisher
from fisher.collector.backwards import RULED, alone, ruled
from linmaps import trees

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PARAMS = {
    "w": torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    "v": torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
}


def plain(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def found(f=plain):
    return fisher.LayerCollection.from_function(f, PARAMS, X)


def by_vjp(layers):
    """The same layers, of which it is known that f makes other calls."""
    made = copy.copy(layers)
    made.plain.clear()
    return made


@pytest.mark.parametrize("kind", [fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatDense, fisher.PMatEKFAC])
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_the_numbers_are_those_of_vjp(kind, estimator):
    data = (X, torch.arange(6) % 3)
    F, G = (fisher.fim(plain, PARAMS, data, kind, estimator=estimator, layers=l) for l in (found(), by_vjp(found())))
    torch.testing.assert_close(F.to_torch(), G.to_torch())
    assert not any(t.requires_grad or t.grad_fn is not None for t in trees.leaves(F))


def test_autograd_is_what_runs(monkeypatch):
    layers = found()
    monkeypatch.setattr("fisher.collector.taps.reverse", None)
    fisher.fim(plain, PARAMS, X, layers=layers)
    assert layers.plain
    assert not by_vjp(layers).plain


def test_a_call_that_is_not_known_is_left_to_vjp_at_once_and_for_good():
    f = lambda p, x: torch.tanh(x @ p["w"]).cumsum(1) @ p["v"]
    layers = found(f)
    F = fisher.fim(f, PARAMS, X, fisher.PMatDense, layers=layers)
    assert not layers.plain
    J = torch.func.jacrev(f)(PARAMS, X)
    J = torch.cat([J[k].flatten(2) for k in sorted(J)], -1)
    p = torch.softmax(f(PARAMS, X), -1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(F.to_torch(), torch.einsum("bci,bcd,bdj->ij", J, H, J) / len(X))


UNKNOWN = {
    "a call": lambda p, x: torch.tanh(x @ p["w"]).cumsum(1) @ p["v"],
    "a function of the user's": lambda p, x: Double.apply(torch.tanh(x @ p["w"])) @ p["v"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_left_to_vjp_has_no_graph(name):
    layers = found()
    y, io = fisher.layer_io(UNKNOWN[name], PARAMS, X, layers, lambda y: torch.ones_like(y)[None])
    assert not layers.plain
    assert not any(t.requires_grad for t in trees.leaves((y, io)))


def test_what_was_seen_is_in_no_file(tmp_path):
    layers = found()
    layers.plain.clear()
    trees.save(layers, tmp_path / "layers")
    assert trees.load(tmp_path / "layers").plain


@pytest.mark.parametrize("place", ["before", "between"])
def test_a_tensor_that_f_closes_over_keeps_its_graph(place):
    c = torch.ones(4 if place == "before" else 5, dtype=torch.float64, requires_grad=True)
    if place == "before":
        f = lambda p, x: torch.tanh((x * c) @ p["w"]) @ p["v"]
    else:
        f = lambda p, x: (torch.tanh(x @ p["w"]) * c) @ p["v"]
    F = fisher.fim(f, PARAMS, X, layers=found(f))
    total = sum((A**2).sum() + (G**2).sum() for A, G in F.factors.values())
    (slope,) = torch.autograd.grad(total, c)
    assert slope.abs().sum() > 0


def test_weights_of_a_likelihood_keep_theirs():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    F = fisher.fim(plain, PARAMS, X, fisher.PMatDiag, fisher.Categorical(weight=w), layers=found())
    (slope,) = torch.autograd.grad(F.trace(), w)
    assert slope.abs().sum() > 0


def test_refusals_are_those_of_vjp():
    checkpointed = lambda p, x: checkpoint(lambda h: torch.tanh(h @ p["w"]), x, use_reentrant=False) @ p["v"]
    with pytest.raises(ValueError, match="checkpoint"):
        fisher.fim(checkpointed, PARAMS, X, layers=found(), check_finite=False)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)).double()
    f, params = fisher.functional(model.eval())
    layers = fisher.LayerCollection.from_function(f, params, X)
    training, _ = fisher.functional(model.train())
    fisher.fim(training, params, X, layers=layers, check_finite=False)
    assert not layers.plain
    counted = torch.zeros(5, dtype=torch.float64)

    def counting(p, x):
        h = torch.tanh(x @ p["w"])
        counted.add_(h.sum(0))
        return h @ p["v"]

    with pytest.raises(ValueError, match="closes over"):
        fisher.fim(counting, PARAMS, X, layers=found(), check_finite=False)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_function_of_the_users_is_left_to_vjp():
    f = lambda p, x: Double.apply(torch.tanh(x @ p["w"])) @ p["v"]
    layers = found()
    F = fisher.fim(f, PARAMS, X, fisher.PMatDiag, layers=layers)
    assert not layers.plain
    same = fisher.fim(lambda p, x: (2 * torch.tanh(x @ p["w"])) @ p["v"], PARAMS, X, fisher.PMatDiag, layers=found())
    torch.testing.assert_close(F.get_diag(), same.get_diag())


def test_where_it_is_asked_for():
    assert alone([X])
    assert not alone([X.clone().requires_grad_()])
    assert not alone([nn.Parameter(X)])
    seen = []
    torch.func.vmap(lambda t: (seen.append(alone([X])), t)[1])(X)
    torch.func.jvp(lambda t: (seen.append(alone([X])), t)[1], (X,), (X,))
    torch.func.grad(lambda t: (seen.append(alone([X])), t.sum())[1])(X)
    with torch.inference_mode():
        seen.append(alone([X]))
    with torch.autograd.forward_ad.dual_level():
        seen.append(alone([X]))
    assert seen == [False] * 5


def test_ensembles_and_derivatives_go_on():
    layers, stacked = found(), {k: torch.stack([t, 2 * t]) for k, t in PARAMS.items()}
    F = torch.func.vmap(lambda p: fisher.fim(plain, p, X, fisher.PMatDense, layers=layers).to_torch())(stacked)
    one = fisher.fim(plain, {k: t[1] for k, t in stacked.items()}, X, fisher.PMatDense, layers=layers).to_torch()
    torch.testing.assert_close(F[1], one)
    trace = lambda p: fisher.fim(plain, p, X, fisher.PMatDiag, layers=layers).trace()
    slope = torch.func.grad(trace)(PARAMS)
    step = {k: PARAMS[k] + 1e-6 * t for k, t in slope.items()}
    gain = sum((t**2).sum() for t in slope.values())
    torch.testing.assert_close((trace(step) - trace(PARAMS)) / 1e-6, gain, rtol=1e-3, atol=1e-6)


W = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
ONES = torch.ones(4, dtype=torch.float64)
CALLS = {  # h [3, 4, 4]
    **{name: getattr(torch, name) for name in "abs cos exp neg sigmoid sin tanh relu".split()},  # noqa: SIM905
    **{name: getattr(F, name) for name in "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish silu".split()},  # noqa: SIM905
    "sums": lambda h: (h + h.sum(1, keepdim=True) - h.mean(2, keepdim=True)) * h / (1 + h**2),
    "softplus": F.softplus,
    "roots": lambda h: (1 + h**2).sqrt() + (1 + h**2).rsqrt() + (1 + h**2).log(),
    "softmax": lambda h: torch.softmax(h, 1) + torch.log_softmax(h, 2),
    "clamp": lambda h: h.clamp(-0.5, 0.5) + h.clamp_min(0.1),
    "where": lambda h: torch.where(h > 0, h, 2 * h),
    "products": lambda h: torch.addmm(h[0], h[0], h[1])[None] + torch.baddbmm(h, h, h) + torch.bmm(h, h) + h[0] @ h[1],
    "vectors": lambda h: (torch.addmv(h[0, 0], h[1], h[0, 1]) + torch.mv(h[0], h[1, 2]))[None],
    "linear": lambda h: F.linear(h, W[0], ONES) + F.linear(h.transpose(1, 2), W[1]) + F.linear(h, h[0], h[1, 0]),
    "views": lambda h: torch.cat([h.permute(0, 2, 1)[:2], torch.stack([h[0], h[1], h[2]]), h.mT.reshape(3, 4, 4)]),
    "pieces": lambda h: h.split(2, 1)[0] + h.unbind(2)[0].unsqueeze(2)[:, 2:].expand(3, 2, 4) + h[:, :1].squeeze(1)[:, None],
    "copies": lambda h: (h.clone() + h.float().double()).flatten(1) * torch.ops.aten.alias(h).view(3, 16),
    "convolution": lambda h: F.conv2d(h[:, None], W[:, None, :3, :3]) + F.conv1d(h, W[:, :, :3]).mean(),
    "pooling": lambda h: F.max_pool2d(h[:, None], 2) + F.avg_pool2d(h[:, None], 2) + F.adaptive_avg_pool2d(h[:, None], (2, 2)),
    "norms": lambda h: F.layer_norm(h, (4,), ONES, ONES) + F.group_norm(h, 2) + F.batch_norm(h, ONES, ONES, ONES),
    "embedding": lambda h: F.embedding(torch.tensor([[0, 2], [3, 3], [1, 0]]), h[0]),
}  # fmt: skip


def nodes(y):
    found, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if not hasattr(node, "variable"):
            found.add(node.name().split("Backward")[0])
            todo += [inner for inner, _ in node.next_functions if inner is not None]
    return found


def test_columns_at_once_of_ruled_nodes_are_those_of_each():
    """Every node that is taken for right is met, and is right."""
    met = set()
    for name, call in CALLS.items():
        seen = []

        def run(h, call=call, seen=seen):
            y = call(h)
            seen.append((ruled(y), nodes(y)))
            return y

        y, back = vjp(run, W)
        columns = torch.randn(3, *y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(4))
        assert seen[0][0], (name, seen[0][1] - RULED)
        torch.testing.assert_close(vmap(back)(columns)[0], torch.stack([back(c)[0] for c in columns]))
        met |= seen[0][1]
    assert met == RULED, (RULED - met, met - RULED)


def test_functions_of_ones_own_are_not_ruled():
    found = []
    vjp(lambda h: found.append(ruled(Double.apply(h) @ h)) or h, W)
    assert found == [False]
