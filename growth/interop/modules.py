"""Grown or pruned params back into a torch.nn.Module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.optim import Optimizer

from fisher.collector.torch_layers import sizes_of
from growth.carry.carrier import Fill
from growth.carry.optimizers import swap_parameters
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.surgery.head_places import Attention
from growth.surgery.pruning import Units
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.modules import check_whole
from linmaps.checks.uncompiled import copied
from linmaps.trees import path_str
from linmaps.trees.mappings import plain

Kind = TypeVar("Kind", bound=nn.Module)


@typed
def into_module(
    module: Kind,
    params: Any,
    *,
    optimizer: Optimizer | None = None,
    pair: Pair | Heads | None = None,
    units: Units | None = None,
    fill: Fill = "zero",
    heads: Attention = None,
) -> Kind:
    """A new module like `module` with these parameters and buffers, of whatever sizes they are; the old one stays as it is.

    params: `{name: tensor}` as `fisher.functional(module)` gives them (nested dicts too), grown, pruned or trained since;
    buffers are taken from there if they are among them (`functional(module, buffers=True)`), else copied.  A parameter under
    two names is given once.  The new module computes f(params, x) of `f, _ = fisher.functional(module)`: it has the class, mode,
    hooks, order of parameters and their requires_grad of the old one, shares no memory with it or with params, and the sizes that
    torch's own layers keep (in_features, num_features, normalized_shape, ...; the groups of a depthwise convolution) and those of
    the Conv1D of transformers follow the tensors.  Sizes that modules of other classes keep are their own affair.

    optimizer: the torch.optim that steps the parameters of `module`; it then steps those of the new one, with what it remembers
    of them (`swap_parameters`: `pair`, `units` after `prune`, `fill`, `heads` are its own), and learning-rate schedulers go on.

    ValueError for names that are missing or unknown, for another number of axes (of an ensemble give one member), and for
    buffers that no longer fit; TypeError for what is no module, or for tensors inside of a transform.

    >>> import torch, fisher, growth
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> f, params = fisher.functional(model)
    >>> wider = growth.widen(params, growth.Pair("0", "2"), 2, generator=torch.Generator().manual_seed(0))
    >>> growth.into_module(model, wider)
    Sequential(
      (0): Linear(in_features=2, out_features=5, bias=True)
      (1): Tanh()
      (2): Linear(in_features=5, out_features=1, bias=True)
    )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    check_whole(module, "module")
    given = _named(params)
    _check_names(module, given)
    made = _built(module, given)
    if optimizer is None:
        return made
    live = dict(module.named_parameters())
    leaves = swap_parameters(
        optimizer, live, {n: given[n] for n in live}, pair=pair, units=units, fill=fill, heads=heads
    )
    return _built(module, given | leaves, frozenset(map(id, leaves.values())))


def _built(module: Kind, given: Mapping[str, Tensor], live: frozenset[int] = frozenset()) -> Kind:
    """The new module; tensors of `live` are its parameters as they are, all others are copied."""
    first = {id(t): name for name, t in module.named_parameters()} | {id(t): name for name, t in module.named_buffers()}
    fresh: dict[str, Tensor] = {}  # by the name whose values they are: tied ones stay tied
    places: dict[str, Tensor] = {}
    memo: dict[int, Any] = {}
    for name, t in _places(module):
        source = name if name in given else first[id(t)]
        if source not in fresh:
            own = given.get(source, t)
            fresh[source] = own if id(own) in live else _fresh(own, t, source)
        places[name] = fresh[source]
        memo.setdefault(id(t), fresh[source])
    for part in module.modules():
        memo |= {id(t): t.detach().clone() for t in _kept(part) if id(t) not in memo}
    made = copied(module, memo)
    for name, t in places.items():
        prefix, _, own_name = name.rpartition(".")
        part = made.get_submodule(prefix)
        (part._parameters if own_name in part._parameters else part._buffers)[own_name] = t  # type: ignore[assignment]
    for prefix, part in made.named_modules():
        _resized(prefix, part, module.get_submodule(prefix))
    return made


def _named(params: Any) -> dict[str, Tensor]:
    tree = plain(params)
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"params: got {type(params).__name__}, expected a dict {{name: tensor}} as of fisher.functional"
        )
    named = {path_str(path): t for path, t in zip(trees.paths(tree), trees.leaves(tree))}
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"params: {name}: got {type(t).__name__}, expected a tensor")
        if is_functorch_wrapped_tensor(t):
            raise TypeError(
                f"params: {name}: got a tensor inside of a transform (vmap, grad, ...), expected a plain one; modules hold "
                "values: call into_module outside, once per member of an ensemble"
            )
    return named


def _places(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Each place of a parameter or buffer, tied ones once per place; of modules under two names the first."""
    return [
        (f"{prefix}.{name}" if prefix else name, t)
        for prefix, part in module.named_modules()
        for held in (part._parameters, part._buffers)
        for name, t in held.items()
        if t is not None
    ]


def _check_names(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    wanted = {name for name, _ in module.named_parameters()}
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    missing, unknown = sorted(wanted - set(given)), sorted(set(given) - known)
    if missing or unknown:
        raise ValueError(
            f"params: missing {missing[:6]}, unknown {unknown[:6]}, expected the names of {type(module).__name__}'s "
            "parameters, as `f, params = fisher.functional(module)` gives them"
        )


def _fresh(t: Tensor, old: Tensor, name: str) -> Tensor:
    if t.ndim != old.ndim:
        raise ValueError(
            f"params: {name}: got shape {tuple(t.shape)}, expected {old.ndim} axes as in {tuple(old.shape)}; of an ensemble "
            "give one member (linmaps.trees.unstack)"
        )
    value = t.detach().clone()
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _kept(part: nn.Module) -> list[Tensor]:
    """Tensors that a module keeps beside parameters and buffers: deepcopy takes none with a graph."""
    return [t for t in vars(part).values() if isinstance(t, Tensor)]


def _consistent(name: str, part: nn.Module, found: Mapping[str, Any]) -> None:
    """ValueError where the tensors of a layer, or what it keeps, do not go together."""
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    outputs = next(
        (found[key] for key in ("out_features", "out_channels", "num_channels", "num_features") if key in found), None
    )
    if isinstance(bias, Tensor) and outputs is not None and len(bias) != outputs:
        raise ValueError(f"{name}.bias: has {len(bias)} entries, expected {outputs} as {name}.weight has outputs")
    kernel = getattr(part, "kernel_size", None)
    if isinstance(weight, Tensor) and isinstance(kernel, tuple) and tuple(weight.shape[2:]) != kernel:
        raise ValueError(
            f"{name}.weight: has a kernel {tuple(weight.shape[2:])}, expected {kernel}; growth changes channels"
        )
    for parts, whole in (("num_groups", "num_channels"), ("num_heads", "embed_dim")):
        n, size = found.get(parts, getattr(part, parts, 1)), found.get(whole)
        if size is not None and size % n:
            raise ValueError(f"{name}: has {whole} = {size}, expected a multiple of {parts} = {n}")
    padding = getattr(part, "padding_idx", None)
    if padding is not None and padding >= found.get("num_embeddings", padding + 1):
        raise ValueError(
            f"{name}.weight: has {found['num_embeddings']} rows, expected row padding_idx = {padding} among them"
        )


def _resized(name: str, part: nn.Module, old: nn.Module) -> None:
    """The sizes that the layer keeps are set to those of its tensors; ValueError for buffers that do not fit any more."""
    read = sizes_of(old)
    found = {} if read is None else read(part)
    _consistent(name, part, found)
    for own, t in part.named_buffers(recurse=False):
        if t.ndim == 1 and len(t) != found.get("num_features", len(t)):
            raise ValueError(
                f"{name}.{own}: has {len(t)} entries, expected {found['num_features']} as the norm has now; let it grow with "
                "the params: f, params = fisher.functional(module, buffers=True), and norm= in the pair"
            )
    for attribute, value in found.items():
        setattr(part, attribute, value)
