"""Hypothesis strategies for tests of code that uses maps: specs, params of a spec (tame and adversarial), inputs.

This module needs hypothesis, which the package itself does not.

>>> import torch
>>> from hypothesis import given, strategies as st
>>> from linmaps.strategies import adversarial_params, specs
>>> @given(st.data())
... def test_promise(data):
...     spec = data.draw(specs())
...     params = data.draw(adversarial_params(spec))
...     assert spec.violation(spec.effective_W(params)) < 1e-9
>>> test_promise()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from linmaps.base import Map
from linmaps.orthogonal import METHODS
from linmaps.registry import maps

SEEDS = st.integers(0, 2**31 - 1)


def _dets(rows: int, columns: int) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, 1, -1]) if rows == columns else st.none()


def _reflectors(n: int) -> st.SearchStrategy[Any]:
    return st.none() | st.integers(1, n) if n > 1 else st.none()


@st.composite
def _orthogonal(draw: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
    method = draw(st.sampled_from(METHODS))
    count = draw(_reflectors(max(rows, columns))) if method == "householder" else None
    return {"method": method, "n_reflectors": count, "det": draw(_dets(rows, columns))}


@st.composite
def _spectral(draw: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
    low = draw(st.sampled_from([0.0, 0.1, 1.0]))
    return {
        "sigma_min": low,
        "sigma_max": draw(st.sampled_from([1.0, 2.5])),
        "n_U_reflectors": draw(_reflectors(rows)),
        "n_V_reflectors": draw(_reflectors(columns)),
        "det": draw(_dets(rows, columns)),
    }


# options beyond sizes and bias, by the name of the map; a map without an entry is drawn with its defaults
OPTIONS: dict[str, Callable[[int, int], st.SearchStrategy[dict[str, Any]]]] = {
    "orthogonal": _orthogonal,
    "spectral": _spectral,
}


@st.composite
def specs(
    draw: Callable[..., Any], *, names: Sequence[str] | None = None, max_size: int = 6, square: bool = False
) -> Map:
    """Specs of the maps called `names` (all of the registry unless given), sizes 1..max_size, with any options.

    >>> from hypothesis import find
    >>> find(specs(names=["linear"]), lambda spec: spec.in_features > spec.out_features)
    Linear(in_features=2, out_features=1, bias=False)
    """
    cls = maps[draw(st.sampled_from(list(maps) if names is None else list(names)))]
    sizes = st.integers(1, max_size)
    rows = draw(sizes)
    columns = rows if square or cls.square else draw(sizes)
    options = draw(OPTIONS[cls.name](rows, columns)) if cls.name in OPTIONS else {}
    return cls(rows, columns, bias=draw(st.booleans()), **options)


def params(spec: Map, *, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[dict[str, Tensor]]:
    """What `spec.init` draws.

    >>> from hypothesis import find
    >>> import linmaps
    >>> find(params(linmaps.Linear(2, 1)), lambda p: True)["W"].shape
    torch.Size([2, 1])
    """
    return SEEDS.map(lambda seed: spec.init(torch.Generator().manual_seed(seed), dtype=dtype))


ADVERSARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "plus 50": lambda t: torch.full_like(t, 50.0),
    "minus 50": lambda t: torch.full_like(t, -50.0),
    "signs of 50": lambda t: 50 * t.sign(),
    "scale 10": lambda t: 10 * t,
    "scale 1e-9": lambda t: 1e-9 * t,
}


def adversarial_params(spec: Map, *, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[dict[str, Tensor]]:
    """Params far from any init: zeros, all 50, all -50, random signs of 50, N(0, 10^2), N(0, 1e-18).

    >>> from hypothesis import find
    >>> import linmaps
    >>> find(adversarial_params(linmaps.Linear(1, 2)), lambda p: True)
    {'W': tensor([[0., 0.]], dtype=torch.float64)}
    """

    def build(kind: str, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = spec.shapes()
        return {k: ADVERSARIES[kind](torch.randn(s, generator=generator, dtype=dtype)) for k, s in shapes.items()}

    return st.builds(build, st.sampled_from(list(ADVERSARIES)), SEEDS)


def inputs(spec: Map, *, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Tensor]:
    """Standard normal x [..., in] of one, two or three axes, the empty batch included.

    >>> from hypothesis import find
    >>> import linmaps
    >>> find(inputs(linmaps.Linear(3)), lambda x: x.numel() == 0).shape
    torch.Size([0, 3])
    """
    leading = st.sampled_from([(), (1,), (3,), (40,), (0,), (2, 3), (2, 0)])

    def build(shape: tuple[int, ...], seed: int) -> Tensor:
        return torch.randn(*shape, spec.in_features, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return st.builds(build, leading, SEEDS)
