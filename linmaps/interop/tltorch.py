"""Layers of tensorly-torch, known by class name, attributes and shapes, without an import.

O, I out and in shapes, L layers.  There a matrix is [out, in], tensorized as ((L,) O, I), and a table of embeddings
[in, out], tensorized as ((L,) I, O); complex leaves are stored as real ones with a last axis of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linmaps.checks import Shape
from linmaps.checks.modules import check_untouched
from linmaps.factorized.kinds import KINDS
from linmaps.factorized.spec import Factorized
from linmaps.interop.seen import Found
from linmaps.numerics.dtypes import working_dtype

WEIGHTS = {"DenseTensorized": "dense", "CPTensorized": "cp", "TuckerTensorized": "tucker", "BlockTT": "blocktt"}
CURE = "fit its matrix [in, out] with linmaps.Factorized(...).from_matrix"


def convert(module: Any) -> Found | None:
    """Spec and params of a factorized linear layer or embedding, as detached copies; None for another module.

    A linear layer is what `spec.apply(params, x, layer)` does, an embedding `spec.rows(params, idx, layer)`; of one layer
    of several, that layer alone.  The ranks are those of the leaves, taken as they are.  A derived class is taken for its
    base, unless it has a `forward` of its own.

    ValueError for a weight that a hook changes, that is no such matrix, or that does not fit the layer's sizes; TypeError
    for a class of the same name and other attributes.

    >>> import torch
    >>> convert(torch.nn.Linear(3, 2)) is None
    True
    """
    lineage = type(module).__mro__
    for k, cls in enumerate(lineage):
        if any("forward" in vars(derived) for derived in lineage[:k]):
            return None
        if cls.__name__ in CONVERTERS:
            check_untouched(module, "from_module")
            spec, params = CONVERTERS[cls.__name__](module)
            return spec, {key: t.clone(memory_format=torch.contiguous_format) for key, t in params.items()}
    return None


def _title(module: Any) -> str:
    return f"from_module: {type(module).__name__}"


def _get(module: Any, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
    value = getattr(module, name, None)
    if not isinstance(value, kind):
        raise TypeError(
            f"{_title(module)} whose {name} is {type(value).__name__}, expected {expected}, as in tensorly-torch; {CURE}"
        )
    return value


# --- the layers ------------------------------------------------------------------------------------------------------


def _linear(module: Any) -> Found:
    weight = _weight(module)
    hooks = [*weight._forward_pre_hooks.values(), *weight._forward_hooks.values()]
    if hooks:
        names = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks)
        raise ValueError(
            f"{_title(module)} whose weight has hooks ({names}), expected none, as they change what the layer does; "
            "remove them before"
        )
    n_layers, O, I = _shapes(module, weight, "out_features", "in_features")
    leaves = _leaves(module, weight, n_layers, O, I)
    if "W" in leaves:
        leaves = {"W": leaves["W"].mT}
    implementation = _get(module, "implementation", str, "'factorized' or 'reconstructed'")
    checkpointing = bool(getattr(module, "checkpointing", False))
    options = {"implementation": implementation, "checkpointing": checkpointing}
    return _found(module, (n_layers, O, I), leaves, getattr(module, "bias", None), **options)


def _embedding(module: Any) -> Found:
    weight = _weight(module)
    n_layers, I, O = _shapes(module, weight, "num_embeddings", "embedding_dim")
    leaves = _swapped(_leaves(module, weight, n_layers, I, O), n_layers, len(I))
    return _found(module, (n_layers, O, I), leaves)


def _found(
    module: Any, sizes: tuple[int, Shape, Shape], leaves: dict[str, Tensor], bias: Any = None, **options: Any
) -> Found:
    n_layers, O, I = sizes
    factorization, rank = _factorization(module.weight), _ranks(leaves)
    options |= {"factorization": factorization, "rank": rank, "n_layers": n_layers, "compat": True}
    spec = Factorized(I, O, bias=bias is not None, **options)
    if bias is None:
        return spec, leaves
    expected = spec.shapes()["bias"]
    if not isinstance(bias, Tensor) or tuple(bias.shape) != expected:
        got = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"{_title(module)} whose bias is {got}, expected a tensor of shape {expected}; {CURE}")
    dtype = next(iter(leaves.values())).dtype
    if dtype.is_complex:  # double() changes real numbers in store, and leaves a complex bias as it is
        bias = bias.to(torch.promote_types(bias.dtype, dtype))
    return spec, leaves | {"bias": bias.detach()}


def _one_linear(module: Any) -> Found:
    return _one_of(module, "main_linear", _linear)


def _one_embedding(module: Any) -> Found:
    return _one_of(module, "main_layer", _embedding)


def _one_of(module: Any, name: str, read: Callable[[Any], Found]) -> Found:
    spec, params = read(_get(module, name, torch.nn.Module, "the layer that it is one of"))
    index = _get(module, "indices", int, "an int")
    if spec.n_layers == 1 or not -spec.n_layers <= index < spec.n_layers:
        raise ValueError(
            f"{_title(module)} whose indices is {index}, expected one of several layers; there are {spec.n_layers}"
        )
    dtype = next(iter(params.values())).dtype
    spec, chosen = spec.select({k: t.to(working_dtype(t.dtype)) for k, t in params.items()}, index)
    return spec, {k: t.to(params["bias"].dtype if k == "bias" else dtype) for k, t in chosen.items()}


CONVERTERS: dict[str, Callable[[Any], Found]] = {
    "FactorizedLinear": _linear,
    "SubFactorizedLinear": _one_linear,
    "FactorizedEmbedding": _embedding,
    "SubFactorizedEmbedding": _one_embedding,
}


# --- their weights, of rows and columns ------------------------------------------------------------------------------


def _weight(module: Any) -> torch.nn.Module:
    weight: torch.nn.Module = _get(module, "weight", torch.nn.Module, "a factorized matrix")
    if type(weight).__name__.removeprefix("Complex") not in WEIGHTS:
        raise ValueError(
            f"{_title(module)} whose weight is a {type(weight).__name__}, expected one of {[*WEIGHTS]}, or of these with "
            f"the prefix Complex; {CURE}"
        )
    return weight


def _factorization(weight: torch.nn.Module) -> str:
    return WEIGHTS[type(weight).__name__.removeprefix("Complex")]


def _shapes(module: Any, weight: torch.nn.Module, rows_name: str, columns_name: str) -> tuple[int, Shape, Shape]:
    """Number of layers, shapes of rows and columns: the weight's own, which a layer made of a given weight may contradict."""
    n_layers = _get(module, "n_layers", int, "an int")
    given = _get(weight, "tensorized_shape", (tuple, list), "a tuple of shapes")
    parts = [tuple(map(int, part)) if isinstance(part, (tuple, list)) else (int(part),) for part in given]
    lead = [(n_layers,)] if n_layers > 1 else []
    if len(parts) != len(lead) + 2 or parts[:-2] != lead:
        raise ValueError(
            f"{_title(module)} of {n_layers} layers whose weight has the shape {given}, expected the shapes of rows and "
            f"columns, and before them the number of layers where there are several; {CURE}"
        )
    rows, columns = parts[-2:]
    for name, shape in ((rows_name, rows), (columns_name, columns)):
        size = getattr(module, name, None)
        if size != math.prod(shape):
            raise ValueError(
                f"{_title(module)} whose {name} is {size}, expected {math.prod(shape)}, as its weight has the shape {shape}; "
                "make it with the shapes of its weight"
            )
    if _factorization(weight) == "blocktt" and len(rows) != len(columns):
        raise ValueError(
            f"{_title(module)} whose {type(weight).__name__} has the shapes {rows} and {columns}, expected as many modes in "
            "both: it has no matrix; train a linmaps.Factorized with shapes padded by ones"
        )
    return n_layers, rows, columns


def _leaves(module: Any, weight: torch.nn.Module, n_layers: int, rows: Shape, columns: Shape) -> dict[str, Tensor]:
    """Leaves with the modes in the order of the weight, rows first; "W" as [(L,) rows, columns]."""
    name, factorization = type(weight).__name__, _factorization(weight)
    stored = dict(weight.named_buffers()) | dict(weight.named_parameters(remove_duplicate=False))

    def read(key: str) -> Tensor:
        if key not in stored:
            raise TypeError(f"{_title(module)} whose {name} has no tensor {key}, as in tensorly-torch; {CURE}")
        t = stored[key].detach()
        if not name.startswith("Complex"):
            return t
        if t.is_complex() or t.shape[-1:] != (2,):
            raise TypeError(
                f"{_title(module)} whose {name} has {key} of {t.dtype} and shape {tuple(t.shape)}, expected real numbers "
                f"with a last axis of 2, as in tensorly-torch; {CURE}"
            )
        return torch.view_as_complex(t.to(working_dtype(t.dtype)).contiguous())

    def factors(prefix: str) -> dict[str, Tensor]:
        keys = _get(_get(weight, "factors", torch.nn.Module, "a list of tensors"), "keys", list, "a list of names")
        return {f"{prefix}{k}": read(f"factors.{key}") for k, key in enumerate(keys)}

    lead = (n_layers,) if n_layers > 1 else ()
    if factorization == "dense":
        leaves, expected = {"W": read("tensor")}, {"W": (*lead, math.prod(rows), math.prod(columns))}
        if leaves["W"].shape == (*lead, *rows, *columns):  # where it was set from a given matrix
            leaves["W"] = leaves["W"].reshape(expected["W"])
    else:
        first = {"cp": "weights", "tucker": "core"}.get(factorization)
        leaves = factors("A") if first is None else {first: read(first)} | factors("U")
        n = len(rows) if first is None else 1 + len(lead + rows + columns)
        expected = KINDS[factorization].shapes(_ranks(leaves), n_layers, rows, columns) if len(leaves) == n else {}
    got = {k: tuple(t.shape) for k, t in leaves.items()}
    if got != expected:
        wanted = expected or f"{n} of them"
        raise TypeError(
            f"{_title(module)} whose {name} has leaves {got}, expected {wanted}, as in tensorly-torch; {CURE}"
        )
    return leaves


def _ranks(leaves: dict[str, Tensor]) -> Any:
    first, *others = leaves.items()
    name, t = first
    if name == "A0":
        return (1, *(core.shape[0] if core.ndim else 0 for _, core in others), 1)
    return {"W": "same", "weights": t.numel(), "core": tuple(t.shape)}[name]


def _swapped(leaves: dict[str, Tensor], n_layers: int, n_rows: int) -> dict[str, Tensor]:
    """The same tensor with the modes of columns before those of rows; "W" is [(L,) in, out] already."""
    lead = int(n_layers > 1)
    if "W" in leaves:
        return leaves
    if "A0" in leaves:
        return {k: t.transpose(1 + lead, 2 + lead) for k, t in leaves.items()}
    (first, t), *factors = leaves.items()
    modes = [*range(lead), *range(lead + n_rows, len(factors)), *range(lead, lead + n_rows)]
    core = t.permute(modes) if first == "core" else t
    return {first: core} | {f"U{k}": factors[j][1] for k, j in enumerate(modes)}
