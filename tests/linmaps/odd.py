"""Valid calls of linmaps, linmaps.trees and linmaps.factorized, to be made odd; outcomes that are right all the same."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import Any

import torch

import linmaps as L
import linmaps.factorized as F
from linmaps import trees
from tests.linmaps import zoo
from tests.odd import Call

ANY = "takes any tree of tensors"
ELSEWHERE = "what lies elsewhere in the tree is not looked at"
SIGN = "a factor may have any sign"
DTYPE = "the result has the dtype of what it is made of, and of one tensor it is one dtype"
ALL = slice(None)
SIZES = "a spec is sizes alone: nothing is allocated before params are"
JUSTIFIED: dict[str, str] = {
    "linmaps.Factorized(*_shape: missing)": "another shape",
    "linmaps.Factorized(*_shape: unexpected)": "another shape",
    "linmaps.factorized.*_rank(*: beyond*": "sizes are numbers, nothing is allocated",
    "linmaps.factorized.sketches(oversampling: *": "no sketch has more columns than its matrix",
    **{
        f"linmaps.*.{name}(W: {kind})": DTYPE
        for name in ("violation", "from_matrix")
        for kind in ("double", "half", "complex")
    },
    **{f"linmaps.*(params: {kind} in *": DTYPE for kind in ("double", "half", "complex")},
    **{
        f"linmaps.*({name}: {kind}*": SIZES
        for name in ("*_features", "*_shape", "n_factors")
        for kind in ("huge", "beyond")
    },
    "linmaps.hprod(x: half)": DTYPE,
    "linmaps.factorize*(weight: *": "any matrix has a factorization",
    "linmaps.factorized.cp_*(T: *": "any tensor has a decomposition",
    "linmaps.factorized.tt_svd(T: *": "any tensor has a decomposition",
    "linmaps.factorized.tucker_hosvd(T: *": "any tensor has a decomposition",
    "linmaps.factorized.lasso_prox(weights: *": "a tree of weights for any set of bonds",
    "linmaps.factorized.lasso_weights(dtype: complex)": "maps with complex params have complex masks",
    "linmaps.trees.axpy*(alpha: complex)": "a factor may be complex",
    "linmaps.trees.*check*(tree: *": "structure and shapes are compared, not dtypes",
    "linmaps.trees.*(*: complex in *": "trees may be complex",
    "linmaps.trees.get(tree: *": ELSEWHERE,
    "linmaps.trees.replace(tree: *": ELSEWHERE,
    "linmaps.trees.replace(value: *": "any value",
    "linmaps.trees.save(tree: *": "any tree",
    "linmaps.trees.save(given: *": "any paths of the tree",
    "linmaps.trees.path_str(*": "any key has a text",
    "linmaps.trees.Layout.unflatten(flat: *": "any leaves: the structure alone is what it gives back",
    **{f"linmaps.trees.{name}(tree: *": ANY for name in ("zeros_like", "ravel", "unstack", "Layout.of")},
    **{f"linmaps.trees.{name}(a: *": ANY for name in ("norm", "scale")},
    "linmaps.trees.unravel(vector: *": "the vector's dtype is the tree's",
    "linmaps.trees.Layout.unravel(vector: *": "the vector's dtype is the tree's",
    "linmaps.trees.stack/list(trees: missing)": "one tree is an ensemble of one",
    "linmaps.trees.stack/list(trees: unexpected)": "more trees, a larger ensemble",
    "linmaps.trees.scale(alpha: negative*": SIGN,
    "linmaps.trees.axpy*(alpha: negative*": SIGN,
    "linmaps.Scale(factor: negative)": SIGN,
    "linmaps.factorized.*(layer: zero)": "a layer's number",
    "linmaps.factorized.*(padding: zero)": "no padding",
    "linmaps.factorized.*_rank(sizes: *": "sizes are numbers, nothing is allocated",
}
EXEMPT: dict[str, str] = {
    "linmaps.Map": "abstract",
    "linmaps.Module": "a torch.nn.Module; what it refuses is in tests/linmaps/interop/test_modules.py",
    "linmaps.parametrize": "changes a torch.nn.Module; what it refuses is in tests/linmaps/interop/test_modules.py",
    "linmaps.maps": "the registry of classes",
    "linmaps.trees.Compiled": "what compiled returns; what it refuses is in tests/linmaps/trees/test_compiled.py",
    "linmaps.trees.flatten": "the pytree library's own",
    "linmaps.trees.leaves": "the pytree library's own",
    "linmaps.trees.map": "the pytree library's own, with the user's function",
    "linmaps.trees.one_level": "the pytree library's own",
    "linmaps.trees.paths": "the pytree library's own",
    "linmaps.trees.record": "a class decorator",
    "linmaps.trees.static": "a class decorator",
    "linmaps.factorized.Factorization": "a record that factorize makes",
    **{f"linmaps.{name}": "in the rows of linmaps.factorized" for name in ("tensor_dropout", "tensor_lasso")},
    **{
        f"linmaps.factorized.{name}": "in the rows of linmaps"
        for name in ("factorize", "factorize_conv", "tensorized_shape")
    },
    **{
        f"linmaps.{name}": "in the rows of linmaps.factorized"
        for name in ("Factorized", "FactorizedConv", "LipschitzConv")
    },
}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=gen(seed))


def methods(name: str, spec: Any, most: bool) -> list[Call]:
    """The methods of a map; most: those that go through the same checks in every map too."""
    params = spec.init(gen(3))
    x, W = randn(2, spec.in_features, seed=1), spec.effective_W(params)
    calls = [Call("effective_W", spec.effective_W, {"params": params})]
    if hasattr(spec, "violation"):
        calls.append(Call("violation", spec.violation, {"W": W}))
        calls.append(Call("from_matrix", spec.from_matrix, {"W": W.clone()}))
    if most:
        calls += [
            Call("init", spec.init, {"generator": gen(), "dtype": torch.float32, "device": "cpu"}),
            Call("apply", spec.apply, {"params": params, "x": x}),
            Call("reg_error", spec.reg_error, {"params": params}),
            Call("singular_values", spec.singular_values, {"params": params}),
            Call("project", spec.project, {"params": params}),
        ]
        if spec.in_features == spec.out_features:
            calls += [
                Call("eig", spec.eig, {"params": params}),
                Call("solve", spec.solve, {"params": params, "y": x}),
                Call("inverse", spec.inverse, {"params": params}),
                Call("logabsdet", spec.logabsdet, {"params": params}),
            ]
    valid = []
    for call in calls:
        try:
            call.fn(**call.args)
        except ValueError:  # a map without it
            continue
        valid.append(dataclasses.replace(call, name=f"{name}.{call.name}"))
    return valid


def of_maps() -> list[Call]:
    found, seen = [], set()
    for entry in zoo.ENTRIES:
        spec, cls = entry.spec, type(entry.spec)
        if cls in seen or not entry.table or cls in (L.Product, L.Sum):
            continue
        seen.add(cls)
        options = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.init}
        found.append(Call(f"linmaps.{cls.__name__}", cls, options))
        found += methods(f"linmaps.{cls.__name__}", spec, len(seen) % 4 == 0 or cls in (L.Linear, L.Symmetric))
    return found


def composed() -> list[Call]:
    a, b = L.Spectral(3), L.Linear(3, 2)
    cell = L.RNNCell(L.Spectral(3), L.Linear(2, 3, bias=True))
    params, xs = cell.init(gen()), randn(4, 5, 2)
    l0 = L.L0(3, 2)
    return [
        Call("linmaps.Product", lambda first, second: L.Product(first, second), {"first": a, "second": b}),
        Call("linmaps.Sum", lambda first, second: L.Sum(first, second), {"first": a, "second": L.Linear(3)}),
        Call("linmaps.Affine", L.Affine, {"map": a}),
        Call("linmaps.Scale", L.Scale, {"map": a, "factor": 2.0}),
        Call("linmaps.Transpose", L.Transpose, {"map": a}),
        Call("linmaps.Block", L.Block, {"rows": ((a, b), (None, L.Linear(3, 2)))}),
        *methods("linmaps.Product", L.Product(a, L.Linear(3)), True),
        *methods("linmaps.Sum", L.Sum(a, L.Linear(3)), True),
        Call("linmaps.RNNCell", L.RNNCell, {"hidden_map": a, "input_map": L.Linear(2, 3), "activation": torch.tanh}),
        Call("linmaps.RNNCell.init", cell.init, {"generator": gen(), "dtype": torch.float32}),
        Call("linmaps.RNNCell.step", cell.step, {"params": params, "x": xs[0], "h": randn(5, 3)}),
        Call("linmaps.rnn", L.rnn, {"cell": cell, "params": params, "xs": xs, "h0": randn(5, 3)}),
        Call("linmaps.L0.apply", l0.apply, {"params": l0.init(gen()), "x": randn(2, 3), "noise": torch.rand(3, 2)}),
        Call("linmaps.hprod", L.hprod, {"x": randn(2, 4), "U": randn(3, 4, seed=1)}),
        Call("linmaps.identity_grad_relu", L.identity_grad_relu, {"x": randn(3)}),
        Call("linmaps.from_module", L.from_module, {"module": torch.nn.Linear(3, 2)}),
        Call("linmaps.factorize", L.factorize, {
            "weight": randn(4, 6), "bias": randn(4), "factorization": "tt", "rank": 0.7, "n_modes": 2,
        }),
        Call("linmaps.factorize/shapes", L.factorize, {
            "weight": randn(4, 6), "in_shape": (2, 3), "out_shape": (2, 2), "factorization": "cp", "rank": 2, "n_sweeps": 3,
        }),
        Call("linmaps.factorize_conv", L.factorize_conv, {
            "weight": randn(3, 2, 3), "bias": randn(3), "factorization": "cp", "rank": 2, "n_sweeps": 3,
        }),
        Call("linmaps.factorize_conv/joint", L.factorize_conv, {
            "weight": [randn(3, 2, 3), randn(3, 2, 3, seed=1)], "bias": [randn(3), randn(3)], "factorization": "tt", "rank": 2,
        }),
        Call("linmaps.tensorized_shape", L.tensorized_shape, {"n": 12, "n_modes": 2}),
    ]  # fmt: skip


def of_trees() -> list[Call]:
    tree = {"a": {"b": randn(2), "c": randn(2, 3, seed=1)}, "d": [randn(2, seed=2)]}
    other = trees.map(torch.sin, tree)
    layout = trees.Layout.of(tree)
    vector = trees.ravel(tree)[0]
    T = "linmaps.trees."
    file = os.path.join(tempfile.mkdtemp(), "tree.safetensors")
    trees.save(tree, file)
    return [
        Call(
            T + "save",
            lambda tree, given=(): trees.save(tree, file + "2", given=given),
            {"tree": tree, "given": ["d.0"]},
        ),
        Call(
            T + "load",
            lambda device=None, given=None: trees.load(file, device=device, given=given),
            {"device": "cpu", "given": {}},
        ),
        Call(T + "add", trees.add, {"a": tree, "b": other}),
        Call(T + "sub", trees.sub, {"a": tree, "b": other}),
        Call(T + "scale", trees.scale, {"alpha": 2.0, "a": tree}),
        Call(T + "axpy", trees.axpy, {"alpha": 2.0, "x": tree, "y": other}),
        Call(T + "axpy/tensor", trees.axpy, {"alpha": torch.tensor(2.0), "x": tree, "y": other}),
        Call(T + "compiled", trees.compiled, {"fn": trees.norm, "backend": "eager", "progress": False}, ("fn",)),
        Call(T + "compiled.call", trees.compiled(trees.add, backend="eager"), {"a": tree, "b": other}),
        Call(T + "dot", trees.dot, {"a": tree, "b": other}),
        Call(T + "norm", trees.norm, {"a": tree}),
        Call(T + "zeros_like", trees.zeros_like, {"tree": tree}),
        Call(T + "stack", lambda first, second: trees.stack([first, second]), {"first": tree, "second": other}),
        Call(T + "stack/list", trees.stack, {"trees": [tree["a"], other["a"]]}),
        Call(T + "unstack", trees.unstack, {"tree": trees.stack([tree, other])}),
        Call(T + "ravel", lambda tree: trees.ravel(tree)[0], {"tree": tree}),
        Call(T + "unravel", trees.unravel, {"vector": vector, "like": tree}),
        Call(T + "get", trees.get, {"tree": tree, "path": "a.c"}),
        Call(T + "replace", trees.replace, {"tree": tree, "path": "a.b", "value": randn(4)}),
        Call(T + "check_like", trees.check_like, {"tree": tree, "like": other, "name": "tree"}, ("name",)),
        Call(T + "Layout.of", trees.Layout.of, {"tree": tree}),
        Call(T + "Layout.unravel", layout.unravel, {"vector": vector}),
        Call(T + "Layout.unflatten", layout.unflatten, {"flat": trees.leaves(tree)}),
        Call(T + "Layout.check", layout.check, {"tree": tree, "name": "v"}, ("name",)),
        Call(T + "path_str", trees.path_str, {"path": ("a", 0)}),
    ]


def of_factorized() -> list[Call]:
    spec = F.Factorized((2, 3), (3, 2), factorization="tucker", rank=0.6, n_layers=3)
    params, other = spec.init(gen()), spec.init(gen(1))
    mask = {bond: 1 + 0.3 * randn(size, seed=size) for bond, size in F.bonds(spec).items()}
    conv = F.FactorizedConv(2, 3, (3,), factorization="tucker", rank=2)
    kernel = conv.init(gen())
    bounded = F.LipschitzConv(2, 3, (3,), bias=True)
    within = bounded.init(gen())
    convs = F.FactorizedConv(2, 3, (3,), factorization="tt", rank=2, n_layers=3)
    kernels = convs.init(gen())
    sizes = (2, 3, 4)
    T, factors = randn(*sizes), [randn(s, 2, seed=k) for k, s in enumerate(sizes)]
    cores = [randn(a, s, b, seed=k) for k, (a, s, b) in enumerate(zip((1, 2, 3), sizes, (2, 3, 1)))]
    N = "linmaps.factorized."
    M = "linmaps.factorized.Factorized."
    C = "linmaps.factorized.FactorizedConv"
    options = {
        "in_shape": (2, 3), "out_shape": (3, 2), "factorization": "tucker", "rank": 0.6, "implementation": "auto",
        "n_layers": 3,
    }  # fmt: skip
    return [
        Call(M[:-1], F.Factorized, options),
        Call(M + "init", spec.init, {"generator": gen(), "dtype": torch.float32, "std": 0.3}),
        Call(M + "apply", spec.apply, {"params": params, "x": randn(4, 6), "layer": 1}),
        Call(M + "apply/index", spec.apply, {"params": params, "x": randn(4, 6), "layer": torch.tensor([2, 0])}),
        Call(M + "effective_W", spec.effective_W, {"params": params, "layer": 1}),
        Call(M + "rows", spec.rows, {"params": params, "idx": torch.tensor([5, 0, 3]), "layer": 1}),
        Call(M + "select", spec.select, {"params": params, "layer": 2}),
        Call(M + "slice", lambda params, rows, columns: spec.slice(params, rows, ALL, columns, ALL), {
            "params": params, "rows": slice(1, None), "columns": slice(0, 3, 2),
        }),
        Call(M + "transduct", spec.transduct, {"params": params, "size": 3, "mode": 1, "side": "out"}),
        Call(M + "norm", spec.norm, {"params": params}),
        Call(M + "plan", spec.plan, {"rows": 4}),
        Call(M + "from_matrix", spec.from_matrix, {"W": spec.effective_W(params), "bias": randn(3, 6)}),
        Call(C, F.FactorizedConv, {
            "in_channels": 2, "out_channels": 3, "kernel_size": (3,), "factorization": "tucker", "rank": 2,
        }),
        Call(C + ".init", conv.init, {"generator": gen(), "dtype": torch.float32}),
        Call(C + ".kernel", conv.kernel, {"params": kernel}),
        Call(C + ".apply_conv", conv.apply_conv, {
            "params": kernel, "x": randn(2, 2, 5), "stride": 1, "padding": 0, "dilation": 1,
        }),
        Call(C + ".apply_conv/layer", convs.apply_conv, {"params": kernels, "x": randn(2, 2, 5), "layer": 1}),
        Call(C + ".kernel/layer", convs.kernel, {"params": kernels, "layer": 1}),
        Call(C + ".select", convs.select, {"params": kernels, "layer": 2}),
        Call(C + ".slice", lambda params, rows, places: convs.slice(params, rows, ALL, places), {
            "params": kernels, "rows": slice(1, None), "places": slice(0, 3, 2),
        }),
        Call(C + ".transduct", convs.transduct, {"params": kernels, "size": 3, "mode": 1}),
        Call(C + ".plan", conv.plan, {"x_shape": (2, 2, 5), "stride": 1, "padding": 0, "dilation": 1}),
        Call(C + ".from_kernel", conv.from_kernel, {"kernel": randn(3, 2, 3), "bias": randn(3)}),
        Call(N + "LipschitzConv", F.LipschitzConv, {"in_channels": 2, "out_channels": 3, "kernel": (3,), "bound": 0.5}),
        Call(N + "LipschitzConv/int", F.LipschitzConv, {"in_channels": 2, "out_channels": 3, "kernel": 3}),
        Call(N + "LipschitzConv.init", bounded.init, {"generator": gen(), "dtype": torch.float32}),
        Call(N + "LipschitzConv.effective_kernel", bounded.effective_kernel, {"params": within}),
        Call(N + "LipschitzConv.apply_conv", bounded.apply_conv, {
            "params": within, "x": randn(2, 2, 5), "stride": 1, "padding": 0, "dilation": 1,
        }),
        Call(N + "LipschitzConv.from_kernel", bounded.from_kernel, {"kernel": randn(3, 2, 3), "bias": randn(3)}),
        Call(N + "LipschitzConv.violation", bounded.violation, {"kernel": randn(3, 2, 3)}),
        Call(N + "bonds", F.bonds, {"spec": spec}),
        Call(N + "cp_als", F.cp_als, {"T": T, "start": factors, "n_sweeps": 3, "ridge": 1e-4}),
        Call(N + "cp_als/rank", F.cp_als, {"T": T, "start": 2, "n_sweeps": 3}),
        Call(N + "cp_rank", F.cp_rank, {"rank": 0.5, "sizes": sizes}),
        Call(N + "low_rank", F.low_rank, {"rank": 0.5, "rows": 4, "columns": 6}),
        Call(N + "tt_rank", F.tt_rank, {"rank": 0.5, "sizes": sizes}),
        Call(N + "tucker_rank", F.tucker_rank, {"rank": 2, "sizes": sizes}),
        Call(N + "cp_start", F.cp_start, {"T": T, "R": 2}),
        Call(N + "distance", F.distance, {
            "spec": spec, "params": params, "other_spec": spec, "other_params": other,
        }),
        Call(N + "inner", F.inner, {"spec": spec, "params": params, "other_spec": spec, "other_params": other}),
        Call(N + "dropout_mask", F.dropout_mask, {
            "spec": spec, "generator": gen(), "p": 0.3, "min_rank": 2, "dtype": torch.float32,
        }),
        Call(N + "lasso_prox", F.lasso_prox, {"weights": mask, "step": 0.1}),
        Call(N + "lasso_weights", F.lasso_weights, {"spec": spec, "dtype": torch.float32}),
        Call(N + "prune_ranks", F.prune_ranks, {"spec": spec, "params": params, "keep": {"r1": [0]}}),
        Call(N + "reconstruct_cp", F.reconstruct_cp, {"weights": randn(2), "factors": factors}),
        Call(N + "reconstruct_tt", F.reconstruct_tt, {"cores": cores}),
        Call(N + "reconstruct_tucker", F.reconstruct_tucker, {"core": randn(2, 2, 2), "factors": factors}),
        Call(N + "relative_error", F.relative_error, {"spec": spec, "params": params, "weight": randn(3, 6, 6)}),
        Call(N + "sketches", F.sketches, {"spec": spec, "generator": gen(), "oversampling": 8, "dtype": torch.float32}),
        Call(N + "tensor_dropout", F.tensor_dropout, {"spec": spec, "params": params, "mask": mask}),
        Call(N + "tensor_lasso", F.tensor_lasso, {"spec": spec, "params": params, "weights": mask, "penalty": 0.01}),
        Call(N + "tt_svd", F.tt_svd, {"T": T, "ranks": (1, 2, 3, 1)}),
        Call(N + "tucker_hosvd", F.tucker_hosvd, {"T": T, "ranks": (2, 2, 3), "n_sweeps": 2}),
    ]  # fmt: skip


def calls() -> list[Call]:
    return [*of_maps(), *composed(), *of_trees(), *of_factorized()]
