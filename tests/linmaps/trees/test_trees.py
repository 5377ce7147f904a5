"""Trees: the vector space of any pytree, the flat order, paths, ensembles, records that go everywhere."""

import collections
import copy
import dataclasses
import io
import pickle

import optree
import pytest
import torch
import torch.utils._pytree as torch_pytree
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

from linmaps import trees
from linmaps.trees import Layout
from linmaps.trees.keys import names
from linmaps.trees.records import GLOBAL
from tests.laws import close

D = torch.float64
Point = collections.namedtuple("Point", "x y")


@trees.record(static=("unit",))
class Quantity:
    value: torch.Tensor
    spread: torch.Tensor | None = None
    unit: str = "m"


class Registered:
    """A user's own container, registered with optree alone."""

    def __init__(self, a, b):
        self.a, self.b = a, b


optree.register_pytree_node(
    Registered, lambda r: ((r.a, r.b), None, ("a", "b")), lambda _, c: Registered(*c), namespace=GLOBAL
)


def tensors(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
leaves = st.builds(tensors, shapes, st.integers(0, 999))
keys = st.text("abcxyz", min_size=1, max_size=2)
any_tree = st.recursive(
    leaves,
    lambda t: st.one_of(
        st.dictionaries(keys, t, min_size=1, max_size=3),
        st.lists(t, min_size=1, max_size=3),
        st.tuples(t, t),
        st.builds(Point, t, t),
        st.builds(Registered, t, t),
        st.builds(collections.OrderedDict, st.dictionaries(keys, t, min_size=1, max_size=2)),
        st.builds(Quantity, leaves),
    ),
    max_leaves=6,
)


def other(tree, seed=5):
    return trees.map(lambda t: tensors(t.shape, seed), tree)


@given(any_tree)
def test_vector_space(a):
    b = other(a)
    va, vb = trees.ravel(a)[0], trees.ravel(b)[0]
    close(trees.ravel(trees.add(a, b))[0], va + vb, 1e-14, "add")
    close(trees.ravel(trees.sub(a, b))[0], va - vb, 1e-14, "sub")
    close(trees.ravel(trees.scale(0.3, a))[0], 0.3 * va, 1e-14, "scale")
    close(trees.ravel(trees.axpy(0.3, a, b))[0], 0.3 * va + vb, 1e-14, "axpy")
    close(trees.dot(a, b), va.double() @ vb, 1e-13, "dot")
    close(trees.norm(a), va.norm(), 1e-13, "norm")
    assert all((t == 0).all() for t in trees.leaves(trees.zeros_like(a)))


@given(any_tree)
def test_flat_order_and_back(tree):
    vector, unravel = trees.ravel(tree)
    again = unravel(vector)
    assert optree.tree_structure(again) == optree.tree_structure(tree)
    close(again, tree, 0.0, "ravel")
    close(trees.unravel(2 * vector, tree), trees.scale(2.0, tree), 0.0, "unravel")
    layout = Layout.of(tree)
    assert layout.numel == len(vector)
    assert layout == Layout.of(other(tree))
    assert hash(layout) == hash(Layout.of(other(tree)))


def test_flat_order_is_that_of_sorted_keys_row_major():
    vector, _ = trees.ravel({"b": torch.tensor([5.0]), "a": {"y": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}})
    assert vector.tolist() == [1, 2, 3, 4, 5]


@given(any_tree)
def test_every_path_leads_to_its_leaf(tree):
    for path, leaf in zip(trees.paths(tree), trees.leaves(tree)):
        assert trees.get(tree, path) is leaf
        new = trees.replace(tree, path, leaf + 1)
        changed = [not torch.equal(s, t) for s, t in zip(trees.leaves(new), trees.leaves(tree))]
        assert sum(changed) == (leaf.numel() > 0)
        assert trees.get(tree, path) is leaf, "the old tree stays valid"


@given(any_tree)
def test_stack_and_unstack(tree):
    members = [tree, other(tree, 1), other(tree, 2)]
    back = trees.unstack(trees.stack(members))
    assert len(back) == 3
    for member, want in zip(back, members):
        close(member, want, 0.0, "unstack(stack)")


def test_dotted_paths_in_nested_and_flat_dicts():
    nested, flat = {"net": {"0": {"weight": 1, "bias": 2}}}, {"net.0.weight": 1, "net.0.bias": 2}
    for tree in (nested, flat):
        assert trees.get(tree, "net.0.weight") == 1
        assert trees.get(trees.replace(tree, "net.0.bias", 7), "net.0.bias") == 7
    assert trees.get([{"w": 3}], "0.w") == 3
    assert trees.get({"p": Point(1, [2])}, "p.y.0") == 2
    assert trees.get({0: "a"}, (0,)) == "a"
    mixed = collections.OrderedDict(z=1, a=2)
    assert list(trees.replace(mixed, "z", 5)) == ["z", "a"]
    with pytest.raises(
        ValueError, match=r"net.1.weight: no such path; under 'net' got '1.weight', expected one of \['0'\]"
    ):
        trees.get(nested, "net.1.weight")


def test_errors_name_path_got_expected_and_cure():
    a = {"w": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(ValueError, match=r"second tree: leaf w has shape \(3,\), expected \(2,\); give a tree"):
        trees.add(a, {"w": torch.ones(3), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"missing \['b'\], unexpected \['c'\]"):
        trees.dot(a, {"w": torch.ones(2), "c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"stack: member 1: leaf w has shape"):
        trees.stack([a, {"w": torch.ones(3), "b": torch.ones(1)}])
    with pytest.raises(ValueError, match="stack: got an empty sequence"):
        trees.stack([])
    with pytest.raises(ValueError, match=r"unstack: leading sizes"):
        trees.unstack(a)
    with pytest.raises(ValueError, match=r"unravel: got shape \(4,\), expected \(3,\)"):
        trees.ravel(a)[1](torch.ones(4))
    with pytest.raises(TypeError, match="rate: got float, expected a tensor; keep settings out of trees"):
        trees.ravel({"rate": 0.1})
    with pytest.raises(TypeError, match=r"Bad: static=.'nothing'. are no fields"):

        @trees.record(static=("nothing",))
        class Bad:
            a: torch.Tensor


def test_norm_has_gradient_zero_at_zero():
    zero = {"a": torch.zeros(2, dtype=D)}
    assert torch.equal(grad(trees.norm)(zero)["a"], zero["a"])
    assert trees.norm({"a": torch.tensor([3 + 4j])}).item() == 5.0


def test_dot_conjugates_the_first():
    a, b = {"a": torch.tensor([1j])}, {"a": torch.tensor([2.0 + 0j])}
    assert trees.dot(a, b).item() == -2j


def test_empty_tree():
    assert trees.ravel({})[0].shape == (0,)
    assert trees.dot({}, {}).item() == 0
    assert trees.paths({}) == []


@pytest.mark.parametrize("spread", [None, torch.ones(2, dtype=D)])
def test_records_pass_through_everything(spread):
    q = Quantity(torch.arange(2, dtype=D), spread, unit="s")
    count = 1 if spread is None else 2
    assert len(optree.tree_leaves(q)) == len(torch_pytree.tree_leaves(q)) == count
    double = optree.tree_map(lambda t: 2 * t, q)
    assert (type(double), double.unit) == (Quantity, "s")
    assert vmap(lambda r: r)(q).unit == "s"
    assert (vmap(lambda r: r)(q).spread is None) == (spread is None)
    total = lambda r: (r.value**2).sum()
    assert torch.equal(grad(total)(q).value, 2 * q.value)
    assert torch.equal(jacrev(total)(q).value, 2 * q.value)
    assert torch.equal(jacfwd(lambda t: Quantity(t, unit="s"))(q.value).value, torch.eye(2, dtype=D))
    file = io.BytesIO()
    torch.save({"q": q, "layout": Layout.of({"a": q.value})}, file)
    file.seek(0)
    for again in (torch.load(file)["q"], pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert again.unit == "s"
        assert torch.equal(again.value, q.value)
        assert (again.spread is None) == (spread is None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.value = spread


def test_records_of_different_settings_do_not_mix():
    with pytest.raises(ValueError):
        optree.tree_map(torch.add, Quantity(torch.ones(1), unit="m"), Quantity(torch.ones(1), unit="s"))


def test_one_level():
    assert trees.one_level(torch.ones(2)) is None
    assert trees.one_level(None) is None
    keys, children, rebuild = trees.one_level(Point(1, 2))
    assert (list(keys), list(children), rebuild([3, 4])) == (["x", "y"], [1, 2], Point(3, 4))
    keys, children, rebuild = trees.one_level({"b": 1, "a": 2})
    assert (keys, list(children)) == (["b", "a"], [1, 2]), "the order of insertion"


COLLIDING = {"a.b": 1, "a": {"b": 2}, "n": {1: 3, "1": 4}}


def test_paths_whose_strings_are_equal_stay_apart():
    """A tuple of keys is taken as it is; a string that may mean two subtrees is refused."""
    for path, leaf in zip(trees.paths(COLLIDING), trees.leaves(COLLIDING)):
        assert trees.get(COLLIDING, path) == leaf
        assert trees.get(trees.replace(COLLIDING, path, 9), path) == 9
        others = [p for p in trees.paths(COLLIDING) if p != path]
        assert all(trees.get(trees.replace(COLLIDING, path, 9), p) != 9 for p in others)
    for name in ("a.b", "n.1"):
        with pytest.raises(
            ValueError, match=rf"{name}: may mean 2 subtrees, expected one; give a tuple of keys, one of \["
        ):
            trees.get(COLLIDING, name)
    assert len(set(names(trees.paths(COLLIDING)))) == 4


def test_decorators_with_and_without_parentheses():
    @trees.record
    class Bare:
        value: torch.Tensor

    @trees.record()
    class Called:
        value: torch.Tensor

    for cls in (Bare, Called):
        assert dataclasses.is_dataclass(cls)
        assert torch.equal(trees.scale(2.0, cls(torch.ones(1))).value, torch.tensor([2.0]))
    assigned = lambda x: x
    assert trees.static(assigned) is trees.static()(assigned) is assigned
    for wrong in (3, "name", torch.ones(1)):
        with pytest.raises(TypeError, match=r"static: got .*, expected a class or a function; put @"):
            trees.static(wrong)
        with pytest.raises(TypeError, match=r"record: got .*, expected a class; name fields as @record"):
            trees.record(wrong)


def test_leaves_come_in_one_order_inside_of_what_torch_compiles():
    one, two = torch.zeros(()), torch.ones(())
    ordered = collections.OrderedDict
    for tree in ({"b": one, "a": two}, ordered(b=one, a=two), {"b": {}, "a": ordered(z=one, y={"q": two})}):
        run = lambda t: torch.stack(trees.leaves(t))
        assert torch.equal(torch.compile(run, backend="eager")(tree), run(tree))
