"""Given weights as tensorized matrices: error, biases, lists, dtypes, transforms; quality beside the best matrix of low rank."""

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap

import linmaps
from linmaps import factorize, trees
from linmaps.factorized import relative_error, sketches
from linmaps.factorized.kinds import KINDS
from tests.linmaps import tensor_peer

D, C = torch.float64, torch.complex128
over_kinds = pytest.mark.parametrize("kind", KINDS)
EXACT = [kind for kind in KINDS if kind not in ("cp", "lowrank")]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


def low_rank_plus_noise(out=256, n=784, rank=16, dtype=torch.float32):
    """Singular values k^-0.7, and noise of 5 % of the norm."""
    U, V = torch.linalg.qr(randn(out, rank)).Q, torch.linalg.qr(randn(n, rank, seed=1)).Q
    signal, noise = (U * torch.arange(1, rank + 1).double() ** -0.7) @ V.T, randn(out, n, seed=2)
    return (signal + 0.05 * signal.norm() / noise.norm() * noise).to(dtype)


@over_kinds
@pytest.mark.parametrize("dtype", [D, C])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_error_is_that_of_the_layer(kind, dtype, n_layers):
    weights = [randn(6, 8, seed=k, dtype=dtype) for k in range(n_layers)]
    biases = [randn(6, seed=9 + k, dtype=dtype) for k in range(n_layers)]
    result = factorize(weights, biases, factorization=kind, rank=0.6, n_modes=2)
    spec, params = result
    assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
    W, target = spec.effective_W(params).reshape(n_layers, 8, 6), torch.stack(weights).mT
    assert result.error.item() == pytest.approx(((W - target).norm() / target.norm()).item(), rel=1e-9, abs=1e-14)
    assert result.error < 1
    assert torch.equal(params["bias"].reshape(n_layers, 6), torch.stack(biases))
    x = randn(5, 8, dtype=dtype)
    for k in range(n_layers):
        layer = k if n_layers > 1 else None
        assert torch.allclose(spec.apply(params, x, layer), x @ W[k] + biases[k], atol=1e-12)
    assert {t.dtype for t in params.values()} == {dtype}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("n_layers", [1, 2])
def test_full_ranks_are_exact(kind, n_layers):
    weights = [randn(6, 8, seed=k) for k in range(n_layers)]
    assert factorize(weights, factorization=kind, n_modes=2).error < 1e-13


@pytest.mark.parametrize("kind", ["lowrank", "tucker", "tt", "blocktt"])
@given(seed=st.integers(0, 99), n_layers=st.sampled_from([1, 3]), dtype=st.sampled_from([D, C]))
def test_errors_are_within_the_root_of_the_best(kind, seed, n_layers, dtype):
    """Each unfolding's tail is below the best error; all tails together, squared and summed, above the one reached."""
    weights = [randn(6, 8, seed=seed + k, dtype=dtype) for k in range(n_layers)]
    spec, params = factorize(weights, factorization=kind, rank=0.5, n_modes=2)
    W = torch.stack(weights).mT if n_layers > 1 else weights[0].mT
    unfoldings = KINDS[kind].unfoldings(W, spec.ranks, n_layers, spec.out_shape, spec.in_shape)
    tails = torch.stack([torch.linalg.svdvals(M)[r:].norm() for M, r in unfoldings])
    error = (spec.effective_W(params) - W).norm()
    assert error <= tails.norm() + 1e-12
    assert kind == "lowrank" or error <= len(tails) ** 0.5 * tails.norm() + 1e-12
    if kind == "lowrank":
        assert error == pytest.approx(tails.max().item(), rel=1e-9)


@over_kinds
def test_a_member_is_found_again(kind):
    spec = linmaps.Factorized((3, 4), (2, 3), factorization=kind, rank=2, bias=False)
    W = spec.effective_W(spec.init(gen(), dtype=D))
    options = {"n_sweeps": 1000} if kind == "cp" else {}
    found = factorize(W.mT, factorization=kind, rank=2, in_shape=(3, 4), out_shape=(2, 3), **options)
    assert found.error < 1e-9


@pytest.mark.parametrize("kind", ["lowrank", "tucker", "tt", "blocktt"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_sketched_is_nearly_as_good_where_singular_values_decay(kind, n_layers):
    weights = [low_rank_plus_noise(24, 32, 6, D) + 0.01 * randn(24, 32, seed=7 + k) for k in range(n_layers)]
    plain = factorize(weights, factorization=kind, rank=0.3, n_modes=2)
    drawn = sketches(plain[0], gen(3), dtype=D)
    sketched = factorize(weights, factorization=kind, rank=0.3, n_modes=2, sketch=drawn)
    assert sketched.error <= 1.1 * plain.error
    again = factorize(weights, factorization=kind, rank=0.3, n_modes=2, sketch=sketches(plain[0], gen(3), dtype=D))
    assert all(torch.equal(again[1][k], t) for k, t in sketched[1].items())


@over_kinds
def test_ensembles_equal_the_loop(kind):
    W = randn(3, 6, 8)
    build = lambda w: factorize(w, w[:, 0], factorization=kind, rank=0.6, n_modes=2)
    spec = build(W[0])[0]
    stacked, errors = vmap(lambda w: (build(w)[1], build(w).error))(W)
    for k in range(3):
        single = build(W[k])
        member = trees.map(lambda t: t[k], stacked)  # noqa: B023
        assert torch.allclose(spec.effective_W(member), spec.effective_W(single[1]), atol=1e-10)
        assert torch.allclose(errors[k], single.error, atol=1e-10)


@over_kinds
def test_gradients_are_those_of_differences(kind):
    options = {"factorization": kind, "rank": 0.5, "n_modes": 2} | ({"n_sweeps": 5} if kind == "cp" else {})

    def f(w):
        spec, params = factorize(w, **options)
        return spec.effective_W(params).sin().sum()

    w, direction, step = randn(4, 6), randn(4, 6, seed=1), 1e-6
    slope = grad(f)(w)
    want = (f(w + step * direction) - f(w - step * direction)) / (2 * step)
    assert (slope * direction).sum().item() == pytest.approx(want.item(), rel=1e-5, abs=1e-7)
    assert torch.allclose(jacrev(f)(w), torch.func.jacfwd(f)(w), atol=1e-8)
    assert torch.isfinite(grad(lambda w: factorize(w, **options).error)(w)).all()


@over_kinds
def test_nothing_is_shared_with_the_source(kind):
    weight, bias = randn(6, 8), randn(6)
    before = weight.clone(), bias.clone()
    _, params = factorize(weight, bias, factorization=kind, n_modes=2)
    for t in params.values():
        t.add_(1.0)
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])


@over_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(kind, dtype):
    weight = low_rank_plus_noise(24, 32, 2)
    spec, params = factorize(weight.to(dtype), torch.ones(24, dtype=dtype), factorization=kind, rank=0.9, n_modes=2)
    assert {t.dtype for t in params.values()} == {dtype}
    single = factorize(weight.to(dtype).float(), factorization=kind, rank=0.9, n_modes=2)
    assert relative_error(spec, params, weight) < single.error + 0.03


def test_lists():
    weights = [randn(6, 8, seed=k) for k in range(3)]
    spec, params = factorize(weights, [None, randn(6), None], rank=0.5, n_modes=2)
    assert spec.n_layers == 3
    assert torch.equal(params["bias"], torch.stack([torch.zeros(6, dtype=D), randn(6), torch.zeros(6, dtype=D)]))
    assert not factorize(weights, rank=0.5)[0].bias
    assert not factorize(weights, [None] * 3, rank=0.5)[0].bias
    one = factorize([weights[0]], [randn(6)], rank=0.5, n_modes=2)
    alone = factorize(weights[0], randn(6), rank=0.5, n_modes=2)
    assert one[0] == alone[0]
    assert all(torch.equal(one[1][k], t) for k, t in alone[1].items())


def test_modules():
    linear, table = torch.nn.Linear(8, 6), torch.nn.Embedding(12, 5)
    spec, params = factorize(linear, n_modes=2)
    x = torch.ones(3, 8)
    assert torch.allclose(spec.apply(params, x), linear(x), atol=1e-5)
    assert not any(t.requires_grad for t in params.values())
    spec, params = factorize([linear, torch.nn.Linear(8, 6, bias=False)], n_modes=2)
    assert torch.allclose(spec.apply(params, x, 0), linear(x), atol=1e-5)
    assert torch.equal(params["bias"][1], torch.zeros(6))
    spec, params = factorize(table, factorization="blocktt", n_modes=2)
    idx = torch.tensor([[0, 11], [3, 3]])
    assert torch.allclose(spec.rows(params, idx), table(idx), atol=1e-5)


def test_the_pair_prints_copies_and_pickles(capsys):
    result = factorize(randn(6, 8), rank=0.5, n_modes=2, verbose=True)
    assert capsys.readouterr().out.strip() == repr(result)
    assert "relative error" in repr(result)
    assert f"ranks {result[0].ranks}" in repr(result)
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other[0] == result[0]
        assert torch.equal(other.error, result.error)
    shown = []
    vmap(lambda w: shown.append(repr(factorize(w, n_modes=2))) or w)(randn(2, 4, 4))
    assert "inside a transform" in shown[0]


BAD = [
    (lambda: factorize([]), ValueError, "got 0 weights"),
    (lambda: factorize(torch.ones(3)), ValueError, r"weight 0 has shape \(3,\), expected \[out, in\]"),
    (lambda: factorize(torch.ones(2, 3, 4)), ValueError, "use torch.func.vmap"),
    (lambda: factorize(torch.ones(0, 4)), ValueError, r"weight 0 has shape \(0, 4\)"),
    (lambda: factorize(torch.ones(2, 2, dtype=torch.int64)), TypeError, "weight 0 is torch.int64"),
    (lambda: factorize(torch.ones(2, 2), torch.ones(3)), ValueError, r"bias 0 is \(3,\), expected .* shape \(2,\)"),
    (lambda: factorize([torch.ones(2, 2)] * 2, torch.ones(2)), ValueError, "one bias"),
    (lambda: factorize([torch.ones(2, 2)] * 2, [None]), ValueError, "2 weights and 1"),
    (lambda: factorize([torch.ones(2, 2), torch.ones(2, 3)]), ValueError, r"weight 1 is \(2, 3\)"),
    (lambda: factorize([torch.ones(2, 2), torch.ones(2, 2).double()]), ValueError, "weight 1 is .* torch.float64"),
    (lambda: factorize(torch.ones(4, 4), in_shape=(2, 3)), ValueError, r"in_shape is \(2, 3\), expected .* is 4"),
    (lambda: factorize(torch.ones(4, 4), rank=0.0), ValueError, "rank"),
    (lambda: factorize(torch.ones(4, 4), n_modes=0), ValueError, "n_modes"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


# relative errors at a tenth of the parameters of a 256 x 784 matrix, 16 singular values and noise, as others reach them
FIGURES = {"lowrank": 0.048, "tt": 0.516, "cp": 0.735, "tucker": 0.852, "blocktt": 0.895}


@pytest.mark.parametrize("kind", FIGURES)
def test_quality_at_a_tenth_of_the_parameters(kind):
    options = {"n_sweeps": 12} if kind == "cp" else {}
    weight = low_rank_plus_noise()
    results = [factorize(weight, factorization=kind, rank=0.1, n_modes=n, **options) for n in (2, 3)]
    assert all(result[0].ratio <= 0.1 for result in results)
    assert min(result.error for result in results) <= FIGURES[kind]


@pytest.mark.skipif(tensor_peer.tltorch() is None, reason=tensor_peer.ABSENT)
@pytest.mark.parametrize("kind", ["cp", "tucker", "blocktt"])
def test_no_worse_than_the_peer_at_its_own_ranks(kind):
    weight = low_rank_plus_noise()
    linear = torch.nn.Linear(784, 256)
    linear.weight.data = weight.clone()
    name = {"cp": "CP", "tucker": "Tucker", "blocktt": "BlockTT"}[kind]
    theirs = tensor_peer.tltorch().FactorizedLinear.from_linear(
        linear,
        rank=0.1,
        factorization=name,
        n_tensorized_modes=3,
        decomposition_kwargs={"n_iter_max": 12} if kind == "cp" else {},
        verbose=False,
    )
    spec, params = linmaps.from_module(theirs)
    error = relative_error(spec, params, weight)
    ours = factorize(
        weight,
        factorization=kind,
        rank=spec.rank,
        compat=True,
        in_shape=spec.in_shape,
        out_shape=spec.out_shape,
        n_sweeps=12 if kind == "cp" else None,
    )
    assert ours.error <= error * (1 + 1e-3)
    assert dataclasses.replace(ours[0], bias=spec.bias, implementation=spec.implementation).shapes() == spec.shapes()
