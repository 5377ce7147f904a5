"""Hypothesis strategies for users: small random networks with data, vectors in their parameter space.

Importing this module needs hypothesis (`pip install torchgrove[test]`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fisher import pmat
from fisher.passes.information import fim
from linmaps import trees

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "identity": lambda z: z,
}


REPRESENTATIONS: tuple[type[pmat.PMat], ...] = (
    pmat.PMatDense, pmat.PMatBlockDiag, pmat.PMatDiag, pmat.PMatQuasiDiag, pmat.PMatKFAC, pmat.PMatEKFAC, pmat.PMatLowRank,
    pmat.PMatImplicit, pmat.PMatMixed, pmat.PMatEye,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Network:
    """A pure function with params and inputs: `network.f(network.params, network.x)` is `[B, C]` or `[B, T, C]`."""

    f: Callable[[Any, Tensor], Tensor]
    params: dict[str, Any]
    x: Tensor
    describe: str

    def __repr__(self) -> str:
        return f"Network({self.describe})"


@st.composite
def networks(
    draw: Any,
    *,
    max_layers: int = 3,
    max_width: int = 4,
    max_batch: int = 5,
    activations: tuple[str, ...] = ("tanh", "softplus", "identity"),
    sequence: bool = False,
    min_outputs: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Network:
    """Multi-layer perceptrons with and without biases, written with F.linear or with `@`, on vectors or sequences.

    >>> from hypothesis import given
    >>> @given(networks())
    ... def outputs_have_one_row_per_example(network):
    ...     assert len(network.f(network.params, network.x)) == len(network.x)
    >>> outputs_have_one_row_per_example()
    """
    depth = draw(st.integers(1, max_layers))
    widths = [draw(st.integers(1, max_width)) for _ in range(depth)] + [draw(st.integers(min_outputs, max_width))]
    biased = [draw(st.booleans()) for _ in range(depth)]
    written = [draw(st.sampled_from(["linear", "matmul", "transposed"])) for _ in range(depth)]
    name = draw(st.sampled_from(activations))
    act, batch = ACTIVATIONS[name], draw(st.integers(1, max_batch))
    steps = (draw(st.integers(1, 3)),) if sequence else ()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    randn = lambda *shape: torch.randn(shape, generator=generator, dtype=dtype)
    params = {}
    for k, (i, o) in enumerate(zip(widths, widths[1:])):
        layer = {"weight": randn(i, o) if written[k] == "matmul" else randn(o, i)}
        params[f"l{k}"] = layer | ({"bias": randn(o)} if biased[k] else {})

    def f(params: Any, x: Tensor) -> Tensor:
        for k in range(depth):
            w, b = params[f"l{k}"]["weight"], params[f"l{k}"].get("bias")
            if written[k] == "linear":
                x = torch.nn.functional.linear(x, w, b)
            else:
                x = x @ (w if written[k] == "matmul" else w.T)
                x = x if b is None else x + b
            x = act(x) if k + 1 < depth else x
        return x

    return Network(
        f, params, randn(batch, *steps, widths[0]), f"{name} {widths} {written} bias {biased} batch {batch} {steps}"
    )


@st.composite
def vectors(draw: Any, params: Any) -> Any:
    """A vector in parameter space: a tree like params.

    >>> import torch
    >>> from hypothesis import given
    >>> @given(vectors({"w": torch.zeros(2)}))
    ... def vectors_have_the_shapes_of_params(v):
    ...     assert v["w"].shape == (2,)
    >>> vectors_have_the_shapes_of_params()
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return trees.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype), params)


@st.composite
def matrices(draw: Any, network: Network) -> Any:
    """A Fisher matrix of a network in any representation, by any estimator that needs no targets.

    >>> import torch
    >>> from hypothesis import given
    >>> from hypothesis import strategies as st
    >>> @given(networks(max_layers=2), st.data())
    ... def are_symmetric(network, data):
    ...     F = data.draw(matrices(network)).to_torch()
    ...     assert torch.allclose(F, F.T)
    >>> are_symmetric()
    """
    representation = draw(st.sampled_from(REPRESENTATIONS))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options = {"estimator": "mc", "generator": torch.Generator().manual_seed(draw(st.integers(0, 2**16)))}
    return fim(network.f, network.params, network.x, representation, "gaussian", **options)
