"""Maps in torch.nn.Modules: a map as a module of its own, and as the parametrization of a weight that is there.

Modules hold the params; the map stays a pure function of them.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from linmaps import trees
from linmaps.base import Map
from linmaps.checks import modules as checks
from linmaps.checks.annotations import typed
from linmaps.composed.cell import RNNCell
from linmaps.composed.recurrent import rnn
from linmaps.factorized.convolutions.conv import FactorizedConv
from linmaps.factorized.convolutions.lipschitz import LipschitzConv

Kind = TypeVar("Kind", bound=nn.Module)
Spec = Map | FactorizedConv | LipschitzConv | RNNCell
CONVOLUTIONS = (FactorizedConv, LipschitzConv)


class Module(nn.Module):
    """A map as a torch.nn.Module: its parameters are the leaves of `params`, its forward is `spec.apply`.

    Of a FactorizedConv or LipschitzConv the forward is `spec.apply_conv`, of an RNNCell `rnn(spec, params, xs, h0)`, which
    gives all states and the last; options, as `stride=2` and `batch_first=True`, are theirs.

    `weight` and `bias` are those of torch's layers.  W is computed at each call: what calls the module many times with the
    same params, as a loop over time does, takes it once, `W = layer.spec.effective_W(layer.params())`, or is an RNNCell.

    Params are `params` (copied), else drawn by `spec.init(generator)`.  Without either the seed comes from torch's global
    generator, as the weights of every torch.nn.Module do: the one place that reads it.

    TypeError for a spec that is none of these, and for an option that its function has not; ValueError for params of another
    spec.

    >>> import torch, linmaps
    >>> layer = linmaps.Module(linmaps.Orthogonal(4), torch.Generator().manual_seed(0))
    >>> net = torch.nn.Sequential(layer, torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> net, net(torch.ones(3, 4)).shape
    (Sequential(
      (0): Module(Orthogonal(in_features=4, out_features=4, bias=False, ...))
      (1): Tanh()
      (2): Linear(in_features=4, out_features=2, bias=True)
    ), torch.Size([3, 2]))
    """

    def __init__(
        self,
        spec: Spec,
        generator: torch.Generator | None = None,
        params: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        given: Any = spec
        if not isinstance(given, (Map, *CONVOLUTIONS, RNNCell)):
            raise TypeError(
                f"Module: spec is {type(given).__name__}, expected a map such as linmaps.Orthogonal(4), a FactorizedConv, a "
                "LipschitzConv or an RNNCell"
            )
        known = inspect.signature(_forward(spec)).parameters.values()
        names = [p.name for p in known if p.kind is p.KEYWORD_ONLY and p.name != "noise"]
        if unknown := sorted(set(options) - set(names)):
            raise TypeError(f"Module: got options {unknown}, expected some of {names} for {type(spec).__name__}")
        if isinstance(generator, Mapping):
            raise TypeError(
                "Module: generator is a dict, expected a torch.Generator; params go by name, Module(spec, params=params)"
            )
        if params is None:
            own = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if generator is None else generator
            params = spec.init(own)
        else:
            spec._check(params)
        self.spec, self.options = spec, options
        _registered(self, params)
        if "bias" not in self._parameters and not isinstance(spec, RNNCell):
            self.register_parameter("bias", None)

    def params(self) -> dict[str, Any]:
        """The parameters as the tree that `spec`'s functions take; not copied, so that gradients reach them."""
        return _tree(self)

    @property
    def weight(self) -> Tensor:
        """The weight as torch's layers have it: W' `[out, in]`, of a convolution the kernel `[out, in, *k]`; computed anew."""
        if isinstance(self.spec, RNNCell):
            raise AttributeError("weight: a recurrent cell has two, of spec.hidden_map and of spec.input_map")
        return _weight_of(self.spec, self.params(), ())

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        return _forward(self.spec)(self.params(), x, *args, **{**self.options, **options})

    def extra_repr(self) -> str:
        return ", ".join([repr(self.spec), *(f"{name}={value!r}" for name, value in self.options.items())])


def _forward(spec: Spec) -> Callable[..., Any]:
    """The function of params and x that a spec stands for."""
    if isinstance(spec, RNNCell):
        return functools.partial(rnn, spec)
    return spec.apply_conv if isinstance(spec, CONVOLUTIONS) else spec.apply


def _registered(module: nn.Module, params: Mapping[str, Any]) -> None:
    for name, value in params.items():
        if isinstance(value, Tensor):
            module.register_parameter(name, nn.Parameter(value.detach().clone()))
        else:
            part = nn.Module()
            _registered(part, value)
            module.add_module(name, part)


def _tree(module: nn.Module) -> dict[str, Any]:
    return dict(module.named_parameters(recurse=False)) | {name: _tree(part) for name, part in module.named_children()}


@typed
def parametrize(module: Kind, name: str, spec: Map | FactorizedConv | LipschitzConv) -> Kind:
    """Let a weight of a module, torch's [out, in, *k], be W' of a map, by torch.nn.utils.parametrize; returns the module.

    The map starts at the params whose matrix is nearest to today's weight (`spec.from_matrix`): assigning to the weight goes
    the same way.  `torch.nn.utils.parametrize.remove_parametrizations(module, name)` leaves the matrix as a plain parameter.
    The padding row of an Embedding is a row of W' as the others are.

    The weight of a convolution is that of a `FactorizedConv` or `LipschitzConv` (by `from_kernel`), or of a map of patches
    [in prod(k), out], whose promise is then about the product with a patch, not about the convolution.  Stride, padding and
    dilation stay the module's; with groups G the channels in are in / G, and the bound of a LipschitzConv holds all the same.

    ValueError for a map of other sizes, of complex matrices for a real weight, with a bias, of several layers, without leaves
    or without a closed `from_matrix`; for a LipschitzConv where the module repeats entries of x around it, or goes further
    around a circle than its kernel is wide; and for a name that is no parameter with two axes or more.

    >>> import torch, linmaps
    >>> layer = linmaps.parametrize(torch.nn.Linear(4, 4), "weight", linmaps.Orthogonal(4))
    >>> bool(torch.dist(layer.weight @ layer.weight.T, torch.eye(4)) < 1e-5)
    True
    >>> conv = linmaps.parametrize(torch.nn.Conv2d(3, 4, 3), "weight", linmaps.LipschitzConv(3, 4, (3, 3), bias=False))
    >>> conv(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 4, 6, 6])
    """
    if isinstance(spec, type):
        raise TypeError(f"spec: got the class {spec.__name__}, expected a spec of it, as {spec.__name__}(4)")
    if name in checks.parametrized(module):
        raise ValueError(
            f"{name}: is parametrized already, expected a plain parameter; torch.nn.utils.parametrize.remove_parametrizations "
            "before"
        )
    checks.check_whole(module, "module")
    weight = dict(module.named_parameters(recurse=False)).get(name)
    if weight is None or weight.ndim < 2:
        found = [n for n, t in module.named_parameters(recurse=False) if t.ndim >= 2]
        raise ValueError(f"{name}: no parameter [out, in] of {type(module).__name__}, expected one of {found}")
    _fits(name, module, weight, spec)
    if spec.bias:
        raise ValueError(f"{spec._title}: has a bias, expected a map without one; build it with bias=False")
    if isinstance(spec, Map) and spec.complex_W and not weight.is_complex():
        raise ValueError(
            f"{spec._title}: has complex matrices, expected a map of real ones for {name} of {weight.dtype}; give the module "
            "a complex dtype"
        )
    if isinstance(spec, Map) and weight.is_complex() and not (spec.complex_W or spec.complex_ready):
        raise ValueError(
            f"{spec._title}: has real matrices, expected a map of complex ones, as linmaps.Unitary, for {name} of {weight.dtype}"
        )
    params = _params_of(spec, weight.detach())
    if not trees.leaves(params):
        raise ValueError(f"{spec._title}: has no params, expected a map that can be trained")
    register_parametrization(module, name, _Weight(spec, params, tuple(weight.shape)))
    return module


def _fits(name: str, module: nn.Module, weight: Tensor, spec: Any) -> None:
    """ValueError unless a weight [out, in, *k] is one that the spec has."""
    shape = tuple(weight.shape)
    if (layers := getattr(spec, "n_layers", 1)) > 1:
        raise ValueError(f"{spec._title}: has {layers} layers, expected one; take spec.select(params, layer)[0]")
    if isinstance(spec, Map):
        sizes, flat = (spec.out_features, spec.in_features), (shape[0], math.prod(shape[1:]))
        if flat != sizes:
            what = "[out, in]" if weight.ndim == 2 else "[out, in prod(k)]"
            got = f"shape {shape}" if weight.ndim == 2 else f"shape {shape}, as a matrix {list(flat)}"
            raise ValueError(f"{name}: has {got}, expected {what} = {list(sizes)} of {spec._title}")
        return
    k = spec._sizes if isinstance(spec, LipschitzConv) else spec.kernel_size
    sizes = (spec.out_channels, spec.in_channels, *k)
    if shape != sizes:
        groups = getattr(module, "groups", 1)
        cure = f"; with groups={groups} in is in_channels / {groups}" if groups > 1 else ""
        raise ValueError(f"{name}: has shape {shape}, expected [out, in, *k] = {list(sizes)} of {spec._title}{cure}")
    if isinstance(spec, LipschitzConv):
        _repeats_nothing(name, module, spec)


def _repeats_nothing(name: str, module: nn.Module, spec: LipschitzConv) -> None:
    """ValueError where a module's padding repeats entries of x, or an output: no bound of the convolution holds there."""
    mode, padding = getattr(module, "padding_mode", "zeros"), getattr(module, "padding", "valid")
    if mode not in ("zeros", "circular"):
        raise ValueError(
            f"{name}: the module has padding_mode={mode!r}, which repeats entries of x, expected 'zeros' or 'circular', with "
            f"which the bound of {spec._title} holds; pad x before, and take the norm of that into account"
        )
    if mode == "zeros" or not isinstance(padding, tuple):  # "same", "valid"
        return
    most = [d * (k - 1) for d, k in zip(module.dilation, spec._sizes)]  # type: ignore[arg-type]
    if any(2 * p > m for p, m in zip(padding, most)):
        raise ValueError(
            f"{name}: the module has padding={padding} around a circle, which gives outputs twice, expected dilation * "
            f"(kernel - 1) / 2 = {tuple(m / 2 for m in most)} at most, with which the bound of {spec._title} holds; take "
            "padding='same'"
        )


def _params_of(spec: Any, weight: Tensor) -> Any:
    """Params of the weight [out, in, *k] nearest to a given one."""
    found = spec.from_matrix(weight.flatten(1).mT) if isinstance(spec, Map) else spec.from_kernel(weight)
    return found[0]


def _weight_of(spec: Any, params: Any, shape: tuple[int, ...]) -> Tensor:
    """The weight [out, in, *k] of params."""
    if isinstance(spec, Map):
        W: Tensor = spec.effective_W(params).mT
        return W.reshape(shape) if len(shape) > 2 else W
    kernel: Tensor = spec.kernel(params) if isinstance(spec, FactorizedConv) else spec.effective_kernel(params)
    return kernel


class _Weight(nn.Module):
    """Leaves to the weight [out, in, *k] of a map, and back."""

    def __init__(self, spec: Map | FactorizedConv | LipschitzConv, params: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        numbers = iter(range(len(trees.leaves(params))))
        self.spec, self.places, self.shape = spec, trees.map(lambda _: next(numbers), params), shape

    def forward(self, *leaves: Tensor) -> Tensor:
        return _weight_of(self.spec, _placed(self.places, leaves), self.shape)

    def right_inverse(self, weight: Tensor) -> Any:
        leaves = trees.leaves(_params_of(self.spec, weight))
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def extra_repr(self) -> str:
        return repr(self.spec)


def _placed(places: Mapping[str, Any], leaves: Sequence[Tensor]) -> dict[str, Any]:
    """Params of their leaves, each at its number, with parts that have none; plain Python, which torch.compile sees through."""
    return {k: _placed(v, leaves) if isinstance(v, dict) else leaves[v] for k, v in places.items()}
