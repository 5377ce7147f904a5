"""Figures of torch.nn.Modules: calibration, error bars, two tasks, wrong labels, a stable cell, growth beside an optimizer."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from figures import BLUE, COLORS, GREEN, GREY, ORANGE, log_ticks, panels, styled


@styled
def module_calibration(ways: dict) -> Figure:
    """Accuracy over confidence, and how often each confidence is; ways: label -> (confidence, accuracy, share) [bins]."""
    figure, (left, right) = panels(1, 2, 10, 3.8)
    left.plot([0, 1], [0, 1], ":", color="k", label="calibrated")
    edges = torch.linspace(0, 1, len(next(iter(ways.values()))[2]) + 1)
    for (label, (confidence, accuracy, share)), color, marker in zip(ways.items(), (ORANGE, BLUE, GREEN), "os^"):
        full = share > 0
        left.plot(confidence[full], accuracy[full], marker + "-", color=color, label=label, ms=4)
        right.stairs(share, edges, color=color, label=label, lw=1.5)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence, mean of a bin", ylabel="accuracy of a bin")
    left.set_title("Digits turned by 40°: is confidence accuracy?")
    right.set(
        xlim=(0, 1),
        xlabel="confidence, bins of 0.1",
        ylabel="share of the images",
        title="How often each confidence is",
    )
    left.legend(loc="upper left")
    right.legend(loc="upper left")
    return figure


@styled
def module_error_bars(grid: Tensor, law: Tensor, curves: dict) -> Figure:
    """A panel for each of curves: name -> ((x, y) of the points, mean [n], variance of targets [n] at the grid)."""
    figure, axes = panels(1, 3, 12, 3.6)
    for axis, (name, ((x, y), mean, variance)) in zip(axes, curves.items()):
        sigma = variance.sqrt()
        axis.fill_between(grid, mean - 2 * sigma, mean + 2 * sigma, color=BLUE, alpha=0.15, lw=0, label="two sigma")
        axis.plot(grid, mean, color=BLUE, label="prediction")
        axis.plot(grid, law, ":", color="k", label="law")
        axis.plot(x.flatten(), y.flatten(), ".", color=ORANGE, ms=4, label="points")
        axis.set(xlabel="x", ylim=(-4, 4), title=name)
    axes[0].set_ylabel("y")
    axes[0].legend(loc="lower right")
    return figure


@styled
def module_two_tasks(curves: dict, strengths: Sequence[float], plain: tuple, at_once: tuple) -> Figure:
    """Accuracy in the second task over that in the first; curves: metric -> [(first, second)], a point per strength."""
    figure, axis = panels(1, 1, 6.5, 4.2)
    for (name, points), color, marker, side in zip(curves.items(), (ORANGE, BLUE), "^o", ((-6, -10), (5, 5))):
        firsts, seconds = zip(*points)
        axis.plot(firsts, seconds, marker + "-", color=color, label=f"penalty by the {name} Fisher matrix", ms=5)
        for strength, point in zip(strengths, points):
            axis.annotate(f"{strength:g}", point, xytext=side, textcoords="offset points", color=color, fontsize=7)
    axis.plot(*plain, "x", color="k", ms=8, mew=2, ls="", label="no penalty")
    axis.plot(*at_once, "*", color=GREEN, ms=12, ls="", label="both tasks at once")
    axis.margins(0.08)
    axis.set(xlabel="test accuracy, first task", ylabel="test accuracy, second task (pixels moved)")
    axis.set_title("After the second task; numbers: strength of the penalty")
    axis.legend(loc="lower left")
    return figure


@styled
def module_wrong_labels(rankings: dict, flipped: Tensor, shown: tuple) -> Figure:
    """Precision among the first k of each ranking, early and late, and the images most suspected.

    rankings: when -> way -> scores [N], the highest first; flipped [N]; shown: images [n, 1, 8, 8], given, true labels [n].
    """
    figure = Figure(figsize=(12, 3.8))
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    for axis, (when, ways) in zip(left.subplots(1, len(rankings), sharey=True), rankings.items()):
        for (way, score), color in zip(ways.items(), (GREY, ORANGE, BLUE)):
            hits = flipped[score.argsort(descending=True)].float().cumsum(0)
            k = torch.arange(1, 2 * int(flipped.sum()) + 1)
            axis.plot(k, hits[: len(k)] / k, color=color, label=f"by {way}")
        axis.axvline(int(flipped.sum()), color="k", lw=0.8, ls=":", label="number of wrong labels")
        axis.set(
            xlabel="images looked at",
            ylim=(0, 1.05),
            title={"early": "After 15 epochs", "late": "After 100 epochs"}[when],
        )
    left.axes[0].set_ylabel("share of wrong labels among them")
    left.axes[0].legend(loc="lower left")
    for axis, image, label, truth in zip(right.subplots(3, 4).flat, *shown):
        axis.imshow(image[0], cmap="gray_r")
        axis.set_title(f"label {label}, is {truth}", fontsize=8, color="k" if label == truth else ORANGE)
        axis.set_axis_off()
    right.suptitle("Most harmful to the held-out images, late", fontsize=10)
    return figure


@styled
def module_stable_cell(radii: dict, rollouts: dict, clean: Tensor, ahead: int) -> Figure:
    """Spectral radii [seeds, steps] in training, and one signal [time] rolled out far beyond the steps trained on."""
    figure, (left, right) = panels(1, 2, 12, 3.8)
    for (name, values), color in zip(radii.items(), (ORANGE, BLUE, GREEN)):
        lines = left.plot(range(0, 10 * values.shape[1], 10), values.T, color=color, lw=1)
        lines[0].set_label(name)
    left.axhline(1, color="k", lw=0.8, ls=":", label="1")
    left.set(xlabel="step of Adam", ylabel="spectral radius of the hidden map", title="Three seeds of each map")
    left.set_ylim(0.5, None)
    right.axvspan(0, ahead, color="0.9", label="steps trained on")
    for (name, values), color in zip(rollouts.items(), (ORANGE, BLUE, GREEN)):
        right.plot(range(1, len(values) + 1), values.abs(), color=color, lw=1, label=name)
    right.plot(range(1, len(clean) + 1), clean.abs(), color="k", lw=0.8, ls=":", label="signal without noise")
    right.set(
        xlabel="step of the rollout",
        ylabel="absolute value of the output",
        title="One signal, the seed with the largest radius",
    )
    right.set(yscale="log", ylim=(1e-6, 1e3), xscale="log")
    log_ticks(right, "x", subs=(1,))
    left.legend(loc="lower right")
    right.legend(loc="lower left")
    return figure


@styled
def module_growth(curves: dict, grow_at: int) -> Figure:
    """Training losses [seeds, epochs] of each way, as mean and range of the seeds."""
    figure, axis = panels(1, 1, 7, 4)
    for (name, values), color in zip(curves.items(), COLORS):
        epochs = range(1, values.shape[1] + 1)
        axis.plot(epochs, values.mean(0), "o-", color=color, label=name, ms=3)
        axis.fill_between(epochs, values.amin(0), values.amax(0), color=color, alpha=0.12, lw=0)
    axis.axvline(grow_at, color=GREY, lw=1, ls=":", label="growth")
    axis.set(xlabel="epoch", ylabel="training loss, nats", title="Mean and range of three seeds")
    axis.set_xticks(range(0, values.shape[1] + 1, 2))
    log_ticks(axis, "y")
    axis.legend()
    return figure
