"""Maps whose ranks change, as a strategy, and what the tests of ranks ask of them."""

import torch
from hypothesis import strategies as st

import linmaps

D = torch.float64
F = linmaps.Factorized


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype=D) -> torch.Tensor:
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


SHAPES = [
    ((6,), (4,)),
    ((4,), (6,)),
    ((5,), (5,)),
    ((2, 3), (4, 2)),
    ((3, 2), (2, 3)),
    ((2, 3), (5,)),
    ((4,), (2, 1, 3)),
]


def specs() -> st.SearchStrategy:
    """Tall, wide and square maps, int and tuple shapes, one or several layers, with room to grow."""

    def factorized(shapes, name, rank, layers, bias):
        if name == "blocktt" and len(shapes[0]) != len(shapes[1]):
            name = "tt"
        ints = all(len(s) == 2 for s in shapes)
        I, O = (6, 8) if ints and rank == 2 else shapes  # ints are split into two modes
        return F(I, O, factorization=name, rank=rank, n_layers=layers, bias=bias)

    kinds = st.sampled_from(["lowrank", "cp", "tucker", "tt", "blocktt"])
    tensors = st.builds(
        factorized, st.sampled_from(SHAPES), kinds, st.integers(1, 2), st.sampled_from([1, 3]), st.booleans()
    )
    sizes = st.tuples(st.integers(2, 6), st.integers(2, 6))
    low = st.builds(
        lambda s, r, b: linmaps.LowRank(*s, min(r, min(s) - 1), bias=b), sizes, st.integers(1, 3), st.booleans()
    )
    spectral = st.builds(
        lambda s, b: linmaps.Spectral(s[0] + 1, s[1] + 1, n_U_reflectors=1, n_V_reflectors=1, bias=b),
        sizes,
        st.booleans(),
    )
    return st.one_of(tensors, low, spectral)


def ranks(spec) -> tuple[int, ...]:
    if isinstance(spec, linmaps.LowRank):
        return (spec.rank,)
    if isinstance(spec, linmaps.Spectral):
        return spec.shapes()["U"][0], spec.shapes()["V"][0]
    return tuple(linmaps.factorized.bonds(spec).values())


def difference(large, small) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(ranks(large), ranks(small), strict=True))


def corner(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return new[tuple(slice(0, n) for n in old.shape)]


EXAMPLES = [
    linmaps.LowRank(6, 5, 2, bias=True),
    linmaps.Spectral(6, 4, n_U_reflectors=1, n_V_reflectors=1),
    linmaps.Spectral(5, n_U_reflectors=1, n_V_reflectors=2, det=-1),
    F((6,), (2, 3), factorization="lowrank", rank=2, n_layers=2),
    F((2, 3), (4, 2), factorization="cp", rank=2, bias=False),
    F((2, 3), (4, 3), rank=(2, 2, 1, 2)),
    F((2, 3), (4, 3), factorization="tt", rank=1, n_layers=2),
    F((2, 3, 2), (2, 3, 2), factorization="blocktt", rank=2),
]
