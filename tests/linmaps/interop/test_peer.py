"""The peer's own modules, where it is installed, against what from_module makes of them."""

import pytest
import torch

import linmaps
from tests.linmaps import peer
from tests.linmaps.interop.test_interop import CASES, agrees, draw

SLIM = peer.slim()
if SLIM is None:
    pytest.skip(peer.ABSENT, allow_module_level=True)


def trained(module, seed=0):
    """The module with numbers far from its init in every trainable parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.requires_grad and name not in ("sigma_min", "sigma_max"):
                p.copy_(torch.randn(p.shape, generator=generator))
            elif name == "sigma_max":
                p.mul_(1.7)
    return module


@pytest.mark.parametrize(("name", "n", "m"), [*CASES, *(("SymmetricSpectralLinear", n, n) for n in (1, 2, 4, 5))])
@pytest.mark.parametrize("bias", [False, True])
def test_modules_of_the_peer(name, n, m, bias):
    bias = {"OrthogonalLinear": True, "TrivialNullSpaceLinear": False}.get(name, bias)  # as they run
    module = trained(getattr(SLIM, name)(n, m, bias=bias).double().eval())
    agrees(module, *linmaps.from_module(module))


@pytest.mark.parametrize(("k", "l"), [(1, 1), (2, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize(("n", "m"), [(4, 4), (4, 6), (6, 4)])
def test_reflectors_of_the_peer(k, l, n, m):
    module = trained(SLIM.SpectralLinear(n, m, n_U_reflectors=k, n_V_reflectors=l, sigma_min=0.3, sigma_max=2).double())
    agrees(module, *linmaps.from_module(module))


@pytest.mark.parametrize(("n", "m"), [(4, 4), (6, 6), (5, 3), (3, 9), (8, 2)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("increasing", [False, True])
def test_butterflies_of_the_peer(n, m, tied, increasing):
    module = trained(SLIM.ButterflyLinear(n, m, bias=True, tied_weight=tied, increasing_stride=increasing).double())
    agrees(module, *linmaps.from_module(module))
    module = trained(SLIM.ButterflyLinear(n, m, complex=True, tied_weight=tied, increasing_stride=increasing))
    spec, params = linmaps.from_module(module)
    x = torch.complex(draw(1)(3, n), draw(2)(3, n)).to(torch.complex64)
    want = torch.view_as_complex(module(torch.view_as_real(x)).contiguous())
    assert torch.allclose(spec.apply(params, x), want, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("shared", [False, True])
def test_permutations_of_the_peer(shared):
    for size in (2, 4, 16):
        module = SLIM.Permutation(size, share_logit=shared).double()
        agrees(module, *linmaps.from_module(module))


def test_recurrent_cells_of_the_peer():
    for hidden_map in (SLIM.SpectralLinear, SLIM.Linear, SLIM.PerronFrobeniusLinear):
        module = trained(SLIM.RNNCell(3, 4, bias=True, hidden_map=hidden_map).double())
        cell, params = linmaps.from_module(module)
        x, h = draw(1)(5, 3), draw(2)(5, 4)
        assert torch.allclose(cell.step(params, x, h), module(x, h))


@pytest.mark.parametrize("name", ["SchurDecompositionLinear", "GershgorinLinear", "SymmetricSVDLinear"])
def test_refused_of_the_peer(name):
    with pytest.raises(ValueError, match=f"from_module: {name} has"):
        linmaps.from_module(getattr(SLIM, name)(4, 4))
