"""Transformers by hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tests.zoo.member import Member


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
