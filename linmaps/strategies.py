"""Hypothesis strategies for tests of code that uses maps: specs, params of a spec (tame and adversarial), inputs.

This module needs hypothesis, which the package itself does not.

>>> import torch
>>> from hypothesis import given, strategies as st
>>> from linmaps.strategies import adversarial_params, specs
>>> @given(st.data())
... def test_promise(data):
...     spec = data.draw(specs(guaranteed=True))
...     params = data.draw(adversarial_params(spec))
...     W = spec.effective_W(params)
...     assert spec.violation(W) < 1e-9 * max(1.0, W.abs().max())
>>> test_promise()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from linmaps import trees
from linmaps.base import Map
from linmaps.base.registry import maps
from linmaps.factorized.kinds import KINDS as FACTORIZATIONS
from linmaps.factorized.kinds.names import IMPLEMENTATIONS
from linmaps.families.entries.positive import METHODS as NON_NEGATIVE
from linmaps.families.singular_values.orthogonal import METHODS

SEEDS = st.integers(0, 2**31 - 1)


def _dets(rows: int, columns: int) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, 1, -1]) if rows == columns else st.none()


def _reflectors(n: int) -> st.SearchStrategy[Any]:
    return st.none() | st.integers(1, n) if n > 1 else st.none()


@st.composite
def _orthogonal(draw: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
    method = draw(st.sampled_from(METHODS))
    count = draw(_reflectors(max(rows, columns))) if method == "householder" else None
    base = None if method == "householder" else draw(st.none() | st.integers(0, 9))
    return {"method": method, "n_reflectors": count, "det": draw(_dets(rows, columns)), "base": base}


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


def _fixed_rank(rows: int, columns: int) -> st.SearchStrategy[dict[str, Any]]:
    rank = st.none() | st.integers(1, min(rows, columns))
    return st.fixed_dictionaries({"rank": rank, "sigma_min": st.sampled_from([0.1, 1.0])})


@st.composite
def _perron(draw: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
    exact = draw(st.booleans()) if rows == columns else False
    return {"sigma_min": draw(st.sampled_from([0.0, 0.8, 1.0])), "sigma_max": 1.0, "exact": exact}


@st.composite
def _factorized(draw: Callable[..., Any], rows: int, columns: int) -> dict[str, Any]:
    return {
        "factorization": draw(st.sampled_from(list(FACTORIZATIONS))),
        "rank": draw(st.sampled_from(["same", 0.1, 0.5, 0.9, 1, 3])),
        "implementation": draw(st.sampled_from(IMPLEMENTATIONS)),
        "checkpointing": draw(st.booleans()),
    }


def _divisions(rows: int, columns: int) -> st.SearchStrategy[dict[str, Any]]:
    common = math.gcd(rows, columns)
    return st.fixed_dictionaries({"n_blocks": st.sampled_from([b for b in range(1, common + 1) if common % b == 0])})


def _choices(**options: Sequence[Any]) -> Callable[[int, int], st.SearchStrategy[dict[str, Any]]]:
    """Each option by itself, from a list of values that suit any size."""
    drawn = st.fixed_dictionaries({key: st.sampled_from(list(values)) for key, values in options.items()})
    return lambda rows, columns: drawn


# options beyond sizes and bias, by the name of the map; a map without an entry is drawn with its defaults
OPTIONS: dict[str, Callable[[int, int], st.SearchStrategy[dict[str, Any]]]] = {
    "bounded_norm": _choices(p=[1, 2, "inf", "fro"], soft=[False, True], sigma_min=[0.1, 1.0]),
    "butterfly": _choices(
        blocks=["free", "rotation"], complex=[False, True], tied_weight=[True, False], increasing_stride=[True, False]
    ),
    "damped_skew_symmetric": _choices(time=["continuous", "discrete"], sigma_min=[0.0, 0.5]),
    "diagonally_dominant": _choices(margin=[0.01, 1.0]),
    "doubly_stochastic": _choices(method=["sinkhorn", "orthostochastic"]),
    "factorized": _factorized,
    "fixed_rank": _fixed_rank,
    "gershgorin": _choices(sigma_min=[-1.0, 0.0], sigma_max=[0.5, 2.0], real=[True, False]),
    "hurwitz": _choices(margin=[0.0, 0.1, 2.0]),
    "invertible": _choices(sigma_min=[0.1, 1.0], sigma_max=[None, 1.0, 2.5]),
    "l0": _choices(gate=["weight", "input", "output"], droprate_init=[0.1, 0.5, 0.95], lamda=[0.0, 1.0]),
    "lasso": _choices(gamma=[0.0, 1.0]),
    "lasso_relu": _choices(gamma=[0.0, 1.0]),
    "monarch": _divisions,
    "non_negative": _choices(method=list(NON_NEGATIVE), deep=[False, True]),
    "orthogonal": _orthogonal,
    "perron_frobenius": _perron,
    "power_bound": _choices(method=["lmi", "rescale", "soft"], max_p=[0.5, 1.0, 3.0]),
    "psd": _choices(eps=[0.0, 0.1]),
    "schur": _choices(gamma_max=[0.5, 1.0], nonnormal=[True, False]),
    "spectral": _spectral,
    "split": _choices(method=list(NON_NEGATIVE)),
    "stable_split": _choices(sigma_min=[0.0, 0.1, 1.0], sigma_max=[1.0, 2.0]),
    "svd": _choices(sigma_min=[0.0, 0.1, 1.0]),
    "symmetric_spectral": _choices(sigma_min=[-1.0, 0.1, 1.0]),
    "symmetric_svd": _choices(sigma_min=[-1.0, 0.1, 1.0]),
    "symplectic": _choices(n_factors=[1, 4, 5]),
    "triangular": _choices(lower=[True, False], diagonal=["free", "positive", "unit"]),
    "unit_norm": _choices(axis=["out", "in"], radius=[0.5, 1.0, 3.0]),
    "weight_norm": _choices(axis=["out", "in"]),
}


def of_size(cls: type[Map], rows: int, columns: int, **options: Any) -> Map:
    """The map of a class for about these sizes: the same, or the nearest ones at which the map exists.

    >>> import linmaps
    >>> of_size(linmaps.Symmetric, 3, 5)
    Symmetric(in_features=3, out_features=3, bias=False)
    """
    return cls._of_size(rows, columns, **options)


@st.composite
def _any_specs(draw: Callable[..., Any], names: Sequence[str], max_size: int, square: bool) -> Map:
    cls = maps[draw(st.sampled_from(list(names)))]
    sizes = st.integers(1, max_size)
    rows = draw(sizes)
    columns = rows if square or cls.square else draw(sizes)
    options = draw(OPTIONS[cls.name](rows, columns)) if cls.name in OPTIONS else {}
    return of_size(cls, rows, columns, bias=draw(st.booleans()), **options)


def specs(
    *, names: Sequence[str] | None = None, max_size: int = 6, square: bool = False, guaranteed: bool = False
) -> st.SearchStrategy[Map]:
    """Specs of the maps called `names` (all of the registry unless given), sizes 1..max_size, with any options.

    square: square ones only.  guaranteed: only those that keep their promise at any params, not by a penalty.  Maps that do
    not exist at every size may exceed a max_size of 1.

    >>> from hypothesis import find
    >>> find(specs(names=["linear"]), lambda spec: spec.in_features > spec.out_features)
    Linear(in_features=2, out_features=1, bias=False)
    """
    drawn = _any_specs(tuple(maps if names is None else names), max_size, square)
    return drawn.filter(lambda spec: spec.guaranteed) if guaranteed else drawn


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
    "signs of 50": lambda t: 50 * t.sgn(),
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
        like = spec.init(torch.Generator().manual_seed(seed), dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        return trees.map(lambda t: ADVERSARIES[kind](torch.randn(t.shape, generator=generator, dtype=t.dtype)), like)

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
