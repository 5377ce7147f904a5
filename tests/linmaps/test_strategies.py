"""The strategies reach what they promise: every map, every adversary, every shape of input."""

import subprocess
import sys

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

import linmaps
from linmaps import strategies


@pytest.mark.parametrize("name", linmaps.maps)
def test_every_map_is_drawn(name):
    spec = find(strategies.specs(), lambda s: s.name == name)
    assert isinstance(spec, linmaps.maps[name])
    assert find(strategies.specs(names=[name], square=True), lambda s: s.in_features > 1 and s.bias).out_features > 1


@given(spec=strategies.specs(max_size=3), data=st.data())
def test_draws_fit_the_spec(spec, data):
    assert max(spec.in_features, spec.out_features) <= 3
    for draw in (strategies.params, strategies.adversarial_params):
        params = data.draw(draw(spec, dtype=torch.float32))
        assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
        assert all(t.dtype.to_real() == torch.float32 for t in params.values())
    assert data.draw(strategies.inputs(spec)).shape[-1] == spec.in_features


@given(spec=strategies.specs(guaranteed=True))
def test_only_guaranteed_specs_on_request(spec):
    assert spec.guaranteed


@pytest.mark.parametrize("kind", strategies.ADVERSARIES)
def test_every_adversary_is_drawn(kind):
    expected = {
        "zeros": lambda t: (t == 0).all(),
        "plus 50": lambda t: (t == 50).all(),
        "minus 50": lambda t: (t == -50).all(),
        "signs of 50": lambda t: (t.abs() == 50).all() and t.std() > 10,
        "scale 10": lambda t: 1 < t.abs().mean() < 20,
        "scale 1e-9": lambda t: 0 < t.abs().max() < 1e-7,
    }[kind]
    find(strategies.adversarial_params(linmaps.Linear(3)), lambda p: bool(expected(p["W"])))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_inputs_of_every_rank(ndim):
    assert find(strategies.inputs(linmaps.Linear(3)), lambda x: x.ndim == ndim).ndim == ndim


def test_the_package_does_not_import_hypothesis():
    code = "import sys, linmaps; sys.exit('hypothesis' in sys.modules or 'linmaps.strategies' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
