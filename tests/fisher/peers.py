"""The peers of Fisher matrices: nngeometry 0.4, curvlinops 3.0.1, BackPACK 1.7.1; tests and benches compare with them.

They are optional and never a requirement.  Each takes a torch.nn.Module and one batch x `[B, *in]`, targets t `[B]`; all
matrices are of the cross-entropy of its logits, mean over the batch, with their own checks and their re-collation off.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

ABSENT = (
    "needs the peers: pip install --no-deps --target DIR nngeometry==0.4 curvlinops-for-pytorch==3.0.1 "
    "backpack-for-pytorch==1.7.1 einops einconv unfoldNd linear_operator opt_einsum, and TORCHGROVE_PEERS=DIR"
)
NEEDS = {
    "nngeometry": (),
    "backpack": ("einops", "unfoldNd"),
    "curvlinops": ("einops", "einconv", "linear_operator", "unfoldNd", "backpack", "scipy"),
}


@functools.cache
def load(name: str) -> Any:
    """The package of this name, or None where it or what it needs is not installed."""
    for directory in filter(None, os.environ.get("TORCHGROVE_PEERS", "").split(os.pathsep)):
        if (pathlib.Path(directory) / name).is_dir() and directory not in sys.path:
            sys.path.append(directory)
    if any(importlib.util.find_spec(need) is None for need in (name, *NEEDS.get(name, ()))):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def installed() -> bool:
    return all(load(name) is not None for name in NEEDS)


# --- a module as a pure function -------------------------------------------------------------------------------------


def pure(module: torch.nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """`f(params, x)` and the params of a module, by name."""
    own = copy.deepcopy(module)  # the peers put hooks into theirs
    f = lambda p, x: functional_call(own, p, (x,))
    return f, {name: t.detach().clone() for name, t in module.named_parameters()}


def flat(tree: dict[str, Tensor], module: torch.nn.Module) -> Tensor:
    """A vector by name in the flat order of the peers: that of the module's parameters."""
    return torch.cat([tree[name].reshape(-1) for name, _ in module.named_parameters()])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Peers make constants in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- nngeometry ------------------------------------------------------------------------------------------------------


class Whole(DataLoader):
    """The batch as it is; the peer's own loader would index and stack it again at each pass."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield tuple(t.detach() for t in self.dataset.tensors)  # type: ignore[attr-defined]


def nng_layers(module: torch.nn.Module) -> Any:
    load("nngeometry")
    return importlib.import_module("nngeometry.layercollection").LayerCollection.from_model(module)


def nng(module: torch.nn.Module, x: Tensor, representation: str, layers: Any = None) -> Any:
    """The exact Fisher in the representation of this name; PMatEKFAC with its diagonal updated."""
    load("nngeometry")
    metrics, objects = (importlib.import_module(f"nngeometry.{n}") for n in ("metrics", "object"))
    loader = Whole(TensorDataset(x), batch_size=len(x))
    with default_dtype(x.dtype):
        F = metrics.FIM(module, loader, getattr(objects, representation), layer_collection=layers)
        if representation == "PMatEKFAC":
            F.update_diag(loader)
    return F


def nng_gram(module: torch.nn.Module, x: Tensor, layers: Any = None) -> Any:
    """Its `data` is `[C, B, C, B]`."""
    load("nngeometry")
    gram = importlib.import_module("nngeometry.gram").GramMatrix
    with default_dtype(x.dtype):
        return gram(module, Whole(TensorDataset(x), batch_size=len(x)), layer_collection=layers)


def nng_product(F: Any, v: Any, dtype: torch.dtype) -> Tensor:
    """F v of a vector `nng_vector`, flat."""
    with default_dtype(dtype):
        return F.mv(v).to_torch()


def nng_vector(v: dict[str, Tensor], module: torch.nn.Module, layers: Any) -> Any:
    load("nngeometry")
    return importlib.import_module("nngeometry.object").PVector(layers, vector_repr=flat(v, module))


# --- curvlinops ------------------------------------------------------------------------------------------------------


def curv(module: torch.nn.Module, x: Tensor, t: Tensor, operator: str, **options: Any) -> Any:
    """The operator of this name; of KFAC and EKFAC the exact one, weight and bias jointly, not yet computed."""
    peer = load("curvlinops")
    if operator.startswith(("KFAC", "EKFAC")):
        options = {
            "fisher_type": peer.FisherType.TYPE2,
            "separate_weight_and_bias": False,
            "num_per_example_loss_terms": 1,
            **options,
        }
    loss = torch.nn.CrossEntropyLoss()
    data, params = [(x, t)], [p for p in module.parameters() if p.requires_grad]
    return getattr(peer, operator)(module, loss, params, data, check_deterministic=False, num_data=len(x), **options)


def curv_jacobian(module: torch.nn.Module, x: Tensor, t: Tensor, operator: str) -> Any:
    """JacobianLinearOperator, TransposedJacobianLinearOperator: of the logits `[B C]`, examples outside."""
    params = [p for p in module.parameters() if p.requires_grad]
    peer = load("curvlinops")
    return getattr(peer, operator)(module, params, [(x, t)], check_deterministic=False, num_data=len(x))


# --- BackPACK --------------------------------------------------------------------------------------------------------


def extended(module: torch.nn.Module) -> Any:
    """(module, loss) as the peer wants them, made once."""
    peer = load("backpack")
    return peer.extend(copy.deepcopy(module)), peer.extend(torch.nn.CrossEntropyLoss())


def pack(pair: Any, x: Tensor, t: Tensor, extension: str, field: str) -> dict[str, Any]:
    """What the extension of this name leaves at each parameter."""
    peer, extensions = load("backpack"), importlib.import_module("backpack.extensions")
    module, loss = pair
    with default_dtype(next(module.parameters()).dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that no input requires a gradient
        with peer.backpack(getattr(extensions, extension)()):
            loss(module(x), t).backward()
    found = {name: getattr(p, field) for name, p in module.named_parameters()}
    for p in module.parameters():
        delattr(p, field)
        p.grad = None
    return found
