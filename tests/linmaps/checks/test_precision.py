"""Laws of precision: around a call autocast changes nothing, inside the functions that are handed in it is as it was."""

import collections

import pytest
import torch

from linmaps.checks.doors import dicts, door, method_door, widened
from linmaps.checks.precision import DEVICES, UNSEEN, active, asked, full_precision, full_precision_methods, is_on

LOW = [torch.bfloat16, torch.float16]
A = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("wrap", [door, method_door, full_precision()], ids=["door", "method_door", "full_precision"])
def test_the_same_bits_under_autocast(wrap, dtype):
    product = wrap(lambda a: a @ a)
    with torch.autocast("cpu", dtype):
        made = product(A)
        assert (A @ A).dtype == dtype, "and it is on again"
    assert torch.equal(made, A @ A)


@pytest.mark.parametrize("dtype", LOW)
def test_a_function_handed_in_runs_as_its_caller_would_run_it(dtype):
    @full_precision("f")
    def both(f, x, *, g=None):
        return f(x), g(x), x @ x

    with torch.autocast("cpu", dtype, cache_enabled=False):
        outside = active()
        inside, plain, own = both(lambda x: (x @ x, active()), A, g=lambda x: (x @ x, active()))
    assert inside[0].dtype == dtype
    assert inside[1] == outside == [("cpu", dtype, False)]
    assert plain[0].dtype == torch.float32, "g is not named"
    assert plain[1] == []
    assert own.dtype == torch.float32


@pytest.fixture(params=[d for d in DEVICES if d != "privateuseone"])  # which has no name until a backend gives it one
def device(request):
    """A device on which autocast is on, whether this machine has it or not."""
    torch.set_autocast_enabled(request.param, True)
    yield request.param
    torch.set_autocast_enabled(request.param, False)


@pytest.mark.parametrize("wrap", [door, full_precision()], ids=["door", "full_precision"])
def test_autocast_is_off_inside_on_any_device(wrap, device):
    if device in UNSEEN and not is_on():
        pytest.skip("not a device of this build: no tensor can be on it")
    assert not wrap(lambda: torch.is_autocast_enabled(device))()
    assert torch.is_autocast_enabled(device), "and it is on again"


def test_autocast_is_seen_on_any_device(device):
    assert asked(device)()
    assert [name for name, _, _ in active()] == [device]


@pytest.mark.parametrize("device", UNSEEN)
def test_no_more_is_asked_where_torch_itself_sees_all(device):
    assert not asked(device)()
    assert asked("cuda") is asked(None) is torch._C._is_any_autocast_enabled


def test_an_error_leaves_autocast_as_it_was():
    @full_precision()
    def fails():
        raise ValueError

    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError):
            fails()
        assert active() == [("cpu", torch.bfloat16, True)]


def test_what_autocast_left_in_half_precision_is_widened_to_its_neighbours():
    half, single = A.bfloat16(), A.double()
    args, kwargs = widened((({"a": half}, single), {"n": 3}))
    assert args[0]["a"].dtype == torch.float64
    assert kwargs == {"n": 3}
    assert widened(((half,), {}))[0][0].dtype == torch.bfloat16, "alone it stays"


def test_mappings_of_any_type_are_dicts_behind_the_door():
    tree = collections.UserDict(a=collections.OrderedDict(b=A), c=torch.nn.ParameterDict({"d": A}))
    seen = door(lambda p: p)(tree)
    assert type(seen) is dict
    assert [type(seen[k]) for k in seen] == [dict, dict]
    plain = {"w": A, "b": A[0]}
    assert dicts(plain) is plain


class Methods:
    def twice(self, x: "torch.Tensor", n: "int" = 1) -> torch.Tensor:
        return 2 * (x @ x) * n

    def rooted(self, x: "torch.Tensor") -> torch.Tensor:
        return torch.linalg.vector_norm(x)


full_precision_methods(Methods, annotated=True)


@pytest.mark.parametrize("dtype", LOW)
def test_methods_give_the_same_bits_under_autocast(dtype):
    with torch.autocast("cpu", dtype):
        assert (A @ A).dtype == dtype
        made = Methods().twice(A)
    assert torch.equal(made, Methods().twice(A))


def test_methods_say_what_is_wrong_by_its_name():
    with pytest.raises(TypeError, match=r"^n: got str, expected int$"):
        Methods().twice(A, "2")
    with pytest.raises(TypeError, match=r"^x: got list of float, expected torch.Tensor$"):
        Methods().twice([1.0])
    with pytest.raises(TypeError, match=r"^x: got torch.int64, expected a real floating dtype"):
        Methods().rooted(torch.ones(1, dtype=torch.int64))


def test_methods_stay_out_of_graphs():
    graphs, methods = [], Methods()

    def kept(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    try:
        made = torch.compile(lambda x: methods.twice(x.sin()).cos(), backend=kept)(A)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(made, Methods().twice(A.sin()).cos())
    called = {node.target for graph in graphs for node in graph.graph.nodes}
    assert {"sin", "cos"} <= called
    assert not [target for target in called if "matmul" in str(target)]
