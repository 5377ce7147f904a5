"""Figures of Fisher matrices: pictures of them, errors of estimates, training by them, Laplace posteriors."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from figures import BLUE, COLORS, GREEN, ORANGE, PINK, SKY, log_ticks, panels, styled, ticks_at


@styled
def fisher_representations(matrices: dict, sizes: dict, errors: dict) -> Figure:
    """Matrices [d, d] by name on one logarithmic scale; sizes: layer -> parameters, in the order of the rows."""
    figure, axes = panels(2, 4, 12, 6.3)
    top = float(next(iter(matrices.values())).abs().max().log10())
    edges = torch.tensor([0, *sizes.values()]).cumsum(0).tolist()
    middle = [(a + b) / 2 for a, b in zip(edges, edges[1:])]
    for (name, matrix), axis in zip(matrices.items(), axes.flat):
        shown = torch.nn.functional.max_pool2d(matrix.abs()[None], 2)[0].clamp_min(1e-30).log10()
        extent = (0, len(matrix), len(matrix), 0)
        picture = axis.imshow(shown, cmap="cividis", vmin=top - 5, vmax=top, interpolation="nearest", extent=extent)
        for edge in edges[1:-1]:
            axis.axhline(edge, color="w", lw=0.4)
            axis.axvline(edge, color="w", lw=0.4)
        axis.set_xticks(middle, sizes, fontsize=8)
        axis.set_yticks(middle, sizes, fontsize=8, rotation=90, va="center")
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_title(f"{name}, error {errors[name]:.2f}" if errors[name] > 1e-6 else f"{name}: the whole matrix")
    figure.colorbar(picture, ax=axes, label="log10 of |F_ij| (the largest of 2 × 2 entries)", shrink=0.8)
    figure.suptitle("One Fisher matrix in eight representations: rows and columns by layer, bias before weight")
    return figure


@styled
def fisher_estimators(samples: Sequence[int], sampled: dict, slopes: dict, empirical: dict, course: list) -> Figure:
    """Errors of sampled matrices by representation, and traces in training: (step, sampled, empirical) over exact."""
    figure, (left, right) = panels(1, 2, 11, 4)
    for (name, found), color, marker in zip(sampled.items(), COLORS, "os^"):
        left.plot(samples, found, marker + "-", color=color, label=f"{name}, slope {slopes[name]:.2f}")
        left.axhline(empirical[name], color=color, ls=":")
    left.plot([], [], color="k", ls=":", label="empirical, the same colours")
    left.set(xlabel="labels drawn per digit", ylabel="relative error", title="Error against the exact matrix")
    ticks_at(left, samples, [str(n) for n in samples])
    log_ticks(left, "y")
    for label, column, color, style in (("empirical", 2, PINK, "D--"), ("one drawn label", 1, SKY, "v-")):
        right.plot([max(c[0], 10) for c in course], [c[column] for c in course], style, color=color, label=label)
    right.axhline(1, color="0.5", lw=0.8, ls=":", label="exact")
    right.set(xlabel="step of training", ylabel="trace / trace of the exact", ylim=(0, None))
    right.set_title("Scale in the course of training")
    ticks_at(right, [max(c[0], 10) for c in course], [f"{c[0]}" if c[0] else "init" for c in course])
    left.legend()
    right.legend()
    return figure


@styled
def fisher_natural_gradient(curves: dict) -> Figure:
    """Losses and accuracies per step and per second; curves: method -> [(step, seconds, losses, accuracies, ...)]."""
    looks = (("k", "o-"), (GREEN, "s-"), (ORANGE, "^--"), (BLUE, "v--"), (ORANGE, "D-"), (BLUE, "P-"), (PINK, "X-"))
    figure, axes = panels(2, 2, 11, 7.2, sharex="col", sharey="row")
    for (name, curve), (color, style) in zip(curves.items(), looks):
        for column in range(2):
            xs = [point[column] for point in curve]
            for row in range(2):
                ys = torch.stack([point[2 + row] for point in curve])
                axes[row, column].plot(xs, ys.mean(1), style, color=color, ms=4, lw=1.3, label=name)
                axes[row, column].fill_between(xs, ys.amin(1), ys.amax(1), color=color, alpha=0.12, lw=0)
    axes[0, 0].set(ylabel="training loss, nats", title="Per step")
    axes[0, 1].set_title("Per second (four members on one thread)")
    axes[1, 0].set(xlabel="step", ylabel="test accuracy", ylim=(0.5, 0.96))
    axes[1, 1].set(xlabel="time of the processor, seconds")
    log_ticks(axes[0, 0], "y", subs=(1, 3))
    log_ticks(axes[1, 0], "x")
    log_ticks(axes[1, 1], "x", subs=(1,))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    return figure


@styled
def fisher_kfac(curves: dict, passed: tuple | None) -> Figure:
    """Losses per step and per second; curves: optimizer -> [(step, seconds, loss)]; passed: where K-FAC passes Adam."""
    looks = ((ORANGE, "D-"), (ORANGE, "^:"), (BLUE, "s-"), (GREEN, "o-"))
    figure, axes = panels(1, 2, 11, 4.2, sharey=True)
    for (name, curve), (color, style) in zip(curves.items(), looks):
        for column, axis in enumerate(axes):
            marks = max(1, len(curve) // 20)
            xs, ys = [point[column] for point in curve], [point[2] for point in curve]
            axis.plot(xs, ys, style, color=color, ms=4, lw=1.3, markevery=marks, label=name)
    if passed is not None:
        axes[1].plot(
            passed[1], passed[2], "o", ms=14, mfc="none", color="k", label="K-FAC is ahead of Adam from here on"
        )
    steps = max(curve[-1][0] for name, curve in curves.items() if name != "Adam")
    axes[0].set(xlabel="step", ylabel="loss, nats per image", xlim=(0, steps), title="Per step")
    axes[1].set(xlabel="time of the processor, seconds", xlim=(0, None), title="Per second (one thread)")
    for axis in axes:
        axis.set_ylim(75, 300)
        axis.set_yscale("log")
        axis.set_yticks((80, 100, 125, 150, 200, 250, 300), ("80", "100", "125", "150", "200", "250", "300"))
        axis.set_yticks((), minor=True)
        axis.legend()
    return figure


@styled
def fisher_laplace(priors: Tensor, evidence: dict, test_loss: dict, angles: Sequence[float], rotated: dict) -> Figure:
    """Evidence and test losses over priors, losses and calibration errors on rotated digits.

    evidence: representation -> [priors]; test_loss: the same and "mode"; rotated: predictor -> [(loss, error, ...)].
    """
    figure, axes = panels(2, 2, 11, 7.4)
    styles = {
        name: {"color": c, "marker": m, "ms": 5} for name, c, m in zip(evidence, (*COLORS[:2], PINK, GREEN), "osD^")
    }
    for name, style in styles.items():
        axes[0, 0].plot(priors, evidence[name], label=name, **style)
        best = max(range(len(priors)), key=evidence[name].__getitem__)
        axes[0, 0].plot(priors[best], evidence[name][best], "o", ms=13, mfc="none", color=style["color"])
        axes[0, 1].plot(priors, test_loss[name], label=f"Laplace, {name}", **style)
    axes[0, 1].plot(priors, test_loss["mode"], "k*--", label="at the mode")
    axes[0, 0].set(xlabel="prior precision", ylabel="log evidence, nats", title="Evidence (ring: the largest)")
    axes[0, 1].set(xlabel="prior precision", ylabel="test loss, nats", title="Test loss, digits upright")
    modes = [{"color": "k", "ls": ":", "marker": "."}, {"color": "k", "ls": "--", "marker": "*"}]
    for (name, rows), style in zip(rotated.items(), (*modes, *styles.values())):
        axes[1, 0].plot(angles, [row[0] for row in rows], label=name, **style)
        axes[1, 1].plot(angles, [row[1] for row in rows], label=name, **style)
    axes[1, 0].set(ylabel="loss, nats", title="Loss on rotated digits")
    axes[1, 1].set(ylabel="expected calibration error", title="Calibration on rotated digits")
    for axis in axes[0]:
        log_ticks(axis, "x", subs=(1,))
    for axis in axes[1]:
        axis.set_xlabel("rotation, degrees")
        axis.set_xticks(angles)
    log_ticks(axes[1, 0], "y")
    for axis in axes.flat:
        axis.legend()
    return figure


@styled
def fisher_cost(grown: dict) -> Figure:
    """Times over what grows, beside multiplications; grown: what -> way -> [(size, seconds, multiplications)]."""
    figure, axes = panels(1, len(grown), 13, 3.8, sharey=True)
    for (what, ways), axis in zip(grown.items(), axes):
        for (way, points), color, marker in zip(ways.items(), COLORS, "os^"):
            sizes, seconds, must = zip(*points)
            axis.plot(sizes, [1e3 * s for s in seconds], marker + "-", color=color, ms=4, lw=1.3, label=way)
            scaled = [1e3 * seconds[-1] * m / must[-1] for m in must]
            axis.plot(sizes, scaled, "--", color=color, lw=1, alpha=0.8)
        axis.plot([], [], "--", color="0.4", lw=1, label="what must be computed")
        axis.set(xlabel=what, title=f"{what}, {sizes[0]} to {sizes[-1]}", ylim=(0.2, None))
        ticks_at(axis, sizes, [str(n) for n in sizes])
    axes[0].set_ylabel("time of the processor, ms")
    log_ticks(axes[0], "y", subs=(1,))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
