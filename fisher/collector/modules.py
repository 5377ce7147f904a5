"""A torch.nn.Module as a pure function of its parameters."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fisher.checks.placements import spread
from fisher.collector.torch_layers import Follower
from linmaps.checks.annotations import typed
from linmaps.checks.modules import check_whole
from linmaps.checks.uncompiled import copied
from linmaps.trees.mappings import is_mapping

Function = Callable[[Mapping[str, Tensor], Any], Any]


@typed
def functional(module: nn.Module, *, buffers: bool = False) -> tuple[Function, dict[str, Tensor]]:
    """`(f, params)`: the module as a pure function `f(params, x)`, and its parameters, `{name: tensor}`, as detached copies.

    x: a tensor, a tuple or list (positional arguments) or a mapping (keyword arguments); as data of `fim` a tuple of inputs is
    the first of a pair, ((x1, x2), target).  f runs in the mode, train or eval, that the module has now, and never touches it:
    buffers are copies of today's, closed over.  buffers=True: those of floating numbers are leaves of params too, which
    outputs have no derivative by, as the growth of networks with batch norm wants them.  A parameter under two names is one
    leaf, the first name's.  Frozen parameters are leaves like others: for a matrix of some leaves give `fim` some layers,
    `layers.select([...])`.

    Of a module that torch.compile made, or that holds such, f is what was compiled.  Functions that a module keeps (compiled
    methods, hooks, lambdas) run on the params of f like its methods.

    Leaves may be grown or pruned: for the call, the sizes that torch's own layers keep (normalized_shape, hidden_size, the
    groups of a depthwise convolution, ...) are those of the leaves.  What a module of another class keeps stays as it is.

    TypeError for anything that is no torch.nn.Module, a program of torch.jit and a DataParallel, and for one whose parameters are
    sharded (DTensors): take f of it before, and its parameters as params at any time; ValueError for lazy layers that have seen
    no data, and of f for params that miss a name or have another.

    >>> import torch, fisher
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> f, params = fisher.functional(model)
    >>> list(params), f(params, torch.ones(4, 2)).shape
    (['0.weight', '0.bias', '2.weight', '2.bias'], torch.Size([4, 2]))
    >>> fisher.fim(f, params, torch.ones(4, 2), fisher.PMatKFAC)
    PMatKFAC(2 factored + 0 exact blocks, d = 17, 38 numbers stored, float32, cpu)
    """
    if sharded := [name for name, t in module.named_parameters() if spread(t)]:
        raise TypeError(
            f"module: its parameter {sharded[0]} is a DTensor, as fully_shard and parallelize_module leave it, expected the "
            "module before: f, _ = fisher.functional(module), then shard it, and params = dict(module.named_parameters())"
        )
    check_whole(module, "module")
    if parallel := [part for part in module.modules() if isinstance(part, nn.DataParallel)]:
        raise TypeError(
            f"module: got {type(parallel[0]).__name__}, which copies its own parameters to devices, expected the module in it: "
            "module.module"
        )
    held = {name: t.detach().clone() for name, t in module.named_buffers()}
    params = {name: t.detach().clone() for name, t in module.named_parameters()}
    if buffers:
        params |= {name: held.pop(name) for name in list(held) if held[name].is_floating_point()}
    return _Functional(_structure(module), held), params


class _Functional:
    """The function of a module: its structure, and the buffers that are no params; it can be pickled.

    Calls put params into the structure for a while, so that each thread has one of its own.
    """

    def __init__(self, module: nn.Module, held: dict[str, Tensor]) -> None:
        self._module, self._held, self._own = module, held, threading.local()
        self._training = any(part.training for part in module.modules())
        self._needed = {name for name, _ in module.named_parameters()}
        self._buffers = {name for name, _ in module.named_buffers()}
        leaves = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
        self._shapes = {name: t.shape for name, t in leaves}
        self._known = set(self._shapes)

    def __call__(self, params: Mapping[str, Tensor], x: Any) -> Any:
        _check_named(params, self._module)
        names = params.keys()
        missing, unknown = self._needed - names, names - self._known
        if missing or unknown:
            raise ValueError(
                f"params: missing {sorted(missing)[:6]}, unknown {sorted(unknown)[:6]}, expected the names of "
                f"{type(self._module).__name__}'s parameters, as fisher.functional gives them; f of some of them is "
                "layers.restricted(f, params)"
            )
        held = self._held
        if self._training:  # layers in train mode write into theirs
            held = {name: t.clone() for name, t in held.items()}
        given = {name: t.detach() if name in self._buffers else t for name, t in params.items()}
        if not hasattr(self._own, "run"):
            self._own.structure = _structure(self._module)
            self._own.run = called(self._own.structure, spread=True)
        if self._fits(given):
            return self._own.run({**held, **given}, x)
        if not hasattr(self._own, "follower"):
            self._own.follower = Follower(self._own.structure)
        with self._own.follower.following():
            return self._own.run({**held, **given}, x)

    def _fits(self, given: Mapping[str, Tensor]) -> bool:
        """Whether all leaves have the shapes that the module was made with; no call of torch that a mode would see."""
        with torch._C.DisableTorchFunction():
            return all(getattr(t, "shape", None) == self._shapes[name] for name, t in given.items())

    def __repr__(self) -> str:
        return f"functional({type(self._module).__name__})"

    def __reduce__(self) -> Any:
        return _Functional, (self._module, self._held)


def _structure(module: nn.Module) -> nn.Module:
    """A copy of the module with the same tensors, which later changes of its mode do not reach."""
    tensors = [t for part in module.modules() for t in _tensors(vars(part))]
    return copied(module, {id(t): t for t in tensors}, as_written=True)


def _tensors(kept: Any) -> list[Tensor]:
    if isinstance(kept, Tensor):
        return [kept]
    if isinstance(kept, Mapping):
        return [t for value in kept.values() for t in _tensors(value)]
    return [t for value in kept for t in _tensors(value)] if isinstance(kept, (list, tuple)) else []


def _check_named(params: Any, module: nn.Module) -> None:
    if not is_mapping(params):
        raise TypeError(
            f"params: got {type(params).__name__}, expected {{name: tensor}} by the names of {type(module).__name__}'s "
            "parameters, as fisher.functional gives them; f takes params first, then x"
        )


def called(module: nn.Module, *, spread: bool = False) -> Function:
    """`f(params, x)`: the module run with these parameters, `{name: tensor}` as `named_parameters` has them, left as it was.

    spread: a tuple or list x is positional arguments, a mapping x keyword arguments.

    A parameter that two modules share is one leaf; so is that of a module registered under two names, which torch's own
    tying of weights would replace twice and restore wrongly.

    >>> import torch
    >>> one = nn.Linear(2, 2, bias=False)
    >>> f = called(nn.ModuleDict({"a": one, "b": nn.Sequential(one, nn.Tanh())})["b"])
    >>> f({"0.weight": torch.eye(2)}, torch.zeros(1, 2))
    tensor([[0., 0.]])
    """
    first = {id(t): name for name, t in module.named_parameters()}
    known = {name: first[id(t)] for name, t in module.named_parameters(remove_duplicate=False)}
    places: dict[str, list[str]] = {}
    for prefix, part in module.named_modules():
        for own, t in part.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(first[id(t)], []).append(f"{prefix}.{own}" if prefix else own)

    alone = all(found == [name] for name, found in places.items()) and all(n == name for n, name in known.items())

    def f(params: Mapping[str, Tensor], x: Any) -> Any:
        _check_named(params, module)
        whole: dict[str, Tensor] = dict(params) if alone else {}
        for name, t in () if alone else params.items():
            shared = places.get(known.get(name, name), [name])
            whole |= {place: t for place in shared if place == name or place not in params}
        words = dict(x) if spread and isinstance(x, Mapping) else {}
        given = () if words else tuple(x) if spread and isinstance(x, (tuple, list)) else (x,)
        try:
            return functional_call(module, whole, given, words, tie_weights=False)
        except TypeError as error:
            own = inspect.signature(module.forward).parameters
            if set(words) <= set(own) or any(p.kind is p.VAR_KEYWORD for p in own.values()):
                raise
            raise TypeError(
                f"x: got a mapping with {sorted(words)}, which is keyword arguments of {type(module).__name__}.forward, expected "
                f"some of {list(own)}; give a tensor, a tuple of positional arguments, or a function f(params, x) of your own"
            ) from error

    return f
