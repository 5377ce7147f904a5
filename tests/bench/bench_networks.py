"""KFAC of networks of real size, one sampled column: against a forward and a backward, of convolutions against a bound by hand.

Bound: one forward, one backward to the outputs of the layers, and of each layer the products of its patches and of its
output-gradients, all in plain autograd; no norms, no checks.  One thread, medians of interleaved rounds, the first of two
calls not timed; peak memory of tensors above that at the call.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fisher
from tests.bench.bench_fisher import peak
from tests.bench.harness import race
from tests.bench.networks import Network, forward_backward, gpt, lenet, resnet18, vit_tiny


def product(features: Tensor, over: int) -> Tensor:
    """Sum of t t' / over, over examples and positions of t `[B, features, S]`, the quicker of two ways."""
    if features.shape[2] >= features.shape[1]:
        return (features @ features.mT).sum(0) / over
    rows = features.mT.reshape(-1, features.shape[1])
    return rows.T @ (rows / over)


def by_hand(network: Network, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of each convolution and each linear layer at one sampled target."""
    module, _, _, x = network
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def seen(layer: Any, args: tuple[Tensor], z: Tensor) -> None:
            a = args[0].detach()
            if isinstance(layer, nn.Conv2d):
                a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            a = a if isinstance(layer, nn.Conv2d) else a.mT[None]
            if layer.bias is not None:
                a = F.pad(a, (0, 0, 0, 1), value=1.0)
            inputs[name] = product(a, len(x))
            outputs[name] = z

        return seen

    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [m.register_forward_hook(hook(n)) for n, m in layers.items()]
    y = module(x)
    for handle in handles:
        handle.remove()
    target = torch.multinomial(torch.softmax(y.detach(), -1), 1, generator=generator)[:, 0]
    loss = F.cross_entropy(y, target, reduction="sum")
    g = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values()))))
    spatial = {n: t.flatten(2) if t.ndim > 2 else t.T[None] for n, t in g.items()}
    return {n: (inputs[n], product(spatial[n], outputs[n][:, 0].numel())) for n in layers}


def races(name: str, network: Network, bound: bool) -> None:
    _, f, params, x = network
    layers = fisher.LayerCollection.from_function(f, params, x)
    draw = lambda: torch.Generator().manual_seed(0)
    ways: dict[str, Callable[[], Any]] = {"forward and backward": forward_backward(network)}
    ways["fim, layers given"] = lambda: fisher.fim(f, params, x, estimator="mc", generator=draw(), layers=layers)
    if bound:
        ways["by hand"] = lambda: by_hand(network, draw())
        made = ways["fim, layers given"]()
        for layer, (A, _) in by_hand(network, draw()).items():
            torch.testing.assert_close(made.factors[layer][0], A, rtol=1e-3, atol=1e-4)
    ways["from_function"] = lambda: fisher.LayerCollection.from_function(f, params, x)
    ways["fim, all defaults"] = lambda: fisher.fim(f, params, x, estimator="mc", generator=draw())
    ratios = race(name, ways, base="by hand" if bound else "forward and backward", rounds=7)
    gc.collect()
    print("  peak memory, MiB: " + ", ".join(f"{n} {peak(way) / 2**20:.3g}" for n, way in ways.items()))
    if bound:
        print(f"  => fim, layers given, {ratios['fim, layers given']:.2f} x the bound\n")


CELLS: dict[str, tuple[Callable[[], Network], bool]] = {
    "resnet18": (resnet18, True),
    "resnet18-cifar": (lambda: resnet18(stem="cifar"), True),
    "lenet": (lenet, True),
    "gpt": (gpt, False),
    "vit": (vit_tiny, False),
}


def main(words: tuple[str, ...] = ()) -> None:
    warnings.filterwarnings("ignore", "There is a performance drop")
    for name, (make, bound) in CELLS.items():
        if not words or name in words:
            races(name, make(), bound)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
