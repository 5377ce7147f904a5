"""Step after step: recurrent networks."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tests.zoo.member import Member, weights


def _recurrent(r, net, *shape):
    """Each weight is a linear one used at every step."""
    net = net.double()
    own = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    width = (2 if net.bidirectional else 1) * (getattr(net, "proj_size", 0) or net.hidden_size)
    f = lambda p, x: functional_call(net, {k: p[k] for k in own}, (x,))[0].mean(1) @ p["head"]
    kinds = {k: "linear" for k in own if k.startswith("weight")} | {"head": "matmul"}
    return Member(f, own | {"head": r(width, 2)}, r(*shape), kinds)


def lstm(r):
    return _recurrent(r, nn.LSTM(3, 3, batch_first=True, proj_size=2), 4, 3, 3)


def gru(r):
    return _recurrent(r, nn.GRU(3, 2, batch_first=True, bidirectional=True), 4, 3, 3)


def rnn(r):
    return _recurrent(r, nn.RNN(3, 3, 2, batch_first=True, bias=False), 4, 2, 3)


def mamba(r):
    """A selective state space: a causal depthwise convolution, step sizes and gates from the data, a loop over time."""

    def f(p, x):
        h, gate = F.linear(x, p["in_proj"]).chunk(2, -1)
        h = F.conv1d(h.mT, p["conv1d"]["weight"], p["conv1d"]["bias"], padding=1, groups=3)[..., : x.shape[1]].mT
        h = F.silu(h)
        delta, B, C = F.linear(h, p["x_proj"]).split([1, 2, 2], -1)
        delta = F.softplus(F.linear(delta, p["dt_proj"]["weight"], p["dt_proj"]["bias"]))
        A, state, ys = -torch.exp(p["A_log"]), h.new_zeros(len(x), 3, 2), []
        for t in range(x.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + delta[:, t, :, None] * B[:, t, None] * h[:, t, :, None]
            ys.append((state * C[:, t, None]).sum(-1))
        return F.linear((torch.stack(ys, 1) + p["D"] * h) * F.silu(gate), p["out_proj"])

    layer = lambda *shape: {"weight": shape, "bias": shape[:1]}
    shapes = {"in_proj": (6, 2), "conv1d": layer(3, 1, 2), "x_proj": (5, 3), "dt_proj": layer(3, 1), "A_log": (3, 2)}
    shapes |= {"D": (3,), "out_proj": (2, 3)}
    kinds = dict.fromkeys(("in_proj", "x_proj", "dt_proj", "out_proj"), "linear")
    return Member(
        f, weights(r, shapes), r(3, 3, 2), kinds | {"conv1d": "conv1d", "A_log": "neg", "D": "scale"}, class_axis=-1
    )
