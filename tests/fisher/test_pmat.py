"""PMats: every method of every representation against the dense matrix; algebra; persistence; ensembles; errors."""

import io
import pickle

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

import fisher
from fisher import PMatDense, PMatDiag, PMatEKFAC, PMatKFAC, PMatSum
from fisher.strategies import networks, vectors
from linmaps import trees
from tests.laws import close, noise_like
from tests.zoo import MODELS, perturbed

D = torch.float64
NAMES = ["mlp", "bare", "bias_apart", "tied", "module", "sequence"]


def make(kind, name="bare"):
    m = MODELS[name]
    fim = lambda r: fisher.fim(m.f, m.params, m.x, r, "gaussian")
    return {
        "dense": lambda: fim(PMatDense),
        "diag": lambda: fim(PMatDiag),
        "kfac": lambda: fim(PMatKFAC),
        "ekfac": lambda: fim(PMatKFAC).eigendecomposition(),
        "sum of kfacs": lambda: fim(PMatKFAC) + 2.0 * fim(PMatKFAC),
        "kfac + diag": lambda: fim(PMatKFAC) + fim(PMatDiag),
    }[kind]()


KINDS = ["dense", "diag", "kfac", "ekfac", "sum of kfacs", "kfac + diag"]
every = pytest.mark.parametrize("kind", KINDS)


@every
@pytest.mark.parametrize("name", NAMES)
def test_methods_equal_those_of_the_dense_matrix(kind, name):
    F = make(kind, name)
    T = F.to_torch()
    v = noise_like(MODELS[name].params, 1)
    vector, unravel = trees.ravel(v)
    eye = torch.eye(len(T), dtype=D)
    close(F.mv(v), unravel(T @ vector), 1e-11, "mv")
    close(F @ v, F.mv(v), 0.0, "@")
    close(F.vTMv(v), vector @ T @ vector, 1e-11, "vTMv")
    close(F.trace(), T.trace(), 1e-11, "trace")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-11, "get_diag")
    close(F.frobenius_norm(), T.norm(), 1e-11, "frobenius_norm")
    assert F.size() == (len(T), len(T))
    assert F.size(0) == F.size(-1) == len(T)
    for regul in (0.1, torch.tensor(1e-3, dtype=D)):
        damped = T + regul * eye
        close(F.solve(v, regul), unravel(torch.linalg.solve(damped, vector)), 1e-9, "solve")
        close(F.solve(v, regul=regul), F.solve(v, regul), 0.0, "regul by name")
        inverse = F.inverse(regul)
        close(inverse.to_torch(), torch.linalg.inv(damped), 1e-9, "inverse")
        close(inverse.mv(v), F.solve(v, regul), 1e-9, "inverse.mv")
        close(trees.axpy(regul, F.solve(v, regul), F.mv(F.solve(v, regul))), v, 1e-10, "solve inverts")


@every
@pytest.mark.parametrize("other", KINDS)
def test_algebra(kind, other):
    F, G = make(kind), make(other)
    S, T = F.to_torch(), G.to_torch()
    close((F + G).to_torch(), S + T, 1e-12, "+")
    close((F - G).to_torch(), S - T, 1e-12, "-")
    close((0.3 * F).to_torch(), 0.3 * S, 1e-12, "number * F")
    close((F * torch.tensor(0.3, dtype=D)).to_torch(), 0.3 * S, 1e-12, "F * scalar tensor")
    close((F / 4).to_torch(), S / 4, 1e-12, "/")
    close((-F).to_torch(), -S, 1e-12, "-F")
    v = noise_like(MODELS["bare"].params, 2)
    close((F + G).mv(v), trees.add(F.mv(v), G.mv(v)), 1e-12, "mv of the sum")
    close((F + G).frobenius_norm(), (S + T).norm(), 1e-11, "norm of the sum")


def test_closed_representations_stay_themselves():
    assert type(make("dense") + make("dense")) is PMatDense
    assert type(make("diag") - make("diag")) is PMatDiag
    assert type(make("kfac") + make("dense")) is PMatDense
    assert type(make("kfac") * 2) is PMatKFAC
    assert type(make("kfac") + make("kfac")) is PMatSum
    assert len((make("kfac") + make("kfac") + make("ekfac")).terms) == 3
    assert type(make("kfac").inverse(0.1)) is PMatEKFAC


@given(networks(max_batch=4), st.data(), st.floats(1e-4, 10.0))
def test_solve_inverts_on_random_networks(network, data, regul):
    v = data.draw(vectors(network.params))
    for representation in (PMatDense, PMatDiag, PMatKFAC):
        F = fisher.fim(network.f, network.params, network.x, representation, "gaussian")
        x = F.solve(v, regul)
        close(trees.axpy(regul, x, F.mv(x)), v, 1e-9 * (1 + F.trace().item() / regul), representation.__name__)


def test_pi_damping_is_the_factored_formula():
    F = make("kfac", "mlp")
    v = noise_like(MODELS["mlp"].params, 3)
    A, G = F.factors["a"]
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    V = torch.cat([v["a"]["weight"], v["a"]["bias"][:, None]], 1)
    eye_a, eye_g = torch.eye(len(A), dtype=D), torch.eye(len(G), dtype=D)
    want = torch.linalg.inv(G + 0.3 / pi * eye_g) @ V @ torch.linalg.inv(A + 0.3 * pi * eye_a)
    got = F.solve(v, 0.09, kind="pi")
    close((got["a"]["weight"], got["a"]["bias"]), (want[:, :-1], want[:, -1]), 1e-12, "pi")
    zero = F * 0.0
    assert all(t.isfinite().all() for t in trees.leaves(zero.solve(v, 0.1, kind="pi")))
    with pytest.raises(ValueError, match="solve: got kind='cg', expected 'exact' or 'pi'"):
        F.solve(v, 0.1, kind="cg")


@pytest.mark.parametrize("kind", ["dense", "kfac"])
def test_solve_is_differentiable_where_eigenvalues_repeat(kind):
    """Two examples against five inputs: the input factor has a null space, where eigh has no derivative."""
    f = lambda p, x: x @ p["w"]
    x = torch.linspace(-1, 1, 10, dtype=D).reshape(2, 5) ** 2
    p = {"w": torch.ones(5, 3, dtype=D)}
    v = noise_like(p, 0)
    representation = {"dense": PMatDense, "kfac": PMatKFAC}[kind]

    def g(x):
        x_new = fisher.fim(f, p, x, representation, "gaussian", check_finite=False).solve(v, 0.5)["w"]
        return (x_new * torch.linspace(1, 2, 15, dtype=D).reshape(5, 3)).sum()

    direction = torch.cos(torch.arange(10, dtype=D)).reshape(2, 5)
    line = lambda t: g(x + t * direction)
    zero, h = torch.zeros((), dtype=D), 1e-4
    first = (8 * (line(zero + h) - line(zero - h)) - (line(zero + 2 * h) - line(zero - 2 * h))) / (12 * h)
    close((grad(g)(x) * direction).sum(), first, 1e-9, "first derivative")
    second = (line(zero + h) + line(zero - h) - 2 * line(zero)) / h**2
    for mode in (jacfwd(jacfwd(line)), jacfwd(jacrev(line)), jacrev(jacfwd(line)), jacrev(jacrev(line))):
        close(mode(zero), second, 1e-5, "second derivative")


def test_solve_is_differentiable_in_regul():
    F, v = make("kfac"), noise_like(MODELS["bare"].params, 3)
    g = lambda r: trees.dot(F.solve(v, r), v)
    r = torch.tensor(0.3, dtype=D)
    close(grad(g)(r), (g(r + 1e-5) - g(r - 1e-5)) / 2e-5, 1e-8, "d solve / d regul")


def test_null_space_is_ruled_by_regul_in_float32():
    """Rounding noise in the null space of a factor does not swamp a small regul."""
    f = lambda p, x: x @ p["w"]
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    F = fisher.fim(f, {"w": torch.zeros(20, 4)}, x, PMatKFAC, "gaussian")
    basis = torch.linalg.qr(x.T, mode="complete")[0]
    v = {"w": basis[:, 3:].sum(1, keepdim=True).expand(20, 4).contiguous()}  # orthogonal to all examples
    close(F.solve(v, 1e-6)["w"] * 1e-6, v["w"], 1e-2, "null space")


@every
def test_pytree_and_persistence(kind):
    F = make(kind)
    doubled = optree.tree_map(lambda t: 2 * t, F)
    assert type(doubled) is type(F)
    for again in (pickle.loads(pickle.dumps(F)), _through_file(F)):
        assert type(again) is type(F)
        close(again, F, 0.0, "persistence")
        v = noise_like(MODELS["bare"].params, 0)
        close(again.mv(v), F.mv(v), 0.0, "persistence")


def _through_file(F):
    buffer = io.BytesIO()
    torch.save(F, buffer)
    buffer.seek(0)
    return torch.load(buffer)  # of default settings: nothing but tensors, numbers and names is trusted


@every
def test_methods_map_over_an_ensemble(kind):
    m = MODELS["bare"]
    members = [perturbed(m.params, k) for k in range(3)]
    v = noise_like(m.params, 5)
    fim = lambda p: fisher.fim(m.f, p, m.x, PMatKFAC if "kfac" in kind else PMatDense, "gaussian")
    stacked = vmap(fim)(trees.stack(members))
    got = vmap(lambda F: (F.solve(v, 0.1), F.mv(v), F.trace(), F.get_diag(), F.to_torch(), F.frobenius_norm()))(stacked)
    loop = [fim(p) for p in members]
    want = [(F.solve(v, 0.1), F.mv(v), F.trace(), F.get_diag(), F.to_torch(), F.frobenius_norm()) for F in loop]
    close(got, trees.stack(want), 1e-10, "ensemble")


@pytest.mark.parametrize("kind", ["dense", "diag", "kfac"])
def test_stacked_matrix_says_vmap(kind):
    m = MODELS["mlp"]
    r = {"dense": PMatDense, "diag": PMatDiag, "kfac": PMatKFAC}[kind]
    stacked = vmap(lambda p: fisher.fim(m.f, p, m.x, r))(trees.stack([m.params, m.params]))
    with pytest.raises(ValueError, match="vmap"):
        stacked.mv(m.params)


@every
def test_vectors_of_other_params_are_refused(kind):
    F, v = make(kind), dict(MODELS["bare"].params)
    for method in (F.mv, lambda v: F.solve(v, 0.1)):
        with pytest.raises(ValueError, match=r"v: leaf w has shape \(2, 2\), expected \(3, 4\)"):
            method(v | {"w": torch.ones(2, 2, dtype=D)})
        with pytest.raises(ValueError, match=r"v: leaves do not match.*missing \['idle'\], unexpected \[\]"):
            method({k: t for k, t in v.items() if k != "idle"})


def test_errors_of_the_algebra():
    F = make("kfac")
    with pytest.raises(ValueError, match="layouts differ"):
        F + make("kfac", "mlp")
    with pytest.raises(TypeError, match=r"PMatKFAC \+ int: expected a PMat"):
        F + 1
    with pytest.raises(TypeError, match=r"PMatKFAC \* str"):
        F * "2"
    with pytest.raises(ValueError, match="PMatKFAC @ PMatKFAC: expected a tree"):
        F @ F
    with pytest.raises(ValueError, match="regul: got -1"):
        F.solve(MODELS["bare"].params, -1)
    with pytest.raises(ValueError, match="size: got dim 2"):
        F.size(2)


@every
def test_repr_informs(kind):
    text = repr(make(kind))
    assert text.startswith(type(make(kind)).__name__ + "(")
    assert "d = 21" in text
    assert "float64" in text
