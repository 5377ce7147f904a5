"""Models: the one list of functions, one per way a leaf can be used.  Each new rule adds a member here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from linmaps import trees


@dataclasses.dataclass(frozen=True)
class Member:
    """f(params, x); blocks: expected kind of block per layer name; class_axis of its logits."""

    f: Callable[..., torch.Tensor]
    params: Any
    x: torch.Tensor
    blocks: dict[str, str]
    class_axis: int = 1


def _randn(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def mlp(r):
    f = lambda p, x: F.linear(
        torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])), p["b"]["weight"], p["b"]["bias"]
    )
    return Member(
        f,
        {"a": {"weight": r(4, 3), "bias": r(4)}, "b": {"weight": r(3, 4), "bias": r(3)}},
        r(5, 3),
        {"a": "linear", "b": "linear"},
    )


def matmul_joined_bias(r):
    f = lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T
    return Member(f, {"w": r(3, 4), "b": r(4), "v": r(2, 4)}, r(5, 3), {"w": "matmul", "v": "matmul"})


def addmm(r):
    f = lambda p, x: torch.addmm(p["b"], torch.sin(torch.mm(x, p["w"])), p["v"])
    return Member(f, {"w": r(3, 4), "v": r(4, 2), "b": r(2)}, r(4, 3), {"w": "matmul", "v": "matmul"})


def bias_apart(r):
    """The output of the product is used twice: its bias may not join it."""

    def f(p, x):
        z = x @ p["w"]
        return torch.tanh(z + p["b"]) * z

    return Member(f, {"w": r(3, 3), "b": r(3)}, r(4, 3), {"w": "matmul", "b": "bias"})


def in_place(r):
    """Bias, activation and skip connection in place."""

    def f(p, x):
        z = x @ p["w"]
        z += p["b"]
        h = torch.relu_(z)
        out = h @ p["v"]
        out += x
        return out @ p["u"]

    return Member(
        f, {"w": r(3, 4), "b": r(4), "v": r(4, 3), "u": r(3, 2)}, r(5, 3), {"w": "matmul", "v": "matmul", "u": "matmul"}
    )


def tied(r):
    """One weight met twice."""
    f = lambda p, x: torch.tanh(torch.tanh(x @ p["w"]) @ p["w"])
    return Member(f, {"w": r(3, 3)}, r(5, 3), {"w": "matmul"})


def both_ways(r):
    """A weight and its transpose: an autoencoder with tied weights."""
    f = lambda p, x: torch.tanh(x @ p["w"]) @ p["w"].T
    return Member(f, {"w": r(3, 2)}, r(5, 3), {"w": "exact"})


def sequence(r):
    f = lambda p, x: F.linear(torch.tanh(F.linear(x, p["a"]["weight"], p["a"]["bias"])).cumsum(1), p["b"]["weight"])
    return Member(
        f,
        {"a": {"weight": r(3, 2), "bias": r(3)}, "b": {"weight": r(2, 3)}},
        r(4, 3, 2),
        {"a": "linear", "b": "linear"},
        class_axis=-1,
    )


def pooled(r):
    f = lambda p, x: torch.tanh(x @ p["a"]).mean(1) @ p["b"]
    return Member(f, {"a": r(2, 3), "b": r(3, 2)}, r(4, 3, 2), {"a": "matmul", "b": "matmul"})


def flattened(r):
    """Tokens flattened into the batch, examples outside."""

    def f(p, x):
        h = torch.tanh(x.reshape(-1, x.shape[-1]) @ p["a"])
        return h.reshape(len(x), -1) @ p["b"]

    return Member(f, {"a": r(2, 3), "b": r(9, 2)}, r(4, 3, 2), {"a": "matmul", "b": "matmul"})


def steps_first(r):
    """Inside, time comes first: the batch axis is the second, and once it is flattened with time outside."""

    def f(p, x):
        h = torch.tanh(x.transpose(0, 1) @ p["a"])
        h = torch.tanh(h.reshape(-1, h.shape[-1]) @ p["c"]).reshape(*h.shape[:2], -1)
        return h.sum(0) @ p["b"]

    return Member(f, {"a": r(2, 3), "c": r(3, 3), "b": r(3, 2)}, r(4, 3, 2), dict.fromkeys("acb", "matmul"))


def bare(r):
    """A scale (no rule), a scalar in a call without a rule, and a leaf that nothing uses."""
    f = lambda p, x: torch.lerp(x, torch.sin(x), p["t"]) @ p["w"] * p["scale"]
    return Member(
        f,
        {"w": r(3, 4), "scale": r(4), "t": r(), "idle": r(2, 2)},
        r(5, 3),
        {"w": "matmul", "scale": "scale", "t": "exact", "idle": "unused"},
    )


def affine(r):
    """Scales and shifts of all shapes: per feature (joined), per position, of one channel axis, a single number."""

    def f(p, x):
        h = torch.tanh(F.linear(x + p["position"], p["w"])) * p["scale"] + p["shift"]
        h = (h[:, None] * p["channel"])[:, 0] * p["temperature"]
        return h.mean(1) @ p["v"]

    shapes = {"position": (3, 2), "w": (4, 2), "scale": (4,), "shift": (4,), "channel": (1, 1, 4), "v": (4, 3)}
    kinds = {
        "position": "positions",
        "w": "linear",
        "scale": "scale",
        "channel": "scale",
        "temperature": "scale",
        "v": "matmul",
    }
    return Member(f, {k: r(*s) for k, s in shapes.items()} | {"temperature": r()}, r(4, 3, 2), kinds)


def derived(r):
    """The weight is computed from the leaf."""
    f = lambda p, x: torch.tanh(x @ (p["w"] * p["w"].sign().detach()) @ p["v"])
    return Member(f, {"w": r(3, 3), "v": r(3, 2)}, r(5, 3), {"w": "mul", "v": "matmul"})


def module(r):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4, bias=False), nn.GELU(), nn.Linear(4, 3)
    ).double()
    params = {name: r(*t.shape) for name, t in net.named_parameters()}
    return Member(
        lambda p, x: functional_call(net, p, (x,)), params, r(5, 3), {"0": "linear", "2": "linear", "4": "linear"}
    )


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


def _network(r, net, *shape, kinds, class_axis=1):
    net = net.double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.copy_(r(*buffer.shape).abs() + 0.5)
    f = lambda p, x: functional_call(net, p, (x,))
    return Member(f, params, r(*shape), kinds, class_axis)


def conv1d(r):
    net = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.Tanh(), nn.Conv1d(4, 2, 2, groups=2))
    return _network(r, net, 3, 2, 9, kinds={"0": "conv1d", "2": "conv1d"})


def conv2d(r):
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 1), padding="same", dilation=2, bias=False), nn.BatchNorm2d(3, eps=0.1), nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    return _network(r, net, 3, 2, 4, 4, kinds={"0": "conv2d", "1": "scale", "3": "conv2d", "6": "linear"})


def conv3d(r):
    net = nn.Sequential(
        nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.Tanh(), nn.ConvTranspose3d(2, 2, 2, bias=False), nn.Flatten()
    )
    return _network(r, net, 2, 1, 2, 3, 2, kinds={"0": "conv3d", "2": "conv_transpose3d"})


def transposed(r):
    """Transposed convolutions with stride, padding, output padding, dilation, groups; depthwise convolution."""
    net = nn.Sequential(
        nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(),
        nn.Conv1d(4, 4, 3, groups=4, padding=1), nn.Unflatten(2, (2, 3)),
        nn.ConvTranspose2d(4, 2, (2, 1), stride=(1, 2), padding=(2, 0), dilation=(3, 1)), nn.Tanh(), nn.Flatten(),
    )  # fmt: skip
    return _network(r, net, 3, 2, 3, kinds={"0": "conv_transpose1d", "2": "conv1d", "4": "conv_transpose2d"})


def norms(r):
    """Layer, RMS, group, instance and batch norm, on positions and without, with and without bias."""
    net = nn.Sequential(
        nn.LayerNorm((2, 6), eps=1e-3), nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True),
        nn.BatchNorm1d(4), nn.RMSNorm(6, eps=1e-3), nn.LayerNorm(6, bias=False), nn.Flatten(), nn.Linear(24, 4),
        nn.GroupNorm(2, 4), nn.BatchNorm1d(4, eps=0.3),
    )  # fmt: skip
    kinds = {str(k): "scale" for k in (0, 2, 3, 4, 5, 6, 9, 10)}
    return _network(r, net, 3, 2, 6, kinds=kinds | {"1": "conv1d", "8": "linear"})


def embedding(r):
    """Tokens with a padding index and repetitions, positions, a table read by an index, a tied output layer would be exact."""

    def f(p, x):
        h = F.embedding(x, p["tokens"], padding_idx=1) + p["places"][torch.arange(4)]
        return torch.tanh(h).cumsum(1) @ p["v"] + p["one"][x[:, 0]][:, None]

    g = torch.Generator().manual_seed(0)
    params = {"tokens": r(5, 3), "places": r(4, 3), "v": r(3, 2), "one": r(5, 2)}
    kinds = {"tokens": "embedding", "one": "embedding", "v": "matmul", "places": "positions"}
    return Member(f, params, torch.randint(5, (3, 4), generator=g), kinds, class_axis=-1)


def tied_embedding(r):
    """A table that is also the output layer, transposed: no common factors."""
    f = lambda p, x: torch.tanh(F.embedding(x, p["tokens"]) @ p["w"]) @ p["tokens"].T
    return Member(
        f,
        {"tokens": r(4, 3), "w": r(3, 3)},
        torch.tensor([[0, 1, 1], [2, 3, 0]]),
        {"tokens": "exact", "w": "matmul"},
        -1,
    )


def einsum(r):
    """Contractions over several axes, in any order, and one with a matrix for each group."""

    def f(p, x):
        h = torch.tanh(torch.einsum("bthd,hdo->bto", x, p["heads"]))
        h = torch.tanh(torch.einsum("go,btg->bot", p["w"], h))
        h = torch.einsum("bgt,gts->bgs", h, p["grouped"])
        return torch.einsum("bgs,os->bog", h, p["v"])

    shapes = {"heads": (2, 3, 4), "w": (4, 2), "grouped": (2, 3, 2), "v": (2, 2)}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(3, 3, 2, 3), dict.fromkeys(shapes, "einsum"))


def weight_norm(r):
    """Weight norm and cosine layers: the weight is derived from its leaves."""

    def f(p, x):
        w = p["g"][:, None] * p["v"] / p["v"].norm(dim=1, keepdim=True)
        h = torch.tanh(F.linear(x, w))
        c = p["c"] / (p["c"].square().sum(1, keepdim=True) + 1e-5).sqrt()
        return F.linear(h / (h.square().sum(-1, keepdim=True) + 1e-5).sqrt(), c)

    return Member(f, {"v": r(4, 3), "g": r(4), "c": r(3, 4)}, r(5, 3), {"g+v": "div", "c": "div"})


def class_token(r):
    """Only the first position is read, so that where the examples are does not show in the first example alone."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), 1)
    net = net.double().eval()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()} | {"head": r(3, 4)}
    f = lambda p, x: functional_call(net, {k: t for k, t in p.items() if k != "head"}, (x,))[:, 0] @ p["head"].T
    inner = ["linear1", "linear2", "self_attn.out_proj", *QKV]
    blocks = {f"layers.0.{n}": "linear" for n in inner} | {"layers.0.norm1": "scale", "layers.0.norm2": "scale"}
    return Member(f, params, r(3, 6, 4), blocks | {"head": "matmul"})


def first_step(r):
    """Time first inside, as many steps as examples or a multiple, and only one step read."""

    def f(p, x):
        h = torch.tanh(F.linear(x.transpose(0, 1), p["a"]["weight"], p["a"]["bias"]))
        return F.linear(torch.cat([h, h.flip(0)])[0], p["b"]["weight"])

    params = {"a": {"weight": r(4, 3), "bias": r(4)}, "b": {"weight": r(3, 4)}}
    return Member(f, params, r(3, 6, 3), {"a": "linear", "b": "linear"})


def own_step(r):
    """Time first inside, and each example is read where it is largest: the first at the first step, the last at the last."""

    def f(p, x):
        h = torch.tanh(x.transpose(0, 1) @ p["w"])
        where = (x[..., 0].argmax(1) == torch.arange(x.shape[1])[:, None]).to(x)
        return (h * where[..., None]).sum(0) @ p["v"]

    x = r(4, 4, 2)
    x[torch.arange(4), torch.tensor([0, 2, 1, 3]), 0] = 9.0
    return Member(f, {"w": 0.2 * r(2, 3), "v": r(3, 2)}, x, {"w": "matmul", "v": "matmul"})


def silent_head(r):
    """A head of zeros: no gradient says where the examples are, but the values do."""

    def f(p, x):
        h = torch.tanh(x.reshape(-1, x.shape[-1]) @ p["w"])
        return h.reshape(*x.shape[:2], -1).mean(1) @ p["head"]

    return Member(f, {"w": r(2, 3), "head": torch.zeros(3, 2).double()}, r(3, 2, 2), {"w": "matmul", "head": "matmul"})


def prelu(r):
    """Slopes of negative inputs: one for all, one for each channel."""
    net = nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.PReLU(4), nn.Conv1d(4, 2, 2), nn.PReLU(), nn.Flatten(), nn.Linear(4, 3), nn.PReLU(3)
    )
    kinds = {"0": "conv1d", "2": "conv1d", "5": "linear"} | dict.fromkeys("136", "prelu")
    return _network(r, net, 4, 2, 4, kinds=kinds)


def mixed_bias(r):
    """One weight used with its bias at three positions, and without it once more."""

    def f(p, x):
        h = torch.tanh(F.linear(x, p["w"], p["b"]))
        return F.linear(h.sum(1), p["w"])

    return Member(f, {"w": r(3, 3), "b": r(3)}, r(5, 3, 3), {"w": "linear"})


def unequal_attention(r):
    """Queries, keys and values of other sizes: weights of their own, biases packed in one leaf."""
    net = nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True).double()
    params = {name: 0.5 * r(*t.shape) for name, t in net.named_parameters()}
    f = lambda p, x: functional_call(net, p, (x[..., :4], x[..., 4:7], x[..., 7:]))[0]
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
    biases = {f"in_proj_bias[{k}:{k + 4}]": "bias" for k in (0, 4, 8)}
    return Member(f, params, r(3, 2, 9), dict.fromkeys(names, "linear") | biases, -1)


def flat_vector(r):
    """All weights and biases in one vector, cut and reshaped."""

    def f(p, x):
        w, b, v = p["flat"][:12].view(3, 4), p["flat"][12:15], p["flat"][15:].reshape(3, 2)
        return torch.tanh(F.linear(x, w, b)) @ v

    kinds = {"flat[0:12]": "linear", "flat[12:15]": "bias", "flat[15:21]": "matmul"}
    return Member(f, {"flat": r(21)}, r(5, 4), kinds)


def stacked_layers(r):
    """The weights of several layers in one leaf, as a scan over layers has them; multiples of weights."""

    def f(p, x):
        for w, b in zip(p["w"], p["b"]):
            x = torch.tanh(F.linear(x, w, b))
        return (p["head"] / 2 @ x.mT).mT

    kinds = {"w[0:1]": "linear", "w[1:2]": "linear", "head": "matmul"}
    return Member(f, {"w": r(2, 3, 3), "b": r(2, 3), "head": r(2, 3)}, r(4, 2, 3), kinds, class_axis=-1)


def heads(r):
    """Weights of several heads at once: batched products, tensordot, a bilinear form."""

    def f(p, x):
        h = torch.tanh(x[:, :, None, None] @ p["w"])[..., 0, :]
        h = torch.tensordot(h, p["o"], 2)
        return F.bilinear(h, x, p["pair"], p["b"])

    shapes = {"w": (2, 4, 3), "o": (2, 3, 2), "pair": (3, 2, 4), "b": (3,)}
    kinds = {"w": "matmul", "o": "tensordot", "pair": "bilinear"}
    return Member(f, {k: r(*s) for k, s in shapes.items()}, r(4, 2, 4), kinds, class_axis=-1)


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


class _Block(nn.Module):
    """A pre-norm block of a causal transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.after = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.out = nn.Linear(4, 12, bias=False), nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(h)
        return x + self.down(F.gelu(self.up(self.after(x))))


class _GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places, self.block = nn.Embedding(5, 4), nn.Embedding(6, 4), _Block()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        h = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.block(h)))


def gpt(r):
    """Tokens, a table of positions, a pre-norm causal block, a head of its own."""
    net = _GPT().double()
    params = {name: 0.7 * r(*t.shape) for name, t in net.named_parameters()}
    g = torch.Generator().manual_seed(5)
    norms = dict.fromkeys(("block.norm", "block.after", "norm"), "scale")
    linear = dict.fromkeys(("block.qkv", "block.out", "block.up", "block.down", "head"), "linear")
    kinds = {"tokens": "embedding", "places": "positions"} | norms | linear
    f = lambda p, x: functional_call(net, p, (x,))
    return Member(f, params, torch.randint(5, (3, 3), generator=g), kinds, class_axis=-1)


class _ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, 2)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 5, 4))
        self.encoder, self.head = (
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.places
        return self.head(self.encoder(h)[:, 0])


def vit(r):
    """Patches, a class token, places, an encoder layer read at its first position."""
    net = _ViT().double().eval()
    params = {name: 0.6 * r(*t.shape) for name, t in net.named_parameters()}
    names = ("encoder.linear1", "encoder.linear2", "encoder.self_attn.out_proj", "head")
    kinds = dict.fromkeys(names, "linear") | {"patches": "conv2d", "token": "bias", "places": "positions"}
    kinds |= dict.fromkeys(("encoder.norm1", "encoder.norm2"), "scale")
    kinds |= {f"encoder.self_attn.in_proj_weight[{k}:{k + 4}]": "linear" for k in (0, 4, 8)}
    return Member(lambda p, x: functional_call(net, p, (x,)), params, r(3, 1, 4, 4), kinds)


BUILDERS = [
    mlp, matmul_joined_bias, addmm, bias_apart, in_place, tied, both_ways, sequence, pooled, flattened, steps_first,
    bare, derived, module, attention, affine, cross_attention, conv1d, conv2d, conv3d, transposed, norms, embedding,
    tied_embedding, einsum, weight_norm, class_token, first_step, own_step, silent_head, prelu, mixed_bias,
    unequal_attention, flat_vector, stacked_layers, heads, lstm, gru, rnn, gpt, vit,
]  # fmt: skip
MODELS = {build.__name__: build(_randn(k)) for k, build in enumerate(BUILDERS)}


def perturbed(params, seed, size=0.1):
    r = _randn(seed)
    return trees.map(lambda t: t + size * r(*t.shape), params)
