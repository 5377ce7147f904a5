"""widen_stream: the function is the same (1e-11) with any eps, new entries learn, what cannot be kept is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

import fisher
import growth
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import normal

E, V, T = 6, 7, 5
TOKENS = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(0))
ROLES = {
    "embeddings": ["emb", "pos"],
    "norms": ["n1", "n2", "nf"],
    "readers": ["q", "k", "v", "up", "head"],
    "writers": ["o", "down"],
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(norm="rms", place="before", tied=False, scales=False, eps=1e-2, d=2, square=False, bias=None, seed=0):
    """A transformer with a stream of width E: one block of attention (2 heads) and one of an mlp; eps that matters."""
    H, wide = 2, E if square else 9
    d = E // H if square else d
    p = {"emb": normal(seed, V, E), "pos": normal(seed + 1, T, E), "o": {"weight": normal(seed + 5, E, H * d)}}
    p |= {n: {"weight": normal(seed + 2 + i, H * d, E) / 2} for i, n in enumerate("qkv")}
    p["up"], p["down"] = {"weight": normal(seed + 6, wide, E) / 2}, {"weight": normal(seed + 7, E, wide) / 2}
    if bias is not False:
        p["o"]["bias"], p["up"]["bias"], p["down"]["bias"] = normal(11, E), normal(12, wide), normal(13, E)
    if norm:
        p |= {n: {"weight": 1 + 0.3 * normal(seed + 20 + i, E)} for i, n in enumerate(("n1", "n2", "nf"))}
        if norm == "layer" and bias is not False:
            for i, n in enumerate(("n1", "n2", "nf")):
                p[n]["bias"] = normal(seed + 30 + i, E)
    if not tied:
        p["head"] = {"weight": normal(seed + 8, 3, E)}
    if scales:
        p["s1"], p["s2"] = normal(seed + 40, E), normal(seed + 41, E)

    def f(p, x):
        def normed(h, n):
            if norm == "rms":
                return F.rms_norm(h, h.shape[-1:], p[n]["weight"], eps)
            return F.layer_norm(h, h.shape[-1:], p[n]["weight"], p[n].get("bias"), eps) if norm else h

        def attention(z):
            q, k, v = (F.linear(z, **p[n]).unflatten(-1, (H, -1)).transpose(1, 2) for n in "qkv")
            return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), **p["o"])

        def mlp(z):
            return F.linear(F.gelu(F.linear(z, **p["up"])), **p["down"])

        h = F.embedding(x, p["emb"]) + p["pos"]
        for n, block, s in (("n1", attention, "s1"), ("n2", mlp, "s2")):
            if place == "before":
                h = h + p.get(s, 1.0) * block(normed(h, n))
            elif place == "behind":
                h = normed(h + p.get(s, 1.0) * block(h), n)
            else:
                h = h + normed(block(h), n)
        return F.linear(normed(h, "nf"), p["emb"] if tied else p["head"]["weight"])

    roles = ROLES if norm else {k: v for k, v in ROLES.items() if k != "norms"}
    if tied:
        roles = roles | {"embeddings": ["pos"], "tied": [("emb", "nf")], "readers": ROLES["readers"][:-1]}
    if scales:
        roles = roles | {"scales": ["s1", "s2"]}
    return f, p, roles


KEPT = {
    "rms": {"norm": "rms"},
    "rms behind": {"norm": "rms", "place": "behind"},
    "rms of what is written": {"norm": "rms", "place": "sandwich"},
    "rms tied": {"norm": "rms", "tied": True},
    "rms with scales": {"norm": "rms", "scales": True},
    "rms square": {"norm": "rms", "square": True, "bias": False},
    "layer": {"norm": "layer"},
    "layer without bias": {"norm": "layer", "bias": False},
    "layer square": {"norm": "layer", "square": True},
    "no norm": {"norm": None},
    "no norm, scales": {"norm": None, "scales": True},
}


def named(kind):
    return KEPT[kind]["norm"] or "none"


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("k", [1, 6, 10])
def test_the_function_is_kept(kind, k):
    f, p, roles = made(**KEPT[kind])
    wide = growth.widen_stream(p, roles, k, generator(), norm=named(kind), check=(f, TOKENS))
    close(f(wide, TOKENS), f(p, TOKENS), 1e-11)
    for name in ("emb", "pos"):
        assert wide[name].shape == (*p[name].shape[:-1], E + k)
    single = trees.map(torch.Tensor.float, p)
    wide = growth.widen_stream(single, roles, k, generator(), norm=named(kind))
    assert {t.dtype for t in trees.leaves(wide)} == {torch.float32}
    close(f(wide, TOKENS), f(single, TOKENS), 1e-4)


@pytest.mark.parametrize("kind", KEPT)
def test_new_entries_learn_after_two_steps(kind):
    f, p, roles = made(**KEPT[kind])
    wide = growth.widen_stream(p, roles, 2, generator(), norm=named(kind))
    target = torch.cos(torch.arange(f(p, TOKENS).shape[-1], dtype=torch.float64))
    loss = lambda p: (f(p, TOKENS) - target).square().mean()
    seen = trees.zeros_like(wide)
    now = wide
    for _ in range(3):
        g = grad(loss)(now)
        seen = trees.map(lambda s, t: s + t.abs(), seen, g)
        now = trees.axpy(-0.02, g, now)
    plain = grad(loss)(p)
    for path, t in zip(trees.paths(seen), trees.leaves(seen)):
        old = trees.get(plain, path)
        for axis in range(t.ndim):
            more = t.shape[axis] - old.shape[axis]
            if more:
                rest = [a for a in range(t.ndim) if a != axis]
                new = t.narrow(axis, old.shape[axis], more)
                assert ((new.sum(rest) if rest else new) > 0).all(), trees.path_str(path)


def test_gradients_of_what_is_written_come_at_once():
    f, p, roles = made()
    wide = growth.widen_stream(p, roles, 2, generator(), norm="rms")
    g = grad(lambda p: f(p, TOKENS).square().mean())(wide)
    for t in (
        g["emb"][:, E:].sum(0),
        g["o"]["weight"][E:].sum(1),
        g["down"]["weight"][E:].sum(1),
        g["down"]["bias"][E:],
    ):
        assert (t != 0).all()
    assert (wide["emb"][:, E:] == 0).all()
    assert (wide["q"]["weight"][:, E:] != 0).all()


def test_layers_by_their_shapes():
    f, p, roles = made("layer")
    layers = fisher.LayerCollection.from_function(f, p, TOKENS)
    a, b = (growth.widen_stream(p, r, 2, draws=normal(1, 2, 4 * 3 + 9 + 3), check=(f, TOKENS)) for r in (layers, roles))
    close(f(a, TOKENS), f(p, TOKENS), 1e-11)
    for s, t in zip(trees.leaves(a), trees.leaves(b)):
        assert s.shape == t.shape
    f, p, _ = made(square=True)
    layers = fisher.LayerCollection.from_function(f, p, TOKENS)
    with pytest.raises(ValueError, match=r"q: has the width of the stream on both sides, \(6, 6\)"):
        growth.widen_stream(p, layers, 2, generator(), norm="rms")
    f, p, _ = made(tied=True)
    layers = fisher.LayerCollection.from_function(f, p, TOKENS)
    with pytest.raises(ValueError, match="emb: is tied"):
        growth.widen_stream(p, layers, 2, generator(), norm="rms")


def test_images_with_a_class_token():
    p = {
        "patch": {"weight": normal(1, E, 3, 2, 2), "bias": normal(2, E)},
        "token": normal(3, 1, 1, E),
        "pos": normal(4, 1, 5, E),
    }
    p |= {
        "n": {"weight": normal(5, E), "bias": normal(6, E)},
        "head": {"weight": normal(7, 2, E), "bias": normal(8, 2)},
    }

    def f(p, x):
        h = F.conv2d(x, **p["patch"], stride=2).flatten(2).mT
        h = torch.cat([p["token"].expand(len(x), -1, -1), h], 1) + p["pos"]
        return F.linear(F.layer_norm(h, h.shape[-1:], **p["n"]), **p["head"])[:, 0].sin()

    roles = {"embeddings": ["token", "pos"], "writers": ["patch"], "norms": ["n"], "readers": ["head"]}
    x = normal(9, 3, 3, 4, 4)
    wide = growth.widen_stream(p, roles, 3, generator(), check=(f, x))
    close(f(wide, x), f(p, x), 1e-11)


def test_state_and_ensembles_go_along():
    nets = [made(seed=100 * s) for s in range(3)]
    _f, p, roles = nets[0]
    widen = lambda p, z: growth.widen_stream(p, roles, 2, draws=z, norm="rms")
    draws = normal(1, 3, 2, 4 * 3 + 9 + 3)
    members = trees.stack([n[1] for n in nets])
    wide = vmap(widen)(members, draws)
    for s, t in zip(trees.leaves(wide), trees.leaves(trees.stack([widen(n[1], z) for n, z in zip(nets, draws)]))):
        close(s, t, 1e-12)
    one = widen(p, draws[0])
    m = growth.grow_like(p, p, one)
    assert torch.equal(m["emb"][:, :E], p["emb"])
    assert torch.equal(m["down"]["weight"][:E], p["down"]["weight"])
    assert (m["down"]["weight"][E:] == 0).all()


@pytest.mark.parametrize(("norm", "fn"), [("rms", F.rms_norm), ("layer", F.layer_norm)])
def test_norms_without_leaves(norm, fn):
    p = {"emb": normal(1, V, E), "head": normal(2, 3, E)}
    f = lambda p, x: F.linear(fn(F.embedding(x, p["emb"]), p["emb"].shape[1:], eps=1e-2), p["head"])
    roles = {"embeddings": ["emb"], "readers": ["head"]}
    close(f(growth.widen_stream(p, roles, 3, generator(), norm=norm), TOKENS), f(p, TOKENS), 1e-12)
    with pytest.raises(ValueError, match="expected the same function"):
        growth.widen_stream(p, roles, 3, generator(), check=(f, TOKENS))


class Llama(torch.nn.Module):
    def __init__(self, E=8, H=4, G=2, d=2):
        super().__init__()
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False)
        self.embed, self.norm, self.final = torch.nn.Embedding(V, E), torch.nn.RMSNorm(E), torch.nn.RMSNorm(E)
        self.q, self.k, self.v, self.o = linear(E, H * d), linear(E, G * d), linear(E, G * d), linear(H * d, E)
        self.head = linear(E, V)

    def forward(self, x):
        h = self.embed(x)
        z = self.norm(h)
        q, k, v = (layer(z).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(self.final(h + self.o(y.transpose(1, 2).flatten(2))))


def test_a_module():
    torch.manual_seed(0)
    module = Llama().double()
    _, params = fisher.functional(module)
    roles = {"embeddings": ["embed"], "norms": ["norm", "final"], "readers": ["q", "k", "v", "head"], "writers": ["o"]}
    wide = growth.into_module(module, growth.widen_stream(params, roles, 4, generator(), norm="rms"))
    assert wide.embed.embedding_dim == 12
    assert wide.norm.normalized_shape == (12,)
    close(wide(TOKENS).detach(), module(TOKENS).detach(), 1e-11)


# --- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "norm", "change"),
    [
        ({"norm": "layer", "place": "behind"}, "layer", {}),
        ({"norm": "layer", "bias": False}, "rms", {}),
        ({"norm": "rms"}, "layer", {}),
        ({"norm": "rms"}, "rms", {"readers": ["q", "k", "up", "head"]}),
        ({"norm": "rms", "square": True}, "rms", {"readers": ["q", "k", "up", "head", "o"], "writers": ["v", "down"]}),
    ],
)
def test_a_check_finds_what_is_not_kept(net, norm, change):
    f, p, roles = made(**net)
    with pytest.raises(ValueError, match=r"stream of width 6: f (changes|raised)"):
        growth.widen_stream(p, roles | change, 2, generator(), norm=norm, check=(f, TOKENS))


def test_wrong_arguments():
    _f, p, roles = made()
    tied = made("layer", tied=True)
    scaled, tied_rms = made("layer", scales=True), made(tied=True)
    widen = lambda roles, k=2, p=p, **o: growth.widen_stream(p, roles, k, generator(), **({"norm": "rms"} | o))
    for wrong, words in (
        (lambda: widen(roles | {"others": ["o"]}), "got the role 'others'"),
        (lambda: widen(roles | {"readers": "q"}), "readers is 'q', expected a list of paths"),
        (lambda: widen("all"), "layers: got str"),
        (lambda: widen({"embeddings": ["emb"]}), "nothing reads it"),
        (
            lambda: widen(roles | {"writers": ["up"]}),
            r"up.weight: (is named twice, in writers and readers|got shape \(9, 6\))",
        ),
        (
            lambda: widen(roles | {"writers": [*roles["writers"], roles["readers"][0]]}),
            r"is named twice, in writers and readers|got shape",
        ),
        (lambda: widen(roles | {"readers": ["emb", "q"]}), "emb: has two roles"),
        (lambda: widen(roles | {"tied": [("emb", "n9")]}), "n9: no such leaf"),
        (lambda: widen(tied_rms[2] | {"norms": ["n1", "n2"]}, p=tied_rms[1]), "got the norm nf, expected one of"),
        (lambda: widen(roles | {"norms": ["nothing"]}), "nothing: no such leaf"),
        (lambda: widen(roles, -1), "k: got -1"),
        (lambda: widen(roles, norm=None), "norm: got None for norms without bias"),
        (lambda: widen(roles, norm="none"), "norm: got 'none' with norms"),
        (lambda: widen(roles, norm="batch"), "norm: got 'batch'"),
        (lambda: widen(tied[2], p=tied[1], norm="layer"), "tied layers in a stream with LayerNorm"),
        (lambda: widen(scaled[2], p=scaled[1], norm="layer"), "s1: scales in a stream with LayerNorm"),
        (lambda: growth.widen_stream(p, roles, 2, norm="rms"), r"generator: got None.*draws= \[2, 24\]"),
        (lambda: growth.widen_stream(p, roles, 2, norm="rms", draws=torch.ones(1, 2)), r"expected \(2, 24\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            wrong()
    for s, t in zip(trees.leaves(widen(roles, 0)), trees.leaves(p)):
        assert torch.equal(s, t)
