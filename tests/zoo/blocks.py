"""Blocks of language and image models as their papers write them, with rotations, biases of positions, tied tables."""

import torch
import torch.nn.functional as F

from tests.zoo.member import Member, weights


def _rms(x, scale):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * scale


def _rotated(x):
    """Rotary positions, `[B, H, T, 2]`: halves turned by an angle that grows with the position."""
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None].expand(-1, x.shape[-1])
    return x * angle.cos() + torch.cat([-x[..., 1:], x[..., :1]], -1) * angle.sin()


def llama(r):
    """RMS norms, two heads of queries that share one of keys and values, rotary positions, a gated layer."""

    def f(p, x):
        h = F.embedding(x, p["tokens"])
        n = _rms(h, p["attention_norm"])
        q, k, v = (F.linear(n, p[w]).unflatten(-1, (-1, 2)).transpose(1, 2) for w in ("q", "k", "v"))
        q, k, v = _rotated(q), _rotated(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = q @ k.mT / 2**0.5
        scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        h = h + F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), p["o"])
        n = _rms(h, p["norm"])
        h = h + F.linear(F.silu(F.linear(n, p["gate"])) * F.linear(n, p["up"]), p["down"])
        return F.linear(_rms(h, p["last"]), p["head"])

    shapes = {"tokens": (4, 4), "q": (4, 4), "k": (2, 4), "v": (2, 4), "o": (4, 4), "gate": (3, 4), "up": (3, 4)}
    shapes |= {"down": (4, 3), "head": (2, 4), "attention_norm": (4,), "norm": (4,), "last": (4,)}
    kinds = dict.fromkeys(shapes, "linear") | dict.fromkeys(("attention_norm", "norm", "last"), "scale")
    x = torch.tensor([[0, 1, 2], [3, 3, 0], [2, 1, 1]])
    return Member(f, weights(r, shapes), x, kinds | {"tokens": "embedding"}, -1)


def gpt2(r):
    """The products of flattened tokens, with biases, their queries, keys and values split; the table of tokens is the head."""

    def dense(x, p):
        return torch.addmm(p["bias"], x.view(-1, x.shape[-1]), p["weight"]).view(*x.shape[:-1], -1)

    def norm(x, p):
        return F.layer_norm(x, (4,), p["weight"], p["bias"])

    def f(p, x):
        h = F.embedding(x, p["wte"]) + F.embedding(torch.arange(x.shape[1]), p["wpe"])
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in dense(norm(h, p["ln_1"]), p["attn"]).split(4, 2))
        scores = torch.where(torch.ones(x.shape[1], x.shape[1]).tril().bool(), q @ k.mT / 2**0.5, -1e9)
        h = h + dense((scores.softmax(-1) @ v).transpose(1, 2).reshape(h.shape), p["proj"])
        h = h + dense(F.gelu(dense(norm(h, p["ln_2"]), p["fc"]), approximate="tanh"), p["out"])
        return norm(h, p["ln_f"]) @ p["wte"].T

    layer = lambda *shape: {"weight": shape, "bias": shape[-1:]}
    shapes = {"wte": (3, 4), "wpe": (4, 4), "attn": layer(4, 12), "proj": layer(4, 4), "fc": layer(4, 3)}
    shapes |= {"out": layer(3, 4)} | {n: layer(4) for n in ("ln_1", "ln_2", "ln_f")}
    kinds = dict.fromkeys(("attn", "proj", "fc", "out"), "matmul") | dict.fromkeys(("ln_1", "ln_2", "ln_f"), "scale")
    x = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1]])
    return Member(f, weights(r, shapes), x, kinds | {"wte": "embedding + matmul", "wpe": "positions"}, -1)


def _distances():
    """For each pair of places in a window of 2 x 2 the row of the table of their distance."""
    place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
    away = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
    return away[..., 0] * 3 + away[..., 1]


def swin(r):
    """Attention inside shifted windows, which are flattened into the batch, with a table of biases by distance."""
    index = _distances()

    def f(p, x):
        windows = torch.roll(x, -1, 1).unflatten(1, (2, 2)).transpose(2, 3)  # [B, 4, 2, 4] as 2 windows of 2 x 2
        h = windows.permute(0, 1, 3, 2, 4).reshape(-1, 4, x.shape[-1])
        q, k, v = F.linear(h, p["qkv"]["weight"], p["qkv"]["bias"]).reshape(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        bias = p["table"][index.view(-1)].view(4, 4, 2).permute(2, 0, 1).contiguous()
        attention = (q @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
        h = F.linear((attention @ v).transpose(1, 2).reshape(-1, 4, 4), p["proj"]["weight"], p["proj"]["bias"])
        return F.linear(h.reshape(len(x), -1, x.shape[-1]).mean(1), p["head"])

    layer = lambda *shape: {"weight": shape, "bias": shape[:1]}
    shapes = {"qkv": layer(12, 4), "proj": layer(4, 4), "table": (9, 2), "head": (2, 4)}
    kinds = {"qkv": "linear", "proj": "linear", "table": "positions", "head": "linear"}
    return Member(f, weights(r, shapes), r(3, 4, 2, 4), kinds)
