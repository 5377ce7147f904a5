"""PMats: functions of the matrix (powers, determinant, samples, norms) against dense linear algebra, and their derivatives."""

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from fisher.pmat import PMatBlockDiag, PMatDense, PMatKFAC
from linmaps import trees
from linmaps.trees import Layout
from tests.fisher.fakes import KINDS, LAYERS, MAKE, FakeLayer, FakeLayers, blockdiag, kfac, quasidiag, rows, vector
from tests.laws import close

D = torch.float64
every = pytest.mark.parametrize("kind", KINDS)
data = pytest.mark.parametrize("data", ["full", "deficient", "zero"])


def function(T, fn):
    """fn of a symmetric matrix, eigenvalues at the size of rounding taken for zero."""
    values, U = torch.linalg.eigh(T)
    values = torch.where(values.abs() > 1e-12 * values.abs().max(), values, 0.0)
    return (U * fn(values)) @ U.T


@every
@data
def test_functions_equal_those_of_the_dense_matrix(kind, data):
    F, v = MAKE[kind](data), vector(1)
    T = F.to_torch()
    eye = torch.eye(len(T), dtype=D)
    close(F.norm(), T.norm(), 1e-11, "frobenius")
    close(F.frobenius_norm(), F.norm("fro"), 0.0, "frobenius")
    singular = torch.linalg.svdvals(T)
    close(F.norm(2), singular[0], 1e-11, "norm 2")
    close((-F).norm(2), singular[0], 1e-11, "norm 2 of the negative")
    close(F.norm(-2), singular[-1], 1e-11, "norm -2")
    for regul in (0.3, torch.tensor(1e-3, dtype=D)):
        damped = T + regul * eye
        close(F.logdet(regul), torch.linalg.slogdet(damped)[1], 1e-9, "logdet")
        x = rows(F.sample(noise=vmap(LAYERS.space.unravel)(eye), regul=regul), 1)
        close(x.T @ x, torch.linalg.inv(damped), 1e-8, "covariance of samples")
        for p in (-1, -0.5, 0, 0.5, 1.7, 3):
            close(F.pow(p, regul).to_torch(), function(damped, lambda t, p=p: t**p), 1e-8, f"pow {p}")
    for p in (0, 0.5, 1, 2, 1.3):
        close((F**p).to_torch(), function(T, lambda t, p=p: t**p), 3e-8 if p == 0.5 else 1e-9, f"** {p}")
    close((F**0.6).mv((F**0.4).mv(v)), F.mv(v), 1e-9, "powers add")
    if data == "full" and singular[-1] > 1e-6:
        close((F**-1).to_torch(), torch.linalg.inv(T), 1e-9 / singular[-1].item(), "** -1")


@every
@data
def test_eigendecomposition_is_one(kind, data):
    F, v = MAKE[kind](data), vector(1)
    E = F.eigendecomposition()
    close(E.to_torch(), F.to_torch(), 1e-11, "U diag U'")
    values = E.get_eigenvalues()
    u = E.project_to_diag(v)
    close(E.project_from_diag(u), v, 1e-11, "U U' = I")
    close(trees.norm(u), trees.norm(v), 1e-11, "orthogonal")
    close(E.project_from_diag(trees.map(torch.mul, values, u)), F.mv(v), 1e-11, "F v = U diag U' v")
    close(F.project_to_diag(v), u, 0.0, "of the matrix itself")
    close(F.project_from_diag(u), v, 1e-11, "of the matrix itself")
    close(F.get_eigenvalues(), values, 0.0, "of the matrix itself")
    ordered = torch.sort(torch.cat([t.flatten() for t in trees.leaves(values)]))[0]
    close(ordered, torch.linalg.eigvalsh(F.to_torch()), 1e-11, "eigenvalues")


@every
@pytest.mark.parametrize("data", ["full", "deficient"])
def test_float32_is_close_to_float64(kind, data):
    F, G = MAKE[kind](data, torch.float32), MAKE[kind](data)
    v, w = vector(1, torch.float32), vector(1)
    wide = lambda tree: trees.map(lambda t: t.double(), tree)
    for name, fn in {
        "mv": lambda F, v: F.mv(v),
        "solve": lambda F, v: F.solve(v, 0.1),
        "inverse": lambda F, v: F.inverse(0.1).mv(v),
        "pow": lambda F, v: F.pow(-0.5, 0.1).mv(v),
        "root": lambda F, v: (F**0.5).mv(F.pow(0.5).mv(v)),
        "sample": lambda F, v: F.sample(noise=v, regul=0.1),
        "logdet": lambda F, v: F.logdet(0.1),
        "norm": lambda F, v: [F.norm(), F.norm(2), F.norm(-2)],
        "pinv": lambda F, v: F.mv(F.pinv().mv(F.mv(v))),
        "diag": lambda F, v: F.get_diag(),
    }.items():
        got = fn(F, v)
        assert {t.dtype for t in trees.leaves(got)} == {torch.float32}, name
        close(wide(got), fn(G, w), 2e-3, name)


@every
def test_null_space_is_ruled_by_a_small_regul_in_float32(kind):
    """Rounding noise in the null space does not swamp regul: where the spectrum is known, or asked for."""
    F = MAKE[kind]("deficient", torch.float32)
    if kind in ("quasidiag", "sum of kfacs", "kfac + diag"):
        F = F.eigendecomposition()
    v = vector(1, torch.float32)
    E = F.eigendecomposition()
    null = trees.map(lambda t: (t.abs() <= 1e-6 * t.abs().max()).float(), E.get_eigenvalues())
    w = E.project_from_diag(trees.map(torch.mul, null, E.project_to_diag(v)))
    assert (trees.norm(w) > 0.1) or kind == "eye"
    got = F.solve(w, 1e-6, kind="eigendecomposition")
    close(trees.scale(1e-6, got), w, 2e-2, "null space")


@every
def test_samples_are_drawn_by_the_generator(kind):
    F = MAKE[kind]()
    draw = lambda: F.sample(torch.Generator().manual_seed(3), 0.5)
    close(draw(), draw(), 0.0, "same seed")
    with pytest.raises(ValueError, match="sample: got neither, expected a generator or noise"):
        F.sample(regul=0.5)


def test_bases_and_blocks_of_a_layer():
    F, B = kfac(), blockdiag()
    E = F.eigendecomposition()
    places = LAYERS.views(LAYERS.space.unravel(torch.arange(LAYERS.space.numel, dtype=D)))
    T = F.to_torch()
    values = E.get_eigenvalues()
    for layer in LAYERS:
        at = places[layer.name].long()
        block = T[at.flatten()[:, None], at.flatten()[None]]
        close(F.get_block(layer.name), block, 1e-12, "get_block")
        close(E.get_block(layer.name), block, 1e-12, "get_block")
        close(B.get_block(layer.name), B.to_torch()[at.flatten()[:, None], at.flatten()[None]], 1e-12, "get_block")
        together = E.get_KFE(layer.name, split_weight_bias=False)
        close((together * values[layer.name].flatten()) @ together.T, block, 1e-11, "get_KFE, interleaved")
        split = torch.cat([at[..., :-1].flatten(), at[..., -1].flatten()]) if layer.bias else at.flatten()
        basis = F.get_KFE(layer.name)
        close((basis * values[layer.name].flatten()) @ basis.T, T[split[:, None], split[None]], 1e-11, "get_KFE, split")
    for call in (lambda: F.get_block("z"), lambda: E.get_KFE("z")):
        with pytest.raises(ValueError, match="got 'z', expected one of"):
            call()


def test_pi_damping_is_the_factored_formula():
    F, v = kfac(), vector(3)
    got = LAYERS.views(F.solve(v, 0.09, kind="pi"))
    J = vector(4, lead=(2, 2))
    several = F.solve(J, 0.09, kind="pi")
    close(
        trees.map(lambda t: t[1, 0], several), F.solve(trees.map(lambda t: t[1, 0], J), 0.09, kind="pi"), 1e-12, "map"
    )
    for name, V in LAYERS.views(v).items():
        layer = LAYERS[name]
        if not layer.kronecker:
            continue
        A, G = F.factors[name]
        for g in range(max(1, layer.groups)):
            a, b, W, X = (t[g] if layer.groups else t for t in (A, G, V, got[name]))
            a = torch.diag(a) if layer.diagonal else a
            pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
            left = torch.linalg.inv(b + 0.3 / pi * torch.eye(len(b), dtype=D))
            close(X, left @ W @ torch.linalg.inv(a + 0.3 * pi * torch.eye(len(a), dtype=D)), 1e-12, name)
    close(kfac("zero").solve(v, 0.25, kind="pi"), trees.scale(4.0, v), 1e-12, "zero traces: pi = 1")
    assert all(t.isfinite().all() for t in trees.leaves((F * 0.0).solve(v, 0.25, kind="pi")))
    with pytest.raises(ValueError, match="solve: got kind='pi', expected 'default'"):
        F.eigendecomposition().solve(v, 0.1, kind="pi")


def test_cut_off_is_relative_to_the_largest_eigenvalue_of_a_block():
    F, v = kfac(), vector(3)
    for name, block in F.matrices().items():
        if block.ndim:
            one = PMatDense(block, Layout.of(torch.zeros(len(block))))
            want = torch.linalg.pinv(block, rtol=0.3, hermitian=True)
            close(one.pinv(0.3).to_torch(), want, 1e-11, "dense pinv")
            if not LAYERS[name].grouped:
                close(F.pinv(0.3).get_block(name), want, 1e-11, "kfac pinv")
    close(F.solve(v, kind="lstsq", rtol=0.3), F.pinv(0.3).mv(v), 1e-11, "lstsq")


@every
@pytest.mark.parametrize(("rtol", "atol"), [(0.1, 0.0), (None, 0.5), (0.01, 0.5), (None, 0.0)])
def test_cut_offs_over_the_whole_matrix_are_those_of_torch(kind, rtol, atol):
    """Layers of different scales: the pseudo-inverse that torch has of the same matrix."""
    F, v = MAKE[kind](), vector(3)
    if isinstance(F, PMatKFAC):
        factors = {n: (A, (10.0**-k) * G) for k, (n, (A, G)) in enumerate(F.factors.items())}
        F = PMatKFAC(factors, F.exact, F.layers)
    T = F.to_torch()
    options = {"atol": atol, "over": "matrix"} | ({} if rtol is None else {"rtol": rtol})
    want = torch.linalg.pinv(T, hermitian=True, atol=atol, rtol=0.0 if rtol is None else rtol)
    if rtol is None and atol == 0.0:
        want = pseudo(T)
    close(F.pinv(**options).to_torch(), want, 1e-9, "pinv")
    close(F.solve(v, kind="lstsq", **options), LAYERS.space.unravel(want @ trees.ravel(v)[0]), 1e-9, "lstsq")


def pseudo(T):
    """What float64 leaves on null directions counts as zero."""
    values, U = torch.linalg.eigh(T)
    kept = values.abs() > 1e-13 * values.abs().max()
    return (U * torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)) @ U.T


@every
def test_cut_offs_are_checked(kind):
    F, v = MAKE[kind](), vector(3)
    for options, message in (
        ({"rtol": -1.0}, "rtol: got -1.0, expected a finite number >= 0"),
        ({"rtol": float("nan")}, "rtol: got nan"),
        ({"atol": -1.0}, "atol: got -1.0"),
        ({"over": "layer"}, "over: got 'layer', expected 'block' or 'matrix'"),
    ):
        for call in (lambda o=options: F.pinv(**o), lambda o=options: F.solve(v, kind="lstsq", **o)):
            with pytest.raises(ValueError, match=message):
                call()


def test_rounding_below_zero_has_a_root():
    F = kfac().eigendecomposition()
    values = {name: torch.full_like(t, -1e-17) + (t > t.median()) for name, t in F.eigenvalues.items()}
    F = type(F)(values, F.bases, F.exact, F.layers)
    close(((F**0.5) ** 0.5).to_torch(), (F**0.25).to_torch(), 1e-9, "roots of rounding")


def test_product_of_two_is_not_taken_for_symmetric():
    F, v = kfac() @ kfac(seed=1), vector(0)
    for call in (
        lambda: F.solve(v, 0.1),
        lambda: F.logdet(),
        lambda: F**0.5,
        lambda: F.norm(2),
        lambda: F.inverse(0.1),
    ):
        with pytest.raises(ValueError, match=r"a product of two matrices is not symmetric: use to_torch\(\)"):
            call()
    for F in (MAKE["dense"]() @ MAKE["dense"](seed=1), blockdiag() @ blockdiag(seed=1)):
        damped = F.to_torch() + 0.5 * torch.eye(LAYERS.space.numel, dtype=D)
        want = torch.linalg.solve(damped, trees.ravel(v)[0])
        close(trees.ravel(F.solve(v, 0.5))[0], want, 1e-9, "solve of a product")
        close(trees.ravel(F.inverse(0.5).mv(v))[0], want, 1e-9, "inverse of a product")


def test_large_dense_blocks_are_refused():
    weight = torch.zeros(256, 128)
    params = {"w": weight, "b": torch.zeros(256)}
    layers = FakeLayers((FakeLayer("l", "linear", "w", "b"),), Layout.of(params))
    F = type(quasidiag())({"w": weight, "b": params["b"]}, {"l": weight}, layers)
    with pytest.raises(ValueError, match=r"PMatQuasiDiag.inverse: .*l has 33,024 parameters.*use F.solve"):
        F.inverse(0.1)


# --- derivatives -------------------------------------------------------------------------------------------------


def _of_rows(kind):
    """A matrix as a function of rows x `[2, 5]`, whose second moment has a null space, where eigh has no derivative."""
    layers = FakeLayers((FakeLayer("w", "linear", "w"),), Layout.of({"w": torch.zeros(3, 5)}))

    def make(x):
        A, G = x.mT @ x, x[:, :3].mT @ x[:, :3]
        factored = PMatKFAC({"w": (A, G)}, {}, layers)
        return {
            "kfac": lambda: factored,
            "kfac diagonal": lambda: PMatKFAC(
                {"w": ((x**2).sum(0), G)},
                {},
                FakeLayers((FakeLayer("w", "linear", "w", diagonal=True),), layers.space),
            ),
            "blockdiag": lambda: PMatBlockDiag({"w": torch.kron(G, A)}, layers),
            "dense": lambda: PMatDense(torch.kron(G, A), layers.space),
        }[kind]()

    return make


X = torch.linspace(-1, 1, 10, dtype=D).reshape(2, 5) ** 2 + 0.1 * torch.eye(2, 5, dtype=D)
REPEATED = torch.eye(2, 5, dtype=D)  # and twice the same eigenvalue
METHODS = {
    "solve": lambda F, v: F.solve(v, 0.5),
    "logdet": lambda F, v: F.logdet(0.5),
    "sample": lambda F, v: F.sample(noise=v, regul=0.5),
    "lstsq": lambda F, v: F.solve(v, kind="lstsq"),
    "pow 3": lambda F, v: (F**3).mv(v),
}
BY_BLOCKS = {  # of KFAC with damping these are in the eigenbases, whose derivatives need distinct eigenvalues
    "inverse": lambda F, v: F.inverse(0.5).mv(v),
    "pow": lambda F, v: F.pow(0.3, 0.5).mv(v),
    "norm": lambda F, v: F.norm() + F.trace(),
}


@pytest.mark.parametrize("x", [X, REPEATED], ids=["null space", "repeated"])
@pytest.mark.parametrize("method", [*METHODS, *BY_BLOCKS])
@pytest.mark.parametrize("kind", ["kfac", "kfac diagonal", "blockdiag", "dense"])
def test_derivatives_where_eigenvalues_repeat(kind, method, x):
    if method in BY_BLOCKS and "kfac" in kind and method != "norm":
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    make, v = _of_rows(kind), {"w": torch.linspace(1, 2, 15, dtype=D).reshape(3, 5).cos()}
    fn = (METHODS | BY_BLOCKS)[method]
    direction = torch.cos(torch.arange(x.numel(), dtype=D)).reshape(x.shape)
    if method == "lstsq":  # its rank must not change on the way
        direction[:, 2:] = 0.0

    def line(t):
        found = fn(make(x + t * direction), v)
        return sum((s * torch.linspace(1, 2, s.numel(), dtype=D).reshape(s.shape)).sum() for s in trees.leaves(found))

    zero, h = torch.zeros((), dtype=D), 1e-3
    f = {k: line(zero + k * h) for k in (-3, -2, -1, 0, 1, 2, 3)}
    first = (45 * (f[1] - f[-1]) - 9 * (f[2] - f[-2]) + (f[3] - f[-3])) / (60 * h)
    second = (270 * (f[1] + f[-1]) - 27 * (f[2] + f[-2]) + 2 * (f[3] + f[-3]) - 490 * f[0]) / (180 * h**2)
    close(grad(line)(zero), first, 1e-8, "first derivative")
    close(jacfwd(line)(zero), first, 1e-8, "first derivative, forward")
    for mode in (jacfwd(jacfwd(line)), jacfwd(jacrev(line)), jacrev(jacfwd(line)), jacrev(jacrev(line))):
        close(mode(zero), second, 1e-6, "second derivative")


@every
def test_derivative_in_regul(kind):
    F, v = MAKE[kind](), vector(3)
    for g in (
        lambda r: trees.dot(F.solve(v, r), v),
        lambda r: F.logdet(r),
        lambda r: trees.dot(F.sample(noise=v, regul=r), v),
        lambda r: trees.dot(F.pow(0.5, r).mv(v), v),
    ):
        r = torch.tensor(0.3, dtype=D)
        close(grad(g)(r), (g(r + 1e-5) - g(r - 1e-5)) / 2e-5, 1e-7, "d / d regul")


@pytest.mark.parametrize("p", [-0.5, 0.3, 1.7])
def test_powers_are_smooth_where_eigenvalues_nearly_meet(p):
    Q = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=D))[0]
    E = torch.linspace(-1, 1, 25, dtype=D).reshape(5, 5).cos() @ Q
    m, E = (Q * torch.tensor([0.0, 1e-7, 1.0, 1.0 + 1e-9, 1.0 + 1e-4], dtype=D)) @ Q.T, E + E.T
    line = lambda t: (PMatDense(m + t * E, Layout.of(torch.zeros(5))).pow(p, 0.4).matrix * Q).sum()
    zero, h = torch.zeros((), dtype=D), 2e-3
    f = {k: line(zero + k * h) for k in (-3, -2, -1, 0, 1, 2, 3)}
    second = (270 * (f[1] + f[-1]) - 27 * (f[2] + f[-2]) + 2 * (f[3] + f[-3]) - 490 * f[0]) / (180 * h**2)
    modes = [a(b(line))(zero) for a in (jacfwd, jacrev) for b in (jacfwd, jacrev)]
    for value in modes:
        close(value, second, 1e-6, "second derivative")
        close(value, modes[0], 1e-9, "mode against mode")


@pytest.mark.parametrize("kind", MAKE)
def test_a_sample_of_an_indefinite_matrix_is_refused(kind):
    with pytest.raises(ValueError, match=r"sample: .*expected finite noise and F \+ regul I positive definite"):
        (-1.0 * MAKE[kind]()).sample(noise=vector(), regul=0.01)
