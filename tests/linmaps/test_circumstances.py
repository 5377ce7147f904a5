"""Laws of maps about what surrounds a call: entries that are not finite, autocast, inference mode, defaults, other dtypes.

Every public method of every member of the zoo is called, found by the names of its arguments.
"""

import ast
import collections
import inspect
import pathlib

import pytest
import torch

import fisher
import growth
import linmaps
from linmaps import trees
from linmaps.numerics import packing
from tests.laws import Case
from tests.linmaps import zoo
from tests.linmaps.cases import CASES
from tests.linmaps.factorized.cases import CASES as FACTORIZED_CASES

over_the_zoo = pytest.mark.parametrize("entry", zoo.ENTRIES, ids=zoo.label)
PACKAGES = (linmaps, fisher, growth)
RISKY = {"cond", "eig", "eigh", "eigvals", "eigvalsh", "lstsq", "matrix_rank", "pinv", "svd", "svdvals"}
STATIC = {"shapes", "plan", "diagonal"}  # compute with no tensor


def randn(*shape, seed, dtype):
    return torch.randn(shape, generator=zoo.generator(seed), dtype=torch.float64).to(dtype)


def calls(spec, dtype=torch.float32, change=lambda tree: tree):
    """{name: call} of all public methods; change: what is done to the arguments before."""
    n, m = spec.in_features, spec.out_features
    params = spec.init(zoo.generator(0), dtype=dtype)
    shape = (2, *spec.in_shape) if hasattr(spec, "in_shape") else ()
    given = change(
        {
            "params": params,
            "x": randn(2, n, seed=1, dtype=dtype),
            "y": randn(2, m, seed=2, dtype=dtype),
            "W": randn(*spec._W_shape, seed=3, dtype=dtype),
            "tensor": randn(*shape, seed=4, dtype=dtype),
        }
    )
    given |= {"idx": torch.arange(n), "layer": 0, "generator": None, "rows": 3, "size": 3}
    several = getattr(spec, "n_layers", 1) > 1
    found = {}
    for name, method in inspect.getmembers(spec, inspect.isroutine):
        if name.startswith("_") or name in STATIC:
            continue
        if several and name in ("eig", "singular_values", "solve", "inverse", "logabsdet"):
            continue
        if n != m and name in ("eig", "solve", "inverse", "logabsdet"):
            continue
        if name == "from_matrix" and not zoo.closed_form(spec):
            continue
        taken = inspect.signature(method).parameters.values()
        needed = [p.name for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if several and name in ("apply", "rows"):
            needed.append("layer")
        if name == "apply_tensor":
            needed[-1] = "tensor"
            needed += ["layer"] * several
        if name == "init":
            found[name] = lambda method=method: method(zoo.generator(1), dtype=dtype)
            continue
        args = [given[key] for key in needed]
        if name == "slice":  # all of each mode
            args += [slice(None)] * (len(spec.in_shape) + len(spec.out_shape))
        found[name] = lambda method=method, args=args: method(*args)
        if name == "eig":
            found["eig, vectors"] = lambda method=method, args=args: method(*args, vectors=True)
    return found


def tensors(result):
    """The tensors in what a method returns, in order: params, pairs, specs beside params, iterators of such."""
    found = trees.leaves(list(result) if inspect.isgenerator(result) else result)
    return [t for t in found if isinstance(t, torch.Tensor)]


def spoiled(value):
    """Trees of tensors to the same with `value` as first entry."""
    first = lambda t: torch.arange(t.numel()).reshape(t.shape) == 0
    return lambda tree: trees.map(lambda t: torch.where(first(t), value, t), tree)


NOT_OF_ENTRIES = {"argmax", "bounds", "expected_l0", "init"}  # choices and counts, or of no params


@over_the_zoo
def test_nan_in_params_and_matrices_comes_out_again(entry):
    """Also where LAPACK would raise, or end the process."""
    spec = entry.spec
    exempt = NOT_OF_ENTRIES | ({"reg_error"} if spec.guaranteed else set())
    if torch.equal(*(spec.effective_W(zoo.random_params(spec, seed)) for seed in (0, 1))):
        exempt |= calls(spec).keys() - {"violation"}
    for name, call in calls(spec, torch.float64, spoiled(torch.nan)).items():
        assert name in exempt or any(t.isnan().any() for t in tensors(call())), name


@over_the_zoo
def test_infinities_raise_nothing(entry):
    for call in calls(entry.spec, torch.float64, spoiled(torch.inf)).values():
        call()


def test_decompositions_are_reached_by_one_door():
    """Those of torch.linalg that raise or end the process on NaN are used by linmaps.numerics.lapack alone."""
    used = {}
    for file in (file for package in PACKAGES for file in pathlib.Path(package.__file__).parent.rglob("*.py")):
        nodes = ast.walk(ast.parse(file.read_text()))
        named = {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "torch.linalg"}
        used |= {file.name: names} if (names := named & RISKY) else {}
    assert used == {"lapack.py": {"eig", "eigh", "eigvals", "eigvalsh", "svd", "svdvals", "pinv"}}


def same(call, other, name):
    """The same bits, dtypes and devices."""
    got, want = tensors(call()), tensors(other())
    assert len(got) == len(want), name
    for s, t in zip(got, want):
        assert (s.dtype, s.device) == (t.dtype, t.device), (
            f"{name}: {s.dtype} on {s.device}, without {t.dtype}, {t.device}"
        )
        assert torch.equal(s, t) or torch.equal(s.isnan(), t.isnan()), name


@over_the_zoo
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(entry, dtype):
    def under(call):
        with torch.autocast("cpu", dtype):
            return list(found) if inspect.isgenerator(found := call()) else found

    for name, call in calls(entry.spec).items():
        same(lambda call=call: under(call), call, name)


@over_the_zoo
def test_half_precision_left_by_autocast_is_taken_in_the_dtype_of_params(entry):
    spec = entry.spec
    if not spec.n_params or getattr(spec, "n_layers", 1) > 1:
        return
    params, x = (
        spec.init(zoo.generator(0), dtype=torch.float32),
        randn(2, spec.in_features, seed=1, dtype=torch.bfloat16),
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = spec.apply(params, x)
    assert torch.equal(got, spec.apply(params, x.float()))


@over_the_zoo
def test_other_dtypes_of_inputs_are_refused_by_name(entry):
    spec = entry.spec
    if not spec.n_params or getattr(spec, "n_layers", 1) > 1:
        return
    params, n, m = spec.init(zoo.generator(0), dtype=torch.float32), spec.in_features, spec.out_features
    asked = {spec.apply: n, **({spec.solve: m} if n == m else {})}
    for method, size in asked.items():
        with pytest.raises(
            TypeError, match=r"got torch.float64, expected torch.(float32|complex64) as params; convert"
        ):
            method(params, torch.ones(2, size, dtype=torch.float64))
        with pytest.raises(TypeError, match=r"is torch.int64, expected a floating dtype"):
            method(params, torch.ones(2, size, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"is torch.int64, expected a floating dtype"):
        spec.violation(torch.ones(spec._W_shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"is torch.int64, expected a floating dtype"):
        spec.effective_W(trees.map(lambda t: t.real.long(), params))
    leaves, treedef = trees.flatten(params)
    if len(leaves) > 1:
        mixed = treedef.unflatten([leaves[0].to(torch.promote_types(leaves[0].dtype, torch.float64)), *leaves[1:]])
        with pytest.raises(TypeError, match=r"params: .*: got torch.(float32|complex64), expected .* as leaf"):
            spec.effective_W(mixed)


@over_the_zoo
def test_complex_inputs_go_by_their_parts(entry):
    spec = entry.spec
    x = torch.complex(*(randn(2, 3, spec.in_features, seed=seed, dtype=torch.float64) for seed in (0, 1)))
    params = zoo.random_params(spec, 0)
    W = zoo.matrix(spec, params)
    want = x @ W.to(x.dtype) + (params["bias"] if spec.bias else 0)
    assert (spec.apply(params, x) - want).abs().max() <= 1e-12


@over_the_zoo
def test_any_mapping_is_a_dict(entry):
    """UserDict, nn.ParameterDict, OrderedDict in another order, as deep as params go."""
    spec = entry.spec
    usual = calls(spec)

    def with_keys_turned(kind):
        def turned(node):
            return kind({k: turned(node[k]) for k in reversed(list(node))}) if isinstance(node, dict) else node

        return lambda given: given | {"params": turned(given["params"])}

    for kind in (collections.OrderedDict, collections.UserDict):
        for name, call in calls(spec, change=with_keys_turned(kind)).items():
            if name != "project":  # in the order of what it is given
                same(call, usual[name], name)


@over_the_zoo
def test_inference_mode_leaves_nothing_behind(entry):
    """What was called there first is trained afterwards as if it had not been."""
    packing._kept.cache_clear()
    spec = entry.spec
    with torch.inference_mode():
        for call in calls(spec).values():
            tensors(call())
    params = trees.map(lambda t: t.requires_grad_(), zoo.random_params(spec, 0))
    loss = zoo.squared(spec.apply(params, randn(2, spec.in_features, seed=1, dtype=torch.float64))) + spec.reg_error(
        params
    )
    if spec.n_params:
        loss.backward()


@over_the_zoo
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_default_dtype_and_device_change_nothing(entry, other):
    usual = {name: (call, tensors(call())) for name, call in calls(entry.spec).items()}
    before = torch.get_default_dtype()
    following = {"apply", "solve", "violation", "from_matrix"}  # where there are no params to say dtype and device
    checked = usual if trees.leaves(entry.spec.init(zoo.generator(0))) else following & usual.keys()
    try:
        torch.set_default_device(other) if other == "meta" else torch.set_default_dtype(other)
        found = {name: tensors(call()) for name, (call, _) in usual.items() if name in checked}
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    for name, got in found.items():
        same(lambda got=got: got, lambda name=name: usual[name][1], name)


FAMILIES = ("factorized", "factorize", "hprod", "RNNCell", "rnn", "trees")
FREE = {
    name: case
    for name, case in (CASES | FACTORIZED_CASES).items()
    if isinstance(case, Case) and name.split("/")[0].split(".")[1] in FAMILIES
    if not name.endswith("cp_start")  # whose row multiplies what the function gives
}


@pytest.mark.parametrize("name", FREE)
def test_autocast_changes_no_function(name):
    case = FREE[name]
    args = trees.map(lambda t: t.float() if t.is_floating_point() else t, case.args)

    def under():
        with torch.autocast("cpu", torch.bfloat16):
            return case.fn(*args)

    same(under, lambda: case.fn(*args), name)


def test_counts_beyond_any_memory_are_refused_before_anything_is_allocated():
    huge = 10**10
    generator = zoo.generator(0)
    for spec in (
        linmaps.Linear(10**9),
        linmaps.Symplectic(4, n_factors=huge),
        linmaps.Factorized((2, 2), factorization="cp", rank=huge),
        linmaps.Factorized((2, 2), n_layers=huge),
        linmaps.Product(linmaps.Linear(10**9), linmaps.Linear(10**9)),
        linmaps.factorized.FactorizedConv(2, 2, (3,), rank=huge),
    ):
        with pytest.raises(ValueError, match=r"asks for .* parameters, expected at most"):
            spec.init(generator)
    thin = linmaps.LowRank(10**6, 10**6, rank=1)
    with pytest.raises(ValueError, match=r"LowRank.*: asks for 1.0e\+12 entries of W, expected at most .*; use apply"):
        thin.effective_W(thin.init(generator))
    with pytest.raises(ValueError, match=r"cp_start of 10000000000 terms: asks for"):
        linmaps.factorized.cp_start(torch.ones(2, 3), huge)
    with pytest.raises(ValueError, match=r"n_modes is 10000000000, expected at most 64"):
        linmaps.factorize(torch.ones(4, 4), n_modes=huge)
