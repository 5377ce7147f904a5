"""Step after step: recurrent networks."""

from torch import nn
from torch.func import functional_call

from tests.zoo.member import Member


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
