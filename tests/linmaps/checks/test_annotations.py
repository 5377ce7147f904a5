"""Laws of typed functions: an annotation is a promise about the argument, and the function is what it was."""

from __future__ import annotations

import inspect
import math
import pickle
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

import pytest
import torch
from torch import Tensor

from linmaps.checks.annotations import fits, typed

T = TypeVar("T")
Of = TypeVar("Of", bound=Tensor)
Way = Literal["up", "down"]
T0, C0 = torch.tensor(2.0), torch.tensor(2j)
# annotation: what fits it, what does not
FITS = {
    int: ([0, -3], [True, 1.0, "1", None, T0]),
    float: ([0, 1.5, T0], [True, "1", None]),
    bool: ([True], []),
    str: (["a"], [1, None, b"a"]),
    None: ([None], [0]),
    int | None: ([None, 3], [2.5, "a"]),
    float | Tensor: ([1, 2.5, T0, torch.ones(3)], [torch.ones(3) * 1j, "a", None]),
    Tensor: ([T0, C0], [1.0, [T0]]),
    Callable: ([len, lambda: 0], [3]),
    type: ([int], [3]),
    tuple: ([(), (1,)], [[1], 3, {1: 2}]),
    tuple[int, str]: ([(1, "a"), [1, "a"]], [(1,), (1, 2), "ab"]),
    tuple[int, ...]: ([(), (1, 2, 3)], [(1, "a"), 3]),
    list[int]: ([[], [1, 2], (1,)], [[1, "a"], "ab", {1: 2}]),
    Sequence[str]: ([["a"], ("a", "b")], ["ab", [1], 3]),
    dict[str, int]: ([{}, {"a": 1}, OrderedDict(), UserDict()], [[], "a"]),
    Mapping: ([{}, UserDict()], [[("a", 1)]]),
    T: ([1, "a", None], []),
    Way: (["up", "dwon"], [1, None]),  # which text is meant, the function says
    Way | None: (["up", "dwon", None], [1, b"up"]),
    Literal[2, "fro"]: ([2, 3, "fro"], [2.5, None, True]),
    type[Of]: ([Tensor, int], [T0]),
    Self: ([1, "a"], []),
    Any: ([1, "a", None], []),
}


@pytest.mark.parametrize("hint", FITS, ids=str)
def test_what_fits_fits_and_nothing_else(hint):
    fine, wrong = FITS[hint]
    assert all(fits(value, hint) for value in fine)
    assert not any(fits(value, hint) for value in wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan)])
@pytest.mark.parametrize("hint", [float, float | Tensor], ids=str)
def test_a_number_is_finite(hint, value):
    with pytest.raises(ValueError, match=r"^lr: got "):
        fits(value, hint, "lr")


@typed
def scaled(x: Tensor, factor: float = 1.0, *, names: Sequence[str] = ()) -> Tensor:
    """Its docstring."""
    if x.ndim == 0:
        raise ValueError("scaled: x has no axes, expected some")
    return factor * x


def test_a_typed_function_is_what_it_was():
    assert (scaled.__name__, scaled.__doc__, scaled.__module__) == ("scaled", "Its docstring.", __name__)
    assert list(inspect.signature(scaled).parameters) == ["x", "factor", "names"]
    assert pickle.loads(pickle.dumps(scaled)) is scaled
    assert torch.equal(scaled(torch.ones(2), 3), 3 * torch.ones(2))
    assert torch.equal(
        torch.func.vmap(torch.func.grad(lambda x: scaled(x[None], 2.0)[0]))(torch.ones(3)), 2 * torch.ones(3)
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("a",), {}, r"^x: got str, expected Tensor$"),
        ((torch.ones(1), "a"), {}, r"^factor: got str, expected float$"),
        ((torch.ones(1),), {"names": "ab"}, r"^names: got str, expected Sequence\[str\]$"),
        ((torch.ones(1),), {"names": ["a", 1]}, r"^names: got list of int, str, expected Sequence\[str\]$"),
    ],
)
def test_a_wrong_argument_is_named(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        scaled(*args, **kwargs)


def test_what_the_function_itself_says_is_more_to_the_point():
    with pytest.raises(ValueError, match="scaled: x has no axes"):
        scaled(torch.tensor(1.0), factor="a")


class Box(Generic[T]):
    pass


@typed
def moved(x: Of, way: Way | None = None, kind: type[Of] = Tensor, box: Box[T] | None = None) -> Of:
    if way not in (None, "up", "down"):
        raise ValueError(f"way: got {way!r}, expected one of ['up', 'down']")
    return x


def test_a_literal_is_refused_by_the_function_and_read_as_the_type_of_its_names():
    with pytest.raises(ValueError, match=r"^way: got 'dwon', expected one of \['up', 'down'\]$"):
        moved(T0, "dwon")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": 3}, r"^kind: got int, expected type\[Tensor\]$"),
        ({"box": 3}, r"^box: got int, expected Box \| None$"),
    ],
)
def test_a_type_variable_is_read_as_its_bound(options, message):
    assert moved(T0, "up", Tensor, Box()) is T0
    with pytest.raises(TypeError, match=message):
        moved(T0, **options)


@typed
def turned(x: Tensor, way: Way) -> Tensor:
    return x


def test_a_literal_where_the_function_says_nothing():
    with pytest.raises(TypeError, match=r"^way: got int, expected str$"):
        turned(T0, 3)
