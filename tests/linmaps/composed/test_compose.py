"""Maps made of maps: formulas, structure that is used and not multiplied out, parts without params, errors."""

import copy
import dataclasses
import math
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.func import vmap

import linmaps
from linmaps import (
    SVD,
    Affine,
    Block,
    Identity,
    Lasso,
    Linear,
    Orthogonal,
    Product,
    Scale,
    Spectral,
    Sum,
    Symmetric,
    Transpose,
    trees,
)
from linmaps.composed.composite import Composite
from tests.linmaps.kinds.compose import ENTRIES
from tests.linmaps.zoo import KINDS, descend, generator, label, random_params, residual

A, B, C = (random_params(Linear(*sizes), seed)["W"] for seed, sizes in enumerate([(3, 2), (2, 3), (3, 3)]))
D = torch.float64


def leaf(W):
    return {"W": W}


@pytest.mark.parametrize(
    ("spec", "params", "want"),
    [
        (Transpose(Linear(3, 2)), {"map": leaf(A)}, A.T),
        (Scale(Linear(3, 2), -2), {"map": leaf(A)}, -2 * A),
        (Product(Linear(3, 2), Linear(2, 3), Linear(3)), {"0": leaf(A), "1": leaf(B), "2": leaf(C)}, A @ B @ C),
        (Sum(Linear(3, 2), Linear(3, 2)), {"0": leaf(A), "1": leaf(B.T)}, A + B.T),
        (
            Block(((Linear(3, 2), None), (Linear(2), Linear(2, 3)))),
            {"0_0": leaf(A), "1_0": leaf(C[:2, :2]), "1_1": leaf(B)},
            torch.tensor(np.block([[A.numpy(), np.zeros((3, 3))], [C[:2, :2].numpy(), B.numpy()]])),
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_formulas(spec, params, want):
    assert spec.shapes() == trees.map(lambda t: tuple(t.shape), params)
    assert spec.n_params == sum(t.numel() for t in trees.leaves(params))
    assert torch.allclose(spec.effective_W(params), want, rtol=0, atol=1e-15)
    x = torch.randn(4, len(want), generator=generator(3), dtype=D)
    assert torch.allclose(spec.apply(params, x), x @ want, rtol=0, atol=1e-14)
    flipped = Transpose(spec)
    y = torch.randn(4, want.shape[1], generator=generator(4), dtype=D)
    assert torch.allclose(flipped.apply({"map": params}, y), y @ want.T, rtol=0, atol=1e-14)


def test_affine_adds_a_bias_and_takes_it_back():
    spec = Affine(Product(Linear(3), Linear(3)))
    params = random_params(spec, 0)
    assert set(params) == {"map", "bias"}
    assert spec.n_params == 21
    x = torch.randn(2, 3, generator=generator(0), dtype=D)
    W = params["map"]["0"]["W"] @ params["map"]["1"]["W"]
    assert torch.allclose(spec.apply(params, x), x @ W + params["bias"])
    assert torch.allclose(spec.solve(params, spec.apply(params, x)), x)
    assert params["bias"].abs().max() <= 3**-0.5


def test_init_draws_the_parts_in_turn():
    one = generator(5)
    want = {"0": Linear(3, 2).init(one), "1": Spectral(2).init(one)}
    got = Product(Linear(3, 2), Spectral(2)).init(generator(5))
    assert all(torch.equal(a, b) for a, b in zip(trees.leaves(got), trees.leaves(want), strict=True))


@pytest.mark.parametrize(
    "spec",
    [
        Transpose(Orthogonal(96, 48)),
        Scale(Spectral(64), -3.0),
        Affine(Linear(4, 64)),
        Product(Linear(96, 32), Linear(32, 64)),
        Product(Orthogonal(64), Spectral(64)),
        Sum(Linear(64, 32), Scale(Orthogonal(64, 32), 0.5)),
        Block(((Linear(32), Orthogonal(32, 64)), (None, Spectral(16, 64)))),
    ],
    ids=repr,
)
def test_output_scale_at_init(spec):
    x = torch.randn(1000, spec.in_features, generator=generator(0), dtype=D)
    squares = [spec.apply(random_params(spec, seed), x).square().mean().item() for seed in range(6)]
    assert np.mean(squares) ** 0.5 == pytest.approx(KINDS[spec.name].std(spec), rel=0.1)


STRUCTURED = [
    Transpose(Product(Linear(3), Linear(3))),
    Scale(Product(Linear(3), Linear(3)), 2.0),
    Affine(Sum(Linear(3), Linear(3))),
    Product(Linear(3), Block.diagonal(Linear(2), Linear(1))),
    Sum(Linear(3), Product(Linear(3), Linear(3))),
    Block(((Linear(2), Linear(2, 1)), (None, Linear(1)))),
    Transpose(Block(((Linear(2), Linear(2, 1)), (None, Scale(Linear(1), 2.0))))),
    Transpose(Transpose(Affine(Linear(3)).map)),
]


@pytest.mark.parametrize("spec", STRUCTURED, ids=repr)
def test_apply_never_forms_the_matrix(spec, monkeypatch):
    params, x = random_params(spec, 0), torch.randn(2, 3, generator=generator(1), dtype=D)
    want = x @ spec.effective_W(params) + (params["bias"] if spec.bias else 0)
    forbid_matrices(monkeypatch)
    assert torch.allclose(spec.apply(params, x), want)


def forbid_matrices(monkeypatch):
    def refuse(self, params):
        raise AssertionError("formed W")

    for cls in (Transpose, Scale, Affine, Product, Sum, Block):
        monkeypatch.setattr(cls, "_weight", refuse)


@pytest.mark.parametrize(
    "spec",
    [Product(Linear(4), Spectral(4)), Block.diagonal(Linear(3), Symmetric(1)), Scale(Transpose(Linear(4)), 3.0)],
    ids=repr,
)
def test_solves_go_part_by_part(spec, monkeypatch):
    params, y = random_params(spec, 0), torch.randn(2, 4, generator=generator(1), dtype=D)
    W = spec.effective_W(params).numpy()
    forbid_matrices(monkeypatch)
    assert np.allclose(spec.solve(params, y).numpy(), y.numpy() @ np.linalg.inv(W))
    assert np.allclose(spec.inverse(params).numpy(), np.linalg.inv(W))
    assert spec.logabsdet(params).item() == pytest.approx(np.linalg.slogdet(W)[1])


def test_block_diagonal_has_the_spectra_of_its_parts(monkeypatch):
    spec = Block.diagonal(Symmetric(2), Symmetric(3))
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    forbid_matrices(monkeypatch)
    values, vectors = spec.eig(params, vectors=True)
    assert not values.is_complex()
    assert torch.allclose(values, torch.linalg.eigvalsh(W))
    assert torch.allclose(W @ vectors, vectors * values)
    tall = Block.diagonal(Orthogonal(3, 1), Orthogonal(1, 3))
    s = tall.singular_values(random_params(tall, 0))
    assert s.tolist() == [1, 1, 0, 0], "where a tall block meets a wide one, the rank is less than full"


def test_sums_of_symmetric_maps_are_symmetric():
    spec = Sum(Symmetric(3), Scale(Symmetric(3), -1.5), Identity(3), Transpose(Symmetric(3)))
    params = random_params(spec, 0)
    values, vectors = spec.eig(params, vectors=True)
    assert not values.is_complex()
    assert torch.allclose(vectors.T @ vectors, torch.eye(3, dtype=D))
    assert (spec.eig(params).diff() >= 0).all()
    assert Sum(Symmetric(3), Linear(3)).eig(random_params(Sum(Symmetric(3), Linear(3)), 0)).is_complex()


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_parts_without_params_follow_the_others(dtype):
    inner = Block.diagonal(Identity(2), Scale(Identity(1), 0.1))
    assert inner.shapes() == {"0_0": {}, "1_1": {"map": {}}}
    x = torch.ones(2, 3, dtype=dtype)
    empty = inner.init(generator(0))
    assert inner.n_params == 0
    assert inner.apply(empty, x).dtype == dtype
    assert inner.solve(empty, x).dtype == dtype
    assert inner.effective_W(empty).dtype == torch.get_default_dtype()
    assert inner.reg_error(empty).dtype == torch.get_default_dtype()
    for spec in (Product(inner, Linear(3)), Product(Linear(3), inner), Sum(inner, Linear(3)), Affine(inner)):
        params = random_params(spec, 0, dtype)
        scalars = {spec.logabsdet(params), spec.reg_error(params)}
        matrices = {spec.effective_W(params), spec.inverse(params), spec.singular_values(params), spec.solve(params, x)}
        assert {t.dtype for t in scalars | matrices} == {dtype}
        want = torch.linalg.svdvals(spec.effective_W(params))
        assert torch.allclose(spec.singular_values(params), want, rtol=0, atol=3 * torch.finfo(dtype).eps)
    stacked = trees.stack([random_params(Product(inner, Linear(3)), seed) for seed in range(2)])
    assert vmap(Product(inner, Linear(3)).effective_W)(stacked).shape == (2, 3, 3)


def test_half_precision_where_one_part_factorizes():
    spec = Product(Linear(3), Orthogonal(3), Sum(Linear(3), Orthogonal(3)))
    params = random_params(spec, 0, torch.bfloat16)
    assert not spec.half_ready
    assert Product(Linear(3), Linear(3)).half_ready
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    results = [spec.apply(params, x), spec.effective_W(params), spec.solve(params, x), spec.logabsdet(params)]
    assert {t.dtype for t in results} == {torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Phases(linmaps.Map):
    """A diagonal matrix of complex numbers."""

    name: ClassVar[str] = "phases"
    promise: ClassVar[str] = "diagonal"
    square: ClassVar[bool] = True
    complex_ready: ClassVar[bool] = True

    def _shapes(self):
        return {"d": (self.in_features,)}

    def _init(self, generator, dtype):
        return {"d": torch.randn(self.in_features, generator=generator, dtype=dtype.to_complex())}

    def _weight(self, params):
        return torch.diag(params["d"])

    def _apply(self, params, x):
        return x * params["d"]

    def _solve(self, params, y):
        return y / params["d"]

    def _logabsdet(self, params):
        return params["d"].abs().log().sum()

    def _violation(self, W):
        return torch.zeros(())


@pytest.mark.parametrize(
    "spec",
    [
        Product(Linear(3), Phases(3), Scale(Linear(3), 2.0)),
        Product(Phases(3), Linear(3, 4), Linear(4, 3)),
        Sum(Phases(3), Linear(3), Phases(3)),
        Transpose(Phases(3)),
        Affine(Transpose(Product(Linear(3), Phases(3), Linear(3)))),
        Block(((Phases(2), Linear(2, 1)), (None, Orthogonal(1)))),
        Block.diagonal(Phases(2), Linear(1)),
        Block.diagonal(Product(Linear(2), Identity(2)), Phases(1)),
    ],
    ids=repr,
)
def test_complex_maps_among_real_ones(spec):
    params, x = random_params(spec, 0), torch.randn(4, 3, generator=generator(1), dtype=D)
    W, bias = spec.effective_W(params), params["bias"] if spec.bias else 0
    assert W.dtype == torch.complex128
    y = spec.apply(params, x)
    assert torch.allclose(y, x.to(W.dtype) @ W + bias)
    assert torch.allclose(spec.solve(params, y), x.to(W.dtype))
    assert torch.allclose(spec.inverse(params) @ W, torch.eye(3, dtype=W.dtype))
    assert torch.allclose(spec.logabsdet(params), torch.linalg.slogdet(W).logabsdet)
    values, vectors = spec.eig(params, vectors=True)
    assert torch.allclose(W @ vectors.to(W.dtype), vectors * values)
    assert spec.singular_values(params).dtype == spec.reg_error(params).dtype == D


def test_penalties_add_up_and_soft_parts_make_it_soft():
    soft = SVD(3)
    spec = Sum(Scale(soft, 2.0), Linear(3), soft)
    assert not spec.guaranteed
    assert Sum(Linear(3), Linear(3)).guaranteed
    params = trees.map(lambda t: t + 0.3, random_params(spec, 0))
    want = soft.reg_error(params["0"]["map"]) + soft.reg_error(params["2"])
    assert want > 0.1
    assert torch.allclose(spec.reg_error(params), want)


def test_project_goes_to_the_parts():
    spec = Affine(Transpose(Lasso(2)))
    params = {"map": {"map": {"u": -torch.ones(2, 2), "v": torch.ones(2, 2)}}, "bias": -torch.ones(2)}
    got = spec.project(params)
    assert torch.equal(got["map"]["map"]["u"], torch.zeros(2, 2))
    assert torch.equal(got["bias"], params["bias"])


def test_violation_measures_the_promises_of_the_parts():
    assert Scale(Orthogonal(2), 2.0).violation(2 * torch.eye(2)) == 0
    assert Scale(Orthogonal(2), 2.0).violation(torch.eye(2)).item() == pytest.approx(2 * 0.75 * math.sqrt(2))
    spec = Block(((Symmetric(2), None), (None, Linear(1))))
    W = torch.tensor([[1.0, 5.0, 3.0], [5.0, 1.0, 0.0], [4.0, 0.0, 9.0]])
    assert spec.violation(W) == 5


def test_from_matrix_goes_through_the_structure():
    target = C + C.T
    spec = Affine(Scale(Transpose(Linear(3)), 0.5))
    params, distance = spec.from_matrix(C, bias=A[:, 0])
    assert distance == 0
    assert torch.equal(spec.effective_W(params), C)
    assert torch.equal(params["bias"], A[:, 0])
    spec = Block.diagonal(Linear(3), Linear(3))
    whole = torch.cat([torch.cat([target, target], 1), torch.cat([torch.zeros(3, 3), C], 1)])
    params, distance = spec.from_matrix(whole)
    assert distance.item() == pytest.approx(target.norm().item()), "the block that must be zero"
    half, _ = Transpose(Linear(2)).from_matrix(torch.eye(2, dtype=torch.bfloat16))
    assert half["map"]["W"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="fit them by descent"):
        Product(Linear(2), Linear(2)).from_matrix(torch.eye(2))


def test_promise_after_a_thousand_adam_steps():
    spec = Scale(Orthogonal(8), 0.9)
    target = torch.randn(8, 8, generator=generator(5), dtype=D)
    params = descend(spec, lambda W: (W - target).square().sum(), 0, 1000, 0.01)
    assert residual(spec, spec.effective_W(params)) < 1e-12 * spec.in_features


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_specs_read_like_their_constructors(entry):
    spec = entry.spec
    assert eval(repr(spec), vars(linmaps)) == spec
    for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec)), dataclasses.replace(spec)):
        assert other == spec
        assert hash(other) == hash(spec)
        assert repr(other) == repr(spec)
        assert (other.in_features, other.out_features) == (spec.in_features, spec.out_features)


def test_replace_computes_the_sizes_anew():
    assert dataclasses.replace(Scale(Linear(3), 2.0), map=Linear(4, 5)) == Scale(Linear(4, 5), 2.0)
    wider = dataclasses.replace(Product(Linear(3, 2), Linear(2, 4)), maps=(Linear(1, 7), Linear(7, 6)))
    assert (wider.in_features, wider.out_features) == (1, 6)
    assert Block([[Linear(2), None], [None, Linear(1)]]) == Block.diagonal(Linear(2), Linear(1))


def test_they_are_no_maps_of_the_registry():
    assert not [cls for cls in linmaps.maps.values() if issubclass(cls, Composite)]


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Transpose(3), TypeError, r"Transpose: part map is int, expected a map such as linmaps.Linear\(3, 2\)"),
        (lambda: Sum(Linear(2), Linear), TypeError, r"Sum: part 1 is the class Linear, expected a map"),
        (
            lambda: Product(Linear(2), Linear(2, bias=True)),
            ValueError,
            r"Product: part 1 has bias=True; build it with bias=False and wrap the whole in Affine",
        ),
        (lambda: Transpose(Affine(Linear(2))), ValueError, r"part map has bias=True; .* wrap the whole in Affine"),
        (
            lambda: Affine(Linear(2, bias=True)),
            ValueError,
            r"Affine: part map has bias=True; build it with bias=False$",
        ),
        (
            lambda: Product(Linear(3, 4), Linear(5, 2)),
            ValueError,
            r"part 0 is Linear\(3, 4\) and part 1 is Linear\(5, 2\): 4 outputs do not meet 5 inputs",
        ),
        (lambda: Product(Linear(3)), ValueError, r"Product: got 1 maps, expected at least two"),
        (lambda: Sum(), ValueError, r"Sum: got 0 maps, expected at least two"),
        (
            lambda: Sum(Linear(3, 4), Linear(3, 4), Linear(4, 3)),
            ValueError,
            r"Sum: part 0 is Linear\(3, 4\) and part 2 is Linear\(4, 3\); expected maps of the same sizes",
        ),
        (lambda: Scale(Linear(2), 0.0), ValueError, r"Scale.factor: got 0.0, expected a finite number other than 0"),
        (lambda: Scale(Linear(2), math.nan), ValueError, r"Scale.factor: got nan, expected a finite number"),
        (
            lambda: Scale(Linear(2), torch.ones(())),
            TypeError,
            r"expected a number; a trainable one belongs into params",
        ),
        (lambda: Block(()), ValueError, r"Block.rows: 0 rows of lengths \[\], expected one length; pad with None"),
        (lambda: Block(((Linear(2), None), (Linear(2),))), ValueError, r"2 rows of lengths \[1, 2\], expected one"),
        (lambda: Block((Linear(2), Linear(2))), TypeError, r"expected rows of maps: \(\(a, b\), \(None, c\)\)"),
        (lambda: Block(((Linear(2),), (None,))), ValueError, r"row 1 has no map, so its size is unknown; leave it out"),
        (lambda: Block(((Linear(2), None),)), ValueError, r"column 1 has no map"),
        (
            lambda: Block(((Linear(2), Linear(3)),)),
            ValueError,
            r"row 0 has Linear\(2, 2\) and Linear\(3, 3\), expected the same in_features",
        ),
        (
            lambda: Block(((Linear(2), None), (Linear(3), Linear(3)))),
            ValueError,
            r"column 0 has Linear\(2, 2\) and Linear\(3, 3\), expected the same out_features",
        ),
        (lambda: Block(((Linear(2), 0),)), TypeError, r"Block: part 0_1 is int, expected a map"),
        (lambda: Transpose(Linear(2), bias=True), TypeError, "unexpected keyword argument 'bias'"),
        (lambda: Product(Linear(2), Linear(2), bias=True), TypeError, "unexpected keyword argument 'bias'"),
    ],
)
def test_parts_that_do_not_fit(build, error, text):
    with pytest.raises(error, match=text):
        build()


def test_params_of_another_spec_are_named_by_their_path():
    spec = Affine(Product(Linear(3, 2), Scale(Linear(2, 4), 0.5)))
    params = random_params(spec, 0)
    with pytest.raises(
        ValueError,
        match=r"Affine\(3, 4\), part map: Product\(3, 4\), part 1: Scale\(2, 4\), part map: Linear\(2, 4\): leaf W has",
    ):
        spec.apply(trees.replace(params, "map.1.map.W", A), torch.ones(3))
    with pytest.raises(ValueError, match=r"part map: Product\(3, 4\): .* missing leaves \['1'\], unexpected \['2'\]"):
        spec.reg_error({**params, "map": {"0": params["map"]["0"], "2": params["map"]["1"]}})
    with pytest.raises(
        TypeError, match=r"part map: Product\(3, 4\), part 0: Linear\(3, 2\): params is Tensor, expected"
    ):
        spec.effective_W(trees.replace(params, "map.0", A))
    with pytest.raises(ValueError, match=r"Affine\(3, 4\): leaf bias has shape \(3,\), expected \(4,\)"):
        spec.effective_W({**params, "bias": torch.ones(3)})
    with pytest.raises(ValueError, match=r"missing leaves \['bias'\]"):
        spec.effective_W({"map": params["map"]})
    with pytest.raises(TypeError, match=r"Transpose\(2, 3\): params is list, expected a dict"):
        Transpose(Linear(3, 2)).effective_W([A])
    with pytest.raises(ValueError, match=r"use torch.func.vmap\(spec.effective_W\)\(stacked\)"):
        spec.effective_W(trees.stack([params, params]))


def test_other_misuse_is_refused_as_by_any_map():
    spec = Product(Linear(3, 2), Linear(2, 4))
    params = random_params(spec, 0)
    with pytest.raises(ValueError, match=r"Product\(3, 4\).apply: x has shape \(2,\), expected \[..., 3\]"):
        spec.apply(params, torch.ones(2))
    with pytest.raises(ValueError, match=r"Product\(3, 4\).logabsdet: W is 3 x 4, expected a square map"):
        spec.logabsdet(params)
    with pytest.raises(TypeError, match=r"expected a torch.Generator"):
        spec.init(0)
    with pytest.raises(TypeError, match=r"expected a real floating torch.dtype"):
        Affine(spec).init(generator(0), dtype=torch.int64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.maps = ()
    with pytest.raises(TypeError, match="abstract"):
        Composite()
