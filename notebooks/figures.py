"""The figures of the notebooks: data in, a matplotlib figure out, all in one style; `show` writes and shows it.

Here are the style, what all figures are made of, and the figures of training: the tour and growth.  Those of maps,
factorized weights and Fisher matrices are in figures_maps.py, figures_factorized.py and figures_fisher.py.
"""

import functools
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

# the colours of Okabe and Ito, which colour-blind readers tell apart
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "0.55"
STYLE = {
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.framealpha": 0.8,
    "legend.title_fontsize": 8,
    "savefig.dpi": 110,
}
OUT = Path(__file__).parent / "out"


def styled(draw: Callable) -> Callable:
    """The same function, under the style of the notebooks; no setting of matplotlib is changed for others."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


@styled
def show(figure: Figure, name: str) -> None:
    """Write the figure to notebooks/out/NAME.png; in a notebook show it, in a script say where it is."""
    OUT.mkdir(exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    few = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE)
    few.save(OUT / f"{name}.png", optimize=True)  # a third of the bytes, colours right to a twentieth
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython import display

        display.display(display.Image(OUT / f"{name}.png"))
    else:
        print(f"figure: notebooks/out/{name}.png")


def panels(rows: int, columns: int, width: float, height: float, **options):
    """A figure and its axes, [rows, columns] without axes of length one; width and height in inches."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **options)


def log_ticks(axis, *which: str, subs: Sequence[int] = (1, 2, 5)) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 times powers of ten."""
    for name in which:
        axis.set(**{f"{name}scale": "log"})
        side = getattr(axis, f"{name}axis")
        side.set_major_locator(LogLocator(subs=subs))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def ticks_at(axis, values: Sequence, labels: Sequence[str]) -> None:
    """A logarithmic horizontal axis with ticks at these values alone."""
    axis.set_xscale("log")
    axis.set_xticks(values, labels)
    axis.set_xticks([], minor=True)


def band(axis, xs, values: Tensor, label: str, **style) -> None:
    """Mean and standard deviation over the members of an ensemble, values [steps, members]."""
    middle, deviation = values.mean(1), values.std(1)
    (line,) = axis.plot(xs, middle, label=label, **style)
    axis.fill_between(xs, middle - deviation, middle + deviation, color=line.get_color(), alpha=0.2, lw=0)


# 01_tour


@styled
def tour_training(curves: dict, adam: dict, amplitudes: Tensor, previews: Tensor) -> Figure:
    """Losses of two methods, of Adam before and after growth, and of the amplitudes of the new units.

    curves: label -> [steps, members]; adam: label -> (first step, [steps, members]); previews [members, amplitudes].
    """
    figure, (left, middle, right) = panels(1, 3, 12, 3.8)
    for label, curve in curves.items():
        band(left, range(1, len(curve) + 1), curve, label)
    left.set(title="Same steps, same batches", xlabel="step", ylabel="training loss, nats")
    for label, (first, curve) in adam.items():
        tens = curve.unfold(0, 10, 10).mean(-1)
        band(middle, range(first + 5, first + 5 + 10 * len(tens), 10), tens, label)
    grown_at = max(first for first, _ in adam.values())
    middle.axvline(grown_at, color=GREY, lw=1, ls=":", label="growth step")
    middle.set(title="Adam before and after the growth step", xlabel="step of Adam", ylabel="loss of ten batches, nats")
    right.plot(amplitudes, previews.T, color=GREY, alpha=0.6, lw=1)
    right.plot([], [], color=GREY, label="each member")
    right.plot(amplitudes, previews.mean(0), color=ORANGE, label="mean")
    right.set(title="Preview of the growth step", xlabel="amplitude of the new units", ylabel="training loss, nats")
    right.set_xscale("symlog")
    right.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    log_ticks(left, "y", subs=(1, 1.5, 2, 3, 4, 6, 8))
    log_ticks(middle, "y")
    for axis in (left, middle, right):
        axis.legend()
    return figure


@styled
def tour_promise(filters: Tensor, encoder: Tensor, hidden: Tensor) -> Figure:
    """Filters [n, 8, 8] of one member, and singular values [members, n] of two layers of all members."""
    figure, (left, right) = panels(1, 2, 12, 2.9, width_ratios=(3, 2))
    tiles = torch.nn.functional.pad(filters.reshape(2, -1, 8, 8), (1, 1, 1, 1), value=torch.nan)
    limit = float(filters.abs().max())
    picture = left.imshow(tiles.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="RdBu_r", vmin=-limit, vmax=limit)
    left.set(
        title=f"The {len(filters)} orthonormal filters of the first member, 8 × 8 pixels each", xticks=[], yticks=[]
    )
    left.grid(False)
    left.spines[:].set_visible(False)
    figure.colorbar(picture, ax=left, label="weight of a pixel", shrink=0.7)
    for values, color, label in ((encoder, BLUE, "encoder (orthogonal)"), (hidden, GREY, "hidden (free)")):
        lines = right.plot(range(1, values.shape[1] + 1), values.T, ".-", color=color, alpha=0.6)
        lines[0].set_label(f"{label}, {len(values)} members")
    right.set(title="Singular values after training", xlabel="index", ylabel="singular value", ylim=(0, None))
    right.legend()
    return figure


# 05_growth


@styled
def growth_step(amplitudes: tuple, surface: Tensor, best: tuple, start: float, along: dict) -> Figure:
    """The loss over both amplitudes, and what the slopes promise.

    amplitudes: of the delta [a] and of the units [b]; surface [a, b]; along: label -> (amplitudes, decreases, slope).
    """
    figure, (left, right) = panels(1, 2, 10.5, 3.8)
    figure.get_layout_engine().set(wspace=0.06)
    drawn = left.contourf(*reversed(amplitudes), surface.clamp(max=1.5 * start), 20, cmap="viridis_r")
    figure.colorbar(drawn, ax=left, label="training loss, nats", format="%.3f")
    left.plot(best[1], best[0], "*", color="white", mec="k", ms=12, ls="", label="found by line search")
    left.set(xlabel="amplitude of the units", ylabel="amplitude of the delta", title="The loss over both amplitudes")
    left.grid(False)
    log_ticks(left, "x", "y", subs=(1,))
    left.legend(loc="lower left")
    for (label, (scales, decreases, slope)), color in zip(along.items(), COLORS):
        right.plot(scales, decreases, color=color, label=f"{label}: measured")
        right.plot(scales, scales * slope, "--", color=color, label=f"{label}: slope")
    right.set(ylim=(1e-6, 1), xlabel="amplitude", ylabel="decrease of the loss, nats", title="Slopes hold near 0")
    right.set(xscale="log", yscale="log")
    right.legend()
    return figure


@styled
def growth_digits(epochs: Sequence[int], runs: dict) -> Figure:
    """Training loss, test accuracy and width over epochs; runs: label -> (losses, scores [phases, members], widths)."""
    figure, (left, middle, right) = panels(1, 3, 12, 4.2)
    for color, (name, (losses, scores, widths)) in zip(COLORS, runs.items()):
        left.plot(epochs, losses.mean(1), "o-", color=color, label=name, ms=3)
        middle.plot(epochs, scores.mean(1), "o-", color=color, ms=3)
        middle.fill_between(epochs, scores.amin(1), scores.amax(1), color=color, alpha=0.12, lw=0)
        alike = [other for other in runs if list(runs[other][2]) == list(widths)]
        if name == alike[0]:
            what = {"color": color, "label": name} if len(alike) == 1 else {"color": "k", "label": "all that grow"}
            right.step([0, *epochs], [widths[0], *widths], where="pre", **what)
    left.set(xlabel="epoch", ylabel="training loss, nats", title="Training, mean of the members")
    middle.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.75, 1.0), title="Test, mean and range of the members")
    right.set(xlabel="epoch", ylabel="hidden units", title="Width over time")
    log_ticks(left, "y")
    right.legend()
    for axis in (left, middle, right):
        axis.set_xticks([0, *epochs])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


@styled
def growth_mnist(sizes: Sequence[int], slowly: dict, fixed: Tensor, epochs: Tensor, early: dict) -> Figure:
    """Accuracy over parameters where each size is trained, and over epochs where growth comes early."""
    figure, (left, right) = panels(1, 2, 10, 3.8)
    for color, way in zip(COLORS, slowly):
        left.plot(sizes, slowly[way], "o-", color=color, label=way, ms=4)
        right.plot(epochs, early[way], "o-", color=color, label=way, ms=4)
    left.plot(sizes, fixed, "s--", color="k", label="fixed width", ms=4)
    right.axhline(float(fixed[-1]), ls="--", color="k", label="fixed 64 after 12 epochs")
    left.set(xlabel="parameters", ylabel="test accuracy", title="Slowly: two epochs at each size")
    right.set(xlabel="epochs", ylabel="test accuracy", title="Early: a quarter of an epoch at each size")
    ticks_at(left, sizes, [f"{n:,}" for n in sizes])
    log_ticks(right, "x")
    left.legend()
    right.legend()
    return figure
