"""KFAC factors against the hand-written lower bound, and an ensemble by vmap against a Python loop.

Bound: one forward, one backward batched over the columns, and the GEMMs of the factors; nothing else can be left out.
"""

import torch
import torch.nn.functional as F
from torch.func import vmap

import fisher
from fisher.likelihoods import Categorical
from linmaps import trees
from tests.bench.harness import race


def mlp_params(widths: list[int], generator: torch.Generator) -> dict[str, dict[str, torch.Tensor]]:
    return {
        f"layer{i}": {
            "weight": torch.randn(o, n, generator=generator) / n**0.5,
            "bias": torch.zeros(o),
        }
        for i, (n, o) in enumerate(zip(widths, widths[1:]))
    }


def mlp(params, x):
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        x = F.linear(x, layer["weight"], layer["bias"])
        if i + 1 < len(params):
            x = torch.relu(x)
    return x


def by_hand(params, x, classes=None):
    """Forward, backward over C columns of the symmetric root sqrt(p_k) (e_k - p), and two GEMMs per layer, all explicit."""
    inputs, outputs = [], []
    h = x
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        inputs.append(h)
        z = torch.addmm(layer["bias"], h, layer["weight"].T)
        outputs.append(z)
        h = torch.relu(z) if i + 1 < len(params) else z
    p = torch.softmax(h, -1)
    eye = torch.eye(p.shape[1])
    g = p.T.sqrt()[:, :, None] * (eye[:, None] - p)
    if classes is not None:
        g = g[:classes]
    batch, factors = len(x), {}
    for i in reversed(range(len(params))):
        flat = g.reshape(-1, g.shape[-1])
        a = F.pad(inputs[i], (0, 1), value=1.0)
        factors[f"layer{i}"] = (a.T @ a / batch, flat.T @ flat / batch)
        if i:
            g = (g @ params[f"layer{i}"]["weight"]) * (outputs[i - 1] > 0)
    return factors


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    params, x = mlp_params([784, 256, 256, 10], generator), torch.randn(256, 784, generator=generator)
    layers = fisher.LayerCollection.from_function(mlp, params, x)
    fim = lambda p, x: fisher.fim(mlp, p, x, fisher.PMatKFAC, layers=layers)
    for name, (A, G) in by_hand(params, x).items():
        got = fim(params, x).factors[name]
        torch.testing.assert_close(got[0], A, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[1], G, rtol=1e-4, atol=1e-6)
    for threads in (1, 2):
        race(
            "KFAC factors, MLP 784-256-256-10, batch 256, exact, C = 10",
            {
                "by hand (C columns)": lambda: by_hand(params, x),
                "by hand (C - 1 columns)": lambda: by_hand(params, x, classes=9),
                "fisher.fim, layers given": lambda: fim(params, x),
                "fisher.fim, layers found and checked": lambda: fisher.fim(mlp, params, x),
            },
            base="by hand (C columns)",
            threads=threads,
        )
    root = Categorical().root
    y = mlp(params, x)
    race("of that: columns of the root", {"root": lambda: root(y), "forward": lambda: mlp(params, x)}, base="forward")

    members = [mlp_params([20, 32, 32, 3], generator) for _ in range(16)]
    stacked, x = trees.stack(members), torch.randn(64, 20, generator=generator)
    small = fisher.LayerCollection.from_function(mlp, members[0], x)
    one = lambda p: fisher.fim(mlp, p, x, fisher.PMatKFAC, layers=small)
    race(
        "ensemble of 16 MLPs 20-32-32-3, batch 64",
        {"vmap": lambda: vmap(one)(stacked), "loop": lambda: [one(p) for p in members]},
        base="vmap",
    )


if __name__ == "__main__":
    main()
