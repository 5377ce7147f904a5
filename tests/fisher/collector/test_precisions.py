"""Functions that compute a part in a coarser precision than that of params, data and outputs, as norms of language models do."""

import pytest
import torch
import torch.nn.functional as F

import fisher
from tests.fisher.collector.test_rules import randn


def norm(x, scale, coarse):
    """The norm of LLaMA and T5, whose mean is taken in a dtype of its own."""
    rounded = x.to(coarse)
    return scale * (rounded * torch.rsqrt(rounded.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def network(p, tokens, coarse):
    """Two residual blocks with a norm in front of each: the gradients of the first go through the norm of the second."""
    x = p["tokens"][tokens]
    for k in range(2):
        x = x + torch.tanh(norm(x, p[f"scale{k}"], coarse) @ p[f"in{k}"]) @ p[f"out{k}"]
    return F.linear(x, p["head"])


def params(dtype):
    sizes = {"tokens": (9, 16), "head": (5, 16)}
    for k in range(2):
        sizes |= {f"scale{k}": (16,), f"in{k}": (16, 24), f"out{k}": (24, 16)}
    return {name: randn(*size, seed=n).to(dtype) for n, (name, size) in enumerate(sizes.items())}


@pytest.mark.parametrize(
    ("dtype", "coarse"),
    [
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
)
def test_layers_before_a_norm_in_a_coarser_precision_are_found(dtype, coarse):
    p, tokens = params(dtype), torch.arange(24).reshape(4, 6) % 9
    layers = fisher.LayerCollection.from_function(lambda p, x: network(p, x, coarse), p, tokens)
    kinds = {"tokens": "embedding", "head": "linear"}
    for k in range(2):
        kinds |= {f"scale{k}": "scale", f"in{k}": "matmul", f"out{k}": "matmul"}
    assert {layer.name: layer.kind for layer in layers} == kinds, layers
