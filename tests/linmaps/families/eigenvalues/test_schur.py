"""Schur maps: the spectrum is where the parameters put it, whatever the coupling."""

import cmath
import math

import numpy as np
import pytest
import torch

from linmaps import Orthogonal, Schur, trees
from linmaps.numerics.orthogonal import householder
from linmaps.strategies import ADVERSARIES
from tests.linmaps.families.eigenvalues.test_stable import operations, radius
from tests.linmaps.zoo import descend, generator, random_params


def written_out(spec, params):
    """Block by block."""
    n, m, top = spec.in_features, spec.in_features // 2, spec.gamma_max
    g, t = 1 / (1 + np.exp(-params["gamma"].numpy())), params["theta"].numpy()
    moduli = list(np.repeat(g, 2)) + ([math.tanh(params["real"].item())] if n % 2 else [])
    S, packed = np.zeros((n, n)), iter(params["T"].tolist())
    for k in range(m):
        for j in range(k + 1, m):
            for a in range(2):
                for b in range(2):
                    S[2 * k + a, 2 * j + b] = next(packed)
    if n % 2:
        S[:-1, -1] = list(packed)
    r = np.linalg.norm(S @ S.T) ** 0.5
    e = np.sqrt(1 - np.square(moduli))
    D = np.outer(e, e) * S * np.arcsinh(r) / r
    for k in range(m):
        c, s = math.cos(t[k]), math.sin(t[k])
        D[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = g[k] * np.array([[c, -s], [s, c]])
    if n % 2:
        D[-1, -1] = moduli[-1]
    Q = householder.frame(householder.offset(params["V"]), n, det=1).numpy()
    return top * Q @ D @ Q.T


@pytest.mark.parametrize("n", [3, 4, 7, 8])
def test_against_the_blocks_written_out(n):
    spec = Schur(n, gamma_max=1.5)
    params = trees.map(lambda t: 2 * t, random_params(spec, 0))
    assert np.allclose(spec.effective_W(params).numpy(), written_out(spec, params), atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("nonnormal", [True, False])
def test_eigenvalues_in_closed_form(n, nonnormal):
    spec = Schur(n, gamma_max=0.9, nonnormal=nonnormal)
    params = random_params(spec, 1)
    if "T" in params:
        params["T"] = 3 * torch.randn(params["T"].shape, generator=generator(0), dtype=torch.float64)
    want = []
    for k in range(n // 2):
        g = 0.9 / (1 + math.exp(-params["gamma"][k]))
        want += [cmath.rect(g, params["theta"][k]), cmath.rect(g, -params["theta"][k])]
    want += [0.9 * math.tanh(params["real"])] if n % 2 else []
    got = spec.eig(params).numpy()
    key = lambda z: (round(z.real, 9), round(z.imag, 9))
    assert np.allclose(sorted(got, key=key), sorted(want, key=key), atol=1e-14)
    assert radius(spec.effective_W(params)) == pytest.approx(np.abs(want).max(), rel=1e-9)
    assert np.allclose(spec.logabsdet(params), np.log(np.abs(want)).sum())


def test_transients_of_any_size_beside_a_small_radius():
    spec = Schur(6)
    params = random_params(spec, 0) | {"gamma": torch.zeros(3, dtype=torch.float64)}
    params["T"] = torch.full((12,), 1e6, dtype=torch.float64)
    W = spec.effective_W(params)
    assert spec.eig(params).abs().max().item() == pytest.approx(0.5)
    assert torch.linalg.matrix_norm(W, 2) > 5
    assert radius(W) == pytest.approx(0.5, abs=1e-3), "three blocks with one modulus: rounding to the third root"


def test_without_coupling_the_matrix_is_normal():
    for n in (4, 5):
        spec = Schur(n, nonnormal=False)
        params = random_params(spec, 0)
        W = spec.effective_W(params)
        assert torch.allclose(W @ W.T, W.T @ W, atol=1e-14)
        assert np.allclose(spec.singular_values(params), np.linalg.svd(W.numpy(), compute_uv=False))
    W = Schur(4).effective_W(random_params(Schur(4), 0))
    assert not torch.allclose(W @ W.T, W.T @ W, atol=1e-3)


@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("n", [3, 8, 33])
def test_radius_at_outlying_params(kind, n):
    for seed in range(5):
        spec, g = Schur(n, gamma_max=0.6), generator(seed)
        params = trees.map(
            lambda t: ADVERSARIES[kind](torch.randn(t.shape, generator=g, dtype=t.dtype)),  # noqa: B023
            random_params(spec, 0),
        )
        assert radius(spec.effective_W(params)) <= 0.6 * (1 + 1e-10)
        gradients = torch.func.grad(lambda p: spec.effective_W(p).sum())(params)  # noqa: B023
        assert all(torch.isfinite(t).all() for t in trees.leaves(gradients))


def test_leaves_have_no_dead_entry_by_their_shapes():
    assert Schur(1).shapes() == {"real": (1,)}
    assert Schur(2).shapes() == {"theta": (1,), "gamma": (1,)}, "a rotation commutes with those of the plane"
    assert Schur(3).shapes() == {"V": (2, 3), "theta": (1,), "gamma": (1,), "real": (1,), "T": (2,)}
    assert Schur(4).shapes() == {"V": (2, 4), "theta": (2,), "gamma": (2,), "T": (4,)}
    assert "T" not in Schur(4, nonnormal=False).shapes()


def test_init_moduli_are_spread_over_the_disc():
    spec = Schur(400, gamma_max=2.0)
    moduli = spec.eig(random_params(spec, 0)).abs()
    assert moduli.min() >= 0.1
    assert moduli.max() <= 1.9
    assert moduli.std().item() == pytest.approx(1.8 / math.sqrt(12), rel=0.1)


def test_promise_after_a_thousand_adam_steps():
    spec = Schur(7, gamma_max=0.9)
    target = 2 * torch.randn(7, 7, generator=generator(5), dtype=torch.float64)
    loss = lambda W: (W - target).square().sum()
    W = spec.effective_W(descend(spec, loss, 0, 1000, 0.02))
    assert radius(W) <= 0.9 * (1 + 1e-10)
    assert loss(W) < 0.95 * loss(spec.effective_W(random_params(spec, 0)))


def test_apply_is_the_same_for_few_and_for_many_rows():
    for n in (32, 33):
        spec = Schur(n)
        params, x = random_params(spec, 0), torch.randn(500, n, generator=generator(0), dtype=torch.float64)
        few = torch.cat([spec.apply(params, row) for row in x.split(1)])
        assert torch.allclose(few, spec.apply(params, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("odd", [0, 1])
def test_no_loop_over_blocks(odd):
    assert operations(Schur(40 + odd)) == operations(Schur(8 + odd)) < operations(Orthogonal(8)) + 300


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"gamma_max": 0.0}, ValueError, r"Schur.gamma_max: got 0.0, expected a positive number"),
        ({"gamma_max": math.nan}, ValueError, r"gamma_max: got nan, expected a finite number"),
        ({"gamma_max": None}, TypeError, r"gamma_max: got None, expected a number"),
        ({"nonnormal": 1}, TypeError, r"nonnormal: got 1, expected a bool"),
    ],
)
def test_options_that_contradict(options, error, text):
    with pytest.raises(error, match=text):
        Schur(4, **options)
