"""Lookups."""

import torch
import torch.nn.functional as F

from tests.zoo.member import Member


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
        {"tokens": "embedding + matmul", "w": "matmul"},
        -1,
    )
