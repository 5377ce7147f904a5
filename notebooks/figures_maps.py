"""Figures of structured maps: spectra over the sets that they promise, the lasso, identified systems, certificates, densities."""

import math
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Annulus, Circle, Patch
from torch import Tensor

from figures import BLUE, GREEN, GREY, ORANGE, PINK, log_ticks, panels, styled

SHADE = {"facecolor": GREEN, "alpha": 0.2, "lw": 0, "zorder": 1}
LINE = {"color": GREEN, "alpha": 0.45, "lw": 5, "zorder": 1, "solid_capstyle": "butt"}


def disc(radius: float, center: float = 0.0) -> Callable:
    """The disc around a real number."""
    return lambda axis: axis.add_patch(Circle((center, 0), radius, **SHADE))


def circle(axis) -> None:
    """The unit circle."""
    axis.add_patch(Circle((0, 0), 1, fill=False, ec=GREEN, alpha=0.45, lw=5))


def annulus(low: float, high: float) -> Callable:
    """Moduli between two numbers."""
    return lambda axis: axis.add_patch(Annulus((0, 0), high, high - low, **SHADE))


def real(low: float = -99.0, high: float = 99.0) -> Callable:
    """An interval of the real axis."""
    return lambda axis: axis.plot([low, high], [0, 0], **LINE)


def imaginary(axis) -> None:
    """The imaginary axis."""
    axis.plot([0, 0], [-99, 99], **LINE)


def strip(low: float, high: float) -> Callable:
    """Real parts, or singular values, between two numbers."""
    return lambda axis: axis.axvspan(low, high, **SHADE)


def line(value: float) -> Callable:
    """One number."""
    return lambda axis: axis.plot([value, value], [-9, 9], **LINE)


def root(low: float, high: float) -> Callable:
    """The unit disc, and an interval on the real axis for the Perron root."""

    def region(axis) -> None:
        disc(high)(axis)
        width = 0.03 if low == high else 0.0
        axis.plot([low - width, high + width], [0, 0], color=GREEN, lw=10, alpha=0.8, solid_capstyle="butt")

    return region


def nowhere(axis) -> None:
    """The promise is no set of eigenvalues."""


def singular_values(axis, panel) -> None:
    """Singular values, or what else is measured, on a line for each kind of matrix."""
    kinds = ((panel.targets, "x", GREY, 14), (panel.W("random"), ".", BLUE, 16), (panel.W("trained"), "D", ORANGE, 15))
    for row, (W, marker, color, area) in enumerate(kinds):
        values = panel.measure(W)
        lane = torch.linspace(-0.3, 0.3, len(W))[:, None].expand_as(values) + 2 - row
        axis.scatter(values, lane, area, color, marker=marker, lw=0.8 if marker == "x" else 0, alpha=0.7, zorder=2)
    axis.set(xlim=(0, panel.frame), ylim=(-0.6, 2.6), xlabel=panel.measured, ylabel="matrix")
    axis.set_yticks([0, 1, 2], ["trained", "random", "target"], rotation=90, va="center")


def eigenvalues(axis, panel) -> None:
    """Eigenvalues in the plane, with rings where the promise says that the trained ones have partners."""
    kinds = ((panel.targets, "x", GREY, 14), (panel.W("random"), ".", BLUE, 16), (panel.W("trained"), "D", ORANGE, 15))
    for W, marker, color, area in kinds:
        z = torch.linalg.eigvals(W).flatten()
        alpha = 0.5 if marker == "." else 0.9
        axis.scatter(z.real, z.imag, area, color, marker=marker, lw=0.8 if marker == "x" else 0, alpha=alpha, zorder=2)
    if panel.partner is not None:
        rings = panel.partner(panel.W("trained")).flatten()
        axis.scatter(rings.real, rings.imag, 55, "none", edgecolors="k", lw=0.8, zorder=3)
    axis.axhline(0, color="0.8", lw=0.6, zorder=0)
    axis.axvline(0, color="0.8", lw=0.6, zorder=0)
    f = panel.frame
    axis.locator_params(nbins=5)
    axis.set(xlim=(-f, f), ylim=(-f, f), aspect="equal", xlabel="real part", ylabel="imaginary part")


@styled
def spectra(shown: Sequence, columns: int) -> Figure:
    """One axis for each panel: title, region, frame (half width), singular, partner, targets and W(which)."""
    rows = -(-len(shown) // columns)
    figure, axes = panels(rows, columns, 3.1 * columns, 3.2 * rows + 0.4, squeeze=False)
    figure.get_layout_engine().set(h_pad=0.1)
    for panel, axis in zip(shown, axes.flat):
        panel.region(axis)
        (singular_values if panel.singular else eigenvalues)(axis, panel)
        axis.set_title(panel.title)
        axis.grid(False)
        if axis.get_subplotspec().colspan.start:
            axis.set_ylabel("")
    marks = [
        Line2D([], [], ls="", marker=".", color=BLUE, label="random inits"),
        Line2D([], [], ls="", marker="D", ms=4, color=ORANGE, label="trained towards a target outside"),
        Line2D([], [], ls="", marker="x", ms=4, color=GREY, label="the targets"),
        Patch(color=GREEN, alpha=0.3, label="promised set"),
    ]
    if any(panel.partner for panel in shown):
        marks[-1] = Line2D([], [], ls="", marker="o", mfc="none", color="k", label="promised partners of the trained")
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return figure


@styled
def patterns(shown: dict[str, Tensor]) -> Figure:
    """Matrices [in, out] by title, entry by entry, each with colours of its own size."""
    figure, axes = panels(1, len(shown), 3.1 * len(shown), 3.0)
    for (title, W), axis in zip(shown.items(), axes):
        limit = float(W.abs().max())
        drawn = axis.imshow(W, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(title=title, xlabel="out", ylabel="in", xticks=[], yticks=[])
        axis.grid(False)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    return figure


@styled
def maps_certified(found: dict, radii: Sequence[float]) -> Figure:
    """Certified accuracy over the radius, and accuracy under attack at some radii, by network."""
    figure, axis = panels(1, 1, 8, 3.8)
    grid = torch.logspace(-3, math.log10(max(radii)), 300)
    for color, (name, (certified, left)) in zip((BLUE, ORANGE), found.items()):
        axis.plot(grid, (certified > grid[:, None]).double().mean(1), color=color, label=f"{name}: proved")
        axis.plot(radii, left, "v--", color=color, ms=5, lw=0.8, label=f"{name}: left by the attack")
    axis.set(xlabel="radius (pixels from 0 to 1, Euclidean)", ylabel="accuracy on test digits", ylim=(0, 1.02))
    axis.set_xscale("log")
    axis.set_title("What is proved, and what an attack leaves")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def maps_densities(found: dict[str, Tensor], side: Tensor, points: Tensor) -> Figure:
    """Densities [x, y] on a square grid by name, one colour scale up to the largest of the last, and some points."""
    figure, axes = panels(1, len(found), 2.6 * len(found) + 0.6, 2.2)
    top = float(list(found.values())[-1].max())
    for (name, density), axis in zip(found.items(), axes):
        axis.label_outer()
        drawn = axis.pcolormesh(side, side, density.T, vmin=0, vmax=top, cmap="viridis", shading="nearest")
        axis.scatter(*points[:150].T, 1.5, "w", lw=0, alpha=0.6)
        axis.set(title=name, xlim=(-1.7, 2.7), ylim=(-1.2, 1.7), xlabel="x", ylabel="y", aspect="equal")
        axis.grid(False)
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01, label="density", extend="max")
    return figure


@styled
def maps_lasso(gammas: Tensor, path: Tensor, free: Tensor, names: Sequence[str], errors: Tensor, free_error) -> Figure:
    """Coefficients [gammas, features] with those without penalty, and exact zeros and test errors [gammas]."""
    figure, (left, right) = panels(1, 2, 11, 3.8, width_ratios=(3, 2))
    hues = dict(zip(free.abs().argsort(descending=True).tolist(), (BLUE, ORANGE, GREEN, PINK, "k")))
    for i, name in enumerate(names):
        style = {"color": hues.get(i, "0.75"), "zorder": 3 if i in hues else 1}
        left.plot(gammas, path[:, i], ".-", label=name if i in hues else None, **style)
        left.plot(gammas[0] / 1.6, free[i], "_", ms=14, mew=2, **style)
    left.axhline(0, color="0.6", lw=0.6)
    left.legend(title="largest without penalty")
    left.set(xlabel="gamma (bars at the left: Linear, no penalty)", ylabel="coefficient", title="The path of the lasso")
    zeros = right.plot(gammas, (path == 0).sum(1), ".-", color=BLUE, label="exact zeros")
    right.set(xlabel="gamma", title="Exact zeros and test error", ylim=(-0.3, 10.3))
    right.set_ylabel("exact zeros of ten coefficients", color=BLUE)
    other = right.twinx()
    other.spines["right"].set_visible(True)
    other.grid(False)
    lost = other.plot(gammas, errors, "s--", ms=3, color=ORANGE, label="test error")
    lost.append(other.axhline(free_error, color=ORANGE, lw=1, ls=":", label="test error of Linear"))
    other.set_ylabel("test error / variance", color=ORANGE)
    right.legend(handles=[*zeros, *lost], loc="upper left")
    for axis in (left, right):
        log_ticks(axis, "x", subs=(1,))
    return figure


@styled
def maps_identification(
    predicted: dict, expected: Tensor, member: int, trained: int, radii: dict, true_radius: float, errors: dict
) -> Figure:
    """A roll-out of one member, spectral radii [members] and errors over time [members, steps] by hidden map."""
    figure = Figure(figsize=(12, 7))
    axes = figure.subplot_mosaic([["run", "run"], ["radius", "error"]])
    hue = dict(zip(radii, (ORANGE, BLUE, GREEN, PINK)))
    run, steps = axes["run"], len(expected)
    run.axvspan(0, trained, color="0.85", zorder=0, label="length of the experiments")
    for name, position in predicted.items():
        run.plot(position, color=hue[name], lw=0.9, label=f"{name}, radius {radii[name][member]:.4f}")
    run.plot(expected, color="k", lw=2.2, alpha=0.35, label="true", zorder=1)
    reach = 1.6 * float(expected.abs().max())
    run.set(xlim=(0, steps // 2), ylim=(-reach, reach), xlabel="step", ylabel="position of the middle mass")
    run.set_title(f"Roll-out under fresh forces, member {member}")
    run.legend(loc="upper left", ncols=4, framealpha=1)
    for i, (name, radius) in enumerate(radii.items()):
        axes["radius"].plot(i + torch.linspace(-0.2, 0.2, len(radius)), radius, "o", color=hue[name], alpha=0.8)
        smooth = errors[name].unfold(1, 50, 25).mean(-1)
        lines = axes["error"].plot(25 * torch.arange(smooth.shape[1]) + 25, smooth.T, color=hue[name], lw=1, alpha=0.75)
        lines[0].set_label(name)
    axes["radius"].axhline(1, color="k", lw=1, label="bound of stability")
    axes["radius"].axhline(true_radius, color="k", lw=1, ls=":", label="true")
    axes["radius"].set_xticks(range(len(radii)), [name.replace("Skew", "\nSkew") for name in radii])
    axes["radius"].set(xlabel="hidden map", ylabel="spectral radius", title="Spectral radii of all members")
    axes["radius"].legend()
    axes["error"].axhline(1, color="0.5", lw=0.8, ls="--", label="predicting rest")
    axes["error"].set(
        yscale="log", xlabel="step", ylabel="error / size of the motion", title="Error over time, all members"
    )
    axes["error"].legend(loc="upper left")
    return figure
