"""Networks, data and shards of the checks over several processes."""

import torch
import torch.nn.functional as nnf

import fisher
import growth

D = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


N = 11
X, T = drawn(N, 3), torch.arange(N) % 2
W = drawn(N, seed=7).abs()
P = {"w": drawn(3, 4, seed=1), "b": drawn(4, seed=2), "v": drawn(4, 2, seed=3), "scale": drawn(2, seed=4)}


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"] * p["scale"]


IMAGES = drawn(N, 2, 5, 5)
MAPS = {
    "c": {"weight": drawn(4, 1, 3, 3, seed=1), "bias": drawn(4, seed=2)},
    "d": {"weight": drawn(3, 4, 2, 2, seed=3), "bias": drawn(3, seed=4)},
    "o": {"weight": drawn(2, 12, seed=5)},
}


def maps(p, x):
    h = torch.tanh(nnf.conv2d(x, p["c"]["weight"], p["c"]["bias"], groups=2))
    return torch.tanh(nnf.conv2d(h, p["d"]["weight"], p["d"]["bias"])).flatten(1) @ p["o"]["weight"].T


WORDS = torch.arange(2 * N).reshape(N, 2) % 5
TABLE = {"e": drawn(5, 3, seed=1), "u": drawn(3, 2, seed=2), "g": drawn(3, 2, seed=3)}


def words(p, x):
    """A lookup, and a weight that f makes of two leaves."""
    return nnf.embedding(x, p["e"]).sum(1).tanh() @ (p["u"] * torch.sigmoid(p["g"]))


LAYERED = {
    "hidden": {"weight": drawn(4, 3, seed=1), "bias": drawn(4, seed=2)},
    "output": {"weight": drawn(2, 4, seed=3)},
}
PAIR = growth.Pair("hidden", "output")


def layered(p, x):
    return torch.tanh(nnf.linear(x, **p["hidden"])) @ p["output"]["weight"].T


GATES = {
    "gate": {"weight": drawn(4, 3, seed=1), "bias": drawn(4, seed=2)},
    "up": {"weight": drawn(4, 3, seed=3)},
    "out": {"weight": drawn(2, 4, seed=4)},
}
GATED = growth.Gated("gate", "up", "out")


def gates(p, x):
    return (nnf.silu(nnf.linear(x, **p["gate"])) * (x @ p["up"]["weight"].T)) @ p["out"]["weight"].T


GRAPH = growth.Graph((growth.Node("x", 3), growth.Node("h", 4), growth.Node("y", 2)), ("x->h", "h->y", "x->y"))
EDGES = GRAPH.init(torch.Generator().manual_seed(0), dtype=D)

LAYERS = {
    f: fisher.LayerCollection.from_function(f, P, X),
    maps: fisher.LayerCollection.from_function(maps, MAPS, IMAGES),
    words: fisher.LayerCollection.from_function(words, TABLE, WORDS),
}


def sizes(world):
    """How many of the examples each rank has: unevenly, the last of three none."""
    return {1: [N], 2: [7, 4], 3: [8, 3, 0]}[world]


def shard(t, rank, world):
    """The rows of a tensor, or of each of a tuple, that a rank has."""
    if isinstance(t, tuple):
        return tuple(shard(s, rank, world) for s in t)
    start = sum(sizes(world)[:rank])
    return t[start : start + sizes(world)[rank]]


def batched(data, rank, world):
    """The same as batches of at most 3: `[]` at a rank without examples."""
    own = shard(data, rank, world)
    n = sizes(world)[rank]
    cut = lambda k: tuple(s[k : k + 3] for s in own) if isinstance(own, tuple) else own[k : k + 3]
    return [cut(k) for k in range(0, n, 3)]
