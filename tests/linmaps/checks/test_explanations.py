"""Laws of explanations: torch's error becomes ours where an argument bears witness to it, and is left alone elsewhere."""

import pytest
import torch

from linmaps.checks.explanations import explained, said


@explained
def product(a, b):
    return a @ b


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 2), torch.ones(2, 2).double(), r"^b: got torch\.float64, expected torch\.float32 as a; convert"),
        (
            torch.ones(2, 2),
            torch.ones(2, 2, dtype=torch.int64),
            r"^b: got torch\.int64, expected a real floating dtype; convert it with \.float\(\)$",
        ),
        (torch.ones(2, 2), "text", r"^b: got str, expected a tensor$"),
    ],
)
def test_the_argument_that_torch_complains_of_is_named(a, b, message):
    with pytest.raises(TypeError, match=message) as error:
        product(a, b)
    assert error.value.__cause__ is not None


def test_a_dtype_that_torch_names_is_that_of_the_witness():
    """An index of whole numbers is not to blame for what torch cannot do in half precision."""

    @explained
    def root(a, index):
        return torch.linalg.svd(a[index])

    with pytest.raises(NotImplementedError, match="not implemented for 'BFloat16'"):
        root(torch.ones(3, 2, dtype=torch.bfloat16), torch.arange(2))
    with pytest.raises(TypeError, match=r"^a: got torch\.int64, expected a real floating dtype"):
        explained(lambda a, b: torch.nn.functional.gelu(a) * b)(torch.arange(2), torch.ones(2))


def test_an_error_without_a_witness_stays():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_what_a_raise_statement_says_stays(kind):
    @explained
    def refused(a):
        raise kind(f"refused: a has dtype {a.dtype}, expected another")

    with pytest.raises(kind, match=r"^refused: a has dtype") as error:
        refused(torch.ones(1, dtype=torch.int64))
    assert said(error.value)


def test_it_is_looked_for_only_where_a_call_has_failed():
    class Counted(torch.Tensor):
        seen = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.seen += 1
            return super().__torch_function__(func, types, args, kwargs or {})

    t = torch.eye(2).as_subclass(Counted)
    Counted.seen = 0
    product(t, t)
    assert Counted.seen == 1
