"""The skeleton of maps: sizes, options, params and inputs that do not fit are refused at the door, with the cure."""

import ast
import dataclasses
import math
import pathlib
from typing import ClassVar

import pytest
import torch
from torch.func import vmap

import linmaps
from linmaps import trees
from linmaps.families.patterns.arrays import OfArrays
from linmaps.numerics.numeric import frobenius
from tests.linmaps.zoo import ENTRIES, generator, label, random_params

SPEC = linmaps.Linear(3, 2, bias=True)
PARAMS = random_params(SPEC, 0)


SIZED = [n for n, c in linmaps.maps.items() if not issubclass(c, OfArrays)]  # those name their sizes after their shapes
POSITIONAL = ("block_diagonal", "fixed_rank", "low_rank", "monarch")  # have a third argument that is not an option


@pytest.mark.parametrize("name", linmaps.maps)
def test_in_features_alone_is_a_square_map(name):
    assert linmaps.maps[name](4).out_features == 4
    assert linmaps.maps[name](4) == linmaps.maps[name](4, 4)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        ((0,), ValueError, r"in_features: got 0, expected a positive int"),
        ((3, -2), ValueError, r"out_features: got -2, expected a positive int"),
        ((2.0,), TypeError, r"in_features: got 2.0, expected a positive int; convert with int"),
        ((2, True), TypeError, r"out_features: got True, expected a positive int"),
    ],
)
def test_sizes_must_be_positive_ints(name, sizes, error, text):
    with pytest.raises(error, match=text):
        linmaps.maps[name](*sizes)


@pytest.mark.parametrize("name", linmaps.maps)
def test_options_are_checked(name):
    build = linmaps.maps[name]._of_size
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'sigma_mim'"):
        build(4, 4, sigma_mim=0.1)
    with pytest.raises(TypeError, match=r"bias: got 1, expected a bool"):
        build(4, 4, bias=1)
    with pytest.raises(
        (TypeError, ValueError),
        match=r"expected a positive int"
        if name in POSITIONAL
        else r"positional|a tuple of ints|expected one of|expected a number",
    ):
        linmaps.maps[name](4, 4, True)


@pytest.mark.parametrize("name", [n for n, c in linmaps.maps.items() if c.square])
def test_square_maps_refuse_other_sizes(name):
    with pytest.raises(ValueError, match=r"out_features: got 3, expected in_features=4, since this map is square"):
        linmaps.maps[name](4, 3)


@pytest.mark.parametrize("name", [n for n, c in linmaps.maps.items() if hasattr(c, "sigma_min")])
def test_bounds_go_by_position_after_the_sizes_in_every_map(name):
    cls = linmaps.maps[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    bounds = [k for k in ("sigma_min", "sigma_max") if k in fields]
    sizes = (3, 3, *([2] if "rank" in fields else []))
    spec = cls(*sizes, *[0.5, 0.75][: len(bounds)])
    assert spec == cls(*sizes, **dict(zip(bounds, (0.5, 0.75))))
    if cls.square:
        with pytest.raises(TypeError, match=r"bounds come after both sizes, or by name, as sigma_min=0\.1"):
            cls(3, 0.5)


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        linmaps.Map(3)


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_specs_are_frozen_and_hold_plain_values(entry):
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.spec.in_features = 7
    assert all(plain(getattr(entry.spec, field.name)) for field in dataclasses.fields(entry.spec))


def plain(value):
    """Numbers, strings, None; tuples of such; specs as parts of specs."""
    if isinstance(value, tuple):
        return all(map(plain, value))
    return isinstance(value, (int, float, str, type(None), linmaps.Map))


@pytest.mark.parametrize("bad", [None, 0, torch.manual_seed])
def test_init_requires_a_generator(bad):
    with pytest.raises(TypeError, match=r"expected a torch.Generator; pass torch.Generator\(\).manual_seed\(seed\)"):
        SPEC.init(bad)
    with pytest.raises(TypeError, match="generator"):
        SPEC.init()


@pytest.mark.parametrize("bad", [torch.int64, torch.complex64, "float32"])
def test_init_requires_a_floating_dtype(bad):
    with pytest.raises(TypeError, match=r"expected a real floating torch\.dtype"):
        SPEC.init(generator(0), dtype=bad)


def test_init_depends_on_the_seed_alone():
    first, again, other = (random_params(SPEC, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["W"], other["W"])
    assert SPEC.init(generator(0))["W"].dtype == torch.get_default_dtype()


def test_shapes_and_count():
    assert SPEC.shapes() == {"W": (3, 2), "bias": (2,)}
    assert SPEC.n_params == 8


@pytest.mark.parametrize("method", ["effective_W", "reg_error", "singular_values", "eig"])
def test_params_of_another_spec(method):
    call = getattr(SPEC, method)
    with pytest.raises(ValueError, match=r"missing leaves \['bias'\], unexpected \[\]"):
        call({"W": PARAMS["W"]})
    with pytest.raises(ValueError, match=r"missing leaves \[\], unexpected \['V'\].*use the spec whose init made them"):
        call(PARAMS | {"V": PARAMS["W"]})
    with pytest.raises(ValueError, match=r"Linear\(3, 2\): leaf W has shape \(2, 3\), expected \(3, 2\)"):
        call(PARAMS | {"W": PARAMS["W"].T})
    with pytest.raises(TypeError, match=r"leaf W is float, expected a tensor of shape \(3, 2\)"):
        call(PARAMS | {"W": 1.0})
    with pytest.raises(TypeError, match=r"params is Tensor, expected a dict"):
        call(PARAMS["W"])


def test_an_ensemble_is_told_to_use_vmap():
    stacked = trees.stack([PARAMS, PARAMS])
    with pytest.raises(ValueError, match=r"use torch.func.vmap\(spec.effective_W\)\(stacked\)"):
        SPEC.effective_W(stacked)
    assert vmap(SPEC.effective_W)(stacked).shape == (2, 3, 2)
    with pytest.raises(ValueError, match=r"use torch.func.vmap\(spec.violation\)\(stacked\)"):
        SPEC.violation(torch.zeros(4, 3, 2))


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (3, 4)])
def test_inputs_of_another_size(shape):
    with pytest.raises(ValueError, match=r"apply: x has shape .*, expected \[..., 3\]"):
        SPEC.apply(PARAMS, torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(TypeError, match="x: got list, expected a tensor"):
        SPEC.apply(PARAMS, [1.0, 2.0, 3.0])


def test_violation_of_another_shape():
    with pytest.raises(ValueError, match=r"violation: W has shape \(2, 3\), expected \(3, 2\)"):
        SPEC.violation(torch.zeros(2, 3))


BANNED = {"solve", "det", "slogdet", "householder_product", "moveaxis"}  # of torch, wrong or missing under transforms


@pytest.mark.parametrize("path", sorted(pathlib.Path(linmaps.__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_no_operation_whose_derivatives_are_wrong(path):
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
    used = {ast.unparse(n) for n in nodes if n.attr in BANNED}
    assert not {name for name in used if name.startswith("torch.")}


def test_a_map_of_a_user_gets_everything_from_four_hooks():
    @dataclasses.dataclass(frozen=True)
    class Scaled(linmaps.Map):
        name: ClassVar[str] = "scaled"
        promise: ClassVar[str] = "a multiple of the identity"
        square: ClassVar[bool] = True

        def _shapes(self):
            return {"s": ()}

        def _init(self, generator, dtype):
            return {"s": torch.rand((), generator=generator, dtype=dtype)}

        def _weight(self, params):
            return params["s"] * torch.eye(self.in_features, dtype=params["s"].dtype)

        def _violation(self, W):
            return frobenius(W - W.diagonal().mean() * torch.eye(self.in_features, dtype=W.dtype))

    spec = Scaled(3, bias=True)
    params = spec.init(generator(0), dtype=torch.float64)
    assert spec.violation(spec.effective_W(params)) == 0
    assert spec.violation(torch.ones(3, 3)).item() == pytest.approx(math.sqrt(6))
    assert torch.allclose(spec.apply(params, torch.eye(3).double()) - params["bias"], spec.effective_W(params))
    assert torch.allclose(spec.singular_values(params), params["s"].expand(3))
    assert torch.allclose(spec.eig(params).real, params["s"].expand(3))


def test_from_matrix_checks_its_arguments():
    W = torch.eye(3, 2)
    with pytest.raises(ValueError, match=r"from_matrix: W has shape \(3, 2\), expected \(2, 3\)"):
        linmaps.Linear(2, 3).from_matrix(W)
    with pytest.raises(
        ValueError, match=r"W has shape \(5, 3, 2\), expected \(3, 2\); use torch.func.vmap\(spec.from_matrix\)"
    ):
        linmaps.Linear(3, 2).from_matrix(W.expand(5, 3, 2))
    with pytest.raises(TypeError, match="from_matrix: W is list, expected a tensor of shape"):
        linmaps.Linear(3, 2).from_matrix(W.tolist())
    with pytest.raises(ValueError, match=r"bias has shape \(2,\), expected None, since the map has bias=False"):
        linmaps.Linear(3, 2).from_matrix(W, bias=torch.ones(2))
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected a tensor of shape \(2,\)"):
        linmaps.Linear(3, 2, bias=True).from_matrix(W, bias=torch.ones(3))


def test_from_matrix_of_half_precision():
    for spec in (linmaps.Orthogonal(3, bias=True), linmaps.Scale(linmaps.Spectral(3), 2.0)):
        W = spec.effective_W(random_params(spec, 0)).half()
        params, distance = spec.from_matrix(W)
        assert {t.dtype for t in linmaps.trees.leaves(params)} == {distance.dtype} == {torch.float16}
        assert (spec.effective_W(params) - W).abs().max() < 0.01
