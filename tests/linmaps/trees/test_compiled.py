"""Functions compiled: the numbers and derivatives of the function, one graph for each kind of arguments, or why there is none."""

import copy
import dataclasses
import functools
import math
import threading
import time

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import fisher
from linmaps import trees
from linmaps.trees.graphs.calls import exactly
from tests.laws import close

D = torch.float64
compiled = functools.partial(trees.compiled, backend="eager")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


P = {"w": randn(3, 4), "v": [randn(4, 2, seed=1)]}
X = randn(5, 3, seed=2)


def network(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"][0]


def step(p, x):
    """A gradient step, whose backward pass reads what the forward pass saved."""
    return trees.axpy(-0.1, grad(lambda p: network(p, x).exp().sum().log())(p), p)


def norm_after(p, x):
    return trees.norm(step(p, x))


def test_numbers_and_one_graph_for_one_kind_of_arguments():
    fast = compiled(step)
    for seed in range(3):
        p = trees.map(lambda t, seed=seed: t + seed, P)
        close(fast(p, X + seed), step(p, X + seed), 1e-12, "compiled")
    assert len(fast.graphs) == 1
    close(fast(P, X[:2]), step(P, X[:2]), 1e-12, "another shape")
    close(
        fast(trees.map(torch.Tensor.float, P), X.float()), step(trees.map(torch.Tensor.float, P), X.float()), 1e-5, ""
    )
    close(fast(P, X.T.contiguous().T), step(P, X), 1e-12, "other strides")
    assert len(fast.graphs) == 4


def test_examples_make_the_graph_at_once():
    fast = compiled(step, P, X)
    assert len(fast.graphs) == 1
    fast(P, X)
    assert len(fast.graphs) == 1


def test_settings_are_part_of_the_key():
    calls = []

    def power(x, n, *, shift=None):
        calls.append(n)
        return x**n if shift is None else x**n + shift

    fast = compiled(power)
    for n in (2, 3, 2.0, True):
        assert torch.equal(fast(X, n), X**n)
    assert torch.equal(fast(X, 2, shift=1), X**2 + 1)
    assert torch.equal(fast(X, 2, shift=X), X**2 + X)
    assert len(fast.graphs) == len(calls) == 6


def test_the_answer_has_the_function_s_structure():
    def mixed(p, x):
        return {"p": p, "sum": (x.sum(), 3, "name", None), "same": x, "view": x[0], "fixed": torch.arange(3)}

    got, want = compiled(mixed)(P, X), mixed(P, X)
    assert got["sum"][1:] == (3, "name", None)
    assert trees.paths(got) == trees.paths(want)
    tensors = lambda tree: [t for t in trees.leaves(tree) if isinstance(t, torch.Tensor)]
    close(tensors(got), tensors(want), 0.0, "a pytree")


def test_records_in_and_out():
    layers = fisher.LayerCollection.from_function(network, P, X)
    make = compiled(lambda p, x: fisher.fim(network, p, x, layers=layers))
    F = make(P, X)
    assert isinstance(F, fisher.PMatKFAC)
    assert repr(F) == repr(fisher.fim(network, P, X, layers=layers))
    solve = compiled(lambda F, v: F.solve(v, regul=0.1))
    close(solve(F, P), F.solve(P, regul=0.1), 1e-12, "solve")
    solve(make(trees.scale(0.5, P), X), P)
    assert len(solve.graphs) == 1


def test_gradients_of_all_modes_and_orders():
    fast, line = compiled(norm_after), lambda f, s: f(trees.scale(s, P), X)
    one = torch.ones((), dtype=D)
    close(grad(fast)(P, X), grad(norm_after)(P, X), 1e-10, "grad")
    close(grad(fast, argnums=1)(P, X), grad(norm_after, argnums=1)(P, X), 1e-10, "grad of the second")
    for modes in (
        jacrev,
        jacfwd,
        hessian,
        lambda f: jacrev(jacrev(f)),
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacfwd(jacfwd(f)),
    ):
        close(modes(lambda s: line(fast, s))(one), modes(lambda s: line(norm_after, s))(one), 1e-9, "modes")
    got, want = (jvp(lambda p, f=f: f(p, X), (P,), (P,)) for f in (fast, norm_after))
    close(got, want, 1e-10, "jvp")


def test_backward():
    fast = compiled(norm_after)
    leaves = {"w": P["w"].clone().requires_grad_(), "v": [P["v"][0].clone().requires_grad_()]}
    fast(leaves, X).backward()
    want = grad(norm_after)(P, X)
    close([leaves["w"].grad, leaves["v"][0].grad], [want["w"], want["v"][0]], 1e-10, "backward")
    (first,) = torch.autograd.grad(fast(leaves, X), leaves["w"], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaves["w"])
    twice = grad(lambda w: grad(lambda w: norm_after(P | {"w": w}, X))(w).square().sum())(P["w"])
    close(second, twice, 1e-9, "double backward")
    with torch.no_grad():
        assert not fast(leaves, X).requires_grad


def test_gradients_beside_integers():
    def looked(w, at):
        return w[at].square().sum(), at + 1

    at = torch.tensor([0, 2])
    fast = compiled(looked)
    got, more = grad(fast, has_aux=True)(P["w"], at)
    close(got, grad(looked, has_aux=True)(P["w"], at)[0], 1e-12, "grad")
    assert torch.equal(more, at + 1)


def test_vmap_and_its_compositions():
    fast = compiled(norm_after)
    many = trees.stack([trees.scale(s, P) for s in (0.5, 1.0, 2.0)])
    close(vmap(fast, (0, None))(many, X), vmap(norm_after, (0, None))(many, X), 1e-12, "vmap")
    assert [g.what for g in fast.graphs] == ["vmap of value"]
    close(vmap(grad(fast), (0, None))(many, X), vmap(grad(norm_after), (0, None))(many, X), 1e-10, "vmap(grad)")
    total = lambda f: lambda p: vmap(f, (0, None))(p, X).square().sum()
    close(grad(total(fast))(many), grad(total(norm_after))(many), 1e-10, "grad(vmap)")
    both = lambda f: vmap(vmap(f, (None, 0)), (0, None))(many, torch.stack([X, 2 * X]))
    close(both(fast), both(norm_after), 1e-12, "vmap(vmap)")
    moved = trees.map(lambda t: t.movedim(0, -1), many)
    close(
        vmap(step, (-1, None), out_dims=1)(moved, X),
        vmap(compiled(step), (-1, None), out_dims=1)(moved, X),
        1e-12,
        "axes",
    )


def test_transforms_inside():
    hyper = lambda p, xs: vmap(lambda x: norm_after(p, x))(xs)
    close(compiled(hyper)(P, torch.stack([X, 2 * X])), hyper(P, torch.stack([X, 2 * X])), 1e-12, "vmap inside")
    of = lambda p: jacfwd(jacrev(lambda s: norm_after(trees.scale(s, p), X)))(torch.ones((), dtype=D))
    close(compiled(of)(P), of(P), 1e-10, "jacfwd inside")


def test_a_compiled_function_inside_another():
    inner = compiled(step)
    outer = compiled(lambda p, x: inner(inner(p, x), x))
    close(outer(P, X), step(step(P, X), X), 1e-12, "nested")
    assert not inner.graphs


def test_tensors_closed_over_keep_their_numbers_up_to_date():
    shift = torch.zeros(3, dtype=D)
    fast = compiled(lambda x: x + shift)
    fast(X)
    shift += 1
    assert torch.equal(fast(X), X + 1)


def test_autocast_is_part_of_the_key():
    fast, x = compiled(lambda x: x @ x), torch.ones(3, 3)
    assert fast(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    assert fast(x).dtype == torch.float32


def by_value(x):
    if x.sum() > 0:
        return x
    return -x


GENERATOR = torch.Generator().manual_seed(0)
REFUSED = {
    "branch": (by_value, r"by_value: goes on by the value .* at .*test_compiled.py:\d+ \(if x.sum\(\) > 0:\).*torch.where"),
    "item": (lambda x: x * float(x.sum()), "goes on by the value of a tensor at .*test_compiled"),
    "generator": (lambda x: x + torch.randn(5, 3, generator=GENERATOR), "draws random numbers .*test_compiled.*noise="),
    "random": (lambda x: torch.nn.functional.dropout(x), "draws random numbers .*test_compiled.*noise="),
    "in place": (lambda x: x.add_(1), "changes an argument in place .*test_compiled.*give the new tensor back"),
    "in place, a view": (lambda x: x[0].mul_(2), "changes an argument in place"),
    "in place, inside": (lambda x: vmap(lambda row: row.mul_(2))(x), "changes an argument in place"),
    "in place, by out=": (lambda x: torch.add(x, x, out=x), "changes an argument in place .*test_compiled"),
    "in place, several": (lambda x: torch._foreach_mul_([x + 1, x], 2.0), "changes an argument in place .*test_compiled"),
    "in place, closed over, by out=": (lambda x: torch.add(x[0], x[0], out=FIXED), "changes a tensor that it closes over"),
    "in place, closed over": (lambda x: FIXED.add_(x.sum()), "changes a tensor that it closes over in place"),
    "layers": (lambda x: fisher.fim(network, P, x).trace(), "layers: got none while a graph is made .* pass layers="),
}  # fmt: skip
FIXED = torch.zeros(3, dtype=D)


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_graph_is_refused_by_cause(what):
    fn, words = REFUSED[what]
    x = X.clone()
    with pytest.raises(ValueError, match=words):
        compiled(fn)(x)
    assert torch.equal(x, X)
    assert not FIXED.any()


COUNTS = lambda x: x[:, 0].abs().long()
READS = {
    "item": lambda x: {"loss": x.mean(), "log": x.mean().item()},
    "item, as text": lambda x: str(x.sum().item()),
    "item, formatted": lambda x: f"{x.sum().item():.3f}",
    "item, a factor": lambda x: x * x.sum().item(),
    "formatted": lambda x: f"{x.sum():.3f}",
    "as text": lambda x: (x, str(x.sum())),
    "as text, mapped": lambda x: vmap(lambda row: [str(row), row][1])(x),
    "list": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
    "a tensor of tensors": lambda x: torch.tensor([x.sum(), x.mean()]),
    "copy": copy.deepcopy,
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave": lambda x: x.repeat_interleave(COUNTS(x), 0),
    "bincount": lambda x: COUNTS(x).bincount(),
    "split": lambda x: x.split(COUNTS(x).tolist()),
    "zeros": lambda x: torch.zeros(COUNTS(x)[0]),
    "arange": lambda x: torch.arange(x[0, 0]),
    "slice": lambda x: x[: COUNTS(x)[0]],
    "equal": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("what", READS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_numbers_that_are_read_are_refused_by_line_with_every_backend(what, backend):
    with pytest.raises(
        ValueError, match=r"(goes on by|sizes by|reads the numbers).* at \S+\.py:\d+ .*, expected .*; "
    ) as got:
        trees.compiled(READS[what], backend=backend)(X)
    assert "test_compiled.py" in str(got.value) or what == "copy"


def test_numbers_that_the_function_makes_itself_may_be_read():
    fast = compiled(lambda x: x * torch.tensor(3.0).item() + len(str(torch.ones(2).shape)))
    close(fast(X), 3 * X + len("torch.Size([2])"), 0.0, "constants")


def assign(p):
    p["w"] = p["w"] + 1
    return p["w"]


CHANGES = {
    "set": (assign, {"w": X}, r"assign: 0\.w: changes a container"),
    "new key": (lambda p: p.update(new=X), {"w": X}, r"0\.new: changes a container"),
    "pop": (lambda p: p.pop("w"), {"w": X, "v": X}, r"0\.w: changes a container"),
    "append": (lambda p: p["v"].append(1), {"v": [X]}, r"0\.v\.1: changes a container"),
    "swap": (lambda p: p.reverse(), [X, 2 * X], r"0\.0: changes a container"),
    "setting": (lambda p: p.update(n=2), {"w": X, "n": 1}, r"0\.n: changes a container"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_containers_that_are_changed_in_place_are_refused(what):
    fn, p, words = CHANGES[what]
    before = repr(p)
    for transform in (lambda f: f, lambda f: vmap(f)):
        with pytest.raises(
            ValueError, match=words + r" among its arguments in place.*expected a pure function; make a new"
        ):
            transform(compiled(fn))(p)
        assert repr(p) == before
        if what == "setting":
            break  # no tensor that vmap takes


def test_settings_are_told_apart_by_their_bits():
    fast = compiled(lambda x, s: torch.copysign(x, torch.full_like(x, s)))
    for s in (0.0, -0.0, math.nan, -0.0, float("nan"), 0.0):
        assert torch.equal(fast(X, s).signbit(), torch.full_like(X, s).signbit())
    assert len(fast.graphs) == 3
    assert exactly(1 + 0j) != exactly(complex(1, -0.0))


@dataclasses.dataclass(frozen=True)
class Setting:
    value: object


def test_settings_in_dataclasses_are_told_apart_by_their_bits():
    fast = compiled(lambda x, s: torch.full((3,), s.value) * x)
    for value in (1, 1.0, True, 0.0, -0.0, 1):
        got, want = fast(X.long(), Setting(value)), torch.full((3,), value) * X.long()
        assert got.dtype == want.dtype
        assert torch.equal(got.signbit(), want.signbit())
    assert len(fast.graphs) == 5
    same = [(1, 1.0), (Setting(1), Setting(1.0)), ((1,), (True,)), (frozenset([0.0]), frozenset([-0.0]))]
    assert all(one == other and exactly(one) != exactly(other) for one, other in same)


def test_a_module_is_told_how_to_be_a_function():
    with pytest.raises(
        ValueError, match=r"Linear: closes over .*requires a gradient.*functional_call.*fisher\.functional"
    ):
        compiled(torch.nn.Linear(3, 2, dtype=D))(X)


def test_the_function_s_own_errors_stay():
    def picky(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compiled(picky)(X)


def test_changes_of_its_own_tensors_are_fine():
    def filled(x):
        out = torch.zeros_like(x)
        out[0] = x[1]
        return out.add_(1)

    close(compiled(filled)(X), filled(X), 0.0, "in place on its own")


def test_arguments_that_it_does_not_take():
    with pytest.raises(TypeError, match="expected a function"):
        trees.compiled(X)
    with pytest.raises(ValueError, match="backend: got 'inductr', expected one of"):
        trees.compiled(step, backend="inductr")
    with pytest.raises(TypeError, match="neither tensor nor hashable setting"):
        compiled(lambda x, s: x)(X, slice(1) if not hasattr(slice, "__hash__") or slice.__hash__ is None else {1})
    with pytest.raises(TypeError, match=r"0: got a Tensor of layout torch.sparse_coo, expected a plain dense"):
        compiled(lambda x: x)(X.to_sparse())


def test_tensors_of_a_transform_that_it_closes_over_are_refused():
    made = lambda w: compiled(lambda x: grad(lambda y: (w * y).sum())(x))(X).sum()
    with pytest.raises(ValueError, match=r"closes over a tensor .* inside a transform"):
        grad(made)(torch.ones(3, dtype=D))
    with pytest.raises(ValueError, match=r"closes over a tensor .* inside a transform"):
        vmap(made)(torch.ones(2, 3, dtype=D))
    own = torch.ones(3, dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match=r"closes over a tensor \(3,\) that requires a gradient"):
        compiled(lambda x: x * own)(X)


def test_arguments_beside_a_transform():
    """Where a transform runs around the call but holds none of its arguments."""
    fast = compiled(step)
    weigh = lambda f: lambda s: s * trees.norm(f(P, X))
    one = torch.ones((), dtype=D)
    close(grad(weigh(fast))(one), grad(weigh(step))(one), 1e-12, "grad around")
    close(vmap(weigh(fast))(one[None]), vmap(weigh(step))(one[None]), 1e-12, "vmap around")


def test_what_is_kept_is_bounded():
    fast = compiled(lambda x: x + 1)
    for n in range(1, 70):
        fast(torch.ones(n))
    assert len(next(iter(fast._made._kept.values())).graphs._kept) == 64


def test_threads_share_one_graph():
    fast, wrong = compiled(step), []

    def work(seed):
        p = trees.map(lambda t: t + seed / 4, P)
        want = step(p, X)
        for _ in range(5):
            try:
                close(fast(p, X), want, 1e-12, "in a thread")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong, wrong[0]
    assert len(fast.graphs) == 1


def test_prints_on_one_line(capsys):
    fast = compiled(step, P, X)
    assert repr(fast).startswith("Compiled(step, eager, 1 graph in ")
    assert "\n" not in repr(fast.graphs[0])
    assert capsys.readouterr() == ("", "")
    start = time.perf_counter()
    loud = compiled(step, P, X, progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("step: CompiledGraph(value of 3 tensors, ")
    assert loud.seconds <= time.perf_counter() - start


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_backends(backend):
    fast = trees.compiled(step, P, X, backend=backend)
    close(fast(P, X), step(P, X), 1e-12, backend)
    close(grad(lambda p: trees.norm(fast(p, X)))(P), grad(norm_after)(P, X), 1e-10, backend)


def test_without_a_compiler_the_cure_is_said(monkeypatch):
    class InvalidCxxCompiler(RuntimeError):
        pass

    def backend(module, inputs):
        raise InvalidCxxCompiler("No working C++ compiler found in cpp.cxx: (None, 'g++')")

    with pytest.raises(RuntimeError, match=r'found no C.. compiler .*backend="aot_eager"'):
        trees.compiled(step, P, X, backend=backend)
