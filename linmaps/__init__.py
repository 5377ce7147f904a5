"""Linear maps with a guarantee: free parameters in, a matrix that keeps its promise out.

A map is a frozen spec (sizes and options) beside a dict of tensors (params); its methods are pure functions of the
params, so that they compose with `torch.func.grad`, `vmap`, `jacrev`, `jacfwd` and any optimizer.

>>> import torch, linmaps
>>> spec = linmaps.Spectral(8, 5, sigma_min=0.1, sigma_max=1.0)
>>> params = spec.init(torch.Generator().manual_seed(0))
>>> spec.effective_W(params).shape
torch.Size([8, 5])
>>> y = spec.apply(params, torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
>>> bool(spec.singular_values(params).max() <= 1.0)
True

`linmaps.maps` is the registry of all maps; it prints as a table of their promises.  `linmaps.strategies` (needs
hypothesis) draws specs, params and inputs for tests.
"""

from linmaps import trees
from linmaps.base import Map
from linmaps.dense import Linear
from linmaps.interop import from_module
from linmaps.orthogonal import Orthogonal
from linmaps.registry import maps
from linmaps.spectral import Spectral
from linmaps.stochastic import RightStochastic
from linmaps.symmetric import Symmetric

__all__ = [
    "Linear",
    "Map",
    "Orthogonal",
    "RightStochastic",
    "Spectral",
    "Symmetric",
    "from_module",
    "maps",
    "trees",
]
