"""Figures of factorized weights: errors, accuracies, times and ranks by kind of factorization."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from figures import BLUE, COLORS, GREEN, ORANGE, PINK, SKY, log_ticks, panels, styled, ticks_at

KIND_COLORS = {"lowrank": BLUE, "tt": ORANGE, "cp": GREEN, "tucker": PINK, "blocktt": SKY}
KIND_MARKERS = {"lowrank": "o", "tt": "s", "cp": "^", "tucker": "D", "blocktt": "v"}


def kind_style(kind: str) -> dict:
    """Colour and marker of a factorization."""
    return {"color": KIND_COLORS[kind], "marker": KIND_MARKERS[kind], "ms": 5}


@styled
def factorized_kinds(rows: list[dict], references: list[tuple], dense_accuracy: float) -> Figure:
    """Errors of both layers, and shares of digits read wrong, over the number of parameters.

    rows: kind, modes, weights and errors of both layers, params, "at once" and "tuned" [members];
    references: (units, parameters, accuracies) of small dense networks.
    """
    figure, axes = panels(2, 2, 11, 7.6)
    contents = (
        ("Layer 1 (pixels to units)", "relative error", lambda r: (r["weights"][0], r["errors"][0])),
        ("Layer 2 (units to units)", "relative error", lambda r: (r["weights"][1], r["errors"][1])),
        ("The network, at once", "share of wrong digits", lambda r: (r["params"], 1 - r["at once"].mean())),
        ("The network, fine-tuned", "share of wrong digits", lambda r: (r["params"], 1 - r["tuned"].mean())),
    )
    for k, (axis, (title, label, point)) in enumerate(zip(axes.flat, contents)):
        for kind, modes in dict.fromkeys((row["kind"], row["modes"]) for row in rows):
            points = [point(row) for row in rows if (row["kind"], row["modes"]) == (kind, modes)]
            name = kind if modes == 1 else f"{kind}, {modes} modes"
            axis.plot(*zip(*points), ls="--" if modes == 3 else "-", label=name, **kind_style(kind))
        if k > 1:
            axis.plot([r[1] for r in references], [1 - r[2].mean() for r in references], "k*:", label="small dense")
            log_ticks(axis, "y")
        axis.axhline(1 - dense_accuracy if k > 1 else 0, color="k", lw=1, ls="-.", label="dense network")
        axis.set(ylabel=label, title=title, xlabel=f"parameters of the {'network' if k > 1 else 'layer'}")
        log_ticks(axis, "x")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


@styled
def factorized_times(timings: list[tuple], budget: float) -> Figure:
    """Times over multiplications, both relative to dense; timings: (size, rows, kind, seconds, share, ratio)."""
    figure, axes = panels(1, 2, 11, 4.4, sharey=True)
    names = list(dict.fromkeys(size for size, *_ in timings))
    for axis, batch in zip(axes, dict.fromkeys(rows for _, rows, *_ in timings)):
        for size, rows, kind, _, share, ratio in timings:
            if rows == batch:
                area, mark = (25, 60, 130)[names.index(size)], KIND_MARKERS[kind]
                axis.scatter(share, ratio, area, KIND_COLORS[kind], marker=mark, edgecolors="k", lw=0.5, zorder=2)
        axis.axline((1, 1), (10, 10), color="0.5", ls=":", zorder=1)
        axis.axhline(1, color="k", lw=1, ls="-.", zorder=1)
        axis.axvline(budget, color="0.5", lw=1, ls="--", zorder=1)
        axis.set(title=f"{batch} row{'s' if batch > 1 else ''} of x", xlabel="multiplications / those of dense")
        log_ticks(axis, "x", "y", subs=(1,))
    axes[0].set_ylabel("time / time of dense")
    marks = [Line2D([], [], ls="", label=kind, **kind_style(kind)) for kind in KIND_COLORS]
    marks += [
        Line2D([], [], ls="", marker="o", mfc="none", color="k", ms=m, label=s) for m, s in zip((5, 8, 11), names)
    ]
    marks += [Line2D([], [], color="k", lw=1, ls="-.", label="as fast as dense")]
    marks += [Line2D([], [], color="0.5", ls=":", label="time as multiplications")]
    marks += [Line2D([], [], color="0.5", lw=1, ls="--", label="share of the parameters")]
    figure.legend(handles=marks, loc="outside lower center", ncols=6, frameon=False)
    return figure


@styled
def factorized_joint(budgets: Sequence[float], shared: dict, dense_accuracies: dict) -> Figure:
    """Errors and accuracies of single and joint tensors.

    shared: (case, kind) -> [budgets, alone or joint, error or accuracy]; dense_accuracies: case -> number.
    """
    figure, axes = panels(2, len(dense_accuracies), 12, 6.6, sharex=True, sharey="row")
    for column, (case, accuracy) in enumerate(dense_accuracies.items()):
        for row in range(2):
            axis = axes[row, column]
            for kind in dict.fromkeys(kind for _, kind in shared):
                values = shared[case, kind][:, :, row]
                axis.plot(budgets, values[:, 0], "-", label=f"{kind}, alone", **kind_style(kind))
                axis.plot(budgets, values[:, 1], "--", mfc="w", label=f"{kind}, joint", **kind_style(kind))
            axis.axhline(accuracy if row else 0, color="k", lw=1, ls="-.", label="dense")
            ticks_at(axis, budgets, [f"{b:g}" for b in budgets])
        axes[0, column].set_title(case)
        axes[1, column].set_xlabel("budget, of all these layers together")
    axes[0, 0].set_ylabel("relative error")
    axes[1, 0].set_ylabel("test accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    return figure


@styled
def factorized_lasso(penalties: Tensor, bonds: dict, networks: dict, dense_accuracy: float) -> Figure:
    """Values of each bond that are not zero [penalties], and accuracies: label -> [(parameters, at once, tuned)]."""
    figure, (left, right) = panels(1, 2, 11, 4)
    for (label, ranks), color, marker in zip(bonds.items(), COLORS, "os^"):
        left.plot(penalties, ranks, color=color, marker=marker, label=label)
    left.set(xlabel="penalty", ylabel="values of the bond that are not zero", title="Ranks that the lasso leaves")
    for (name, points), kind in zip(networks.items(), ("tt", "lowrank")):
        sizes, at_once, tuned = zip(*points)
        right.plot(sizes, at_once, ls="--", mfc="w", label=f"{name}, at once", **kind_style(kind))
        right.plot(sizes, tuned, label=f"{name}, fine-tuned", **kind_style(kind))
    right.axhline(dense_accuracy, color="k", lw=1, ls="-.", label="dense network")
    right.set(xlabel="parameters of layer 1", ylabel="test accuracy", title="Ranks by lasso and by rule")
    log_ticks(left, "x", "y")
    log_ticks(right, "x")
    left.legend()
    right.legend()
    return figure
