"""fim: estimators at targets, centering, accumulation in float64, parts of the layers, mixed representations, updates."""

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.pmat import (
    PMatBlockDiag,
    PMatDense,
    PMatDiag,
    PMatEKFAC,
    PMatEye,
    PMatImplicit,
    PMatKFAC,
    PMatLowRank,
    PMatMixed,
    PMatQuasiDiag,
)
from linmaps import trees
from tests.laws import close, noise_like
from tests.zoo import MODELS, perturbed

D = torch.float64
EVERY = [
    PMatDense, PMatDiag, PMatKFAC, PMatBlockDiag, PMatQuasiDiag, PMatEye, PMatEKFAC, PMatMixed, PMatLowRank, PMatImplicit,
]  # fmt: skip


def targets(m):
    g = torch.Generator().manual_seed(1)
    y = m.f(m.params, m.x)
    axis = m.class_axis % y.ndim
    return torch.randint(y.shape[axis], (*y.shape[:axis], *y.shape[axis + 1 :]), generator=g)


def example_scores(m, t):
    """Gradients of log p(t | y) of each example by plain autograd, [B, d]."""

    def score(p, x, t):
        logits = m.f(p, x[None])[0].movedim(m.class_axis - 1 if m.class_axis > 0 else -1, -1)
        return torch.log_softmax(logits, -1).gather(-1, t[..., None]).sum()

    rows = [trees.ravel(grad(score)(m.params, x, s))[0] for x, s in zip(m.x, t)]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["mlp", "sequence", "conv2d", "embedding", "bare"])
@pytest.mark.parametrize("centered", [False, True])
def test_gradient_covariance_in_every_representation(name, centered):
    m = MODELS[name]
    t = targets(m)
    rows = example_scores(m, t)
    rows = rows - rows.mean(0) if centered else rows
    want = rows.T @ rows / len(rows)
    likelihood = fisher.Categorical(class_axis=m.class_axis)
    for data in ((m.x, t), [(m.x[:1], t[:1]), (m.x[1:], t[1:])]):
        for r in EVERY:
            F = fisher.fim(m.f, m.params, data, r, likelihood, "gradient_covariance", centered=centered)
            T = F.to_torch()
            if r in (PMatDense, PMatLowRank, PMatImplicit):
                close(T, want, 1e-10, r.__name__)
            elif r is not PMatKFAC and r is not PMatMixed:
                close(T.trace(), want.trace(), 1e-10, r.__name__)
            if r in (PMatDiag, PMatBlockDiag, PMatQuasiDiag):
                close(T.diagonal(), want.diagonal(), 1e-10, r.__name__)
            if r in (PMatKFAC, PMatEKFAC, PMatMixed):
                assert torch.linalg.eigvalsh(T).min() > -1e-12 * T.trace()
    empirical = fisher.fim(m.f, m.params, (m.x, t), PMatDense, likelihood, "empirical")
    raw = example_scores(m, t)
    close(empirical.matrix, raw.T @ raw / len(raw), 1e-10, "empirical")


def test_estimators_say_what_they_need():
    m = MODELS["mlp"]
    with pytest.raises(ValueError, match="estimator='empirical': got data without targets"):
        fisher.fim(m.f, m.params, m.x, estimator="empirical")
    with pytest.raises(ValueError, match="centered: got True with estimator='exact'"):
        fisher.fim(m.f, m.params, m.x, centered=True)
    with pytest.raises(ValueError, match="layers_to: got it with PMatKFAC"):
        fisher.fim(m.f, m.params, m.x, layers_to={"a": PMatDiag})


def test_sums_in_float64_on_request():
    m = MODELS["mlp"]
    single, x = trees.map(lambda t: t.float(), m.params), m.x.float().repeat(400, 1)
    layers = fisher.LayerCollection.from_function(m.f, single, x)
    batches = list(x.split(1))
    fim = lambda **o: fisher.fim(m.f, single, batches, PMatDense, "gaussian", layers=layers, **o)
    want = fisher.fim(m.f, trees.map(lambda t: t.double(), single), x.double(), PMatDense, "gaussian").matrix
    plain, wide = fim().matrix, fim(dtype=torch.float64).matrix
    assert wide.dtype == torch.float32
    assert (wide - want).abs().max() < 0.5 * (plain - want).abs().max()


@pytest.mark.parametrize("representation", EVERY)
@pytest.mark.parametrize("name", ["mlp", "conv2d", "embedding"])
def test_matrices_on_some_layers(name, representation):
    m = MODELS[name]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    some = layers.select(list(layers.names())[1:])
    likelihood = fisher.Categorical(class_axis=m.class_axis)
    whole = fisher.fim(m.f, m.params, m.x, representation, likelihood, layers=layers)
    part = fisher.fim(m.f, m.params, m.x, representation, likelihood, layers=some)
    assert part.size(0) == some.numel() == layers.numel() - layers[layers.names()[0]].numel
    v = noise_like(m.params, 1)
    index = trees.ravel(layers.layout.unravel(torch.arange(layers.numel(), dtype=D)))[0]
    at = trees.ravel(some.restrict(layers.layout.unravel(index)))[0].long()
    if representation is not PMatEye:
        close(part.to_torch(), whole.to_torch()[at][:, at], 1e-10, "a block of the whole")
    u = some.restrict(v)
    close(part.mv(u), part.layout.unravel(part.to_torch() @ trees.ravel(u)[0]), 1e-10, "mv")
    solved = part.solve(u, 0.1)
    close(trees.axpy(0.1, solved, part.mv(solved)), u, 1e-8, "solve")
    with pytest.raises(ValueError, match="v: "):
        part.mv(v)


def test_collections_as_sets():
    m = MODELS["conv2d"]
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    first, rest = layers.select(["0"]), layers.remove("0")
    assert rest.names() == ("1", "3", "6")
    assert first.merge(rest) == layers == rest.merge(first) == rest.add(layers["0"])
    assert layers.get_common_layers(rest) == rest
    assert hash(first.merge(rest)) == hash(layers)
    assert layers.select(lambda l: l.kind == "conv2d").names() == ("0", "3")
    with pytest.raises(ValueError, match="0: is there already"):
        layers.add(layers["0"])
    with pytest.raises(ValueError, match="merge: got layers of another function"):
        layers.merge(fisher.LayerCollection.from_function(MODELS["mlp"].f, MODELS["mlp"].params, MODELS["mlp"].x))
    with pytest.raises(ValueError, match="'7': no such layer"):
        layers.remove("7")


MIXES = {
    "defaults": {},
    "by kind": {"conv2d": PMatEKFAC, "scale": PMatDiag},
    "by name": {"3": PMatDense, "6": PMatLowRank, "1": PMatQuasiDiag},
    "by family": {"product": PMatBlockDiag, "1": PMatEye},
}


@pytest.mark.parametrize("mix", MIXES)
def test_mixed_is_the_direct_sum(mix):
    m = MODELS["conv2d"]
    F = fisher.fim(m.f, m.params, m.x, PMatMixed, layers_to=MIXES[mix])
    T = F.to_torch()
    for part, own in zip(F.parts, F.split):
        alone = fisher.fim(m.f, m.params, m.x, type(part), layers=own)
        close(part.to_torch(), alone.to_torch(), 1e-9, type(part).__name__)
    v = noise_like(m.params, 1)
    vector, unravel = trees.ravel(v)
    eye = torch.eye(len(T), dtype=D)
    close(F.solve(v, 0.1), unravel(torch.linalg.solve(T + 0.1 * eye, vector)), 1e-9, "solve")
    close(F.logdet(0.1), torch.linalg.slogdet(T + 0.1 * eye)[1], 1e-9, "logdet")
    close(F.trace(), T.trace(), 1e-10, "trace")
    close(F.frobenius_norm(), T.norm(), 1e-10, "norm")
    close(F.norm(2), torch.linalg.matrix_norm(T, 2), 1e-9, "norm(2)")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-10, "diagonal")
    close((2.0 * F - F).to_torch(), T, 1e-10, "algebra")
    J = trees.stack([trees.stack([v, noise_like(m.params, 2)])])
    close(
        F.solve(J, 0.1),
        trees.stack([trees.stack([F.solve(v, 0.1), F.solve(noise_like(m.params, 2), 0.1)])]),
        1e-9,
        "map",
    )
    close(F.solve(v, 0.1, kind={PMatKFAC: "pi"} if mix == "defaults" else {}), F.solve(v, 0.1), 10.0, "kinds by part")
    noise = vmap(lambda e: F.layout.unravel(e))(eye)
    rows = F.sample(noise=noise, regul=0.1)
    R = vmap(lambda r: trees.ravel(r)[0])(rows)
    close(R.T @ R, torch.linalg.inv(T + 0.1 * eye), 1e-8, "sample")


def test_mixed_refuses_what_it_does_not_know():
    m = MODELS["conv2d"]
    with pytest.raises(ValueError, match=r"layers_to: got 'conv9d', expected names or kinds of layers"):
        fisher.fim(m.f, m.params, m.x, PMatMixed, layers_to={"conv9d": PMatDiag})
    with pytest.raises(ValueError, match=r"layers_to\['1'\]: got 'PMatImplicit', expected one of"):
        fisher.fim(m.f, m.params, m.x, PMatMixed, layers_to={"1": PMatImplicit})


def test_big_leaves_without_factors_get_a_diagonal():
    f = lambda p, x: x @ p["w"] * p["big"].sum()
    params = {"w": torch.ones(3, 2), "big": torch.ones(5_000)}
    F = fisher.fim(f, params, torch.ones(2, 3), PMatMixed)
    assert [(type(part), own.names()) for part, own in zip(F.parts, F.split)] == [
        (PMatDiag, ("big",)),
        (PMatKFAC, ("w",)),
    ]


@pytest.mark.parametrize("name", ["mlp", "conv2d", "embedding"])
def test_update_of_the_eigenvalues(name):
    m = MODELS[name]
    likelihood = fisher.Categorical(class_axis=m.class_axis)
    F = fisher.fim(m.f, m.params, m.x, PMatEKFAC, likelihood)
    close(F.update_diag(m.f, m.params, m.x, likelihood), F, 1e-12, "nothing new")
    close(F.update_diag(m.f, m.params, [m.x[:1], m.x[1:]], likelihood, chunk_size=1), F, 1e-12, "batches and chunks")
    elsewhere = perturbed(m.params, 3)
    moved = F.update_diag(m.f, elsewhere, m.x, likelihood)
    want = fisher.fim(m.f, elsewhere, m.x, PMatBlockDiag, likelihood, layers=F.layers)
    for layer in F.layers:
        if layer.kronecker:
            U = moved.get_KFE(layer.name, split_weight_bias=False)
            close(
                moved.eigenvalues[layer.name].flatten(),
                (U.T @ want.get_block(layer.name) @ U).diagonal(),
                1e-9,
                layer.name,
            )
    mixed = fisher.fim(m.f, m.params, m.x, PMatMixed, likelihood, layers_to={"product": PMatEKFAC})
    close(mixed.update_diag(m.f, m.params, m.x, likelihood), mixed, 1e-12, "mixed")


def test_a_thousand_classes_in_chunks():
    f = lambda p, x: x @ p["w"]
    params, x = {"w": 0.1 * torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))}, torch.ones(3, 5)
    whole, parts = (fisher.fim(f, params, x, PMatKFAC, chunk_size=c).factors["w"][1] for c in (None, 64))
    close(parts, whole, 1e-5, "chunks")
