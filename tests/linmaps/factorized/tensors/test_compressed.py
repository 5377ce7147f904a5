"""Alternating least squares on a sketched core: exact where the tensor is, near that of the whole tensor, pure, refusing."""

import math

import pytest
import torch
from torch.func import vmap

from linmaps import Factorized, factorize
from linmaps.factorized import cp_als, reconstruct_cp, sketches
from linmaps.factorized.tensors.compressed import compressed_cp, core_ranks, cp_sketches

D, C = torch.float64, torch.complex128


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


def draw(sizes, R, oversampling=3, dtype=D, seed=0):
    return cp_sketches(gen(seed), sizes, R, oversampling=oversampling, dtype=dtype)


@pytest.mark.parametrize("dtype", [D, C])
def test_a_tensor_of_few_terms_is_as_good_as_on_its_core(dtype):
    """T lies in the core: sweeps on it are sweeps on T, from the start projected into it."""
    sizes, R = (12, 15, 9), 3
    T = reconstruct_cp(torch.ones(R, dtype=dtype), [randn(s, R, seed=k, dtype=dtype) for k, s in enumerate(sizes)])
    start = [randn(s, R, seed=9 + k, dtype=dtype) for k, s in enumerate(sizes)]
    weights, factors = compressed_cp(T, start, draw(sizes, R, dtype=dtype), n_sweeps=400)
    assert [tuple(U.shape) for U in factors] == [(s, R) for s in sizes]
    assert (reconstruct_cp(weights, factors) - T).norm() <= 1e-7 * T.norm()
    assert all(torch.allclose(U.norm(dim=0), torch.ones(R, dtype=D)) for U in factors)


def test_near_the_sweeps_on_the_whole_tensor_and_bounded_by_core_and_rest():
    sizes, R = (14, 10, 12), 4
    signal = reconstruct_cp(torch.ones(R, dtype=D), [randn(s, R, seed=k) for k, s in enumerate(sizes)])
    T = signal + 0.1 * signal.norm() / math.sqrt(signal.numel()) * randn(*sizes, seed=5)
    whole = (reconstruct_cp(*cp_als(T, R, n_sweeps=200)) - T).norm()
    small = (reconstruct_cp(*compressed_cp(T, R, draw(sizes, R), n_sweeps=200, n_power=2)) - T).norm()
    assert small <= 1.1 * whole
    assert whole <= 1.001 * small


def test_no_core_is_made_where_none_is_smaller():
    T = randn(3, 4, 2)
    assert core_ranks((3, 4, 2), 8) is None
    assert draw((3, 4, 2), 8) == []
    for got, want in zip(compressed_cp(T, 8, [], n_sweeps=3)[1], cp_als(T, 8, n_sweeps=3)[1]):
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match="cp: got 1 sketches, expected 0"):
        compressed_cp(T, 8, [torch.ones(8, 0, dtype=D)])
    with pytest.raises(ValueError, match="randomized_hosvd: got 0 sketches, expected 3; make them with"):
        compressed_cp(T, 1, [])


def test_through_factorize_and_vmap():
    spec = Factorized((8, 8), (8, 8), factorization="cp", rank=2, bias=False)
    truth = spec.init(gen(3), dtype=D)
    W = spec.effective_W(truth)
    drawn = sketches(spec, gen(), dtype=D)
    assert [tuple(t.shape) for t in drawn] == [(512, 0), (128, 0), (32, 0), (8, 0)]
    drawn = sketches(spec, gen(), dtype=D, oversampling=2)
    assert [tuple(t.shape) for t in drawn] == [(512, 4), (128, 4), (32, 4), (8, 4)]
    options = {"factorization": "cp", "rank": 2, "in_shape": (8, 8), "out_shape": (8, 8), "sketch": drawn}
    fit = lambda w: (lambda spec, p: spec.effective_W(p))(*factorize(w, n_sweeps=50, n_power=2, **options))
    assert (fit(W.T) - W).norm() <= 1e-6 * W.norm()
    stacked = torch.stack([W.T, 2 * W.T])
    assert torch.allclose(vmap(fit)(stacked), torch.stack([fit(w) for w in stacked]), atol=1e-9)
    with pytest.raises(ValueError, match="n_power: got -1, expected an int from 0 to 100"):
        factorize(W.T, **{**options, "n_power": -1})
