"""geotorch's own membership tests accept our matrices, at random, large and zero params; skipped without the peer."""

import pytest
import torch

import linmaps
from linmaps import trees
from tests.linmaps import geometry_peer

GEOTORCH = geometry_peer.geotorch()
pytestmark = pytest.mark.skipif(GEOTORCH is None, reason=geometry_peer.ABSENT)
N, SIZE = 6, torch.Size((6, 6))
# our map; the manifold that it must lie in; whether W grows with the params, so that absolute tolerances need small ones
MEMBERS = {
    "so": (lambda: linmaps.Orthogonal(N), lambda: GEOTORCH.so.SO(SIZE), False),
    "so, cayley": (lambda: linmaps.Orthogonal(N, method="cayley"), lambda: GEOTORCH.so.SO(SIZE), False),
    "so, exp": (lambda: linmaps.Orthogonal(N, method="exp"), lambda: GEOTORCH.so.SO(SIZE), False),
    "stiefel": (lambda: linmaps.Orthogonal(N, 4), lambda: GEOTORCH.Stiefel(torch.Size((N, 4))), False),
    "stiefel, wide": (lambda: linmaps.Orthogonal(4, N), lambda: GEOTORCH.Stiefel(torch.Size((4, N))), False),
    "low rank": (lambda: linmaps.LowRank(N, rank=2), lambda: GEOTORCH.LowRank(SIZE, 2), True),
    "fixed rank": (lambda: linmaps.FixedRank(N, rank=2), lambda: GEOTORCH.FixedRank(SIZE, 2), True),
    "invertible": (lambda: linmaps.Invertible(N), lambda: GEOTORCH.GLp(SIZE), True),
    "invertible, bounded": (lambda: linmaps.Invertible(N, sigma_max=2.0), lambda: GEOTORCH.GLp(SIZE), False),
    "unit determinant": (lambda: linmaps.UnitDeterminant(N), lambda: GEOTORCH.SL(SIZE), True),
    "almost orthogonal": (
        lambda: linmaps.Spectral(N, sigma_min=0.9, sigma_max=1.1),
        lambda: GEOTORCH.AlmostOrthogonal(SIZE, 0.1 + 1e-9),
        False,
    ),
    "psd": (lambda: linmaps.PSD(N, eps=1e-3), lambda: GEOTORCH.PSD(SIZE), True),
    "pssd of low rank": (lambda: linmaps.PSD(N, rank=2), lambda: GEOTORCH.PSSDLowRank(SIZE, 2), True),
    "symmetric": (lambda: linmaps.Symmetric(N), lambda: GEOTORCH.Symmetric(), True),
    "skew": (lambda: linmaps.SkewSymmetric(N), lambda: GEOTORCH.Skew(SIZE), True),
    "sphere": (lambda: linmaps.UnitNorm(N, axis="in"), lambda: GEOTORCH.SphereEmbedded(SIZE), False),
    "hurwitz": (lambda: linmaps.Hurwitz(N, margin=0.5), lambda: GEOTORCH.Hurwitz(SIZE, 0.5), True),
}


@pytest.mark.parametrize("where", ["init", "normal", "signs", "zeros"])
@pytest.mark.parametrize("name", MEMBERS)
def test_its_membership_test_accepts_ours(name, where):
    make, manifold, grows = MEMBERS[name]
    spec, g = make(), torch.Generator().manual_seed(0)
    with torch.random.fork_rng():  # its base points come from the global generator
        M = manifold().double()
    size = 3.0 if grows else 50.0
    draws = {
        "init": lambda p: p,
        "normal": lambda p: size * torch.randn(p.shape, generator=g, dtype=p.dtype),
        "signs": lambda p: size * torch.randn(p.shape, generator=g, dtype=p.dtype).sign(),
        "zeros": torch.zeros_like,
    }
    for _ in range(5):
        W = spec.effective_W(trees.map(draws[where], spec.init(g, dtype=torch.float64)))
        assert M.in_manifold_eigen(W) if name == "hurwitz" else M.in_manifold(W)
        assert not name.startswith("invertible") or torch.linalg.det(W) > 0


def test_its_membership_tests_refuse_what_is_outside():
    W = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W = W * W.det().sign() * torch.eye(N, dtype=W.dtype)[0].mul(-2).add(1)  # negative determinant
    for name, (_, manifold, _) in MEMBERS.items():
        if name.startswith("stiefel"):
            continue
        with torch.random.fork_rng():
            M = manifold().double()
        X = W.index_fill(0, torch.tensor([0]), 0.0) if name.startswith("invertible") else W  # it looks at no sign
        assert not (M.in_manifold_eigen(X) if name == "hurwitz" else M.in_manifold(X)), name
