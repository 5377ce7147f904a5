"""Attention layers written by hand, as others write them: their params, their functions, their Heads."""

import dataclasses

import torch
import torch.nn.functional as F

import growth
from tests.growth.rows_surgery import normal

E, T = 6, 5  # stream, positions


@dataclasses.dataclass(frozen=True)
class Layer:
    f: object  # f(params, x, n_heads): how many heads there are; None reads it from params by the width d
    params: dict
    heads: growth.Heads
    d: int


def weights(p, name, packed):
    if packed is None:
        return p[name]["weight"], p[name].get("bias")
    if "in_proj_weight" in p:
        return p["in_proj_weight"], p.get("in_proj_bias")
    return p["c_attn"]["weight"], p["c_attn"].get("bias")


def attend(q, k, v, how):
    """q `[B, H, T, d]`, k and v `[B, G, T, d]`."""
    m = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(m, 1), v.repeat_interleave(m, 1)
    if how == "written":
        return ((q @ k.mT) / k.shape[-1] ** 0.5).softmax(-1) @ v
    if how == "causal":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if how == "masked":
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if how == "constant":
        return F.scaled_dot_product_attention(q, k, v, scale=0.3)
    if how == "additive":
        bias = -torch.arange(q.shape[-2], device=q.device, dtype=q.dtype).sub(1.5).abs()
        return ((q @ k.mT) / k.shape[-1] ** 0.5 + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def made(how="sdpa", H=2, G=None, d=3, bias=True, packed=None, seed=0, dv=None):
    groups, dv = G or H, dv or d
    rows = {"q": H * d, "k": groups * d, "v": groups * dv}
    own = {n: {"weight": normal(seed + i, r, E)} for i, (n, r) in enumerate(rows.items())}
    own["o"] = {"weight": normal(seed + 9, 4, H * dv) / 2}
    if bias:
        own |= {n: own[n] | {"bias": normal(seed + 20 + i, r)} for i, (n, r) in enumerate(rows.items())}
        own["o"]["bias"] = normal(seed + 30, 4)
    if packed is not None:
        both = {k: torch.cat([own[n][k] for n in "qkv"]) for k in own["q"]}
        name, stem = ("in_proj_weight", "in_proj") if packed == "torch" else ("c_attn", "c_attn")
        stored = {f"in_proj_{k}": t for k, t in both.items()} if packed == "torch" else {"c_attn": both}
        params = stored | {"o": own["o"]}
        heads = growth.Heads(None, None, None, "o", H, packed=name if seed % 2 else stem, n_kv_heads=G)
    else:
        params, heads = own, growth.Heads("q", "k", "v", "o", H, n_kv_heads=G)

    def f(p, x, heads=heads, d=None):
        """d: the width of heads, where it is known and their number is not."""
        H, G = heads.n_heads, heads.groups
        if packed is None:
            q, k, v = (F.linear(x, *weights(p, n, None)) for n in "qkv")
            if d is not None:
                H, G = q.shape[-1] // d, k.shape[-1] // d
        else:
            z = F.linear(x, *weights(p, "", packed))
            if d is not None:
                n = z.shape[-1] // d
                H, G = n * H // (H + 2 * G), n * G // (H + 2 * G)
            w = z.shape[-1] // (H + 2 * G)
            q, k, v = z.split([H * w, G * w, G * w], -1)
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(-3, -2) for t, n in ((q, H), (k, G), (v, G)))
        y = attend(q, k, v, how).transpose(-3, -2).flatten(-2)
        return F.linear(y, p["o"]["weight"], p["o"].get("bias"))

    return Layer(f, params, heads, d)


LAYERS = {
    "sdpa": lambda **o: made(**o),
    "no bias": lambda **o: made(bias=False, **o),
    "written": lambda **o: made("written", **o),
    "causal": lambda **o: made("causal", **o),
    "masked": lambda **o: made("masked", **o),
    "additive": lambda **o: made("additive", **o),
    "one head": lambda **o: made(H=1, **o),
    "many heads": lambda **o: made(H=4, d=2, **o),
    "width 1": lambda **o: made(H=3, d=1, **o),
    "grouped": lambda **o: made(H=4, G=2, d=2, **o),
    "one of keys": lambda **o: made("causal", H=3, G=1, **o),
    "packed": lambda **o: made(packed="torch", **o),
    "packed without bias": lambda **o: made("causal", packed="gpt", bias=False, **o),
    "packed gpt": lambda **o: made("causal", packed="gpt", H=3, d=2, **o),
    "packed grouped": lambda **o: made(packed="gpt", H=4, G=2, d=2, **o),
}
X = normal(77, 3, T, E)
