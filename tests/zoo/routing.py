"""Data that are sent about: to experts by their gate, to neighbours along the edges of a graph."""

import torch
import torch.nn.functional as F

from tests.zoo.member import Member, weights


def soft_experts(r):
    """Each example meets all experts, weighted by a gate."""

    def f(p, x):
        h = torch.tanh(torch.einsum("bi,eio->beo", x, p["up"]))
        each = torch.einsum("beo,eok->bek", h, p["down"])
        return torch.einsum("be,bek->bk", F.linear(x, p["gate"]).softmax(-1), each)

    shapes = {"gate": (3, 3), "up": (3, 3, 3), "down": (3, 3, 2)}
    return Member(f, weights(r, shapes), r(4, 3), {"gate": "linear", "up": "einsum", "down": "einsum"})


def _expert(p, x):
    return F.linear(torch.tanh(F.linear(x, p["up"])), p["down"])


def chosen_experts(r):
    """The two best of three experts for each token; an expert is shown the tokens that chose it alone."""

    def f(p, x):
        tokens = x.reshape(-1, x.shape[-1])
        best, which = F.linear(tokens, p["gate"]).softmax(-1).topk(2, -1)
        best = best / best.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for k, expert in enumerate(p["experts"]):
            row, place = torch.where(which == k)
            out = out.index_add(0, row, best[row, place, None] * _expert(expert, tokens[row]))
        return out.view_as(x) + x

    experts = [weights(r, {"up": (2, 2), "down": (2, 2)}) for _ in range(3)]
    kinds = {f"experts.{k}.{n}": "exact" for k in range(3) for n in ("up", "down")}
    return Member(f, {"gate": r(3, 2), "experts": experts}, r(3, 2, 2), kinds | {"gate": "linear"}, -1, ensembles=False)


def hashed_experts(r):
    """The data alone say which expert an example is shown to, at times none."""

    def f(p, x):
        out = x @ p["shared"]
        for mask, expert in zip((x[:, 0] > 0, x[:, 0] <= 0, x[:, 0] > 1e3), p["experts"]):
            out[mask] = out[mask] + _expert(expert, x[mask])
        return out

    experts = [weights(r, {"up": (2, 3), "down": (2, 2)}) for _ in range(3)]
    kinds = {f"experts.{k}.{n}": "exact" for k in range(3) for n in ("up", "down")}
    return Member(f, {"shared": r(3, 2), "experts": experts}, r(4, 3), kinds | {"shared": "matmul"})


def kept_tokens(r):
    """Some tokens alone are looked at: as many as there are examples, but two of one example and none of the last."""

    def f(p, x):
        tokens = x.reshape(-1, x.shape[-1])
        (row,) = torch.where(tokens[:, 0] > 0)
        h = torch.tanh(tokens[row] @ p["w"])
        pooled = torch.zeros(len(x), h.shape[-1], dtype=h.dtype).index_add(0, row // x.shape[1], h)
        return (pooled + x.sum((1, 2))[:, None]) @ p["head"]

    x = r(3, 2, 2)
    x[..., 0] = x[..., 0].abs() * torch.tensor([[1, -1], [1, 1], [-1, -1]])
    return Member(f, {"w": r(2, 3), "head": r(3, 2)}, x, {"w": "exact", "head": "matmul"})


def graph(r):
    """Two graph convolutions over the graphs of all examples as one, by index_add along its edges; each graph pooled."""
    start, end = torch.tensor([[0, 1, 1, 2, 3, 0, 1, 2, 3], [1, 0, 2, 1, 2, 0, 1, 2, 3]])

    def f(p, x):
        offset = 4 * torch.arange(len(x))[:, None]
        a, b = (start + offset).flatten(), (end + offset).flatten()
        degree = torch.zeros(4 * len(x), dtype=x.dtype).index_add(0, b, torch.ones(len(b), dtype=x.dtype))
        norm = (degree[a] * degree[b]).rsqrt()[:, None]
        h = x.reshape(-1, x.shape[-1])
        for layer in p["layers"]:
            h = h @ layer["weight"]
            h = torch.tanh(torch.zeros_like(h).index_add(0, b, norm * h[a]) + layer["bias"])
        pooled = torch.zeros(len(x), h.shape[-1], dtype=x.dtype).index_add(0, torch.arange(len(h)) // 4, h)
        return F.linear(pooled, p["head"]["weight"], p["head"]["bias"])

    layer = lambda i, o: {"weight": (i, o), "bias": (o,)}
    params = {"layers": [weights(r, layer(2, 3)), weights(r, layer(3, 3))], "head": {"weight": r(2, 3), "bias": r(2)}}
    kinds = {f"layers.{k}": "matmul" for k in (0, 1)} | {f"layers.{k}.bias": "bias" for k in (0, 1)}
    return Member(f, params, r(3, 4, 2), kinds | {"head": "linear"})


def graph_attention(r):
    """A graph for each example, given with it: scores of edges, softmax over neighbours, by masks."""

    def f(p, x):
        nodes, near = x[..., :2], x[..., 2:] > 0
        h = nodes @ p["w"]
        scores = F.leaky_relu((h @ p["source"])[:, :, None] + (h @ p["target"])[:, None, :], 0.2)
        scores = scores.masked_fill(~(near | torch.eye(3, dtype=torch.bool)), -torch.inf)
        return F.elu(scores.softmax(-1) @ h) @ p["head"]

    shapes = {"w": (2, 3), "source": (3,), "target": (3,), "head": (3, 2)}
    return Member(f, weights(r, shapes, 1.0), r(3, 3, 5), dict.fromkeys(shapes, "matmul"), -1)
