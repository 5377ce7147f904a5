"""Torch's own attention, its projections packed or apart."""

from torch import nn
from torch.func import functional_call

from tests.zoo.member import Member


def attention(r):
    """Packed projections, layer norms and an inside order of time first: torch's own encoder layer."""
    net = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True).double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    blocks = dict.fromkeys(("linear1", "linear2", "self_attn.out_proj", *QKV), "linear")
    norms = {"norm1": "scale", "norm2": "scale"}
    return Member(lambda p, x: functional_call(net, p, (x,)), params, r(3, 2, 4), blocks | norms, class_axis=-1)


QKV = [f"self_attn.in_proj_weight[{k}:{k + 4}]" for k in (0, 4, 8)]


def cross_attention(r):
    """Queries from one sequence, keys and values from another: parts of the packed projection are used apart."""
    net = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True).double()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    f = lambda p, x: functional_call(net, p, (x[:, :2], x, x))[0]
    names = [n.removeprefix("self_attn.") for n in QKV]
    return Member(
        f,
        params,
        r(3, 3, 4),
        dict.fromkeys((*names, "out_proj"), "linear") | {"bias_k": "bias", "bias_v": "bias"},
        -1,
    )


def class_token(r):
    """Only the first position is read, so that where the examples are does not show in the first example alone."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), 1)
    net = net.double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()} | {"head": r(3, 4)}
    f = lambda p, x: functional_call(net, {k: t for k, t in p.items() if k != "head"}, (x,))[:, 0] @ p["head"].T
    inner = ["linear1", "linear2", "self_attn.out_proj", *QKV]
    blocks = {f"layers.0.{n}": "linear" for n in inner} | {"layers.0.norm1": "scale", "layers.0.norm2": "scale"}
    return Member(f, params, r(3, 6, 4), blocks | {"head": "matmul"})


def unequal_attention(r):
    """Queries, keys and values of other sizes: weights of their own, biases packed in one leaf."""
    net = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True).double()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    f = lambda p, x: functional_call(net, p, (x[..., :4], x[..., 4:7], x[..., 7:]))[0]
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
    biases = {f"in_proj_bias[{k}:{k + 4}]": "bias" for k in (0, 4, 8)}
    return Member(f, params, r(3, 2, 9), dict.fromkeys(names, "linear") | biases, -1)
