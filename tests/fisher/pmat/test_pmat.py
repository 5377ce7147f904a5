"""PMats: products and solves of every representation against dense linear algebra; algebra, persistence, ensembles, errors."""

import dataclasses
import io
import pickle
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import fisher
from fisher.pmat import (
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEigen,
    PMatEKFAC,
    PMatEye,
    PMatKFAC,
    PMatQuasiDiag,
    PMatSum,
)
from linmaps import trees
from linmaps.trees import Layout
from tests.fisher.fakes import KINDS, LAYERS, MAKE, PARAMS, kfac, quasidiag, rows, vector
from tests.laws import close

D = torch.float64
every = pytest.mark.parametrize("kind", KINDS)
data = pytest.mark.parametrize("data", ["full", "deficient", "zero"])


def dense(F):
    """F as a matrix, column by column: by mv alone."""
    unit = torch.eye(LAYERS.space.numel, dtype=F.dtype)
    return torch.stack([trees.ravel(F.mv(LAYERS.space.unravel(e)))[0] for e in unit], 1)


def pseudo(T, rtol=1e-12):
    values, U = torch.linalg.eigh(T)
    kept = (values.abs() > rtol * values.abs().max()) & (values != 0)
    return (U * torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)) @ U.T


def test_dense_matrix_is_what_the_data_say():
    """Factored blocks by torch.kron, arrowheads entry by entry, at places found by counting."""
    places = LAYERS.views(LAYERS.space.unravel(torch.arange(LAYERS.space.numel, dtype=D)))
    F, Q = kfac(), quasidiag()
    want_f, want_q = torch.zeros(F.size(), dtype=D), torch.diag(trees.ravel(Q.diag)[0])
    for layer in LAYERS:
        at = places[layer.name].long()
        if not layer.kronecker:
            want_f[at[:, None], at[None]] = F.exact[layer.name]
            continue
        A, G = F.factors[layer.name]
        for g in range(max(1, layer.groups)):
            here, a, b = (at[g], A[g], G[g]) if layer.groups else (at, torch.diag(A) if layer.diagonal else A, G)
            flat = here.flatten()
            want_f[flat[:, None], flat[None]] = torch.kron(b, a)
            c = Q.cross.get(layer.name)
            for o in range(len(here)) if c is not None else ():
                for i in range(here.shape[1] - 1):
                    entry = (c[g] if layer.groups else c)[o, i]
                    want_q[here[o, i], here[o, -1]] = want_q[here[o, -1], here[o, i]] = entry
    close(F.to_torch(), want_f, 1e-12, "kfac")
    close(Q.to_torch(), want_q, 1e-12, "quasidiag")


@every
@data
def test_products_equal_those_of_the_dense_matrix(kind, data):
    F, v, J = MAKE[kind](data), vector(1), vector(2, lead=(3, 2))
    T = dense(F)
    flat, M = trees.ravel(v)[0], rows(J, 2)
    close(T, T.T, 1e-12, "symmetric")
    close(F.to_torch(), T, 1e-12, "to_torch")
    close(F @ v, F.mv(v), 0.0, "@")
    close(F.vTMv(v), flat @ T @ flat, 1e-11, "vTMv")
    close(F.trace(), T.trace(), 1e-11, "trace")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-11, "get_diag")
    close(rows(F.mmap(J), 2), M @ T, 1e-11, "mmap")
    close(F @ J, F.mmap(J), 0.0, "@ a map")
    close(F.mapTMmap(J, "diag"), ((M @ T) * M).sum(1).reshape(3, 2), 1e-11, "mapTMmap diag")
    close(F.mapTMmap(J), ((M @ T) * M).sum(1).reshape(3, 2).sum(1), 1e-11, "mapTMmap sum")
    assert F.size() == (len(T), len(T))
    assert F.size(0) == F.size(-1) == len(T)
    assert (F.dtype, F.device) == (D, torch.device("cpu"))


@every
@data
def test_solves_equal_those_of_the_dense_matrix(kind, data):
    F, v, J = MAKE[kind](data), vector(1), vector(2, lead=(3, 2))
    T, flat, M = F.to_torch(), trees.ravel(v)[0], rows(J, 2)
    kinds = ["default"] if kind == "quasidiag" else ["default", "eigendecomposition"]
    for regul in (0.1, torch.tensor(1e-3, dtype=D)):
        inverse = torch.linalg.inv(T + regul * torch.eye(len(T), dtype=D))
        for how in kinds:
            close(F.solve(v, regul, kind=how), LAYERS.space.unravel(inverse @ flat), 1e-9, how)
            close(rows(F.solve(J, regul, kind=how), 2), M @ inverse, 1e-9, how + " of a map")
        close(trees.axpy(regul, F.solve(v, regul), F.mv(F.solve(v, regul))), v, 1e-10, "solve inverts")
        close(F.inverse(regul).to_torch(), inverse, 1e-9, "inverse")
        close(F.inverse(regul).mv(v), F.solve(v, regul), 1e-9, "inverse.mv")
    close(F.pinv().to_torch(), pseudo(T), 1e-9, "pinv")
    close(F.solve(v, kind="lstsq"), LAYERS.space.unravel(pseudo(T) @ flat), 1e-9, "lstsq")
    close(rows(F.solve(J, kind="lstsq"), 2), M @ pseudo(T), 1e-9, "lstsq of a map")


BY_LAYERS = [
    "blockdiag",
    "quasidiag",
    "kfac",
    "ekfac",
    "eigen by layers",
    "sum of kfacs",
    "kfac + diag",
    "kfac + eye",
    "diag",
]
KFACS = ["kfac", "sum of kfacs", "kfac + eye"]
PRODUCTS = (
    {("blockdiag", k) for k in BY_LAYERS}
    | {(k, "blockdiag") for k in BY_LAYERS}
    | {(j, k) for j in KFACS for k in KFACS}
    | {("diag", "diag")}
)


@every
@pytest.mark.parametrize("other", KINDS)
def test_algebra(kind, other):
    F, G = MAKE[kind](), MAKE[other](seed=3)
    S, T = F.to_torch(), G.to_torch()
    close((F + G).to_torch(), S + T, 1e-12, "+")
    close((F - G).to_torch(), S - T, 1e-12, "-")
    v = vector(2)
    close((F + G).mv(v), trees.add(F.mv(v), G.mv(v)), 1e-12, "mv of the sum")
    close((F + G).frobenius_norm(), (S + T).norm(), 1e-11, "norm of the sum")
    if not {kind, other} & {"dense", "eye"} and (kind, other) not in PRODUCTS:
        with pytest.raises(ValueError, match=r"no representation holds this product; use F.to_torch\(\) @ G.to_torch"):
            F @ G
        return
    product = F @ G
    close(product.to_torch(), S @ T, 1e-11, "@")
    close(product.mv(v), F.mv(G.mv(v)), 1e-11, "mv of the product")
    close(product.trace(), (S @ T).trace(), 1e-11, "trace of the product")


@every
def test_scaling(kind):
    F = MAKE[kind]()
    T = F.to_torch()
    close((0.3 * F).to_torch(), 0.3 * T, 1e-12, "number * F")
    close((F * torch.tensor(0.3, dtype=D)).to_torch(), 0.3 * T, 1e-12, "F * scalar tensor")
    close((F / 4).to_torch(), T / 4, 1e-12, "/")
    close((-F).to_torch(), -T, 1e-12, "-F")


def test_closed_representations_stay_themselves():
    sums = {
        ("dense", "kfac + diag"): PMatDense,
        ("eye", "dense"): PMatDense,
        ("diag", "eye"): PMatDiag,
        ("diag", "quasidiag"): PMatQuasiDiag,
        ("quasidiag", "quasidiag"): PMatQuasiDiag,
        ("blockdiag", "kfac"): PMatBlockDiag,
        ("quasidiag", "blockdiag"): PMatBlockDiag,
        ("diag", "blockdiag"): PMatBlockDiag,
        ("ekfac", "eye"): PMatEKFAC,
        ("eigen", "eye"): PMatEigen,
        ("eye", "eye"): PMatEye,
        ("kfac", "kfac"): PMatSum,
        ("kfac + eye", "dense"): PMatDense,
    }
    for (a, b), kind in sums.items():
        assert type(MAKE[a]() + MAKE[b]()) is kind, (a, b)
        assert type(MAKE[b]() - MAKE[a]()) is kind, (b, a)
    assert len((kfac() + kfac() + MAKE["ekfac"]()).terms) == 3
    assert len((MAKE["kfac + diag"]() + MAKE["diag"]()).terms) == 2
    products = {("kfac", "kfac"): PMatKFAC, ("diag", "diag"): PMatDiag, ("kfac", "blockdiag"): PMatBlockDiag}
    for (a, b), kind in products.items():
        assert type(MAKE[a]() @ MAKE[b]()) is kind
    assert type(kfac() ** 2) is type(kfac() ** 0.5) is type(kfac().pinv()) is PMatKFAC
    assert type(kfac().pow(0.5, 0.1)) is type(kfac().inverse(0.1)) is PMatEKFAC
    assert type(quasidiag().inverse(0.1)) is PMatBlockDiag


@given(
    st.sampled_from(KINDS), st.integers(0, 2**16), st.floats(1e-4, 10.0), st.sampled_from(["full", "deficient", "zero"])
)
def test_solve_inverts(kind, seed, regul, data):
    F, v = MAKE[kind](data, seed=seed), vector(seed)
    x = F.solve(v, regul)
    close(trees.axpy(regul, x, F.mv(x)), v, 1e-9 * (1 + F.norm(2).item() / regul), kind)


@dataclasses.dataclass(frozen=True)
class Jacobian:
    jacobian: Any
    layout: Layout


@every
def test_records_of_maps_come_back_as_records(kind):
    F, J = MAKE[kind](), vector(2, lead=(2, 3))
    record = Jacobian(J, LAYERS.space)
    for got, want in ((F @ record, F @ J), (F.solve(record, 0.1), F.solve(J, 0.1))):
        assert type(got) is Jacobian
        close(got.jacobian, want, 0.0, "record")
    close(F.mapTMmap(record), F.mapTMmap(J), 0.0, "mapTMmap")
    empty = vector(2, lead=(0, 3))
    assert trees.leaves(F.solve(empty, 0.1))[0].shape == (0, 3, 4)


@every
def test_pytree_and_persistence(kind):
    F, v = MAKE[kind](), vector(0)
    doubled = optree.tree_map(lambda t: 2 * t, F)
    assert type(doubled) is type(F)
    for again in (pickle.loads(pickle.dumps(F)), _through_file(F)):
        assert type(again) is type(F)
        close(again, F, 0.0, "persistence")
        close(again.solve(v, 0.1), F.solve(v, 0.1), 0.0, "persistence")


class Own(fisher.Gaussian):
    """A likelihood of the user's."""


@every
def test_a_likelihood_is_saved_along_unless_it_is_the_users_own(kind):
    F = MAKE[kind]()
    for likelihood in (fisher.Categorical(-1), fisher.Gaussian(torch.tensor([2.0])), fisher.Poisson()):
        assert _through_file(F.made_of(likelihood)).likelihood == likelihood
    assert _through_file(F.made_of(Own())).likelihood is None
    assert _through_file(F).likelihood == F.likelihood


def _through_file(F):
    buffer = io.BytesIO()
    torch.save(F, buffer)
    buffer.seek(0)
    return torch.load(buffer)  # of default settings: nothing but tensors, numbers and names is trusted


@every
def test_methods_map_over_an_ensemble(kind):
    v, J = vector(5), vector(1, lead=(2, 2))
    members = [MAKE[kind](seed=k) for k in range(3)]
    methods = lambda F: (
        (F.mv(v), F.solve(v, 0.1), F.solve(v, kind="lstsq"), F.trace(), F.get_diag(), F.to_torch())
        + (F.frobenius_norm(), F.norm(2), F.logdet(0.1), F.sample(noise=v, regul=0.1), F.inverse(0.1).mv(v))
        + (F.pow(0.5).mv(v), F.pow(0.5, 0.1).mv(v), F.pinv().mv(v), (F + F).mv(v), F.eigendecomposition().mv(v))
        + (F.mapTMmap(J),)
    )
    close(vmap(methods)(trees.stack(members)), trees.stack([methods(F) for F in members]), 1e-10, "ensemble")


@pytest.mark.parametrize("kind", [k for k in KINDS if "+" not in k and "sum" not in k])
def test_stacked_matrix_says_vmap(kind):
    stacked = trees.stack([MAKE[kind](), MAKE[kind]()])
    with pytest.raises(ValueError, match="vmap"):
        stacked.mv(vector(0))


@every
def test_vectors_of_other_params_are_refused(kind):
    F, v = MAKE[kind](), vector(0)
    for method in (F.mv, lambda v: F.solve(v, 0.1), F.mmap):
        with pytest.raises(ValueError, match=r": leaf m has shape \(2, 2\), expected \(3, 2\)"):
            method(v | {"m": torch.ones(2, 2, dtype=D)})
        with pytest.raises(ValueError, match=r": leaves do not match.*missing \['idle'\], unexpected \[\]"):
            method({k: t for k, t in v.items() if k != "idle"})
    with pytest.raises(ValueError, match=r"J: leaf a.weight has shape \(2, 4, 3\), expected \(5, 4, 3\)"):
        F.mmap(vector(0, lead=(5,)) | {"a": vector(0, lead=(2,))["a"] | {"bias": torch.ones(5, 4, dtype=D)}})
    with pytest.raises(ValueError, match="mapTMmap: got a vector, expected a map"):
        F.mapTMmap(v)


@every
def test_errors_of_every_matrix(kind):
    F, v = MAKE[kind](), vector(0)
    other = PMatDiag({"w": torch.ones(2, dtype=D)}, Layout.of({"w": torch.ones(2)}))
    for call, error, message in (
        (lambda: F + other, ValueError, "layouts differ"),
        (lambda: F @ other, ValueError, "layouts differ"),
        (lambda: F + 1, TypeError, r"\+ int: expected a PMat"),
        (lambda: F * "2", TypeError, r"\* str: expected a number"),
        (lambda: F.solve(v, -1), ValueError, "regul: got -1"),
        (lambda: F.logdet(-1), ValueError, "regul: got -1"),
        (lambda: F.inverse(-1), ValueError, "regul: got -1"),
        (lambda: F.pow(2, -1), ValueError, "regul: got -1"),
        (lambda: F.sample(noise=v, regul=-1), ValueError, "regul: got -1"),
        (lambda: F.pow("2"), TypeError, "exponent of type str"),
        (lambda: F.solve(v, 0.1, kind="cg"), ValueError, "solve: got kind='cg', expected 'default' or"),
        (lambda: F.solve(v, 0.1, rtol=0.1), ValueError, r"solve: got options \['rtol'\], expected \[\]"),
        (lambda: F.size(2), ValueError, "size: got dim 2"),
        (lambda: F.norm("nuc"), ValueError, "norm: got ord='nuc'"),
        (lambda: F.mapTMmap(v, "mean"), ValueError, "reduction='mean'"),
    ):
        with pytest.raises(error, match=message):
            call()


@every
def test_repr_informs(kind):
    text = repr(MAKE[kind]())
    assert text.startswith(type(MAKE[kind]()).__name__ + "(")
    assert f"d = {sum(t.numel() for t in trees.leaves(PARAMS))}" in text
    assert "float64" in text
