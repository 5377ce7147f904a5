"""Laws of limits: what is larger than they allow is the diagonal of what it was, and every method is that of the matrix."""

import dataclasses

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import fisher
from fisher import PMatEKFAC, PMatKFAC
from fisher.likelihoods import Categorical
from linmaps import trees
from tests.laws import close
from tests.zoo import MODELS, perturbed

NAMES = [
    "mlp", "matmul_joined_bias", "sequence", "conv2d", "embedding", "einsum", "affine", "derived", "attention", "heads", "lstm",
]  # fmt: skip
LIMITS = {"blocks": (2, None), "factors": (None, 2), "inputs alone": (None, 3), "both": (1, 1), "none": (None, None)}
over_models = pytest.mark.parametrize("name", NAMES)
over_limits = pytest.mark.parametrize("limit", LIMITS)


def made(name, limit, representation=PMatKFAC, **options):
    m = MODELS[name]
    block, factor = LIMITS[limit]
    options |= {"largest_block": block, "largest_factor": factor}
    return fisher.fim(m.f, m.params, m.x, representation, Categorical(class_axis=m.class_axis), **options)


def cut(m, limit, kept):
    """A factor, or its diagonal (groups in front) where it is too large."""
    return m if limit is None or kept <= limit or m.ndim < 2 else m.diagonal(dim1=-2, dim2=-1)


@over_limits
@over_models
def test_what_is_larger_is_the_diagonal_of_what_it_was(name, limit):
    F, whole, (block, factor) = made(name, limit), made(name, "none"), LIMITS[limit]
    for layer in F.layers:
        if layer.kronecker:
            (A, G), (A0, G0) = F.factors[layer.name], whole.factors[layer.name]
            inputs = layer.shape[1] if layer.weight is not None else 0
            close((A, G), (cut(A0, factor, inputs), cut(G0, factor, layer.shape[0])), 1e-12, layer.name)
        elif factor is None or not layer.factored:
            close(F.exact[layer.name], cut(whole.exact[layer.name], block, layer.numel), 1e-12, layer.name)


@over_limits
@over_models
def test_every_method_is_that_of_the_matrix(name, limit):
    F = made(name, limit)
    dense, params, regul = F.to_torch(), MODELS[name].params, 0.1
    eye = torch.eye(len(dense), dtype=dense.dtype)
    v = trees.map(torch.cos, params)
    flat = trees.ravel(v)[0]
    vector = lambda t: trees.ravel(t)[0]
    close(vector(F.mv(v)), dense @ flat, 1e-10, "mv")
    for G in (F, F.eigendecomposition()):
        close(G.to_torch(), dense, 1e-10, "eigendecomposition")
        close(vector(G.solve(v, regul)), torch.linalg.solve(dense + regul * eye, flat), 1e-9, "solve")
        close(G.inverse(regul).to_torch(), torch.linalg.inv(dense + regul * eye), 1e-9, "inverse")
        close(G.logdet(regul), torch.linalg.slogdet(dense + regul * eye)[1], 1e-10, "logdet")
        close(vector(G.get_diag()), dense.diagonal(), 1e-12, "diagonal")
        close(G.trace(), dense.trace(), 1e-12, "trace")
        close(G.frobenius_norm(), dense.norm(), 1e-12, "norm")
        close(G.norm(2), torch.linalg.matrix_norm(dense, 2), 1e-9, "spectral norm")
        root = vmap(lambda z, G=G: vector(G.sample(regul=regul, noise=F.layout.unravel(z))))(eye)
        close(root.T @ root, torch.linalg.inv(dense + regul * eye), 1e-9, "sample")
    close((F @ F).to_torch(), dense @ dense, 1e-10, "product")
    close((F + F).to_torch(), 2 * dense, 1e-12, "sum")
    close((F + F.scaled(2.0)).solve(v, regul), (F.scaled(3.0)).solve(v, regul), 1e-9, "a sum's solve")
    close(F.pow(2.0).to_torch(), dense @ dense, 1e-10, "power")
    pi = F.solve(v, regul, kind="pi")
    assert all(bool(t.isfinite().all()) for t in trees.leaves(pi))


@over_limits
@over_models
def test_corrected_eigenvalues_keep_the_diagonal_blocks_trace(name, limit):
    m = MODELS[name]
    E = made(name, limit, PMatEKFAC)
    want = fisher.fim(m.f, m.params, m.x, fisher.PMatDense, Categorical(class_axis=m.class_axis)).matrix
    close(E.trace(), want.trace(), 1e-10, "trace")
    K = made(name, limit).eigendecomposition()
    again = K.update_diag(m.f, m.params, m.x, Categorical(class_axis=m.class_axis))
    close(again.trace(), want.trace(), 1e-10, "update_diag")
    if all(b.ndim == 1 for pair in E.bases.values() for b in pair) and all(t.ndim < 2 for t in E.exact.values()):
        close(trees.ravel(E.get_diag())[0], want.diagonal(), 1e-10, "with diagonal factors it is the diagonal")


@over_models
def test_batches_and_ensembles(name):
    m, options = MODELS[name], {"largest_block": 2, "largest_factor": 2}
    likelihood = Categorical(class_axis=m.class_axis)
    one = fisher.fim(m.f, m.params, m.x, PMatKFAC, likelihood, **options)
    parts = [trees.map(lambda t, k=k: t[k : k + 1], m.x) for k in range(len(trees.leaves(m.x)[0]))]
    several = fisher.fim(m.f, m.params, parts, PMatKFAC, likelihood, **options)
    close(several, one, 1e-10, "batches")
    fim = lambda p: fisher.fim(m.f, p, m.x, PMatKFAC, likelihood, **options)
    members = [perturbed(m.params, k) for k in range(3)]
    close(vmap(fim)(trees.stack(members)), trees.stack([fim(p) for p in members]), 1e-10, "ensemble")


@pytest.mark.parametrize("limit", ["factors", "inputs alone", "both"])
def test_derivatives_of_solve_and_logdet(limit):
    m = MODELS["mlp"]
    F = made("mlp", limit)
    v = trees.map(torch.cos, m.params)
    dense = lambda t: torch.eye(F.layout.numel, dtype=torch.float64) * 0.1 + scaled(t).to_torch()
    scaled = lambda t: dataclasses.replace(
        F, factors={n: (A * (1 + t), G * (2 + t.sin())) for n, (A, G) in F.factors.items()}
    )
    t, flat = torch.tensor(0.3, dtype=torch.float64), trees.ravel(v)[0]
    solved = lambda t: trees.dot(v, scaled(t).solve(v, 0.1))
    logdet = lambda t: scaled(t).logdet(0.1)
    for own, plain in (
        (solved, lambda t: flat @ torch.linalg.solve(dense(t), flat)),
        (logdet, lambda t: torch.logdet(dense(t))),
    ):
        close(grad(own)(t), grad(plain)(t), 1e-8, "first")
        close(jacfwd(own)(t), jacrev(own)(t), 1e-10, "modes")
        close(grad(grad(own))(t), grad(grad(plain))(t), 1e-7, "second")


@pytest.mark.parametrize("name", ["largest_block", "largest_factor"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_a_limit_is_a_positive_int_or_none(name, wrong):
    m = MODELS["mlp"]
    with pytest.raises((TypeError, ValueError), match=name):
        fisher.fim(m.f, m.params, m.x, **{name: wrong})


def test_centered_moments_and_sharing_reduce():
    m = MODELS["sequence"]
    target = torch.zeros(4, 3, dtype=torch.long)
    likelihood = Categorical(class_axis=-1)
    for options in ({"estimator": "gradient_covariance", "centered": True}, {"sharing": "reduce"}):
        F, whole = (
            fisher.fim(m.f, m.params, (m.x, target), PMatKFAC, likelihood, largest_factor=n, **options)
            for n in (1, None)
        )
        for layer in F.layers:
            pairs = zip(F.factors[layer.name], whole.factors[layer.name])
            close([a for a, _ in pairs], [b.diagonal() for b in whole.factors[layer.name]], 1e-12, str(options))


@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_diagonals_of_groups_are_those_of_all_columns(outputs):
    draw = lambda *shape, seed: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, params = draw(5, 4, 6, 6, seed=0), {"k": draw(2 * outputs, 2, 3, 3, seed=1), "v": draw(2 * outputs, 3, seed=2)}
    f = lambda p, x: torch.nn.functional.conv2d(x, p["k"], None, groups=2).tanh().mean((2, 3)) @ p["v"]
    whole, single = (fisher.fim(f, params, x, PMatKFAC, largest_factor=1, chunk_size=size) for size in (None, 1))
    close(single.to_torch(), whole.to_torch(), 1e-12, "columns at once, or one at a time")
