"""float32: every function of every matrix is as accurate as the plain formula in float32, and nothing raises.

Plain: the spectrum by torch's eigh (svd for rows) in float32, then the formula as it stands in the books.  The truth is
float64 on the same float32 numbers.
"""

import pytest
import torch
from torch.func import grad, vmap

from fisher.pmat import PMatDense, PMatKFAC
from fisher.pmat.whole.lowrank import PMatLowRank
from linmaps import trees
from linmaps.numerics.eigen import eigh, plain_eigh
from linmaps.trees import Layout
from tests.fisher.fakes import KINDS, LAYERS, MAKE, SHAPES, FakeLayer, FakeLayers, vector

S, D = torch.float32, torch.float64
REGULS = [1e-8, 1e-6, 1e-4, 1e-2, 1.0]  # relative to the trace
ROUNDING = 6e-7  # as accurate as float32 holds a result


def double(tree):
    return trees.map(lambda t: t.double(), tree)


def error(got, want):
    a, b = (torch.cat([t.double().flatten() for t in trees.leaves(tree)]) for tree in (got, want))
    return ((a - b).norm() / b.norm()).item()


class Plain:
    """h(F + regul I) v by eigenvectors in float32, block by block."""

    def __init__(self, F):
        self.F = F
        self.blocks = {}
        for layer in LAYERS:
            if isinstance(F, PMatKFAC) and layer.name in F.factors:
                A, G = F.factors[layer.name]
                A = torch.diag_embed(A) if layer.diagonal else A
                self.blocks[layer.name] = (*plain_eigh_of(A), *plain_eigh_of(G))
        self.whole = None if self.blocks else plain_eigh_of(F.to_torch())

    def function(self, h, v):
        if self.whole is not None:
            values, U = self.whole
            return LAYERS.space.unravel(U @ (h(values) * (U.T @ trees.ravel(v)[0])))
        found = {}
        for name, V in LAYERS.views(v).items():
            if name in self.blocks:
                a, U, g, W = self.blocks[name]
                found[name] = W @ (h(g[..., :, None] * a[..., None, :]) * (W.mT @ V @ U)) @ U.mT
            elif self.F.exact[name].ndim:
                values, U = plain_eigh_of(self.F.exact[name])
                found[name] = (U @ (h(values) * (U.T @ V.flatten()))).reshape(V.shape)
            else:
                found[name] = h(self.F.exact[name]) * V
        return LAYERS.tree(found)

    def sum(self, h):
        ones = [g[..., :, None] * a[..., None, :] for a, _, g, _ in self.blocks.values()]
        if self.whole is not None:
            return h(self.whole[0]).sum()
        rest = [
            plain_eigh_of(m)[0] if m.ndim else m.expand(torch.zeros(SHAPES[n]).numel()) for n, m in self.F.exact.items()
        ]
        return sum(h(t).sum() for t in ones + rest)


def plain_eigh_of(m):
    return vmap(plain_eigh_of)(m) if m.ndim > 2 else plain_eigh(m)


METHODS = {  # ours, and the plain formula
    "solve": (lambda F, v, r: F.solve(v, r), lambda P, v, r: P.function(lambda t: 1 / (t + r), v)),
    "inverse": (lambda F, v, r: F.inverse(r).mv(v), lambda P, v, r: P.function(lambda t: 1 / (t + r), v)),
    "logdet": (lambda F, v, r: F.logdet(r), lambda P, v, r: P.sum(lambda t: (t + r).abs().log())),
    "pow 0.5": (lambda F, v, r: F.pow(0.5, r).mv(v), lambda P, v, r: P.function(lambda t: (t + r) ** 0.5, v)),
    "pow -1.5": (lambda F, v, r: F.pow(-1.5, r).mv(v), lambda P, v, r: P.function(lambda t: (t + r) ** -1.5, v)),
    "sample": (lambda F, v, r: F.sample(noise=v, regul=r), lambda P, v, r: P.function(lambda t: (t + r) ** -0.5, v)),
}


REGULS_AND_SEEDS = [(rel, seed) for rel in REGULS for seed in range(3)]
MADE_OF = {"ekfac": "kfac", "eigen": "dense", "eigen by layers": "blockdiag"}
every = pytest.mark.parametrize("kind", KINDS)


def accurate(got, plain, want, what, scale=None):
    """At least as accurate as the plain formula, or as float32 holds the result."""
    size = error(got, want) if scale is None else ((got.double() - want) / scale).abs().item()
    allowed = error(plain, want) if scale is None else ((plain.double() - want) / scale).abs().item()
    assert size <= max(1.2 * allowed, ROUNDING) or allowed != allowed, f"{what}: error {size:.1e}, plain {allowed:.1e}"


@every
def test_float32_is_as_accurate_as_the_plain_formula(kind):
    """Eigenbases are compared as what they are made of."""
    for seed in range(2):
        F, origin = (MAKE[k]("ill", S, seed=seed) for k in (kind, MADE_OF.get(kind, kind)))
        plain, exact, v, wide = Plain(origin), Plain(double(origin)), vector(seed, S), double(vector(seed, S))
        for rel in REGULS:
            regul = rel * origin.trace().item()
            size = exact.sum(lambda t, r=regul: (t + r).abs().log().abs())  # of logarithms of both signs
            for method, (ours, formula) in METHODS.items():
                truth = formula(exact, wide, regul)
                if method == "sample" and kind == "quasidiag":  # by another root
                    truth = ours(double(F), wide, regul)
                if all(t.isfinite().all() for t in trees.leaves(truth)):
                    scale = size if method == "logdet" else None
                    got, want = ours(F, v, regul), formula(plain, v, regul)
                    accurate(got, want, truth, f"{method}, regul {rel} of the trace", scale)


def by_svd(h, R, v, r):
    """h(R'R + r I) v."""
    _, s, V = torch.linalg.svd(R, full_matrices=False)
    c = V @ v
    return V.T @ (h(s**2 + r) * c) + (v - V.T @ c) * h(torch.as_tensor(r, dtype=v.dtype))


FUNCTIONS = {
    "solve": lambda t: 1 / t,
    "inverse": lambda t: 1 / t,
    "pow 0.5": lambda t: t**0.5,
    "pow -1.5": lambda t: t**-1.5,
    "sample": lambda t: t**-0.5,
}


@pytest.mark.parametrize("shape", [(30, 80), (80, 40)])
@pytest.mark.parametrize("method", FUNCTIONS)
def test_rows_in_float32_are_as_accurate_as_the_plain_formula(method, shape):
    """Of full and of half rank, with vectors in the span of the rows too; condition of the matrix 1e9 and more."""
    ours, h = METHODS[method][0], FUNCTIONS[method]
    n, d = shape
    for rel, seed in REGULS_AND_SEEDS:
        g = torch.Generator().manual_seed(seed)
        R = (
            (torch.randn(n, n, generator=g) * torch.logspace(0, -4.5, n))
            @ torch.randn(n, d, generator=g)
            / (n * d) ** 0.5
        )
        if seed == 2:
            R = torch.cat([0 * R[:1], R[: n // 2], R[: n - n // 2 - 1]])
        v = torch.randn(d, generator=g) if seed else R.T @ torch.randn(n, generator=g)
        F = PMatLowRank({"w": R})
        regul = rel * F.trace().item()
        want, plain = by_svd(h, R.double(), v.double(), regul), by_svd(h, R, v, regul)
        accurate(ours(F, {"w": v}, regul)["w"], plain, want, f"{method}, {rel}")
        if method == "solve":
            accurate(F.eigendecomposition().solve({"w": v}, regul)["w"], plain, want, f"in the eigenbasis, {rel}")


def spd(n, g, condition=1e9):
    x = torch.randn(n, n, generator=g, dtype=D)
    return (
        torch.linalg.qr(x).Q * torch.logspace(0, -torch.log10(torch.tensor(condition)).item() / 2, n, dtype=D)
    ).float()


def one_layer(O, I):
    return FakeLayers((FakeLayer("w", "linear", "w"),), Layout.of({"w": torch.zeros(O, I)}))


@pytest.mark.parametrize("rel", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2, 1.0])
def test_kfac_solves_with_factors_of_condition_1e9(rel):
    """By itself, inside grad and inside vmap: the same numbers."""
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        roots = spd(30, g), spd(20, g, 1e9 if seed % 2 else 10.0)
        A, G = (x @ x.T for x in roots)
        A, G = 20 * (A + A.T), (G + G.T) / 2
        F, V = PMatKFAC({"w": (A, G)}, {}, one_layer(20, 30)), torch.randn(20, 30, generator=g)
        regul = rel * F.trace().item()

        def formula(A, G, V, regul=regul):
            (a, U), (b, W) = plain_eigh(A), plain_eigh(G)
            return W @ ((W.T @ V @ U) / (torch.outer(b, a) + regul)) @ U.T

        got, want = F.solve({"w": V}, regul)["w"], formula(A.double(), G.double(), V.double())
        accurate(got, formula(A, G, V), want, f"regul {rel} of the trace")
        assert torch.equal(vmap(lambda F, V, r=regul: F.solve({"w": V}, r)["w"])(*doubled(F, V))[1], got)
        assert torch.equal(grad(lambda V, F=F, r=regul: value_and(F.solve({"w": V}, r)["w"]), has_aux=True)(V)[1], got)


def doubled(*ts):
    return tuple(trees.stack([t, t]) for t in ts)


def value_and(x):
    return x.sum(), x


@pytest.mark.parametrize("rank", [1, 2, 10])
def test_dead_inputs_never_raise(rank):
    """Half of the rows and columns zero, low rank: where eigh of float32 does not converge for many seeds."""
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rank, 120, generator=g).abs() * (torch.rand(120, generator=g) < 0.5)
        y = torch.randn(rank, 3, generator=g)
        F, v = PMatKFAC({"w": (x.T @ x, y.T @ y)}, {}, one_layer(3, 120)), {"w": torch.ones(3, 120)}
        E = F.eigendecomposition()
        found = [F.solve(v, 1e-3), F.logdet(1e-3), F.sample(noise=v, regul=1e-3), E.solve(v, 1e-3), F.norm(2)]
        found += [PMatDense(F.factors["w"][0], Layout.of(x[0])).pinv().matrix, eigh(F.factors["w"][0])[1]]
        assert all(t.isfinite().all() for t in trees.leaves(found)), seed


HALF_METHODS = {
    **{name: ours for name, (ours, _) in METHODS.items()},
    "mv": lambda F, v, r: F.mv(v),
    "lstsq": lambda F, v, r: F.solve(v, kind="lstsq", rtol=0.1),
    "pinv": lambda F, v, r: F.pinv(0.1).mv(v),
    "norms": lambda F, v, r: [F.norm(), F.norm(2), F.norm(-2), F.trace(), F.vTMv(v)],
    "values": lambda F, v, r: F.eigendecomposition().get_eigenvalues(),
    "diag": lambda F, v, r: [F.get_diag(), F.to_torch()],
}


@every
@pytest.mark.parametrize("method", HALF_METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_a_wider_one(kind, method, dtype):
    """The result is that of float64 on the same numbers, rounded a few times."""
    F, v = (trees.map(lambda t: t.to(dtype), t) for t in (MAKE[kind](dtype=S), vector(1, S)))
    fn = HALF_METHODS[method]
    got = trees.leaves(fn(F, v, 0.5))
    assert {t.dtype for t in got} == {dtype}
    for s, t in zip(got, trees.leaves(fn(double(F), double(v), 0.5))):
        if t.numel():
            gap, size = (s.double() - t).abs().max(), t.abs().max()
            assert gap <= 40 * torch.finfo(dtype).eps * max(1.0, size), f"{method}: {gap} of {size}"


@pytest.mark.parametrize("rel", [1e-8, 1e-10])
def test_an_inverse_is_as_accurate_as_the_plain_formula_in_float64_too(rel):
    """Applied to (F + regul I) v it gives v back, of a rank-deficient F with a large mean."""
    g = torch.Generator().manual_seed(0)
    R = torch.randn(120, 200, generator=g).double().clamp(min=0) ** 3
    F, v = R.T @ R, torch.randn(200, generator=g).double()
    r = rel * float(torch.linalg.matrix_norm(F, 2))
    M = F + r * torch.eye(200, dtype=torch.float64)
    values, U = torch.linalg.eigh(M)
    plain = U @ ((U.T @ (M @ v)) / values)
    got = PMatDense(F, Layout.of(v)).inverse(r).mv(M @ v)
    assert (got - v).norm() <= 3 * (plain - v).norm()
