"""The picture of README: a promise that is kept, a network that knows what it does not know, a network that grows.

`python notebooks/picture.py` draws notebooks/picture.png.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, make_moons
from torch import nn

import figures
import fisher
import growth
import linmaps

STEPS, WIDTHS = 60, (2, 4, 8, 16)


def promise() -> dict[str, list[float]]:
    """|W'W - I| along Adam, of a map that is orthogonal and of a plain weight that only starts so."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(256, 64, generator=generator), torch.randn(256, 64, generator=generator)
    found = {}
    for name in ("plain weight", "linmaps.Orthogonal"):
        torch.manual_seed(0)
        layer = nn.Linear(64, 64, bias=False)
        nn.init.orthogonal_(layer.weight)
        if name != "plain weight":
            linmaps.parametrize(layer, "weight", linmaps.Orthogonal(64))
        optimizer, eye = torch.optim.Adam(layer.parameters(), lr=1e-2), torch.eye(64)
        found[name] = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.mse_loss(layer(x), t).backward()
            optimizer.step()
            W = layer.weight.detach()
            found[name].append(float((W.T @ W - eye).abs().max()))
    return found


def doubt() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two moons, and the probability of the second that the Laplace posterior gives over the plane."""
    points, t = make_moons(200, noise=0.15, random_state=0)
    x, t = torch.tensor(points, dtype=torch.float32), torch.tensor(t)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        F.cross_entropy(model(x), t).backward()
        optimizer.step()
    f, params = fisher.functional(model)
    metric = fisher.fim(f, params, (x, t), fisher.PMatDense)
    posterior = fisher.recipes.tune_prior_precision(fisher.recipes.laplace(f, params, metric, n_examples=len(x)))
    grid = torch.cartesian_prod(torch.linspace(-3, 4, 120), torch.linspace(-2.5, 3, 120))
    return x, t, posterior.probabilities(grid)[:, 1].reshape(120, 120)


def sizes() -> dict[str, list[float]]:
    """Training loss along Adam of a network that grows, and of those that have the first and the last width all along."""
    digits = load_digits()
    x, t = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    found = {}
    for name, widths in {"grown 2 to 16": WIDTHS, "2 units": WIDTHS[:1], "16 units": WIDTHS[-1:]}.items():
        torch.manual_seed(0)
        model, curve = nn.Sequential(nn.Linear(64, widths[0]), nn.Tanh(), nn.Linear(widths[0], 10)), []
        for width in widths:
            if width > widths[0]:
                model = grown(model, x, t, width - model[0].out_features)
            optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
            for _ in range(STEPS * len(WIDTHS) // len(widths)):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), t)
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
        found[name] = curve
    return found


def grown(model: nn.Module, x: torch.Tensor, t: torch.Tensor, k: int) -> nn.Module:
    """The module with k more hidden units, found in closed form, their amplitude by a search."""
    f, params = fisher.functional(model)
    pair = growth.Pair("0", "2")
    stats = growth.statistics(f, params, (x, t), pair)
    new = growth.optimal_neurons(stats, k, target="gradient", ridge=0.01)
    scale = growth.line_search(f, params, (x, t), pair, new, None).scale
    return growth.into_module(model, growth.grow(params, pair, new, scale=scale))


@figures.styled
def draw() -> Figure:
    """The three panels, side by side."""
    figure, (left, middle, right) = figures.panels(1, 3, 12, 3.5)
    for name, curve in promise().items():
        left.semilogy(range(1, STEPS + 1), curve, label=name)
    left.set(title="linmaps: a promise that is kept", xlabel="step of Adam", ylabel="max |W'W - I|")
    left.legend()
    x, t, after = doubt()
    area = middle.imshow(after.T, origin="lower", extent=(-3, 4, -2.5, 3), cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
    for c, color in enumerate((figures.BLUE, figures.ORANGE)):
        middle.scatter(*x[t == c].T, s=6, color=color, edgecolor="white", linewidth=0.3, label=f"class {c}")
    middle.set(title="fisher: doubt where there were no data", xlabel="$x_1$", ylabel="$x_2$")
    middle.grid(False)
    middle.legend(loc="lower left")
    figure.colorbar(area, ax=middle, label="probability of class 1 (Laplace)")
    for name, curve in sizes().items():
        right.semilogy(range(len(curve)), curve, label=name)
    for k in range(1, len(WIDTHS)):
        right.axvline(k * STEPS, color=figures.GREY, lw=0.8, ls=":")
    right.set(title="growth: units added in closed form", xlabel="step of Adam", ylabel="training loss (digits)")
    right.legend()
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw().savefig(Path(__file__).parent / "picture.png", dpi=110)
