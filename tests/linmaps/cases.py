"""Rows of the transform table for linmaps and linmaps.trees."""

import torch
from torch import Tensor

from linmaps import Linear, RNNCell, Spectral, hprod, identity_grad_relu, rnn, trees
from tests.laws import Case, Exempt, perturbed
from tests.linmaps import zoo

CASES: dict[str, Case | Exempt] = {
    "linmaps.Map": Exempt("abstract; its methods are in the rows of the concrete maps"),
    "linmaps.maps": Exempt("the registry of classes"),
    "linmaps.from_module": Exempt("takes a module and copies its tensors"),
    "linmaps.Module": Exempt("a torch.nn.Module around a map, whose own functions have their rows"),
    "linmaps.parametrize": Exempt("changes a torch.nn.Module, which then computes the matrix of a map"),
    "linmaps.trees.Layout": Exempt("static structure; its vectors are in the row of ravel"),
    "linmaps.trees.check_like": Exempt("returns nothing"),
    "linmaps.trees.path_str": Exempt("strings"),
    "linmaps.trees.Compiled": Exempt("what compiled returns"),
    "linmaps.trees.paths": Exempt("tuples of keys"),
    "linmaps.trees.load": Exempt("tensors of a file"),
    "linmaps.trees.save": Exempt("writes a file; inside of a transform it refuses: tests/linmaps/trees/test_files.py"),
    "linmaps.trees.static": Exempt("a class decorator"),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def power_sums(spec):
    """Functions of the eigenvalues that do not depend on their order, which LAPACK leaves open."""

    def sums(params):
        values = spec.eig(params)
        return torch.stack([(values**k).sum() for k in range(1, 4)])

    return sums


def eigenprojections(spec):
    """`V diag(values^2) V^-1`: what of the eigenvectors does not depend on their phase."""

    def product(params):
        values, V = spec.eig(params, vectors=True)
        return V * values**2 @ torch.linalg.inv(V)

    return product


def inside(spec, W):
    """W, or for a map with steep slopes at the edge of its set, a member of it."""
    return W - 4 * torch.eye(len(W), dtype=W.dtype) if spec.name == "hurwitz" else W


VECTORS = {
    "jac": "torch's forward rule of eigenvectors divides by infinity on the diagonal: NaN in reverse mode over it"
}

GAUGE = {"jac": "torch's backward of complex singular vectors looks at its input by allclose, which vmap refuses"}

for entry in zoo.ENTRIES:
    if not entry.table:
        continue
    spec, name = entry.spec, f"linmaps.{type(entry.spec).__name__}"
    params = perturbed(spec.init(torch.Generator().manual_seed(3), dtype=torch.float64), 5)  # a generic point
    W = randn(spec.in_features, spec.out_features, seed=2)
    rows: dict[str, Case] = {
        "effective_W": Case(spec.effective_W, (params,)),
        "apply": Case(spec.apply, (params, randn(2, spec.in_features, seed=1))),
        "apply many": Case(spec.apply, (params, randn(20, spec.in_features, seed=1))),
        "reg_error": Case(spec.reg_error, (params,)),
        "singular_values": Case(spec.singular_values, (params,)),
        "violation": Case(spec.violation, (2 * W,)),
        "project": Case(spec.project, (params,)),
    }
    if zoo.closed_form(spec) and spec.name != "power_bound":  # whose params lie at the edge, where all slopes are steep
        skip = VECTORS if zoo.by_eigenvectors(spec) else GAUGE if spec.complex_W else {}
        rows["from_matrix"] = Case(
            lambda W, spec=spec: spec.effective_W(spec.from_matrix(W)[0]), (inside(spec, W),), skip=skip, tol=1e-6
        )
    if spec.in_features == spec.out_features:
        rows["eig"] = Case(power_sums(spec), (params,), tol=1e-6)
        skip = {} if zoo.symmetric(spec, params) else VECTORS
        rows["eig vectors"] = Case(eigenprojections(spec), (params,), skip=skip, tol=1e-6)
        if zoo.condition(spec, params) < 1e6:
            rows["solve"] = Case(spec.solve, (params, randn(2, spec.out_features, seed=1)), tol=1e-6)
            rows["inverse"] = Case(spec.inverse, (params,), tol=1e-6)
            rows["logabsdet"] = Case(spec.logabsdet, (params,))
    CASES |= {f"{name}/{row} {zoo.label(entry)}": case for row, case in rows.items()}


def rebuilt(tree):
    _, children, rebuild = trees.one_level(tree)
    return rebuild([torch.sin(child) for child in children])


@trees.record(static=("unit",))
class Quantity:
    value: Tensor
    unit: str = "m"


TREE = {"a": {"b": randn(2), "c": randn(2, 3, seed=1)}, "d": [randn(2, seed=2)]}
OTHER = trees.map(torch.sin, TREE)
FAST = trees.compiled(lambda s, t: trees.map(lambda x, y: torch.exp(-x) * y.sin(), s, t), backend="eager")
SCALAR = torch.tensor(1.3, dtype=torch.float64)

CASES |= {
    "linmaps.hprod": Case(hprod, (randn(2, 4), randn(3, 4, seed=1))),
    "linmaps.identity_grad_relu": Case(
        identity_grad_relu,
        (randn(5),),
        skip={"grad": "its derivative is not that of its values, by definition: tested by itself"},
    ),
    "linmaps.trees.add": Case(trees.add, (TREE, OTHER)),
    "linmaps.trees.axpy": Case(trees.axpy, (SCALAR, TREE, OTHER)),
    "linmaps.trees.compiled": Case(FAST, (TREE, OTHER)),
    "linmaps.trees.dot": Case(trees.dot, (TREE, OTHER)),
    "linmaps.trees.flatten": Case(lambda t: trees.flatten(t)[0], (TREE,)),
    "linmaps.trees.get": Case(lambda t: trees.get(t, "a.c"), (TREE,)),
    "linmaps.trees.leaves": Case(trees.leaves, (TREE,)),
    "linmaps.trees.map": Case(lambda t: trees.map(torch.sin, t), (TREE,)),
    "linmaps.trees.norm": Case(trees.norm, (TREE,)),
    "linmaps.trees.one_level": Case(rebuilt, (TREE["a"],)),
    "linmaps.trees.unravel": Case(lambda t: trees.unravel(trees.ravel(t)[0].sin(), t), (TREE,)),
    "linmaps.trees.ravel": Case(lambda t: trees.ravel(t)[0], (TREE,)),
    "linmaps.trees.ravel/and back": Case(lambda t: trees.ravel(t)[1](trees.ravel(t)[0] ** 2), (TREE,)),
    "linmaps.trees.record": Case(lambda q: Quantity(q.value**2, q.unit), (Quantity(randn(3)),)),
    "linmaps.trees.replace": Case(lambda t, v: trees.replace(t, "a.b", v), (TREE, randn(4))),
    "linmaps.trees.scale": Case(trees.scale, (SCALAR, TREE)),
    "linmaps.trees.stack": Case(lambda s, t: trees.stack([s, t]), (TREE, OTHER)),
    "linmaps.trees.sub": Case(trees.sub, (TREE, OTHER)),
    "linmaps.trees.unstack": Case(trees.unstack, (trees.stack([TREE, OTHER]),)),
    "linmaps.trees.zeros_like": Case(trees.zeros_like, (TREE,)),
}

CELL = RNNCell(Spectral(3), Linear(2, 3, bias=True))
LAYERS = [CELL, RNNCell(Linear(2), Linear(3, 2))]
LAYER_PARAMS = [layer.init(torch.Generator().manual_seed(0), dtype=torch.float64) for layer in LAYERS]
XS = randn(4, 5, 2, seed=3)

CASES |= {
    "linmaps.RNNCell": Case(CELL.step, (LAYER_PARAMS[0], XS[0], randn(5, 3))),
    "linmaps.rnn": Case(lambda p, xs: rnn(CELL, p, xs), (LAYER_PARAMS[0], XS)),
    "linmaps.rnn/h0": Case(lambda p, xs, h0: rnn(CELL, p, xs, h0), (LAYER_PARAMS[0], XS[:, 0], randn(3))),
    "linmaps.rnn/layers": Case(lambda p, xs: rnn(LAYERS, p, xs), (LAYER_PARAMS, XS)),
}
