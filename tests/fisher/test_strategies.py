"""Laws that any matrix of any random network obeys, whatever its representation and estimator."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fisher import PMatQuasiDiag
from fisher.strategies import matrices, networks, vectors
from linmaps import trees
from tests.laws import close

D = torch.float64


@given(networks(max_batch=4), st.data(), st.floats(1e-3, 10.0))
def test_solve_inverts(network, data, regul):
    F, v = data.draw(matrices(network)), data.draw(vectors(network.params))
    if isinstance(F, PMatQuasiDiag):  # indefinite: a regul above its most negative eigenvalue
        regul = regul + 2 * F.norm(2).item()
    x = F.solve(v, regul)
    close(trees.axpy(regul, x, F.mv(x)), v, 1e-9 * (1 + F.trace().item() / regul), type(F).__name__)


@given(networks(max_batch=4), st.data())
def test_quadratic_forms_trace_and_diagonal_agree(network, data):
    F, v = data.draw(matrices(network)), data.draw(vectors(network.params))
    T, vector = F.to_torch(), trees.ravel(v)[0]
    scale = 1 + T.norm().item()
    close(F.vTMv(v), vector @ T @ vector, 1e-10 * scale, "vTMv")
    close(F.trace(), T.trace(), 1e-10 * scale, "trace")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-10 * scale, "diagonal")
    if not isinstance(F, PMatQuasiDiag):
        assert F.vTMv(v) >= -1e-10 * scale
