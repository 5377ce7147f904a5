"""Functions of one width, refused in one sentence by all that make params wider: it names what f raised, and the cure."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fisher
import growth
from tests.growth.rows_surgery import normal

X, T = normal(1, 8, 3), torch.arange(8) % 2
PAIR = growth.Pair("a", "b")
generator = lambda: torch.Generator().manual_seed(0)


class Fixed(nn.Module):
    def __init__(self, kind, norm=None):
        super().__init__()
        self.a, self.b, self.width, self.kind = nn.Linear(3, 4), nn.Linear(4, 2), 4, kind
        if norm is not None:
            self.norm = norm

    def forward(self, x):
        h = torch.tanh(self.a(x) if not hasattr(self, "norm") else self.norm(self.a(x)))
        match self.kind:
            case "view":
                h = h.view(-1, 4)
            case "attribute":
                h = h.reshape(len(x), self.width)
            case "unflatten":
                h = h.unflatten(-1, (4,))
            case "assertion":
                assert h.shape[1] == 4, "a layer of 4"
        return self.b(h)


def extended(f, p):
    new = growth.initialize(p, PAIR, 3, generator=generator())
    return growth.apply_extended(f, p, PAIR, new, None, 1.0, X)


def searched(f, p):
    new = growth.initialize(p, PAIR, 3, generator=generator())
    return growth.line_search(f, p, (X, T), PAIR, new, None)


DOORS = {
    "apply_extended": extended,
    "line_search": searched,
    "step": lambda f, p: growth.step(f, p, (X, T), PAIR, 1),
    "step at a scale": lambda f, p: growth.step(f, p, (X, T), PAIR, 2, scale=1.0),
    "fit_and_grow": lambda f, p: growth.fit_and_grow(f, p, [(X, T)], PAIR, order=[1, 1], target=6, k=2),
    "widen": lambda f, p: growth.widen(p, PAIR, 1, generator=generator(), f=f, x=X),
}
KINDS = ["view", "attribute", "unflatten", "assertion"]


def made(kind, norm=None):
    torch.manual_seed(0)
    return fisher.functional(Fixed(kind, norm).double().eval(), buffers=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DOORS)
def test_it_is_said_by_whoever_makes_it_wider(name, kind):
    f, params = made(kind)
    f(params, X)
    with pytest.raises(
        ValueError,
        match=r"(?s)Pair\('a', 'b'\): f raised \w+ .*expected a function that takes its sizes from params.*x\.shape",
    ) as caught:
        DOORS[name](f, params)
    assert "MultiheadAttention" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_with_a_norm_it_is_said_by_the_statistics():
    pair = growth.Pair("a", "b", norm="norm")
    f, params = made("assertion", nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"(?s)takes its sizes from params.*x\.shape.*buffers=True"):
        growth.statistics(f, params, (X, T), pair)
    f, params = made("view", nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"it goes through batch_norm, tanh, view; if it is one all the same"):
        growth.statistics(f, params, (X, T), pair)


@pytest.mark.parametrize("name", ["apply_extended", "line_search", "step at a scale", "widen"])
def test_what_f_raises_for_other_causes_is_left_as_it_is(name):
    f, params = made("any")
    call = DOORS[name]

    def unmapped(p, x):
        if torch._C._functorch.is_batchedtensor(p["a.weight"]):
            raise RuntimeError("not here")
        return f(p, x)

    def broken(p, x):
        raise RuntimeError("not here")

    out_of_memory = lambda p, x: f(p, x) if len(p["a.weight"]) == 4 else _full()
    refused = {"line_search": [unmapped, broken], "step at a scale": []}.get(name, [broken])
    for g in refused:
        with pytest.raises(RuntimeError, match=r"^not here$"):
            call(g, params)
    with pytest.raises(torch.OutOfMemoryError, match=r"^full$"):
        call(out_of_memory, params)


def _full():
    raise torch.OutOfMemoryError("full")


class Stream(nn.Module):
    def __init__(self, hard):
        super().__init__()
        self.e, self.n, self.r, self.w = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.last, self.h, self.hard = nn.LayerNorm(4), nn.Linear(4, 2), hard

    def forward(self, x):
        h = self.e(x)
        h = h + self.w(torch.tanh(self.r(self.n(h))))
        return self.h(self.last(h.view(-1, 4) if self.hard else h))


def test_attention_of_torch_is_blamed_where_there_is_one():
    roles = {"embeddings": ["e"], "norms": ["n", "last"], "readers": ["r", "h"], "writers": ["w"]}
    f, params = fisher.functional(Stream(True).double())
    with pytest.raises(ValueError, match=r"takes its sizes from params.*x\.shape") as caught:
        growth.widen_stream(params, roles, 2, generator(), norm="layer", f=f, x=torch.arange(6))
    assert "MultiheadAttention" not in str(caught.value)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    f, params = fisher.functional(module)
    heads, x = growth.Heads(None, None, None, "out_proj", 2, packed="in_proj_weight"), normal(1, 3, 5, 4)
    g = lambda p, x: f(p, (x, x, x))[0]
    for widened in (growth.widen, growth.add_heads):
        with pytest.raises(ValueError, match=r"f raised .*MultiheadAttention.* write the layer out"):
            widened(params, heads, 1, f=g, x=x)


def test_heads_that_f_cuts_at_a_fixed_number_are_no_attention_of_torch():
    heads = growth.Heads("q", "k", "v", "o", 2)
    params = {n: normal(i, 4, 4) for i, n in enumerate("qkvo")}
    cut = lambda t: t.view(3, 5, 2, 2).transpose(1, 2)
    f = lambda p, x: (
        F.scaled_dot_product_attention(*(cut(x @ p[n].T) for n in "qkv")).transpose(1, 2).flatten(2) @ p["o"].T
    )
    f(params, normal(9, 3, 5, 4))
    with pytest.raises(ValueError, match=r"takes its sizes from params.*x\.shape") as caught:
        growth.widen(params, heads, 2, f=f, x=normal(9, 3, 5, 4))
    assert "MultiheadAttention" not in str(caught.value)
