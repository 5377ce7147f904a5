"""Our matrices equal those of nngeometry, curvlinops and BackPACK, in float64, wherever all define the same thing."""

import pytest
import torch
from torch import nn

import fisher
from fisher import PMatDense, PMatDiag, PMatEKFAC, PMatImplicit, PMatKFAC, PMatLowRank
from fisher.function_space.kernels import gram
from linmaps import trees
from tests.fisher import peers

pytestmark = pytest.mark.skipif(not peers.installed(), reason=peers.ABSENT)

D = torch.float64
REGUL = 0.1


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 4))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def embedding():
    return nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3))


INPUTS = {
    mlp: lambda g: torch.randn(8, 5, generator=g, dtype=D),
    cnn: lambda g: torch.randn(6, 2, 4, 5, generator=g, dtype=D),
    embedding: lambda g: torch.randint(7, (6, 4), generator=g),
}
ALL, PRODUCTS = [mlp, cnn, embedding], [mlp, cnn]


class Problem:
    """One network with params, data and a vector, as a pure function and as a module."""

    def __init__(self, make):
        g = torch.Generator().manual_seed(0)
        self.module = make().to(D)
        with torch.no_grad():
            for p in self.module.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=D) / p[0].numel() ** 0.5)
        self.x = INPUTS[make](g)
        self.f, self.params = peers.pure(self.module)
        self.y = self.f(self.params, self.x)
        self.t = torch.randint(self.y.shape[1], (len(self.x),), generator=g)
        self.v = {name: torch.randn(p.shape, generator=g, dtype=D) for name, p in self.params.items()}
        self.layers = fisher.LayerCollection.from_function(self.f, self.params, self.x)

    def fim(self, representation, **options):
        data = (self.x, self.t) if "estimator" in options else self.x
        return fisher.fim(self.f, self.params, data, representation, layers=self.layers, **options)

    def nng(self, representation):
        return peers.nng(self.module, self.x, representation)

    def nng_vector(self):
        return peers.nng_vector(self.v, self.module, peers.nng_layers(self.module))

    def curv(self, operator, **options):
        return peers.curv(self.module, self.x, self.t, operator, **options)

    def flat(self, tree):
        return peers.flat(tree, self.module)

    def matrix(self, F):
        """F in the flat order of the peers."""
        vector, unravel = trees.ravel(self.params)
        order = self.flat(unravel(torch.arange(vector.numel(), dtype=D))).long()
        return F.to_torch()[order][:, order]

    def joint(self):
        """Per module with a weight: (name of the layer in ours, name of the module)."""
        names = [name for name, m in self.module.named_modules() if hasattr(m, "weight")]
        return {name: next(l.name for l in self.layers if l.name.startswith(name)) for name in names}


@pytest.fixture(scope="module", params=ALL, ids=lambda make: make.__name__)
def every(request):
    return Problem(request.param)


@pytest.fixture(scope="module", params=PRODUCTS, ids=lambda make: make.__name__)
def products(request):
    return Problem(request.param)


def same(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def identity(problem):
    return torch.eye(sum(p.numel() for p in problem.params.values()), dtype=D)


# --- dense -----------------------------------------------------------------------------------------------------------


def test_dense_of_nngeometry(products):
    same(products.matrix(products.fim(PMatDense)), products.nng("PMatDense").to_torch())


def test_dense_of_curvlinops(every):
    same(every.matrix(every.fim(PMatDense)), every.curv("GGNLinearOperator") @ identity(every))


def test_empirical_of_curvlinops(every):
    want = every.curv("EFLinearOperator") @ identity(every)
    same(every.matrix(every.fim(PMatDense, estimator="empirical")), want)


# --- diagonal --------------------------------------------------------------------------------------------------------


def test_diagonal_of_nngeometry(products):
    same(products.flat(products.fim(PMatDiag).get_diag()), products.nng("PMatDiag").get_diag())


def test_diagonal_of_backpack(every):
    want = peers.pack(peers.extended(every.module), every.x, every.t, "DiagGGNExact", "diag_ggn_exact")
    got = every.fim(PMatDiag).get_diag()
    for name, t in want.items():
        same(got[name], t)


# --- Kronecker factors: each puts the numbers of positions and columns into another factor, the product is the same ----


def test_factors_of_nngeometry(products):
    ours, theirs = products.fim(PMatKFAC), products.nng("PMatKFAC").data
    for name, layer in products.joint().items():
        (A, G), (A_want, G_want) = ours.factors[layer], theirs[name]
        same(torch.kron(G, A), torch.kron(G_want, A_want))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_of_curvlinops(products, sharing):
    ours, theirs = products.fim(PMatKFAC, sharing=sharing), products.curv("KFACLinearOperator", kfac_approx=sharing)
    theirs.compute_kronecker_factors()
    for name, layer in products.joint().items():
        A, G = ours.factors[layer]
        same(torch.kron(G, A), torch.kron(theirs._gradient_covariances[name], theirs._input_covariances[name]))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_products_and_numbers_of_curvlinops(products, sharing):
    ours, theirs = products.fim(PMatKFAC, sharing=sharing), products.curv("KFACLinearOperator", kfac_approx=sharing)
    same(products.flat(ours @ products.v), theirs @ products.flat(products.v))
    same(ours.trace(), theirs.trace)
    same(ours.frobenius_norm(), theirs.frobenius_norm)


def test_damped_inverse_of_curvlinops(products):
    """Its exact damping is our default; its heuristic one, another pi, is not compared."""
    from curvlinops import KFACInverseLinearOperator

    K = products.curv("KFACLinearOperator")
    inverse = KFACInverseLinearOperator(K, damping=REGUL, use_exact_damping=True)
    got = products.flat(products.fim(PMatKFAC).solve(products.v, REGUL))
    same(got, inverse @ products.flat(products.v), 1e-10)


def test_factors_of_backpack():
    """Fully connected layers: on convolutions it scales the factors otherwise."""
    problem = Problem(mlp)
    ours = problem.fim(PMatKFAC)
    want = peers.pack(peers.extended(problem.module), problem.x, problem.t, "KFLR", "kflr")
    for name, layer in problem.joint().items():
        A, G = ours.factors[layer]
        G_want, A_want = want[f"{name}.weight"]
        same(G, G_want)
        same(A[: len(A_want), : len(A_want)], A_want)


# --- corrected eigenvalues -------------------------------------------------------------------------------------------


def test_corrected_trace_of_nngeometry(products):
    same(products.fim(PMatEKFAC).trace(), products.nng("PMatEKFAC").trace())


def test_corrected_matrix_of_curvlinops(products):
    """The bases differ in the null spaces of the factors alone, where all second moments are zero."""
    ours, theirs = products.fim(PMatEKFAC), products.curv("EKFACLinearOperator")
    same(ours.trace(), theirs.trace)
    same(products.flat(ours @ products.v), theirs @ products.flat(products.v), 1e-9)


# --- low rank, matrix-free, function space ---------------------------------------------------------------------------


def test_low_rank_of_nngeometry(products):
    ours, theirs = products.fim(PMatLowRank), products.nng("PMatLowRank")
    same(products.matrix(ours), theirs.to_torch())
    solved = theirs.solve(products.nng_vector(), regul=REGUL).to_torch()
    same(products.flat(ours.solve(products.v, REGUL, kind="range")), solved, 1e-10)


def test_implicit_of_nngeometry(products):
    want = peers.nng_product(products.nng("PMatImplicit"), products.nng_vector(), D)
    same(products.flat(products.fim(PMatImplicit).mv(products.v)), want)


def test_implicit_of_curvlinops(every):
    want = every.curv("GGNLinearOperator") @ every.flat(every.v)
    same(every.flat(every.fim(PMatImplicit).mv(every.v)), want)


def test_gram_of_nngeometry(products):
    got = gram(products.f, products.params, products.x, layers=products.layers).kernel
    same(got.permute(1, 0, 3, 2), peers.nng_gram(products.module, products.x).data)


def test_gram_of_curvlinops(every):
    operators = ("JacobianLinearOperator", "TransposedJacobianLinearOperator")
    J, transposed = (peers.curv_jacobian(every.module, every.x, every.t, name) for name in operators)
    want = J @ (transposed @ torch.eye(every.y.numel(), dtype=D))
    same(gram(every.f, every.params, every.x, layers=every.layers).to_torch(), want)
