"""The guide resolves: each name on our side, each argument and option it mentions."""

import inspect
import re

import pytest

import linmaps
from linmaps import factorized

ROWS = linmaps.interop.coming_from("tensorly-torch").rows
THEIRS = [
    "FactorizedLinear",
    "FactorizedEmbedding",
    "FactorizedConv",
    "TRL",
    "TCL",
    "CPTensor",
    "TTTensor",
    "TuckerTensor",
    "DenseTensor",
    "CPTensorized",
    "BlockTT",
    "DenseTensorized",
    "TuckerTensorized",
    "tensor_lasso",
    "remove_tensor_lasso",
    "tensor_dropout",
    "remove_tensor_dropout",
    "tensor_init",
    "cp_init",
    "tucker_init",
    "tt_init",
    "get_tensorized_shape",
    "from_linear",
    "from_linear_list",
    "from_embedding",
    "from_conv",
    "get_linear",
    "to_matrix",
    "checkpointing",
    "n_layers",
    "implementation",
    "factorization",
    "rank",
    "decomposition_kwargs",
]


def found(path):
    """linmaps.path or linmaps.factorized.path."""
    thing = linmaps if hasattr(linmaps, path.split(".")[0]) else factorized
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def test_every_public_name_of_theirs_has_a_row():
    left = " ".join(theirs for theirs, _ in ROWS)
    assert not [name for name in THEIRS if not re.search(rf"\b{name}\b", left)]


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[r[0] for r in ROWS])
def test_row_resolves(theirs, ours):
    names = re.findall(
        r"\b((?:Factorized|FactorizedConv|Kronecker)(?:\.\w+)?|\w+_\w+|factorize|torch\.func\.vmap)\b", ours
    )
    ours_by_name = [n for n in names if not n.startswith("torch.") and f"{n}=" not in ours]
    inside = " ".join(re.findall(r"\(([^)]*)\)", ours))
    names = [n for n in ours_by_name if not re.search(rf"\b{re.escape(n)}\b", inside)]
    assert names, "a row names something of ours"
    for name in names:
        assert found(name) is not None
    for name, arguments in re.findall(r"([\w.]+)\(([^)]*)\)", ours):
        options = inspect.signature(found(name)).parameters
        for argument in filter(None, (a.strip() for a in arguments.split(","))):
            assert argument.removesuffix("=") in options, f"{name} has no argument {argument}"
