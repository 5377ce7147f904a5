"""Uses on the border of what rules cover: each leaf is in one block, and numbers are right at any number of examples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fisher
import linmaps
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

U, V = randn(4, seed=5), randn(4, seed=6)


def stacked(p, x):
    for W, b in zip(p["W"].sin().unbind(), p["b"].unbind()):
        x = torch.tanh(F.linear(x, W, b))
    return x


def of(spec, f, size=4):
    p = spec.init(torch.Generator().manual_seed(1), dtype=torch.float64)
    return f, p, randn(3, size)


def module(net, f, *shape):
    net = net.double().eval()
    return f(net), {k: t.detach() for k, t in net.named_parameters()}, randn(*shape)


def layered(spec):
    def f(p, x):
        for layer in range(3):
            x = torch.tanh(spec.apply(p, x, layer=layer))
        return x

    return of(spec, f)


def with_state(kind):
    def of(net):
        def f(p, x):
            h = p["h0"].expand(1, len(x), -1)
            own = {k: t for k, t in p.items() if k != "h0"}
            start = (h, h) if kind is nn.LSTM else h
            return functional_call(net, own, (x, start))[0]

        return f

    f, p, x = module(kind(3, 4, batch_first=True), of, 3, 2, 3)
    return f, p | {"h0": randn(1, 4)}, x


def queries(p, x):
    q, k = F.linear(p["q"], p["Wq"], p["bq"]), F.linear(x, p["Wk"])
    return torch.softmax(q @ k.mT, -1) @ x


def expanded_queries(p, x):
    q, k = F.linear(p["q"].expand(len(x), -1, -1), p["Wq"], p["bq"]), F.linear(x, p["Wk"])
    return torch.softmax(q @ k.mT, -1) @ x


QUERY = {"q": randn(1, 2, 4), "Wq": randn(4, 4), "bq": randn(4), "Wk": randn(4, 4, seed=3)}
CELL = linmaps.RNNCell(linmaps.Orthogonal(4), linmaps.Linear(3, 4))
SQUARE = {"W": randn(2, 4, 4), "b": randn(2, 4)}
SPECTRAL = lambda p, x: F.linear(x, p["w"] / torch.vdot(U, torch.mv(p["w"].flatten(1), V)))

CASES = {
    "rows of a leaf as bias of a derived weight, and alone": (
        lambda p, x: torch.tanh(x @ p["w"].sin() + p["b"][0]) + p["b"][1],
        {"w": randn(4, 4), "b": randn(2, 4)},
        randn(3, 4),
    ),
    "chunks as biases": (
        lambda p, x: F.linear(
            torch.tanh(F.linear(x, p["w"].sin(), p["c"].chunk(2)[0])), p["w"].cos(), p["c"].chunk(2)[1]
        ),
        {"w": randn(4, 4), "c": randn(8)},
        randn(3, 4),
    ),
    "stacked biases": (stacked, SQUARE, randn(3, 4)),
    "triangles": (
        lambda p, x: F.linear(torch.tanh(F.linear(x, p["W"][0].tril(), p["b"][0])), p["W"][1].triu(), p["b"][1]),
        SQUARE,
        randn(3, 4),
    ),
    "layers of a joint tensor": layered(
        linmaps.Factorized((2, 2), (2, 2), factorization="lowrank", rank=2, n_layers=3)
    ),
    "layers of a joint train": layered(linmaps.Factorized((2, 2), (2, 2), factorization="tt", rank=2, n_layers=3)),
    "a map's bias that is not used": of(
        linmaps.Orthogonal(4, bias=True), lambda p, x: x @ linmaps.Orthogonal(4, bias=True).effective_W(p)
    ),
    "a state that is learned": (
        lambda p, x: torch.tanh(F.linear(p["h"].expand(len(x), -1), p["w"], p["b"]) + x),
        {"w": randn(4, 4), "b": randn(4), "h": randn(4)},
        randn(3, 4),
    ),
    "a state that is repeated": (
        lambda p, x: torch.tanh(p["h"].repeat(len(x), 1) @ p["w"] + x @ p["u"]),
        {"w": randn(4, 4), "u": randn(4, 4, seed=3), "h": randn(1, 4)},
        randn(3, 4),
    ),
    "LSTM with a state": with_state(nn.LSTM),
    "GRU with a state": with_state(nn.GRU),
    "RNN with a state": with_state(nn.RNN),
    "a map's state of zeros": of(CELL, lambda p, x: CELL.step(p, x, torch.zeros(len(x), 4, dtype=x.dtype)), 3),
    "every pair": (lambda p, x: torch.logsumexp(x[:, None, :] + p["W"], -1), {"W": randn(4, 4)}, randn(3, 4)),
    "every other pair": (lambda p, x: (x[:, None, :] + p["W"]).abs().sum(-1), {"W": randn(5, 4)}, randn(3, 4)),
    "spectral norm of a flat weight": (SPECTRAL, {"w": randn(4, 4)}, randn(3, 4)),
    "spectral norm, its module": module(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), lambda net: lambda p, x: functional_call(net, p, (x,)),
        3, 4,
    ),
    "learned queries": (queries, QUERY, randn(3, 5, 4)),
    "learned queries, expanded": (expanded_queries, QUERY, randn(3, 5, 4)),
    "a weight for each example": (
        lambda p, x: torch.bmm(x[:, None], p["W"].expand(len(x), -1, -1))[:, 0],
        {"W": randn(4, 2)},
        randn(3, 4),
    ),
    "a derived weight for each example": (
        lambda p, x: (x[:, None] @ p["W"].sin().expand(len(x), -1, -1))[:, 0],
        {"W": randn(4, 2)},
        randn(3, 4),
    ),
    "complex numbers": (
        lambda p, x: (torch.complex(x, x.sin()) @ torch.complex(p["a"], p["b"])).abs(),
        {"a": randn(4, 2), "b": randn(4, 2, seed=2)},
        randn(3, 4),
    ),
    "a spectrum": (
        lambda p, x: torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(p["w"]), n=4),
        {"w": randn(3, 2)},
        randn(3, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_leaf_is_in_one_block_and_rows_are_right(name):
    f, p, x = CASES[name]
    layers = fisher.LayerCollection.from_function(f, p, x)
    assert layers.numel() == sum(t.numel() for t in trees.leaves(p))
    want = fisher_matrix(f, p, x, "gaussian")
    close(fisher.fim(f, p, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-9, "dense")
    v = trees.map(torch.cos, p)
    for kind in (fisher.PMatKFAC, fisher.PMatEKFAC):
        fisher.fim(f, p, x, kind, "gaussian", layers=layers).solve(v, 0.1)
    for n in (1, 2):
        part = x[:n]
        diag = fisher.fim(f, p, part, fisher.PMatDiag, "gaussian", layers=layers).get_diag()
        close(trees.ravel(diag)[0], fisher_matrix(f, p, part, "gaussian").diagonal(), 1e-9, f"{n} examples")
    close(
        fisher.fim(f, p, [x[:1], x[1:]], likelihood="gaussian", layers=layers).trace(),
        fisher.fim(f, p, x, likelihood="gaussian", layers=layers).trace(),
        1e-9,
        "batches",
    )
